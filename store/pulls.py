"""Which connections are pulled when, by whom, and how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from .pool import Connection

_SQL = statements("pulls")


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to pull one connection. worker and started_at tell it from an earlier holder's.

    covered_until  up to when the vendor's changes were asked for; of a connection that never was pulled, when it was added
    failures       in a row, before this
    """

    connection_id: str
    worker: str
    started_at: datetime
    covered_until: datetime
    failures: int

    @property
    def token(self) -> tuple[str, str, datetime]:
        return self.connection_id, self.worker, self.started_at


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of a reservation. fields: by the names of Reservation; guest: sealed, as int_guests has it."""

    source_event: UUID
    source_version: datetime
    fields: Mapping[str, Any]
    guest: bytes | None


async def due(
    connection: Connection,
    vendors: Sequence[str],
    every: float,
    worker: str,
    under_way: Collection[str],
    *,
    most: int,
    share: int,
) -> list[str]:
    """Those whose pulls may begin now.

    under_way  connections that this worker pulls
    most       pulls of one vendor that it has at once, these included
    share      of them, of one company
    """
    rows = await connection.fetch(_SQL["due"], vendors, every, list(under_way), most, share, worker)
    return [row["id"] for row in rows]


async def claim(connection: Connection, ids: Sequence[str], worker: str, lease: float) -> list[Lease]:
    """ids: of which the worker pulls none; its name is no other's. lease in seconds. returns those that nobody else holds"""
    return [Lease(*row) for row in await connection.fetch(_SQL["claim"], ids, worker, lease)]


async def holder(connection: Connection, connection_id: str) -> tuple[str, datetime] | None:
    row = await connection.fetchrow(_SQL["holder"], connection_id)
    return None if row is None else (row["worker"], row["started_at"])


async def hold(connection: Connection, lease: Lease, seconds: float) -> bool:
    """From now on for so long. False: it ran out, and another has it or has ended it"""
    return await connection.fetchval(_SQL["hold"], *lease.token, seconds) is not None


async def stored(
    connection: Connection, connection_id: str, facts: Sequence[tuple[str, UUID]]
) -> dict[int, Stored | None]:
    """facts: (external id, event that has its key). By place in `facts`, where that event has had its end; None: nothing is."""
    if not facts:
        return {}
    columns = zip(*((n, *fact) for n, fact in enumerate(facts)), strict=True)
    return {row["n"]: _stored(row) for row in await connection.fetch(_SQL["stored"], connection_id, *columns)}


def _stored(row: asyncpg.Record) -> Stored | None:
    if row["source_event"] is None:
        return None
    return Stored(row["source_event"], row["source_version"], dict(list(row.items())[3:-1]), row["guest"])


async def known(connection: Connection, company_id: str, keys: Sequence[str]) -> set[str]:
    return {row["idempotency_key"] for row in await connection.fetch(_SQL["known"], company_id, keys)}


async def finish(
    connection: Connection, lease: Lease, *, listed: int, recorded: int, spread: float, covers: bool
) -> None:
    await connection.execute(_SQL["finish"], *lease.token, listed, recorded, spread, covers)


async def fail(connection: Connection, lease: Lease, error_class: str, error: str, wait: float) -> None:
    """wait: seconds until it is tried again"""
    await connection.execute(_SQL["fail"], *lease.token, error_class, error, wait)


async def put_off(connection: Connection, lease: Lease, wait: float) -> None:
    await connection.execute(_SQL["put_off"], *lease.token, wait)


async def overview(connection: Connection, vendors: Sequence[str], every: float) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["overview"], vendors, every))
