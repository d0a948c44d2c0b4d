"""Which pieces of work of one process may run at the same time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turns:
    """Who runs beside whom: batches and calls beside one another, an event that may have killed a worker beside nothing. What
    kills a worker takes along what runs in it, and counted beside it, an innocent one would soon seem to be a poison, too.
    """

    def __init__(self) -> None:
        self._entrance = asyncio.Lock()
        self._batches = 0
        self._alone = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def wanted(self) -> bool:
        """Somebody is alone, or waits to be."""
        return self._alone > 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._entrance:
            self._batches += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._batches -= 1
            if not self._batches:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        self._alone += 1
        try:
            async with self._entrance:
                await self._empty.wait()
                yield
        finally:
            self._alone -= 1
