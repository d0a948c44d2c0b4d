"""Committing a batch whatever happens to it.

The database is away: nothing is decided and no attempt counted; the same again after a pause. The data breaks the batch:
halve it until the bad row stands alone, and hand that one to the caller.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, wait_exponential_jitter

from store.pool import is_outage
from telemetry import metrics
from telemetry.logs import about

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


async def outlast(act: Callable[[], Awaitable[R]]) -> R:
    """Repeats `act` until the database answers. `act` must be one transaction, or change nothing."""
    try:
        return await act()
    except Exception as error:
        if not is_outage(error):
            raise
        _tell(error)
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(is_outage),
        wait=wait_exponential_jitter(multiplier=0.05, max=2.0, jitter=0.2),
        before_sleep=lambda state: _tell(state.outcome.exception() if state.outcome else None),
        sleep=asyncio.sleep,
        reraise=True,
    ):
        with attempt:
            return await act()
    raise AssertionError("unreachable: the loop ends by return or raise")


def _tell(error: BaseException | None) -> None:
    metrics.DATABASE_FAULTS.inc()
    _log.warning("database away, trying again", extra=about(error_type=type(error).__name__))


async def commit(
    items: Sequence[T],
    act: Callable[[Sequence[T]], Awaitable[R]],
    alone: Callable[[T, Exception], Awaitable[R]],
) -> list[R]:
    """The results of act over all items, in as few batches as their data allows."""
    try:
        return [await outlast(lambda: act(items))]
    except Exception as error:  # noqa: BLE001 - the data's; outages do not come here
        cause = error
        if len(items) == 1:
            _log.exception("an event cannot be settled")
            return [await outlast(lambda: alone(items[0], cause))]
    half = len(items) // 2
    return [*await commit(items[:half], act, alone), *await commit(items[half:], act, alone)]
