"""Dead letters of the broker into `dead_letters`: what a worker could not even record. Acked only after the commit."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from schemas.event import decode_each
from schemas.vocabulary import MAX_STARTS, OPEN_STATUSES, EventStatus, Fault, Owner, Result
from store import dead_letters as store
from store.presence import absent
from store.results import keep
from store.seal import SealError
from store.settle import bury
from telemetry import metrics
from telemetry.logs import about
from topology.announce import WakeUp, announce

from . import results
from .delivery_rows import observe
from .lane import end_with
from .letters import stranger, unreadable
from .outcome import Park
from .persist import outlast
from .relay import wake_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from store.dead_letters import Behind
    from store.directory import Directory, Known
    from store.pool import Connection, Pool
    from store.relay import Asleep
    from store.results import CoreEventRow
    from store.settle import DeadLetterRow
    from topology.consumer import Consumer, Incoming
    from topology.publisher import Publisher

    from .delivery_rows import Work

_log = logging.getLogger(__name__)
_OPEN = frozenset(status.value for status in OPEN_STATUSES)

NOT_RECORDED = "an event that no worker could record"


class Recorder:
    """The handler of one dead-letter queue's consumer; works through it one message at a time."""

    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        publisher: Publisher,
        queue: str,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._publisher = publisher
        self._queue = queue
        self._now = now
        self._inbox: asyncio.Queue[Incoming] = asyncio.Queue()

    def take(self, incoming: Incoming) -> None:
        """The consumer's handler: only hands over."""
        self._inbox.put_nowait(incoming)

    def forget(self) -> None:
        """The connection was lost: what was not begun will be delivered again."""
        while not self._inbox.empty():
            self._inbox.get_nowait()

    async def run(self, consumer: Consumer) -> None:
        """Until cancelled; what is in hand then comes back to the queue. consumer: whose deliveries come to `take`"""
        while True:
            incoming = await self._inbox.get()
            wakes = await outlast(lambda one=incoming: self._record(one))  # type: ignore[misc]
            await announce(self._publisher, wakes)  # unconfirmed: the rows are open, the relay finds them
            consumer.settle(incoming)

    async def _record(self, incoming: Incoming) -> list[WakeUp]:
        events, malformed = decode_each(incoming.body)
        ids = [event.row_id for event in events]
        routing, cipher = _routing(incoming, self._queue), self._directory.installation
        # Before: who holds a session and waits for another one may wait for one who does the same.
        known = await self._known(ids)
        async with self._pool.acquire() as connection, connection.transaction():
            found = {row.id: row for row in await store.behind_letters(connection, ids)}
            left = {id_: row for id_, row in found.items() if row.status in _OPEN}
            poison = {id_: row for id_, row in left.items() if row.starts > MAX_STARTS}
            parked, ended = await self._park(connection, await _without_those_in_hand(connection, poison), known)
            orphans = [event for event in events if event.row_id not in found]
            letters = [unreadable(one, self._queue, routing, cipher) for one in malformed]
            letters += [stranger(event, NOT_RECORDED, cipher) for event in orphans if not event.is_wake_up]
            await bury(connection, letters)
        observe(ended, self._now())
        for id_, letter in parked.items():
            _count(letter, left[id_].asleep)
        if letters:
            told = about(queue=self._queue, count=len(letters), reason=letters[0].error_message)
            _log.warning("dead letters without an event", extra=told)
        elif orphans:
            _log.warning("dead wake-ups without a row", extra=about(queue=self._queue, count=len(orphans)))
        # Restarts of workers used the delivery limit up; the event itself never failed: it goes again, alone.
        return [wake_up(row.asleep) for row in left.values() if row.starts <= MAX_STARTS]

    async def _known(self, ids: Sequence[UUID]) -> dict[str, Known]:
        """The connections of those deliveries that may be parked: what ends with them is told of their vendors."""
        async with self._pool.acquire() as connection:
            rows = [row for row in await store.behind_letters(connection, ids) if row.starts > MAX_STARTS]
        known = {}
        for id_ in {row.asleep.connection_id for row in rows if row.asleep.connection_id is not None}:
            with suppress(SealError):
                if (found := await self._directory.get(id_)) is not None:
                    known[id_] = found
        return known

    async def _park(
        self, connection: Connection, poison: Mapping[UUID, Behind], known: Mapping[str, Known]
    ) -> tuple[dict[UUID, DeadLetterRow], list[Work]]:
        """returns their letters, and what had to end with them"""
        letters = await store.park_poison(connection, [*poison])
        commands = [(letter, poison[id_].asleep) for id_, letter in letters.items() if not poison[id_].asleep.inbound]
        await keep(connection, [_failed(letter, row) for letter, row in commands])  # the relay tells
        ended = []
        for letter, row in commands:
            if row.vendor is not None:
                park = Park(Fault.POISON, letter.error_message, Owner.PIPELINE, letter.error_code)
                at = known.get(row.connection_id) if row.connection_id is not None else None
                with_it, _ = await end_with(connection, row.id, at, park, self._now())
                ended += with_it
        await bury(connection, list(letters.values()))  # behind those: letters are requeued in their order
        return letters, ended


async def _without_those_in_hand(connection: Connection, poison: Mapping[UUID, Behind]) -> Mapping[UUID, Behind]:
    """What a living worker has is in its last start just now: that ends it, or its lease does."""
    holders = {id_: row.worker for id_, row in poison.items() if row.status == EventStatus.PROCESSING and row.worker}
    gone = await absent(connection, sorted(set(holders.values())))
    return {id_: row for id_, row in poison.items() if id_ not in holders or holders[id_] in gone}


def _count(letter: DeadLetterRow, row: Asleep) -> None:
    """Like any other that was parked."""
    vendor = letter.vendor or "none"
    metrics.EVENTS.labels(vendor, "inbound" if row.inbound else "outbound", "park").inc()
    metrics.ATTEMPTS.labels(vendor, letter.error_class).inc()
    told = about(event_id=str(row.id), company_id=row.company_id, vendor=vendor, type=row.event_type, trace=row.trace)
    _log.warning("poison parked", extra=told)


def _failed(letter: DeadLetterRow, row: Asleep) -> CoreEventRow:
    return results.command_ended(
        Result.COMMAND_FAILED,
        company_id=row.company_id,
        connection_id=letter.connection_id,
        subject=letter.entity_internal_id or str(row.id),
        command_type=row.event_type,
        cause_id=row.id,
        trace=row.trace,
        fault=letter.error_class,
        error=letter.error_message,
    )


def _routing(incoming: Incoming, queue: str) -> dict[str, Any]:
    """Where the broker had it and by which key, from its x-death header; its own key by now is the dead letters'. Anybody may have
    written that header, so nothing of it is taken but words and numbers.
    """
    deaths = incoming.headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
    keys = last.get("routing-keys")
    key = keys[0] if isinstance(keys, list) and keys and isinstance(keys[0], str) else incoming.routing_key
    facts = {name: last.get(name) for name in ("queue", "reason", "count")}
    plain = {name: fact if isinstance(fact, str | int) else None for name, fact in facts.items()}
    return {**plain, "dlq": queue, "key": key}
