"""Recording vendors' facts: those of webhooks (the hot path of the ingress), and those that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import orjson

from schemas.ids import uuid7

from .seal import split
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from schemas.vocabulary import EntityType

    from .directory import Known
    from .pool import Connection

_SQL = statements("ingest")


@dataclass(slots=True)
class FactRow:
    """A row for `channel_events`; payload is JSON text without personal data, sealed holds that."""

    id: UUID
    company_id: str
    connection_id: str
    property_id: str | None
    event_type: str
    entity_type: str
    entity_external_id: str
    idempotency_key: str
    payload: str
    sealed: bytes | None
    trace: str
    max_attempts: int


@dataclass(slots=True)
class RequestRow:
    """A row for `webhook_log`. status is the answer if something new is recorded; a pure duplicate becomes 200."""

    received_at: datetime
    platform: str
    connection_id: str | None
    company_id: str | None
    method: str
    status: int
    signature: str
    error: str | None
    size: int  # bytes
    body: bytes | None
    facts: Sequence[FactRow] = ()


@dataclass(frozen=True, slots=True)
class FactOutcome:
    """id is the row under which the fact stands, whoever recorded it."""

    id: UUID
    recorded: bool


class Told(Protocol):
    """What a vendor told, as adapters.port.Fact has it."""

    @property
    def event_type(self) -> str: ...
    @property
    def entity_type(self) -> EntityType: ...
    @property
    def external_id(self) -> str: ...
    @property
    def payload(self) -> Mapping[str, Any]: ...
    @property
    def idempotency_key(self) -> str | None: ...
    @property
    def property_external_id(self) -> str | None: ...


def fact_row(
    fact: Told, known: Known, personal: tuple[tuple[str, ...], ...], *, trace: str, max_attempts: int
) -> FactRow:
    """personal: the paths whose values are sealed. Whichever way a fact comes, its row and its key are the same."""
    connection = known.connection
    readable, private = split(fact.payload, personal)
    id_ = uuid7()
    return FactRow(
        id=id_,
        company_id=connection.company_id,
        connection_id=connection.id,
        property_id=fact.property_external_id,
        event_type=fact.event_type,
        entity_type=fact.entity_type.value,
        entity_external_id=fact.external_id,
        idempotency_key=f"{connection.id}:{fact.idempotency_key or id_}",
        payload=orjson.dumps(readable).decode(),
        sealed=known.cipher.seal(private),
        trace=trace,
        max_attempts=max_attempts,
    )


async def record(connection: Connection, requests: Sequence[RequestRow]) -> list[list[FactOutcome]]:
    """Durable when it returns (one statement, one commit); the outcomes of each request's facts, in order."""
    facts: list[FactRow] = []
    spans: list[tuple[int, int]] = []  # of each request: its first fact, and the one after its last
    for request in requests:
        begin = len(facts)
        facts += request.facts
        spans.append((begin, len(facts)))
    logged = [
        (r.received_at, r.platform, r.connection_id, r.company_id, r.method, r.status, r.signature, r.error, r.size,
         r.body, begin + 1, end)
        for r, (begin, end) in zip(requests, spans, strict=True)
    ]  # fmt: skip
    outcomes = await _record(connection, logged, facts)
    return [outcomes[begin:end] for begin, end in spans]


async def warm(connection: Connection) -> None:
    """Has the statements of the hot path planned, and writes nothing: the first time in a session takes 10 ms."""
    await _record(connection, [], [])
    await mark_published(connection, [])


async def record_facts(connection: Connection, facts: Sequence[FactRow]) -> list[FactOutcome]:
    """As `record`, for facts that no request brought: nothing is written to `webhook_log`."""
    return await _record(connection, [], facts) if facts else []


async def _record(
    connection: Connection, logged: Sequence[tuple[Any, ...]], facts: Sequence[FactRow]
) -> list[FactOutcome]:
    """logged: rows of the type webhook_row"""
    rows = [
        (f.id, f.company_id, f.connection_id, f.property_id, f.event_type, f.entity_type, f.entity_external_id,
         f.idempotency_key, f.payload, f.sealed, f.trace, f.max_attempts)
        for f in facts
    ]  # fmt: skip
    (answer,) = await connection.fetch(_SQL["record"], logged, rows)
    found = [FactOutcome(*outcome) for outcome in zip(answer["ids"] or (), answer["recorded"] or (), strict=True)]
    # What another call committed while ours waited for it is not in the view of our statement, but in that of the next.
    late = [n for n, outcome in enumerate(found) if outcome.id is None]
    if late:
        keys = [[getattr(facts[n], name) for n in late] for name in ("company_id", "idempotency_key")]
        for n, row in zip(late, await connection.fetch(_SQL["standing"], *keys), strict=True):
            found[n] = FactOutcome(row["id"], recorded=False)
    return found


async def mark_published(connection: Connection, ids: Sequence[UUID]) -> list[str]:
    """returns the types of those that still wait"""
    return [row["event_type"] for row in await connection.fetch(_SQL["mark_published"], ids)]
