"""Dropping what is finished and old, a page at a time. The caller owns the transaction of each page."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from .pool import OUTAGES
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from .pool import Connection, Pool

_SQL = statements("retention")
_LOCK = "hashtextextended('staybus retention', 7203411961)"
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Keep:
    """Seconds. rows: events after they finished, logs, results; letters: dead letters after they were closed."""

    rows: float
    letters: float

    @classmethod
    def of_days(cls, rows: int, letters: int) -> Keep:
        return cls(rows * 86_400.0, letters * 86_400.0)


@dataclass(frozen=True, slots=True)
class Walk:
    """The way through one table. after: a place before its first row; given: the cutoffs that its pages ask for."""

    table: str
    after: tuple[Any, ...]
    given: Callable[[Keep], tuple[float, ...]]


WALKS = (
    Walk("channel_events", (0,), lambda keep: (keep.rows, keep.letters)),
    Walk("webhook_log", (0,), lambda keep: (keep.rows,)),
    Walk("core_events", (_FIRST,), lambda keep: (keep.rows,)),
    Walk("outbox", (_LONG_AGO, _FIRST), lambda keep: (keep.rows,)),
    Walk("own_writes", (_LONG_AGO, _FIRST), lambda _keep: ()),
    Walk("dead_letters", (_LONG_AGO, _FIRST), lambda keep: (keep.letters,)),
)
TABLES = (*(walk.table for walk in WALKS), "event_attempts", "sync_exchanges")  # the last two go with their events


@dataclass(slots=True)
class Page:
    """rows: by table, what went (or in a look would go); after: where the next page begins, None behind the last one."""

    after: tuple[Any, ...] | None
    rows: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def alone(pool: Pool) -> AsyncIterator[Connection | None]:
    """A connection that holds the right to drop, or None while somebody else has it."""
    async with pool.acquire() as connection:
        try:
            ours = await connection.fetchval(f"SELECT pg_try_advisory_lock({_LOCK})")
        except BaseException:
            _cut(connection)  # it may have it: the answer came too late, or nobody waited for it
            raise
        if not ours:
            yield None
            return
        try:
            yield connection
        finally:
            await _give_back(connection)


async def _give_back(connection: Connection) -> None:
    try:
        await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})")
    except (*OUTAGES, asyncpg.InterfaceError):
        _cut(connection)


def _cut(connection: Connection) -> None:
    """With its session its lock ends."""
    with suppress(asyncpg.InterfaceError):  # the pool has taken a closed one back already
        connection.terminate()


async def look(connection: Connection, walk: Walk, after: tuple[Any, ...], keep: Keep, limit: int) -> Page:
    """As `drop`, and nothing goes."""
    found, page = await _page(connection, walk, after, keep, limit)
    page.rows[walk.table] = sum(map(len, found))
    return page


async def drop(connection: Connection, walk: Walk, after: tuple[Any, ...], keep: Keep, limit: int) -> Page:
    """Looks at the next `limit` rows and deletes those that may go; what somebody has locked stays for another time."""
    found, page = await _page(connection, walk, after, keep, limit)
    if walk.table == "channel_events":
        page.rows.update(await _drop_events(connection, found))
    elif found:
        status = await connection.execute(_SQL[f"drop_{walk.table}"], found[0])
        page.rows[walk.table] = int(status.rpartition(" ")[2])
    return page


async def _page(
    connection: Connection, walk: Walk, after: tuple[Any, ...], keep: Keep, limit: int
) -> tuple[list[list[Any]], Page]:
    """returns lists of ids, each of rows that go together or not at all"""
    rows = await connection.fetch(_SQL[f"page_{walk.table}"], *walk.given(keep), limit, *after)
    found = [row["ids"] for row in rows if row["ids"]]
    last = rows[-1]
    if last["after"] is None:
        return found, Page(None)
    return found, Page((last["after"], last["after_id"]) if len(walk.after) == 2 else (last["after"],))


async def _drop_events(connection: Connection, families: list[list[UUID]]) -> Mapping[str, int]:
    """Only whole families: one of which a member is in somebody's hands waits."""
    wanted = [id_ for family in families for id_ in family]
    if not wanted:
        return {}
    locked = {row["id"] for row in await connection.fetch(_SQL["lock_events"], wanted)}
    ids = [id_ for family in families if locked.issuperset(family) for id_ in family]
    gone = await connection.fetchrow(_SQL["drop_events"], ids)
    return dict(gone) if gone is not None else {}
