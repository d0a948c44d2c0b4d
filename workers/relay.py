"""The scheduler's looks: whatever was not woken, is due, or lost its worker is published (again).

A message that is lost, a broker that was down, a crash between commit and publish: each costs a delay and nothing else. So
does a flood, and only for the company that it is from: what waits here is woken company by company, a share at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import orjson

from schemas.event import Event
from schemas.ids import uuid7
from store import relay as store
from store import results
from store.outbound import insert_commands
from store.pool import is_outage
from store.relay import Look
from store.seal import SealError
from telemetry import metrics
from telemetry.logs import about
from topology.announce import WakeUp, announce
from topology.declared import ROUTER_QUEUE, command_key, delivery_key, inbound_queue, outbound_queue

from .commands import command_row, no_command
from .tell import publish

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from store.directory import Directory
    from store.outbound import CommandRow
    from store.pool import Connection, Pool
    from store.relay import Asleep, OutboxRow, Place
    from topology.publisher import Publisher

_log = logging.getLogger(__name__)

UNPUBLISHED = Look("unpublished", 2.0)  # the ingress publishes within milliseconds, its marks follow within a second
DUE = Look("due", 0.0)
EXPIRED = Look("expired", 0.0)
STALE = Look("stale", 60.0)  # longer than a healthy queue takes; a wake-up too many changes nothing
BATCH = 500
READ = 2_000  # stale rows in a look: a paused connection may have very many, and the other looks wait meanwhile
READ_AGAIN = 5.0  # seconds after all of them were read, and none was found lost
LEAST, MOST = 50, 1_000  # rows that nobody had woken, on their way at once
LONG = 20  # messages ready, beyond what the workers hold: in such a queue a wake-up is not lost, it has not come up yet
KNOWN = 5.0  # seconds for which a queue's length is taken as known
UNTOLD = 2.0  # seconds; results are told within milliseconds, and their marks follow within a second
BATCHES = 10  # of results
FIRST_REST, MOST_REST = 1.0, 60.0  # seconds until results that were refused are told again


class Relay:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        publisher: Publisher,
        depths: Callable[[Iterable[str]], Awaitable[Mapping[str, int]]],
        *,
        actions: Collection[str] = (),
        pause: float = 0.1,
        idle: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """depths: messages ready in these queues; asked only about rows that look lost, may raise OSError
        actions: types beside `pms.*` that are commands

        Seconds between looks: pause while they find something, idle at most while they do not.
        """
        self._pool = pool
        self._directory = directory
        self._publisher = publisher
        self._depths = depths
        self._actions = actions
        self._pause = pause
        self._idle = idle
        self._clock = clock
        self._rung = asyncio.Event()
        self._room = LEAST
        self._turn = ""  # the company that was the last to have its turn
        self._passed: Place | None = None  # stale rows up to here were read, and there are more
        self._read_again = 0.0  # when they are read again
        # Batch of results → refusals in a row, and when it is tried again.
        self._refused: dict[UUID, tuple[int, float]] = {}
        self._lengths: dict[str, tuple[float, bool]] = {}  # queue → when it was asked about, and whether it was long

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; several schedulers may run it at once."""
        while not stop.is_set():
            self._rung.clear()
            rest = self._pause
            try:
                rest = await self._round()
            except Exception as error:
                if not is_outage(error):
                    raise
                metrics.DATABASE_FAULTS.inc()
                _log.warning("database away, looking again", extra=about(error_type=type(error).__name__))
            # A bell wakes who is idle. Who is not looks in a moment, and takes what many have written at once.
            await _first_of(stop, *([self._rung] if rest > self._pause else []), seconds=rest)

    def ring(self) -> None:
        """There may be something now."""
        self._rung.set()

    async def _round(self) -> float:
        """returns the seconds until the next"""
        async with self._pool.acquire() as connection:
            waiting = await store.waiting(connection, UNPUBLISHED, STALE, UNTOLD)
        if waiting.unpublished:
            # Not at once again, whatever it finds: what is settled from one look to the next is its measure.
            await self.wake_unpublished()
        else:
            self._room, self._turn = LEAST, ""
        stale = waiting.stale and self._clock() >= self._read_again
        steps = (
            (waiting.due, self.wake_due),
            (waiting.expired, self.wake_expired),
            (stale, self.wake_stale),
            (waiting.untold, self.tell),
            (waiting.outbox, self.take_outbox),
        )
        found = sum([await step() for some, step in steps if some])
        if found >= BATCH:
            return 0.0
        if found or waiting.unpublished or (stale and self._passed is not None):
            return self._pause
        # What waits and was not found has somebody who holds it, or its time: a paused connection's rows, results that are refused.
        due_in = self._idle if waiting.due_in is None else waiting.due_in
        return min(self._idle, max(self._pause, due_in))

    async def wake_unpublished(self) -> int:
        async def take(connection: Connection) -> list[Asleep]:
            found = await store.take_in_turn(connection, UNPUBLISHED, self._room, self._turn)
            if self._turn and len(found) < self._room:  # all had their turn: from the first one on again
                found += await store.take_in_turn(connection, UNPUBLISHED, self._room - len(found))
            return found

        asleep = await self._wake(UNPUBLISHED, take)
        # Who came after the last one, when there was no room for more, is first now.
        self._turn = asleep[-1].company_id if len(asleep) == self._room else ""
        # What is woken is what was settled since the last look. Twice that keeps the workers busy until the next one, and
        # their queue short for what comes by itself.
        self._room = min(MOST, max(LEAST, 2 * len(asleep)))
        return len(asleep)

    async def wake_due(self) -> int:
        return len(await self._wake(DUE, lambda connection: store.take(connection, DUE, BATCH)))

    async def wake_expired(self) -> int:
        return len(await self._wake(EXPIRED, lambda connection: store.take_expired(connection, EXPIRED, BATCH)))

    async def wake_stale(self) -> int:
        """What a long queue still holds is left alone, and its rows unwritten: the next look goes on behind what this one read."""
        if not self._publisher.ready:
            return 0
        async with self._pool.acquire() as connection:
            found, self._passed = await store.stale(connection, STALE, READ, self._passed)
        long = await self._long({queue_of(row) for row in found})
        lost = [row.id for row in found if queue_of(row) not in long]
        if not lost:
            if self._passed is None:
                self._read_again = self._clock() + READ_AGAIN
            return 0
        return len(await self._wake(STALE, lambda connection: store.take_lost(connection, STALE, lost)))

    async def _wake(self, look: Look, take: Callable[[Connection], Awaitable[list[Asleep]]]) -> list[Asleep]:
        if not self._publisher.ready:
            return []  # marking rows that cannot be published would only delay them
        async with self._pool.acquire() as connection, connection.transaction():
            asleep = await take(connection)
        if asleep:
            metrics.RELAYED.labels(look.name).inc(len(asleep))
            confirmed = await announce(self._publisher, [wake_up(row) for row in asleep])
            level = logging.INFO if look in (EXPIRED, STALE) else logging.DEBUG  # the others are many in a flood
            _log.log(level, "relayed", extra=about(reason=look.name, count=len(asleep), confirmed=len(confirmed)))
        return asleep

    async def _long(self, queues: set[str]) -> set[str]:
        """Which of these are merely long; none, while the broker does not say."""
        now = self._clock()
        unknown = [queue for queue in queues if queue not in self._lengths or self._lengths[queue][0] < now - KNOWN]
        if unknown:
            found: Mapping[str, int] = {}
            with suppress(OSError):
                async with asyncio.timeout(1):
                    found = await self._depths(unknown)
            self._lengths |= {queue: (now, found.get(queue, 0) > LONG) for queue in unknown}
        return {queue for queue in queues if self._lengths[queue][1]}

    async def tell(self) -> int:
        """What a listener's queue refuses, or never confirms, is tried later and later, and what others wait for is told meanwhile."""
        if not self._publisher.ready:
            return 0
        now = self._clock()
        self._refused = {id_: rest for id_, rest in self._refused.items() if rest[1] > now - 2 * MOST_REST}
        resting = [id_ for id_, (_, again) in self._refused.items() if again > now]
        async with self._pool.acquire() as connection, connection.transaction():
            batches = await results.untold(connection, UNTOLD, BATCHES, resting)
            confirmed = await asyncio.gather(*(publish(self._publisher, batch) for batch in batches))
            told = {batch.id for batch, heard in zip(batches, confirmed, strict=True) if heard}
            await results.told(connection, list(told))
        metrics.RELAYED.labels("core").inc(sum(len(batch.rows) for batch in batches if batch.id in told))
        for batch in batches:
            refusals, _ = self._refused.pop(batch.id, (0, 0.0))
            if batch.id not in told:
                self._refused[batch.id] = refusals + 1, now + min(MOST_REST, FIRST_REST * 2.0 ** min(refusals, 10))
        return sum(len(batch.rows) for batch in batches if batch.id in told)

    async def take_outbox(self) -> int:
        """Rows of `outbox` become commands; what cannot be one says why in its row."""
        taken: list[tuple[UUID, UUID | None, str | None]] = []
        wakes = []
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await store.outbox(connection, BATCH)
            commands: dict[UUID, CommandRow] = {}  # by row of the outbox
            for row in rows:
                try:
                    commands[row.id] = await self._command(connection, row)
                except OutboxError as error:
                    taken.append((row.id, None, str(error)))
            new, refused = await self._insert(connection, commands)
            for outbox_id, command in commands.items():
                known = command.id in new
                why = None if known else refused.get(outbox_id, "duplicate idempotency_key")
                taken.append((outbox_id, command.id if known else None, why))
                if known:
                    wakes.append(WakeUp(command.id, command.company_id, command.event_type, command.event_type, None))
            await store.outbox_taken(connection, taken)
        if wakes:
            await announce(self._publisher, wakes)  # unconfirmed ones are the next look's
        return len(rows)

    async def _command(self, connection: Connection, row: OutboxRow) -> CommandRow:
        """raises OutboxError: whatever is wrong with one row is said there, and stops nobody else's"""
        try:
            cipher = await self._directory.cipher(row.company_id, connection)
            if cipher is None:
                raise OutboxError(f"company_id: {row.company_id} does not exist")
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
            if (problem := no_command(event, self._actions)) is not None:
                raise OutboxError(problem)
            return command_row(event.row_id, row.company_id, event, cipher.seal)
        except SealError as error:
            raise OutboxError(
                "company_id: the data key of this company cannot be opened with staybus' key file"
            ) from error
        except ValueError as error:
            raise OutboxError("event_type, subject or idempotency_key: not of an event's form") from error
        except (TypeError, RecursionError) as error:
            raise OutboxError("payload: nested too deeply, or a number beyond 64 bits") from error

    async def _insert(
        self, connection: Connection, commands: Mapping[UUID, CommandRow]
    ) -> tuple[set[UUID], dict[UUID, str]]:
        """Alone where they cannot go together. returns the ids of commands that are new, and by row of the outbox what the
        database refuses
        """
        try:
            async with connection.transaction():
                return await insert_commands(connection, list(commands.values())), {}
        except asyncpg.PostgresError as error:
            if is_outage(error):
                raise
            if len(commands) == 1:
                return set(), {id_: f"the database refuses it: {type(error).__name__}" for id_ in commands}
        new: set[UUID] = set()
        refused: dict[UUID, str] = {}
        for id_, command in commands.items():
            one, why = await self._insert(connection, {id_: command})
            new |= one
            refused |= why
        return new, refused


class OutboxError(Exception):
    """What keeps a row of the outbox from becoming a command, for its sender to read."""


def queue_of(row: Asleep) -> str:
    """Where its wake-up goes."""
    if row.inbound:
        return inbound_queue(row.event_type.partition(".")[0])
    return outbound_queue(row.vendor) if row.vendor else ROUTER_QUEUE


def wake_up(row: Asleep) -> WakeUp:
    if row.inbound:
        key = row.event_type
    else:
        key = delivery_key(row.vendor, row.event_type) if row.vendor else command_key(row.event_type)
    return WakeUp(row.id, row.company_id, row.event_type, key, row.trace, row.connection_id if row.vendor else None)


async def _first_of(*events: asyncio.Event, seconds: float) -> None:
    """Until one of them is set, or so long."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
