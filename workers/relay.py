"""The scheduler's looks: whatever was not woken, is due, or lost its worker is published (again).

A message that is lost, a broker that was down, a crash between commit and publish: each costs a delay and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

from schemas.event import Event
from schemas.ids import uuid7
from store import relay as store
from store.ingest import mark_core_published
from store.outbound import insert_commands
from store.pool import is_outage
from store.relay import Look
from telemetry import metrics
from telemetry.logs import about
from topology.announce import WakeUp, announce
from topology.declared import delivery_key

from .router import command_row
from .tell import message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from store.directory import Directory
    from store.pool import Pool
    from store.relay import Asleep
    from topology.publisher import Publisher

_log = logging.getLogger(__name__)

LOOKS = (
    Look("unpublished", 2.0),  # the ingress publishes within milliseconds, its marks follow within a second
    Look("due", 0.0),
    Look("expired", 0.0),
    Look("stale", 60.0),  # longer than any healthy queue is; a wake-up too many changes nothing
)
BATCH = 500


class Relay:
    def __init__(self, pool: Pool, directory: Directory, publisher: Publisher, *, pause: float = 0.1) -> None:
        self._pool = pool
        self._directory = directory
        self._publisher = publisher
        self._pause = pause

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; several schedulers may run it at once."""
        steps: list[Callable[[], Awaitable[int]]] = [lambda look=look: self.wake(look) for look in LOOKS]  # type: ignore[misc]
        steps += [self.tell, self.take_outbox]
        while not stop.is_set():
            found = 0
            for step in steps:
                try:
                    found += await step()
                except Exception as error:
                    if not is_outage(error):
                        raise
                    metrics.DATABASE_FAULTS.inc()
                    _log.warning("database away, looking again", extra=about(error_type=type(error).__name__))
                    break
            if found < BATCH:
                await _sleep(stop, self._pause)

    async def wake(self, look: Look) -> int:
        if not self._publisher.ready:
            return 0  # marking rows that cannot be published would only delay them
        async with self._pool.acquire() as connection, connection.transaction():
            asleep = await store.take(connection, look, BATCH)
        if asleep:
            metrics.RELAYED.labels(look.name).inc(len(asleep))
            confirmed = await announce(self._publisher, [wake_up(row) for row in asleep])
            level = logging.DEBUG if look.name == "due" else logging.INFO
            _log.log(level, "relayed", extra=about(reason=look.name, count=len(asleep), confirmed=len(confirmed)))
        return len(asleep)

    async def tell(self) -> int:
        if not self._publisher.ready:
            return 0
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await store.untold(connection, 2.0, BATCH)
            if rows:
                faults = await self._publisher.publish_all([message(row) for row in rows])
                told = [row.id for row, fault in zip(rows, faults, strict=True) if fault is None]
                await mark_core_published(connection, told)
                metrics.RELAYED.labels("core").inc(len(told))
        return len(rows)

    async def take_outbox(self) -> int:
        """Rows of `outbox` become commands; what cannot be one says why in its row."""
        taken: list[tuple[UUID, UUID | None, str | None]] = []
        wakes = []
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await store.outbox(connection, BATCH)
            commands = []
            for row in rows:
                cipher = await self._directory.cipher(row.company_id)
                if cipher is None:
                    taken.append((row.id, None, f"company_id: {row.company_id} does not exist"))
                    continue
                try:
                    event = Event(
                        id=str(uuid7()),
                        source="/outbox",
                        type=row.event_type,
                        subject=row.subject,
                        companyid=row.company_id,
                        connectionid=row.connection_id,
                        idempotencykey=row.idempotency_key or f"outbox:{row.id}",
                        data=orjson.loads(row.payload),
                    )
                except ValueError:
                    taken.append((row.id, None, "event_type, subject or idempotency_key: not of an event's form"))
                    continue
                commands.append((row.id, command_row(event.row_id, row.company_id, event, cipher.seal)))
            new = await insert_commands(connection, [command for _, command in commands])
            for outbox_id, command in commands:
                known = command.id in new
                taken.append((outbox_id, command.id if known else None, None if known else "duplicate idempotency_key"))
                if known:
                    wakes.append(WakeUp(command.id, command.company_id, command.event_type, command.event_type, None))
            await store.outbox_taken(connection, taken)
        if wakes:
            await announce(self._publisher, wakes)  # unconfirmed ones are the next look's
        return len(rows)


def wake_up(row: Asleep) -> WakeUp:
    key = delivery_key(row.vendor, row.event_type) if row.vendor else row.event_type
    return WakeUp(row.id, row.company_id, row.event_type, key, row.trace)


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
