"""What the scheduler looks for: rows that should run and that nobody has woken, and results that nobody was told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from .outbound import wake_waiting
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import asyncpg

    from .pool import Connection

_SQL = statements("relay")
Place = tuple[datetime, UUID]  # when a row was woken, and which of those that were woken then

_BEGIN: Place = datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0)


@dataclass(frozen=True, slots=True)
class Look:
    """name: the statement and the metric's label; grace: seconds that a row is left to its ordinary way."""

    name: str
    grace: float


@dataclass(frozen=True, slots=True)
class Asleep:
    """A row to wake. vendor: only of a delivery."""

    id: UUID
    company_id: str
    event_type: str
    trace: str | None
    vendor: str | None
    connection_id: str | None
    inbound: bool


@dataclass(frozen=True, slots=True)
class OutboxRow:
    id: UUID
    company_id: str
    event_type: str
    subject: str | None
    connection_id: str | None
    payload: str
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Whether there is anything for each look. due_in: seconds to the next retry; None: none waits"""

    unpublished: bool
    due: bool
    expired: bool
    stale: bool
    untold: bool
    outbox: bool
    due_in: float | None


async def waiting(connection: Connection, unpublished: Look, stale: Look, untold: float) -> Waiting:
    """untold: seconds for which results are left to who made them"""
    row = await connection.fetchrow(_SQL["waiting"], unpublished.grace, stale.grace, untold)
    if row is None:
        raise AssertionError("a select without a table has a row")
    return Waiting(*row)


async def take(connection: Connection, look: Look, limit: int) -> list[Asleep]:
    """Marks the rows as woken and returns them; the caller publishes after the commit."""
    return await _asleep(connection, await connection.fetch(_SQL[look.name], look.grace, limit))


async def take_expired(connection: Connection, look: Look, limit: int) -> list[Asleep]:
    """As `take`. What waits beside a delivery among them is woken by the next look: who had it may have turned that away, because so
    much was under way, or because of its lane, and nobody else knows of it."""
    asleep = await take(connection, look, limit)
    behind = {row.connection_id for row in asleep if row.vendor is not None and row.connection_id is not None}
    await wake_waiting(connection, behind, but=[row.id for row in asleep])
    return asleep


async def take_in_turn(connection: Connection, look: Look, limit: int, after: str = "") -> list[Asleep]:
    """As `take`, for rows that nobody has woken: company by company, from the one behind `after` on."""
    return await _asleep(connection, await connection.fetch(_SQL[look.name], look.grace, limit, after))


async def stale(
    connection: Connection, look: Look, limit: int, after: Place | None = None
) -> tuple[list[Asleep], Place | None]:
    """Rows whose wake-up may be lost, unmarked, in the order in which they were woken, of `limit` that are read; and the place of
    the last one that was read, or None after the last one that there is.
    """
    rows = await connection.fetch(_SQL[look.name], look.grace, limit, *(after or _BEGIN))
    last = rows[-1] if rows and rows[-1]["n"] == limit else None
    asleep = await _asleep(connection, [row for row in rows if row["asleep"]])
    return asleep, None if last is None else (last["published_at"], last["id"])


async def take_lost(connection: Connection, look: Look, ids: Sequence[UUID]) -> list[Asleep]:
    """As `take`, for those of the stale rows that are still stale."""
    return await _asleep(connection, await connection.fetch(_SQL["lost"], look.grace, ids))


async def _asleep(connection: Connection, rows: Sequence[asyncpg.Record]) -> list[Asleep]:
    deliveries = [row["connection_id"] for row in rows if row["parent_id"] is not None]
    vendors = {r["id"]: r["vendor"] for r in await connection.fetch(_SQL["vendors"], deliveries)} if deliveries else {}
    return [
        Asleep(
            row["id"],
            row["company_id"],
            row["event_type"],
            row["trace"],
            vendors.get(row["connection_id"]) if row["parent_id"] is not None else None,
            row["connection_id"],
            row["direction"] == "inbound",
        )
        for row in rows
    ]


async def outbox(connection: Connection, limit: int) -> list[OutboxRow]:
    return [OutboxRow(*row) for row in await connection.fetch(_SQL["outbox"], limit)]


async def outbox_taken(connection: Connection, rows: Sequence[tuple[UUID, UUID | None, str | None]]) -> None:
    """rows: (outbox id, event id, why it was not taken)"""
    if rows:
        await connection.execute(_SQL["outbox_taken"], *(list(column) for column in zip(*rows, strict=True)))


async def backlog(connection: Connection) -> asyncpg.Record:
    row = await connection.fetchrow(_SQL["backlog"])
    if row is None:
        raise AssertionError("a select of aggregates always has a row")
    return row


async def open_letters(connection: Connection, known: Collection[str]) -> list[asyncpg.Record]:
    """By vendor, owner and operation. known: types of commands; what else a stranger calls his events is `other`"""
    return list(await connection.fetch(_SQL["open_letters"], list(known)))
