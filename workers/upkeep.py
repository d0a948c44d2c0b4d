"""The scheduler's slower rounds: gauges of what waits, and access tokens renewed before they end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from adapters.errors import AdapterError
from adapters.port import actions
from schemas.commands import COMMANDS
from store import connections, limits, relay
from store.pool import is_outage
from store.seal import SealError
from telemetry import metrics
from telemetry.logs import about

from .persist import outlast
from .sessions import EARLY, Sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from store.directory import Directory
    from store.pool import Pool

_log = logging.getLogger(__name__)

# Seconds until a token that was not renewed is asked for again; twice as long each time.
FIRST_REST, LONGEST_REST = 10.0, 3600.0


class Upkeep:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        depths: Callable[[], Awaitable[dict[str, int]]],
        *,
        pause: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """depths: messages waiting in each queue; may raise OSError while the broker is away"""
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._operations = {*COMMANDS, *actions(sessions.adapters)}
        self._depths = depths
        self._pause = pause
        self._clock = clock
        self._known_letters: set[tuple[str, str, str]] = set()
        self._known_circuits: set[tuple[str, str, str]] = set()
        self._renewing: dict[str, asyncio.Task[None]] = {}  # by connection
        # Connection → failures in a row, and when it is tried again.
        self._failed: dict[str, tuple[int, float]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        try:
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
        finally:
            for task in self._renewing.values():
                task.cancel()

    async def gauge(self) -> None:
        async with self._pool.acquire() as connection:
            backlog = await relay.backlog(connection)
            letters = await relay.open_letters(connection, self._operations)
            circuits = await limits.open_circuits(connection)
        metrics.UNPUBLISHED.set(backlog["unpublished"])
        metrics.DEAD_LETTER_OLDEST.set(backlog["oldest_letter"] or 0)
        metrics.LANE_AGE.set(backlog["lane_age"] or 0)
        now = {(row["vendor"], row["owner"], row["operation"]): row["n"] for row in letters}
        for labels in self._known_letters - now.keys():
            metrics.DEAD_LETTERS.labels(*labels).set(0)
        for labels, count in now.items():
            metrics.DEAD_LETTERS.labels(*labels).set(count)
        self._known_letters |= now.keys()
        opened = {(row["vendor"], row["connection_id"], row["kind"]) for row in circuits}
        for circuit in self._known_circuits | opened:
            metrics.CIRCUIT.labels(*circuit).set(circuit in opened)
        self._known_circuits |= opened

    async def gauge_queues(self) -> None:
        found = await self._depths()
        for queue, waiting in found.items():
            metrics.QUEUE_DEPTH.labels(queue).set(waiting)
        if found.get("pms.unroutable"):
            _log.error("messages that nobody binds wait in pms.unroutable", extra=about(count=found["pms.unroutable"]))

    async def renew_tokens(self) -> None:
        """Begins to; a vendor that does not answer keeps nobody waiting but itself, and one that refuses is asked more and more
        rarely. A credential that is set anew takes its token away, and the failures with it.
        """
        async with self._pool.acquire() as connection:
            ending = await connections.tokens_to_renew(connection, EARLY.total_seconds())
        self._failed = {id_: failed for id_, failed in self._failed.items() if id_ in ending}
        now = self._clock()
        resting = {id_ for id_, (_, again) in self._failed.items() if again > now}
        for connection_id in ending:
            if connection_id not in self._renewing and connection_id not in resting:
                task = asyncio.create_task(self._renew(connection_id), name=f"token of {connection_id}")
                self._renewing[connection_id] = task
                task.add_done_callback(lambda _, id_=connection_id: self._renewing.pop(id_))  # type: ignore[misc]

    async def _renew(self, connection_id: str) -> None:
        try:
            known = await outlast(lambda: self._directory.get(connection_id))
            if known is not None:
                await self._sessions.open(known).access_token()
            self._failed.pop(connection_id, None)
        except Exception as error:  # noqa: BLE001 - whoever needs the token meets the same, and ends with a reason
            told = str(error) if isinstance(error, AdapterError | SealError) else type(error).__name__
            failures, _ = self._failed.get(connection_id, (0, 0.0))
            rest = min(FIRST_REST * 2.0 ** min(failures, 20), LONGEST_REST)
            self._failed[connection_id] = failures + 1, self._clock() + rest
            _log.warning("access token not renewed", extra=about(connection_id=connection_id, error=told))
