"""The database's time, which all processes share: their own clocks may differ, and be set while they run."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import Connection, Pool

_log = logging.getLogger(__name__)

TRIES = 3  # of which the quickest tells it best: the others waited for this process
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # Linux's goes on while a machine is suspended
EVERY = 60.0  # seconds; in that time two clocks that nobody sets drift apart by a few milliseconds at most


def since_boot() -> float:
    return time.clock_gettime(CLOCK)


class Clock:
    """Calling it tells the time in UTC. Between two looks it goes on by the monotonic clock, which nobody sets."""

    def __init__(self, pool: Pool, *, monotonic: Callable[[], float] = since_boot) -> None:
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
        async with self._pool.acquire() as connection:  # to wait for one is not the answer's way
            answers = [await self._ask(connection) for _ in range(TRIES)]
        _, self._zero = min(answers)

    async def _ask(self, connection: Connection) -> tuple[float, datetime]:
        """(how long it took, the database's time when the monotonic clock was at 0)"""
        asked = self._monotonic()
        told: datetime = await connection.fetchval("SELECT clock_timestamp()")
        answered = self._monotonic()
        return answered - asked, told - timedelta(seconds=(asked + answered) / 2)

    async def keep(self) -> None:
        """Looks again now and then, for as long as it runs."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, it goes on as it did, and looks again
                _log.warning("the database's time is not known anew", extra=about(error_type=type(error).__name__))
