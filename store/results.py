"""Results for the core and whoever listens: written with their cause, told after the commit, at least once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from schemas.ids import uuid7

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .pool import Connection

_SQL = statements("results")


@dataclass(slots=True)
class CoreEventRow:
    """One result; data is JSON text without personal data."""

    company_id: str
    connection_id: str | None
    event_type: str
    subject: str
    data: str
    cause_id: UUID
    trace: str | None
    id: UUID = field(default_factory=uuid7)


@dataclass(frozen=True, slots=True)
class Batch:
    """Results of one transaction. Its row is gone once the broker has confirmed all of them."""

    id: UUID
    rows: Sequence[CoreEventRow]


async def keep(connection: Connection, rows: Sequence[CoreEventRow]) -> Batch | None:
    """In the transaction of their cause; None if there are no rows."""
    if not rows:
        return None
    batch = Batch(uuid7(), rows)
    given = [(r.id, r.company_id, r.connection_id, r.event_type, r.subject, r.data, r.cause_id, r.trace) for r in rows]
    await connection.execute(_SQL["keep"], batch.id, given)
    return batch


async def told(connection: Connection, batch_ids: Sequence[UUID]) -> None:
    await connection.execute(_SQL["told"], batch_ids)


async def untold(connection: Connection, grace: float, limit: int, without: Sequence[UUID] = ()) -> list[Batch]:
    """Batches that nobody confirmed within `grace` seconds, but these; locked until the transaction ends, so that one scheduler
    tells each.
    """
    waiting = await connection.fetch(_SQL["untold"], grace, limit, without)
    if not waiting:
        return []
    wanted = [id_ for row in waiting for id_ in row["event_ids"]]
    found = {
        r["id"]: CoreEventRow(
            r["company_id"],
            r["connection_id"],
            r["event_type"],
            r["subject"],
            r["data"],
            r["cause_id"],
            r["trace"],
            r["id"],
        )
        for r in await connection.fetch(_SQL["of_batches"], wanted)
    }
    return [Batch(row["id"], [found[id_] for id_ in row["event_ids"] if id_ in found]) for row in waiting]
