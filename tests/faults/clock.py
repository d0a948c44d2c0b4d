"""The wall clock of one process, moved while it runs. Its monotonic clock stays, as the kernel's does."""

from __future__ import annotations

import datetime as dt
import signal
import sys
import time
from typing import Any

OURS = ("adapters", "ingress", "ops", "schemas", "store", "telemetry", "topology", "workers")


def jump_at_signal(seconds: float) -> None:
    """SIGUSR1 moves the clock by `seconds`, the next one back. For everything that is imported already."""
    offset = 0.0
    real_time, real_nanoseconds, real = time.time, time.time_ns, dt.datetime

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Moved(real, metaclass=Kind):  # type: ignore[misc,valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.now(tz) + dt.timedelta(seconds=offset)

    def jump(*_: Any) -> None:
        nonlocal offset
        offset = seconds - offset

    time.time = lambda: real_time() + offset
    time.time_ns = lambda: real_nanoseconds() + int(offset * 1e9)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in OURS and getattr(module, "datetime", None) is real:
            module.datetime = Moved  # type: ignore[attr-defined]
    signal.signal(signal.SIGUSR1, jump)
