"""Marks are lazy, and a write that fails is the end of none that come after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

from store.marks import Marks


class Pool:
    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[None]:
        yield


async def test_what_comes_after_a_write_that_failed_is_written() -> None:
    written: asyncio.Queue[Sequence[UUID]] = asyncio.Queue()
    failures = [ValueError("what nobody expected")]

    async def write(_connection: Any, ids: Sequence[UUID]) -> None:
        written.put_nowait(ids)
        if failures:
            raise failures.pop()

    marks = Marks(cast("Any", Pool()), write, pause=0)
    async with asyncio.timeout(5):
        for n in (1, 2):
            marks.add([UUID(int=n)])
            assert await written.get() == [UUID(int=n)]
    await marks.stop()
