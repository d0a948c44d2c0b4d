"""Whose wake-ups wait while a queue is late: those of the companies that fill it.

A row that is not announced here is not lost, the relay announces it, company by company. So a flood waits behind itself, and
what the others send now and then finds a short queue.

Late is told by time, and without asking anybody. Twice a second the rows that were announced are marked (store/marks.py),
and the database says which of them still wait: a queue is late when that is more than was announced in the last LAG seconds.
The number of messages in the broker would not tell: each carries 1 to 200 events, and the workers hold a window of them.
While a queue is late, one company may have announced from one mark to the next half of what was settled of all that was, and
less each time; while it is not, half as much again each time. A company below that bound never waits, nor does one that is
alone: there is nobody to be fair to.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from store.ingest import mark_published
from telemetry import metrics
from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from store.pool import Connection
    from topology.announce import WakeUp

_log = logging.getLogger(__name__)

LAG = 0.3  # seconds from announced to settled that are still in time; a worker at its limit takes less
ENOUGH = 20  # events announced before that, from which on it can be told
LEAST = 20  # events of a company that are announced from one mark to the next, however late the queue is
COMPANY = 60.0  # seconds for which a company counts as present after its last event
BLIND = 2.0  # seconds without a mark (broker or database away) after which nothing is known, and nothing waits
QUIET = 60.0  # seconds between two log lines about one queue


@dataclass(slots=True)
class _Queue:
    since: float  # when the last mark was
    bound: float = inf  # events of one company from one mark to the next
    wanted: Counter[str] = field(default_factory=Counter)  # events by company since then, also those that wait
    announced: deque[tuple[float, int]] = field(default_factory=deque)  # since then: when, how many
    present: dict[str, float] = field(default_factory=dict)  # company → its last event
    told: float = -inf  # when the log was told that it is late


class Shares:
    """clock: seconds, of any beginning"""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._queues: dict[str, _Queue] = {}

    def admit(self, wakes: Iterable[WakeUp]) -> list[WakeUp]:
        """Those to announce now."""
        now = self._clock()
        admitted: list[WakeUp] = []
        counts: Counter[str] = Counter()
        for wake in wakes:
            vendor = wake.event_type.partition(".")[0]
            queue = self._queue(vendor, now)
            queue.wanted[wake.company_id] += 1
            queue.present[wake.company_id] = now
            if queue.wanted[wake.company_id] <= queue.bound or len(queue.present) == 1:
                admitted.append(wake)
                counts[vendor] += 1
            else:
                metrics.HELD_BACK.labels(vendor).inc()
        for vendor, count in counts.items():
            self._queues[vendor].announced.append((now, count))
        return admitted

    async def mark(self, connection: Connection, ids: Sequence[UUID]) -> None:
        """Marks what was announced, as `mark_published`, and learns from what of it still waits."""
        waiting = await mark_published(connection, ids)
        self.learn(Counter(event_type.partition(".")[0] for event_type in waiting))

    def learn(self, waiting: Mapping[str, int]) -> None:
        """waiting: of the events announced since the last time, how many are not settled, by vendor"""
        now = self._clock()
        for vendor, queue in self._queues.items():
            if queue.wanted:
                self._look(vendor, queue, waiting.get(vendor, 0), now)

    def _queue(self, vendor: str, now: float) -> _Queue:
        queue = self._queues.setdefault(vendor, _Queue(now))
        if now - queue.since > BLIND:
            queue.since, queue.bound = now, inf
            queue.wanted.clear()
            queue.announced.clear()
        return queue

    def _look(self, vendor: str, queue: _Queue, waiting: int, now: float) -> None:
        early = sum(count for at, count in queue.announced if at < now - LAG)
        young = sum(count for at, count in queue.announced if at >= now - LAG)
        most = max(queue.wanted.values())
        queue.present = {company: at for company, at in queue.present.items() if at > now - COMPANY}
        if early >= ENOUGH and 4 * (waiting - young) >= early and len(queue.present) > 1:
            queue.bound = max(LEAST, min(queue.bound, most, early + young - waiting) // 2)
            self._tell(vendor, queue, most, now)
        else:
            grown = queue.bound * 1.5
            queue.bound = grown if most > grown else inf
        queue.since = now
        queue.wanted.clear()
        queue.announced.clear()

    def _tell(self, vendor: str, queue: _Queue, most: int, now: float) -> None:
        if most <= LEAST or now - queue.told < QUIET:
            return
        queue.told = now
        company = max(queue.wanted, key=queue.wanted.__getitem__)
        _log.warning(
            "queue is late: whoever sends most of it waits", extra=about(vendor=vendor, company_id=company, events=most)
        )
