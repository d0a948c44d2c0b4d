"""Which webhooks may wait a moment for others.

A webhook that is recorded, announced and settled by itself costs up to ten times what it costs in company, and on a busy machine
all pay for it, the waiting ones most (docs/decisions/0017, 0018). So while many come, each waits as long as it takes for some more
to come. And what a company sends that is busy beside others waits longer, for more of its own; who sends little then takes along
what waits. While few come nobody waits.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BRISK = 250  # webhooks in a second, of all companies, from which on one more comes within each MOMENT
MOMENT = 0.004  # seconds, before it is recorded and answered

MANY = 40  # webhooks of a company in a second, from which on two of them come within a few PATIENCEs
PATIENCE = 0.03  # seconds


class Crowding:
    """clock: seconds, of any beginning"""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        # Webhooks by company in this second, and in the one before.
        self._now: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._count = self._counted = 0  # of all

    def patience(self, company_id: str) -> float:
        """Seconds that this webhook may wait; it is counted."""
        passed = self._clock() - self._since
        if passed >= 1:
            gone = passed >= 2
            self._before, self._now = Counter() if gone else self._now, Counter()
            self._counted, self._count = 0 if gone else self._count, 0
            self._since += passed
        self._now[company_id] += 1
        self._count += 1
        if max(len(self._now), len(self._before)) > 1 and max(self._now[company_id], self._before[company_id]) >= MANY:
            return PATIENCE
        return MOMENT if max(self._count, self._counted) >= BRISK else 0.0
