"""Dead letters of the broker into `dead_letters`: what a worker could not even record. Acked only after the commit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from schemas.event import Malformed, decode_each
from schemas.vocabulary import OPEN_STATUSES, Result
from store import dead_letters as store
from store.results import keep
from store.settle import bury
from telemetry.logs import about
from topology.announce import WakeUp, announce

from . import results
from .decide import MAX_STARTS
from .letters import unreadable
from .persist import outlast
from .relay import wake_up

if TYPE_CHECKING:
    import asyncio

    from store.directory import Directory
    from store.pool import Pool
    from store.relay import Asleep
    from store.results import CoreEventRow
    from store.settle import DeadLetterRow
    from topology.consumer import Consumer, Incoming
    from topology.publisher import Publisher

_log = logging.getLogger(__name__)
_OPEN = frozenset(status.value for status in OPEN_STATUSES)


class Recorder:
    """The handler of one dead-letter queue's consumer; works through it one message at a time."""

    def __init__(self, pool: Pool, directory: Directory, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        self._pool = pool
        self._directory = directory
        self._publisher = publisher
        self._consumer = consumer
        self._queue = queue

    async def run(self, inbox: asyncio.Queue[Incoming]) -> None:
        """Until cancelled; what is in hand then comes back to the queue."""
        while True:
            incoming = await inbox.get()
            wakes = await outlast(lambda one=incoming: self._record(one))  # type: ignore[misc]
            await announce(self._publisher, wakes)  # unconfirmed: the rows are open, the relay finds them
            self._consumer.settle(incoming)

    async def _record(self, incoming: Incoming) -> list[WakeUp]:
        events, malformed = decode_each(incoming.body)
        wakes: list[WakeUp] = []
        async with self._pool.acquire() as connection, connection.transaction():
            found = {row.id: row for row in await store.behind_letters(connection, [event.row_id for event in events])}
            poison = [row.id for row in found.values() if row.status in _OPEN and row.starts > MAX_STARTS]
            letters = await store.park_poison(connection, poison)
            await bury(connection, list(letters.values()))
            commands = [(letter, found[id_].asleep) for id_, letter in letters.items() if not found[id_].asleep.inbound]
            await keep(connection, [_failed(letter, row) for letter, row in commands])  # the relay tells
            # Restarts of workers used the delivery limit up; the event itself never failed: it goes again, alone.
            wakes += [wake_up(row.asleep) for row in found.values() if row.status in _OPEN and row.id not in poison]
            orphans = [event for event in events if event.row_id not in found]
            if any(event.data is not None for event in orphans):
                malformed = [Malformed(None, incoming.body, "an event that no worker could record")]
            routing = _routing(incoming, self._queue)
            cipher = self._directory.installation
            await bury(connection, [unreadable(one, self._queue, routing, cipher) for one in malformed])
        if malformed:
            _log.warning("dead letters without an event", extra=about(queue=self._queue, reason=malformed[0].problem))
        elif orphans:
            _log.warning("dead wake-ups without a row", extra=about(queue=self._queue, count=len(orphans)))
        return wakes


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
