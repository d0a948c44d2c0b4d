"""Marks what the broker confirmed, lazily: most rows are settled before their mark is due and need none."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from uuid import UUID

    from .pool import Connection, Pool

_log = logging.getLogger(__name__)


class Marks:
    """Collects ids and writes them every `pause` seconds with `write`.

    A mark that is lost (crash, database away) means one more wake-up by the relay, which changes nothing.
    """

    def __init__(
        self, pool: Pool, write: Callable[[Connection, Sequence[UUID]], Awaitable[object]], *, pause: float = 0.5
    ) -> None:
        self._pool = pool
        self._write = write
        self._pause = pause
        self._ids: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, ids: Iterable[UUID]) -> None:
        self._ids.extend(ids)
        if self._ids and self._task is None:
            self._task = asyncio.create_task(self._later())

    async def flush(self) -> None:
        ids, self._ids = self._ids, []
        if not ids:
            return
        try:
            async with self._pool.acquire() as connection:
                await self._write(connection, ids)
        except Exception as error:  # noqa: BLE001 - whatever it is, those that come after are written
            _log.warning(
                "marks not written; the relay wakes these rows again", extra=about(error_type=type(error).__name__)
            )

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()

    async def _later(self) -> None:
        try:
            while self._ids:
                await asyncio.sleep(self._pause)
                await self.flush()
        finally:
            self._task = None
