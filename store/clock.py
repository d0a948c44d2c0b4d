"""The database's time, which all processes share: their own clocks may differ, and be set while they run."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .pool import OUTAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import Pool

EVERY = 60.0  # seconds; in that time two clocks that nobody sets drift apart by a few milliseconds at most


class Clock:
    """Calling it tells the time in UTC. Between two looks it goes on by the monotonic clock, which nobody sets."""

    def __init__(self, pool: Pool, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._monotonic = monotonic
        self._zero = datetime.min.replace(tzinfo=UTC)  # the database's time when the monotonic clock was at 0

    def __call__(self) -> datetime:
        return self._zero + timedelta(seconds=self._monotonic())

    @classmethod
    async def of(cls, pool: Pool) -> Clock:
        """One that has looked once. raises as `look`"""
        clock = cls(pool)
        await clock.look()
        return clock

    async def look(self) -> None:
        """raises what asyncpg raises when the database is away"""
        asked = self._monotonic()
        told: datetime = await self._pool.fetchval("SELECT clock_timestamp()")
        self._zero = told - timedelta(seconds=(asked + self._monotonic()) / 2)

    async def keep(self) -> None:
        """Looks again now and then, for as long as it runs."""
        while True:
            await asyncio.sleep(EVERY)
            with suppress(*OUTAGES):
                await self.look()
