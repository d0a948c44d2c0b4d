"""Gathers concurrent calls of one kind into one batch: the largest lever on the database (docs/performance.md).

What arrives while batches are under way is the next batch. With little to do a call goes out in the same turn of the loop, so
that at low load gathering costs no time, unless the caller says that it may wait a moment for company.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


BUSY = 8  # items in a batch, from which on it pays to wait for more
CROWD = 32  # items that wait, from which on it pays no more: while the database has one such batch, we make the next


class GatherFull(Exception):  # noqa: N818 - a state, not a fault
    """More callers wait than `waiting` allows."""


class Rhythm:
    """Whether the next batch may begin.

    flights   batches under way at once, while they are small or many items wait; one else
    """

    def __init__(self, flights: int) -> None:
        self._flights = flights
        self._last = 0  # size of the last batch

    @property
    def busy(self) -> bool:
        return self._last >= BUSY

    def has_room(self, under_way: int, waiting: int = 0) -> bool:
        return under_way < (1 if self.busy and waiting < CROWD else self._flights)

    def begins(self, size: int) -> None:
        self._last = size


class Gather(Generic[T, R]):
    """act gets up to `most` items and answers one result for each, in order; its error goes to all of its callers.

    flights   see Rhythm
    """

    def __init__(
        self,
        act: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most: int = 200,
        flights: int = 2,
        waiting: int = 10_000,
    ) -> None:
        self._act = act
        self._most = most
        self._rhythm = Rhythm(flights)
        self._waiting = waiting
        self._items: list[tuple[T, asyncio.Future[R]]] = []
        self._scheduled = False
        self._pressing = False  # something waits that has no patience, or none left
        self._patience: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, item: T, patience: float = 0.0) -> asyncio.Future[R]:
        """patience: seconds that it may wait for company; it goes with the first that has none

        raises  GatherFull
        """
        if len(self._items) >= self._waiting:
            raise GatherFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._items.append((item, future))
        if patience <= 0 or len(self._items) >= self._most:
            self._press()
        elif self._patience is None:
            self._patience = loop.call_later(patience, self._press)
        return future

    async def drain(self) -> None:
        """Returns when everything submitted so far has its result."""
        while self._items or self._tasks:
            if self._items and not self._tasks:
                self._start()
            await asyncio.wait(set(self._tasks))

    def _press(self) -> None:
        self._pressing = True
        if self._rhythm.has_room(len(self._tasks), len(self._items)):
            self._schedule()

    def _schedule(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        while self._items and self._rhythm.has_room(len(self._tasks), len(self._items)):
            batch, self._items = self._items[: self._most], self._items[self._most :]
            self._rhythm.begins(len(batch))
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._landed)
        self._pressing = bool(self._items)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._pressing:
            self._schedule()

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._act([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # a caller that went away must not leave a warning behind
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
