"""Dropping what is finished and old, so gently that nobody notices: small transactions, and pauses longer than they are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from store import retention as store
from store.pool import is_outage
from telemetry import metrics
from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from store.pool import Connection, Pool
    from store.retention import Keep, Page

_log = logging.getLogger(__name__)

PAGE = 1_000  # rows of a transaction, with what belongs to them: some 20 ms
BREATH = 4  # a page is followed by a pause of so many times what it took: at most a fifth of one connection's time
LEAST = 0.02  # seconds that every pause has


class Retention:
    def __init__(
        self,
        pool: Pool,
        keep: Keep,
        *,
        pause: float = 300.0,
        page: int = PAGE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """pause: seconds between two rounds"""
        self._pool = pool
        self._keep = keep
        self._pause = pause
        self._page = page
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; of several schedulers one drops and the others look again later."""
        while not stop.is_set():
            try:
                await self.sweep(stop)
            except Exception as error:
                if not is_outage(error):
                    raise
                metrics.DATABASE_FAULTS.inc()
                _log.warning("database away, dropping later", extra=about(error_type=type(error).__name__))
            await _sleep(stop, self._pause)

    async def sweep(self, stop: asyncio.Event) -> Counter[str] | None:
        """One round over all tables. returns rows by table; None: somebody else is at it"""
        async with store.alone(self._pool) as connection:
            if connection is None:
                return None
            dropped: Counter[str] = Counter()
            began = self._clock()
            try:
                async for page in pages(connection, self._keep, stop, limit=self._page, clock=self._clock):
                    dropped.update(page.rows)
            finally:
                dropped = +dropped
                if dropped:
                    _log.info(
                        "old rows dropped", extra=about(rows=dict(dropped), seconds=round(self._clock() - began, 1))
                    )
            return dropped


async def pages(
    connection: Connection,
    keep: Keep,
    stop: asyncio.Event,
    *,
    limit: int = PAGE,
    only_look: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Page]:
    """Drops page by page through all tables until `stop`; each page that is given out is committed and counted."""
    for walk in store.WALKS:
        after: tuple[object, ...] | None = walk.after
        while after is not None and not stop.is_set():
            began = clock()
            async with connection.transaction():
                page = await (store.look if only_look else store.drop)(connection, walk, after, keep, limit)
            if not only_look:
                _count(page)
            yield page
            after = page.after
            if after is not None and not only_look:
                await _sleep(stop, max(LEAST, BREATH * (clock() - began)))


def _count(page: Page) -> None:
    for table, count in page.rows.items():
        metrics.DROPPED.labels(table).inc(count)


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
