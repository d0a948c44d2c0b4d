"""Whose webhooks may wait a moment for others of their own.

A webhook that is recorded, announced and settled by itself costs ten times what it costs in company, and on a busy machine the
others pay for it. So what a company sends waits up to PATIENCE for more, while it sends many a second and is not alone. A
company below that bound never waits, and takes along what does; for one that is alone there is nobody to be spared.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 40  # webhooks of a company in a second, from which on two of them come within a few PATIENCEs
PATIENCE = 0.03  # seconds, before it is recorded and answered


class Crowding:
    """clock: seconds, of any beginning"""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._now: Counter[str] = Counter()  # webhooks by company in this second, and in the one before
        self._before: Counter[str] = Counter()

    def patience(self, company_id: str) -> float:
        """Seconds that this webhook may wait; it is counted."""
        passed = self._clock() - self._since
        if passed >= 1:
            self._before, self._now = self._now if passed < 2 else Counter(), Counter()
            self._since += passed
        self._now[company_id] += 1
        crowded = max(self._now[company_id], self._before[company_id]) >= MANY
        return PATIENCE if crowded and max(len(self._now), len(self._before)) > 1 else 0.0
