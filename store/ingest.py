"""Recording webhooks: the hot path of the ingress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

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


async def record(connection: Connection, requests: Sequence[RequestRow]) -> list[list[FactOutcome]]:
    """Durable when it returns (one statement, one commit); the outcomes of each request's facts, in order."""
    request_columns = zip(
        *(
            (n, r.received_at, r.platform, r.connection_id, r.company_id, r.method, r.status, r.signature, r.error,
             r.size, r.body)
            for n, r in enumerate(requests)
        ),
        strict=True,
    )  # fmt: skip
    facts = [(n, fact) for n, request in enumerate(requests) for fact in request.facts]
    fact_rows = [
        (n, request, f.id, f.company_id, f.connection_id, f.property_id, f.event_type, f.entity_type,
         f.entity_external_id, f.idempotency_key, f.payload, f.sealed, f.trace, f.max_attempts)
        for n, (request, f) in enumerate(facts)
    ]  # fmt: skip
    fact_columns = zip(*fact_rows, strict=True) if fact_rows else [()] * 14
    rows = await connection.fetch(_SQL["record"], *request_columns, *fact_columns)
    outcomes: list[list[FactOutcome]] = [[] for _ in requests]
    for n, id_, recorded in sorted((row["n"], row["id"], row["recorded"]) for row in rows):
        outcomes[facts[n][0]].append(FactOutcome(id_, recorded))
    return outcomes


async def mark_published(connection: Connection, ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["mark_published"], ids)


async def mark_core_published(connection: Connection, ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["mark_core_published"], ids)
