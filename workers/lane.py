"""What waits in the lane of a delivery and is older: read by the page, and ended as the vendor is told.

Also how deliveries end that did not come through, and those that must end with them.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from store import outbound as store
from store.inbound import lock_open
from store.results import keep
from store.settle import bury, finish

from .delivery_rows import (
    Work,
    dead_letter,
    exchange,
    finish_row,
    observe,
    results_of,
    superseded_row,
    with_ids,
)
from .outcome import Outcome, Park
from .persist import outlast
from .say import PAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime
    from uuid import UUID

    from adapters.port import Command
    from store.directory import Known
    from store.outbound import Claimed
    from store.pool import Connection, Pool
    from store.results import Batch

    from .tell import Teller

R = TypeVar("R")

ENOUGH = 30.0  # seconds that are left for another part; else it is for the next attempt
LAST = 5.0  # seconds before the end of an attempt: from then on it waits no more for the database


class LeftForLaterError(Exception):
    """What of the lane was said is settled; the rest is for another attempt, or for another worker."""


class Lane:
    """say.Older of one claimed delivery. Nothing is written once its lease is another's.

    read    the command of a row
    failed  what becomes of one that cannot be said
    """

    def __init__(
        self,
        pool: Pool,
        teller: Teller,
        newest: Work,
        *,
        read: Callable[[Claimed], Command],
        failed: Callable[[Work, Exception], Outcome],
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._teller = teller
        self._newest = newest
        self._read = read
        self._failed = failed
        self._now = now

    async def waiting(self) -> list[Work]:
        async def look() -> list[Claimed]:
            async with self._pool.acquire() as connection:
                return await store.older_in_lane(connection, self._newest.row.id, PAGE)

        of = self._newest
        return [Work(row, self._now(), of.known, call=of.call) for row in await self._outlast(look)]

    def read(self, older: Work) -> Command:
        return self._read(older.row)

    async def resolved(self, command: Command) -> Command:
        """The newest has its ids already; what is older may name its property by another one."""
        known = self._newest.command.external if self._newest.command else {}
        references = command.data.references()
        if all(reference in known for reference in references):
            return replace(command, external=known)
        at = self._newest.row.connection_id
        wanted = [(at, kind.value, internal) for kind, internal in (*references, command.data.lane_entity())]

        async def look() -> dict[tuple[str, str, str], str]:
            async with self._pool.acquire() as connection:
                return await store.external_ids(connection, wanted)

        return with_ids(command, at, await self._outlast(look))

    async def said(self, part: Sequence[Work]) -> None:
        *others, last = part
        with_last, ahead = f"sent with the newer {last.row.id}", f"sent ahead of the newer {self._newest.row.id}"
        rows = [superseded_row(work, with_last, exchanged=False) for work in others]
        rows.append(superseded_row(last, ahead, exchanged=True))
        await self._settle(lambda connection: store.supersede(connection, rows))

    async def refused(self, older: Work, error: Exception) -> None:
        older.outcome = self._failed(older, error)
        now = self._now()

        async def write(connection: Connection) -> Batch | None:
            # It has ended where the answer of this commit was lost: then it is not told once more.
            if not await lock_open(connection, [older.row.id]):
                return None
            return await end(connection, [older], now)

        await self._settle(write)
        observe([older], now)

    async def _settle(self, write: Callable[[Connection], Awaitable[Batch | None]]) -> None:
        """At once, in a transaction of its own: what comes later of this attempt may fail."""
        newest = self._newest

        async def settle() -> Batch | None:
            async with self._pool.acquire() as connection, connection.transaction():
                if not await store.lock_leased(connection, [(newest.row.id, newest.row.lease_token)]):
                    raise LeftForLaterError("its lease is another's")
                return await write(connection)

        try:
            told = await self._outlast(settle)
        except LeftForLaterError:
            newest.doubt = True  # it was said, and its row does not tell
            raise
        await self._teller.tell([told])
        if asyncio.get_running_loop().time() > newest.until - ENOUGH:
            raise LeftForLaterError("its lease would end before all that waits in its lane is said")

    async def _outlast(self, act: Callable[[], Awaitable[R]]) -> R:
        """As long as the attempt has time. A database that is away for longer is no fault of the vendor's."""
        try:
            async with asyncio.timeout_at(self._newest.until - LAST):
                return await outlast(act)
        except TimeoutError as error:
            raise LeftForLaterError("the database was away") from error


async def end(connection: Connection, works: Sequence[Work], now: datetime) -> Batch | None:
    """What failed or was put off. returns what others hear of it"""
    await finish(connection, [finish_row(work, now) for work in works])
    await store.note_exchanges(connection, [exchange(work) for work in works if work.call is not None])
    await store.forget_own_writes(connection, [work.row.id for work in works if not work.doubt])
    told = await keep(connection, [result for work in works for result in results_of(work)])
    await bury(connection, [dead_letter(work, work.outcome) for work in works if isinstance(work.outcome, Park)])
    return told


async def end_with(
    connection: Connection, newest: UUID, known: Known | None, park: Park, now: datetime
) -> tuple[list[Work], list[Batch | None]]:
    """Those that wait behind a delivery that failed and may have been done all the same, with them in it or not: going out later,
    they would put an older state back. Whether they do is for a person. The doubt stays the newest's: they were never begun by
    themselves, and when they go again, are split by how many they are. returns them, and what others hear"""
    message = f"{park.message}; it waited with the newer {newest}, of which nobody knows whether it was done"
    parked = replace(park, message=message)
    ended, told = [], []
    while rows := await store.older_in_lane(connection, newest, PAGE):
        works = [Work(replace(row, payload=""), now, known, outcome=parked, doubt=row.starts > 0) for row in rows]
        told.append(await end(connection, works, now))
        ended += works
    return ended, told
