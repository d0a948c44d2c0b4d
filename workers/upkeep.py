"""The scheduler's slower rounds: gauges of what waits, and access tokens renewed before they end."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from adapters.errors import AdapterError
from store import connections, relay
from store.pool import is_outage
from telemetry import metrics
from telemetry.logs import about

from .sessions import EARLY, Sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from store.directory import Directory
    from store.pool import Pool

_log = logging.getLogger(__name__)


class Upkeep:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        depths: Callable[[], Awaitable[dict[str, int]]],
        *,
        pause: float = 5.0,
    ) -> None:
        """depths: messages waiting in each queue; may raise OSError while the broker is away"""
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._depths = depths
        self._pause = pause
        self._known_letters: set[tuple[str, str, str]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            for step in (self.gauge, self.renew_tokens, self.gauge_queues):
                try:
                    await step()
                except Exception as error:
                    if not is_outage(error) and not isinstance(error, OSError):
                        raise
            try:
                await asyncio.wait_for(stop.wait(), self._pause)
            except TimeoutError:
                continue

    async def gauge(self) -> None:
        async with self._pool.acquire() as connection:
            backlog = await relay.backlog(connection)
            letters = await relay.open_letters(connection)
        metrics.UNPUBLISHED.set(backlog["unpublished"])
        metrics.DEAD_LETTER_OLDEST.set(backlog["oldest_letter"] or 0)
        metrics.LANE_AGE.set(backlog["lane_age"] or 0)
        now = {(row["vendor"], row["owner"], row["operation"]): row["n"] for row in letters}
        for labels in self._known_letters - now.keys():
            metrics.DEAD_LETTERS.labels(*labels).set(0)
        for labels, count in now.items():
            metrics.DEAD_LETTERS.labels(*labels).set(count)
        self._known_letters |= now.keys()

    async def gauge_queues(self) -> None:
        found = await self._depths()
        for queue, waiting in found.items():
            metrics.QUEUE_DEPTH.labels(queue).set(waiting)
        if found.get("pms.unroutable"):
            _log.error("messages that nobody binds wait in pms.unroutable", extra=about(count=found["pms.unroutable"]))

    async def renew_tokens(self) -> None:
        async with self._pool.acquire() as connection:
            ending = await connections.tokens_to_renew(connection, EARLY.total_seconds())
        for connection_id in ending:
            known = await self._directory.get(connection_id)
            if known is None:
                continue
            try:
                await self._sessions.open(known).access_token()
            except AdapterError as error:
                _log.warning(
                    "access token not renewed",
                    extra=about(connection_id=connection_id, vendor=known.connection.vendor, error=str(error)),
                )
