"""Taking over from dead workers in seconds, not when their leases run out.

A worker whose lock is free is dead, or has lost its session together with everybody else (the database was restarted). The
living take theirs again within a second; so who is absent at every look for `patience` seconds is dead. The lease stays the
second line: a worker that hangs keeps its lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from store import presence
from store.pool import is_outage
from telemetry import metrics
from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.pool import Connection, Pool

_log = logging.getLogger(__name__)


class Takeover:
    def __init__(
        self,
        pool: Pool,
        *,
        patience: float = 5.0,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Seconds: patience from the first look that misses a worker, pause between looks."""
        self._pool = pool
        self._patience = patience
        self._pause = pause
        self._clock = clock
        self._missed: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self.look()
            except Exception as error:
                if not is_outage(error):
                    raise
                self._missed.clear()  # what a database that was away shows says nothing of the workers
            try:
                await asyncio.wait_for(stop.wait(), self._pause)
            except TimeoutError:
                continue

    async def look(self) -> int:
        """returns how many leases were ended"""
        async with self._pool.acquire() as connection:
            holders = await presence.leaseholders(connection)
            if not holders:
                self._missed.clear()
                return 0
            async with connection.transaction():
                gone = await presence.absent(connection, holders)
                now = self._clock()
                self._missed = {worker: self._missed.get(worker, now) for worker in gone}
                dead = [worker for worker, since in self._missed.items() if now - since >= self._patience]
                return sum([await self._take_over(connection, worker) for worker in dead])

    async def _take_over(self, connection: Connection, worker: str) -> int:
        count = await presence.end_leases(connection, worker)
        if count:
            metrics.RELAYED.labels("takeover").inc(count)
            _log.warning("worker is dead: its leases are taken over", extra=about(worker=worker, count=count))
        return count
