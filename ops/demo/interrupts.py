"""Ctrl-C, SIGTERM and a closed terminal are one wish: end in order. While things are being ended, wishes are not repeated."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import FrameType
    from typing import Any

WISHES = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptible() -> Iterator[None]:
    """Each of the signals raises KeyboardInterrupt, or cancels what `asyncio.run` runs. Main thread only."""
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,  # also where a script's `&` had it ignored
        signal.SIGTERM: _as_interrupt,
    }
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means it
        handlers[signal.SIGHUP] = _as_interrupt
    with _handled(handlers):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Handlers that do nothing, rather than SIG_IGN: programs that are started here must not inherit it."""
    with _handled(dict.fromkeys(WISHES, _nothing)):
        yield


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass
