"""The command line against a real database and broker: each test has its own of both, and a folder to stand in."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner

from adapters.registry import adapters
from ops.cli.app import app
from ops.parts import declared
from schemas.ids import uuid7
from store.seal import KeyFile
from store.settle import DeadLetterRow, bury
from topology.apply import apply

Db = asyncpg.Connection


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class Cli:
    """`await staybus("company", "list")`: in a thread, because a command brings its own event loop."""

    env: dict[str, str | None] = field(default_factory=dict, repr=False)

    async def __call__(self, *words: str, code: int | None = 0, typed: str | None = None) -> Answer:
        result = await asyncio.to_thread(CliRunner().invoke, app, list(words), input=typed, env=self.env)
        answer = Answer(result.exit_code, result.stdout, result.stderr)
        assert "Traceback" not in answer.err
        if code is not None:
            assert answer.code == code, (words, answer, result.exception)
        return answer

    def environment(self) -> Mapping[str, str]:
        """For a process of its own."""
        given = {name: value for name, value in self.env.items() if value is not None}
        return {name: value for name, value in os.environ.items() if not name.startswith("STAYBUS_")} | given


@pytest.fixture
async def amqp_url(amqp_url: str) -> str:
    """The project's own vhost, with the topology."""
    await apply(amqp_url, declared(adapters()))
    return amqp_url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command stands, with a key file where it is looked for."""
    monkeypatch.chdir(tmp_path)
    KeyFile.create(tmp_path / ".staybus/key")
    return tmp_path


@pytest.fixture
def staybus(folder: Path, database_url: str, amqp_url: str) -> Cli:
    return Cli({"STAYBUS_DATABASE_URL": database_url, "STAYBUS_AMQP_URL": amqp_url, "STAYBUS_DEBUG": None})


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def acme(staybus: Cli) -> Cli:
    """A company and its connection, as an operator makes them."""
    await staybus("company", "add", "acme", "--name", "Acme Stays")
    await staybus(
        *("connection", "add", "beds24", "--company", "acme", "--id", "beds24-acme", "--name", "Harbour Lofts"),
        *("--set", "currency=EUR", "--set", "webhook_auth=hmac", "--generate", "webhook_secret"),
    )
    return staybus


Fail = Callable[..., Any]


@pytest.fixture
def failed(db: Db, acme: Cli) -> Fail:
    """Makes a failed event with its dead letter. returns (event id, letter id)"""

    async def make(error: str = "unmapped", operation: str = "pms.booking.cancel") -> tuple[UUID, UUID]:
        id_ = uuid7()
        await db.execute(
            """INSERT INTO channel_events (id, company_id, connection_id, direction, event_type, idempotency_key, payload,
                   status, attempts, error_class, last_error)
               VALUES ($1, 'acme', 'beds24-acme', 'outbound', $2, $3, '{"reservationId": "R1"}', 'failed', 1, $4, 'no')""",
            id_, operation, str(id_), error,
        )  # fmt: skip
        row = DeadLetterRow(
            event_id=id_, company_id="acme", connection_id="beds24-acme", vendor="beds24", queue=None, operation=operation,
            entity_type="reservation", entity_external_id=None, entity_internal_id="R1", error_class=error, error_code=error,
            error_message="reservation: R1 is not mapped", attempts=1, first_attempt_at=datetime.now(UTC), owner="tenant",
        )  # fmt: skip
        await bury(db, [row])
        letter = await db.fetchval("SELECT id FROM dead_letters WHERE event_id = $1", id_)
        return id_, letter

    return make


async def status_of(db: Db, event_id: UUID) -> str:
    return str(await db.fetchval("SELECT status FROM channel_events WHERE id = $1", event_id))


async def audited(db: Db) -> list[str]:
    rows = await db.fetch("SELECT action FROM audit_log WHERE actor LIKE 'cli:%' ORDER BY id")
    return [row["action"] for row in rows]
