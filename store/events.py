"""Events as operators look at them; personal data is not among the columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .statements import statements

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

    from .pool import Connection

_SQL = statements("events")
COUNTED = 10_000  # totals are exact up to here


@dataclass(frozen=True, slots=True)
class Filter:
    """None matches all."""

    status: str | None = None
    vendor: str | None = None
    company_id: str | None = None
    event_type: str | None = None


async def find(connection: Connection, wanted: Filter, limit: int, before: UUID | None = None) -> list[asyncpg.Record]:
    """Newest first; before: the last id of the page before."""
    return list(
        await connection.fetch(
            _SQL["list"], wanted.status, wanted.vendor, wanted.company_id, wanted.event_type, before, limit
        )
    )


async def count(connection: Connection, wanted: Filter) -> int:
    """At most COUNTED."""
    return int(
        await connection.fetchval(_SQL["count"], wanted.status, wanted.vendor, wanted.company_id, wanted.event_type)
    )


async def show(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(_SQL["show"], id_)


async def attempts(connection: Connection, id_: UUID) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["attempts"], id_))


async def deliveries(connection: Connection, id_: UUID) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["deliveries"], id_))
