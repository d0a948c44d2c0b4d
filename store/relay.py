"""What the scheduler looks for: rows that should run and that nobody has woken, and results that nobody was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from .settle import CoreEventRow
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from .pool import Connection

_SQL = statements("relay")


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


@dataclass(frozen=True, slots=True)
class OutboxRow:
    id: UUID
    company_id: str
    event_type: str
    subject: str | None
    connection_id: str | None
    payload: str
    idempotency_key: str | None


async def take(connection: Connection, look: Look, limit: int) -> list[Asleep]:
    """Marks the rows as woken and returns them; the caller publishes after the commit."""
    rows = await connection.fetch(_SQL[look.name], look.grace, limit)
    deliveries = [row["connection_id"] for row in rows if row["parent_id"] is not None]
    vendors = {r["id"]: r["vendor"] for r in await connection.fetch(_SQL["vendors"], deliveries)} if deliveries else {}
    return [
        Asleep(
            row["id"],
            row["company_id"],
            row["event_type"],
            row["trace"],
            vendors.get(row["connection_id"]) if row["parent_id"] is not None else None,
        )
        for row in rows
    ]


async def untold(connection: Connection, grace: float, limit: int) -> list[CoreEventRow]:
    """Locked until the transaction ends, so that one scheduler publishes each."""
    return [
        CoreEventRow(
            r["company_id"],
            r["connection_id"],
            r["event_type"],
            r["subject"],
            r["data"],
            r["cause_id"],
            r["trace"],
            r["id"],
        )
        for r in await connection.fetch(_SQL["core"], grace, limit)
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


async def open_letters(connection: Connection) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["open_letters"]))
