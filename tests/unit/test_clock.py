"""The time that all processes share is the database's, and goes on by a clock that nobody sets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, cast

import pytest

from store.clock import Clock, since_boot

THEN = datetime(2027, 3, 1, 12, tzinfo=UTC)


class Database:
    """Answers with its time, after a second each way; before that it is waited for.

    seconds   of the monotonic clock
    slow      at first, on the way there
    """

    def __init__(self) -> None:
        self.time, self.seconds, self.slow = THEN, 1000.0, 0.0

    def pass_by(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
        self.seconds += seconds

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Self]:
        self.pass_by(30)
        yield self

    async def fetchval(self, _sql: str) -> datetime:
        self.pass_by(1 + self.slow)
        self.slow = 0.0
        told = self.time
        self.pass_by(1)
        return told


async def test_it_tells_the_databases_time_and_goes_on_by_the_monotonic_clock() -> None:
    database = Database()
    clock = Clock(cast("Any", database), monotonic=lambda: database.seconds)
    await clock.look()
    assert clock() == database.time
    database.pass_by(59.5)
    assert clock() == database.time
    database.time += timedelta(hours=1)  # somebody set it
    assert clock() == database.time - timedelta(hours=1)
    await clock.look()
    assert clock() == database.time


async def test_what_waited_for_a_session_or_for_the_loop_does_not_count() -> None:
    database = Database()
    database.slow = 30
    clock = Clock(cast("Any", database), monotonic=lambda: database.seconds)
    await clock.look()
    assert clock() == database.time


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_it_goes_on_while_the_machine_is_suspended() -> None:
    """CLOCK_MONOTONIC stands still then, and so would the time until the next look."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= since_boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)
