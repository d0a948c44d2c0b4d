"""Leases of this process that nobody in it knows of.

A claim that a network held back, and let through when its worker had given it up and claimed in vain, leases deliveries for
nobody. The worker lives, so that nobody takes them over: it looks for them itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from store import presence
from telemetry.logs import about

from .persist import outlast

if TYPE_CHECKING:
    from uuid import UUID

    from store.pool import Pool

_log = logging.getLogger(__name__)


class Strays:
    """pause: seconds between looks. Who claims says `take` before, and `leave` when nothing came of it or all is settled."""

    def __init__(self, pool: Pool, *, worker: str, pause: float = 5.0) -> None:
        self._pool = pool
        self._worker = worker
        self._pause = pause
        self._in_hand: Counter[UUID] = Counter()

    def take(self, id_: UUID) -> None:
        self._in_hand[id_] += 1

    def leave(self, id_: UUID) -> None:
        self._in_hand[id_] -= 1
        if not self._in_hand[id_]:
            del self._in_hand[id_]

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            await outlast(self.look)

    async def look(self) -> int:
        """returns how many leases were ended"""
        async with self._pool.acquire() as connection, connection.transaction():
            leases = await presence.leases(connection, self._worker)
            # Asked after the look: what has a lease is in hand since before, and until it has none.
            strays = [lease for lease in leases if lease.id not in self._in_hand]
            count = await presence.end_strays(connection, strays)
        if count:
            _log.warning("leases that nobody knows of are ended", extra=about(count=count))
        return count
