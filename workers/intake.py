"""From deliveries to batches of events and back to acks.

A message is acknowledged when every event that it names is settled. What arrives while a batch is performed is the next
batch. A message that came back (its worker died, or gave it up) is run alone, event by event, so that one that kills its
worker is found by itself and its neighbours lose nothing.

What is malformed, in a message of many or as a whole, is kept by itself, and the others are events as if it were not there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from schemas.event import Event, Malformed, decode_each
from store.gather import Rhythm
from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from topology.consumer import Consumer, Incoming

_log = logging.getLogger(__name__)


class Stage(Protocol):
    async def process(self, events: Sequence[Event]) -> None:
        """Settles every one of these events; waits while the database is away. An exception is a bug of ours."""
        ...

    async def process_alone(self, event: Event) -> None:
        """As process, for an event that may have killed a worker: its start is counted before it runs."""
        ...

    async def drain(self, grace: float) -> None:
        """Ends what goes on after process returned, within `grace` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class _Message:
    incoming: Incoming
    events: list[Event]
    malformed: list[Malformed]


class Intake:
    """The handler of one consumer.

    keep              commits what is malformed of a message
    most              events in a batch (a single message may bring more)
    flights           of its batches: see store.gather.Rhythm
    linger            seconds that messages wait for company after the end of a batch that was not small
    """

    def __init__(
        self,
        stage: Stage,
        *,
        queue: str,
        keep: Callable[[Incoming, Sequence[Malformed]], Awaitable[None]],
        most: int = 200,
        flights: int = 1,
        linger: float = 0.0,
    ) -> None:
        self._stage = stage
        self._queue = queue
        self._keep = keep
        self._most = most
        self._rhythm = Rhythm(flights)
        self._linger = linger
        self._waiting: deque[Incoming] = deque()  # as bytes: what is decoded is a batch, not the whole window
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._stopping = False
        self._gives_back = True
        self._consumer: Consumer | None = None

    def attach(self, consumer: Consumer) -> None:
        """Ties it to the consumer whose deliveries come to `take`."""
        self._consumer = consumer

    def forget(self) -> None:
        """The connection was lost: what was not begun will be delivered again."""
        self._waiting.clear()

    def take(self, incoming: Incoming) -> None:
        """The consumer's handler: only hands over."""
        self._waiting.append(incoming)
        self._schedule()

    async def drain(self, grace: float, *, give_back: bool = True) -> None:
        """Takes nothing more; finishes what is under way within `grace` seconds, gives the rest back uncounted.

        give_back   False: the rest stays without a verdict, for the end of its channel to return it
        """
        self._stopping, self._gives_back = True, give_back
        end = asyncio.get_running_loop().time() + grace
        while self._waiting and give_back:
            self._verdicts.give_back(self._waiting.popleft())
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._stage.drain(max(0.0, end - asyncio.get_running_loop().time()))

    @property
    def _verdicts(self) -> Consumer:
        if self._consumer is None:
            raise RuntimeError("a delivery before attach()")
        return self._consumer

    @property
    def _has_room(self) -> bool:
        return self._rhythm.has_room(len(self._tasks)) and not self._stopping

    def _schedule(self) -> None:
        if not self._scheduled and self._has_room:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            if self._rhythm.busy and self._linger > 0:
                loop.call_later(self._linger, self._start)
            else:
                loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and self._has_room:
            task = asyncio.create_task(self._run(self._next_batch()))
            self._tasks.add(task)
            task.add_done_callback(self._landed)

    def _next_batch(self) -> list[_Message]:
        """Fresh messages until they bring `most` events; a returned one by itself."""
        batch: list[_Message] = []
        size = 0
        while self._waiting and size < self._most:
            if batch and _came_back(self._waiting[0]):
                break
            incoming = self._waiting.popleft()
            events, malformed = decode_each(incoming.body)
            batch.append(_Message(incoming, events, malformed))
            size += len(events) or 1
            if _came_back(incoming):
                break
        self._rhythm.begins(size)
        return batch

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._waiting:
            self._schedule()

    async def _run(self, batch: list[_Message]) -> None:
        try:
            if _came_back(batch[0].incoming):
                await self._run_alone(batch[0].events)
            elif events := [event for message in batch for event in message.events]:
                await self._stage.process(events)
            # Last: what comes back because of its events is not kept each time.
            for message in batch:
                if message.malformed:
                    await self._keep(message.incoming, message.malformed)
                self._verdicts.settle(message.incoming)
        except asyncio.CancelledError:
            for message in batch if self._gives_back else ():
                self._verdicts.give_back(message.incoming)
            raise
        except Exception:  # noqa: BLE001 - see below
            # The stage parks what fails by itself; this is a hole in the stage. Each message that is not settled goes back,
            # comes again alone, and its events are parked as poison in the end: nothing is lost and nobody else waits.
            _log.exception("batch failed", extra=about(queue=self._queue, messages=len(batch)))
            for message in batch:
                self._verdicts.give_back(message.incoming)

    async def _run_alone(self, events: list[Event]) -> None:
        """One after the other. What fails stops none behind it, which it would each time that the message comes again."""
        failures: list[Exception] = []
        for event in events:
            try:
                await self._stage.process_alone(event)
            except Exception as error:  # noqa: BLE001 - raised when all had their turn
                failures.append(error)
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {len(events)} events", failures)


def _came_back(incoming: Incoming) -> bool:
    if incoming.delivery_count is not None:
        return incoming.delivery_count >= 2
    return incoming.redelivered
