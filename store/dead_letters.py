"""Dead letters as operators and the recorder handle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from schemas.vocabulary import Fault, Owner

from .relay import Asleep
from .settle import DeadLetterRow
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from .pool import Connection

_SQL = statements("dead_letters")


@dataclass(frozen=True, slots=True)
class Behind:
    """The event behind a dead message."""

    id: UUID
    status: str
    starts: int
    asleep: Asleep


@dataclass(frozen=True, slots=True)
class Filter:
    """None matches all; status None means open (pending or retrying)."""

    status: str | None = None
    vendor: str | None = None
    company_id: str | None = None
    operation: str | None = None
    error_class: str | None = None
    fingerprint: str | None = None


async def behind_letters(connection: Connection, ids: Sequence[UUID]) -> list[Behind]:
    return [
        Behind(
            r["id"],
            r["status"],
            r["starts"],
            Asleep(r["id"], r["company_id"], r["event_type"], r["trace"], r["vendor"] if r["delivery"] else None),
        )
        for r in await connection.fetch(_SQL["behind_letters"], ids)
    ]


async def park_poison(connection: Connection, ids: Sequence[UUID]) -> list[DeadLetterRow]:
    """Ends these events as failed; the letters that the caller must bury in the same transaction."""
    if not ids:
        return []
    return [
        DeadLetterRow(
            event_id=r["id"],
            company_id=r["company_id"],
            connection_id=r["connection_id"],
            vendor=r["vendor"],
            queue=None,
            operation=r["event_type"],
            entity_type=r["entity_type"],
            entity_external_id=r["entity_external_id"],
            entity_internal_id=r["entity_internal_id"],
            error_class=Fault.POISON.value,
            error_code="poison",
            error_message=r["last_error"],
            attempts=r["attempts"],
            first_attempt_at=r["received_at"],
            owner=Owner.PIPELINE.value,
        )
        for r in await connection.fetch(_SQL["park_poison"], ids)
    ]


async def find(connection: Connection, wanted: Filter, limit: int, before: UUID | None = None) -> list[asyncpg.Record]:
    """Newest first; before: the last id of the page before."""
    return list(
        await connection.fetch(
            _SQL["list"],
            wanted.status,
            wanted.vendor,
            wanted.company_id,
            wanted.operation,
            wanted.error_class,
            wanted.fingerprint,
            before,
            limit,
        )
    )


async def show(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    """By its own id or by its event's."""
    return await connection.fetchrow(_SQL["show"], id_)


async def groups(connection: Connection, vendor: str | None, company_id: str | None) -> list[asyncpg.Record]:
    """Open letters by cause, with one of their messages."""
    return list(await connection.fetch(_SQL["groups"], vendor, company_id))


async def requeue(
    connection: Connection, event_ids: Sequence[UUID], actor: str, note: str | None = None
) -> list[tuple[UUID, str]]:
    """returns (event id, company) of those that had failed or been abandoned and now go again"""
    return [(r["id"], r["company_id"]) for r in await connection.fetch(_SQL["requeue"], event_ids, actor, note)]


async def abandon(connection: Connection, letter_ids: Sequence[UUID], actor: str, reason: str) -> list[dict[str, Any]]:
    """Gives up, for good and with a reason; lanes that were held go on."""
    rows = [dict(row) for row in await connection.fetch(_SQL["abandon"], letter_ids, actor, reason)]
    lanes = [row["lane"] for row in rows if row["lane"]]
    if lanes:
        await connection.execute(_SQL["wake_lanes"], lanes)
    return rows
