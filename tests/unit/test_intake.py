"""The rhythm of a worker's batches: nothing waits when little comes, and after a batch that was not small the next waits for company."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from schemas.event import CONTENT_TYPE, wake_ups
from schemas.ids import uuid7
from store.gather import BUSY
from topology.consumer import Incoming
from workers.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.event import Event

TYPE = "beds24.booking.modified"


class Stage:
    """Keeps the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def process(self, events: Sequence[Event]) -> None:
        self.sizes.append(len(events))

    async def process_alone(self, event: Event) -> None:
        raise AssertionError(f"{event.id} never came back")

    async def drain(self, grace: float) -> None:
        pass


class Verdicts:
    """In the consumer's place: counts what is acknowledged."""

    def __init__(self) -> None:
        self.settled = 0

    def settle(self, _: Incoming) -> None:
        self.settled += 1


def message(events: int = 1) -> Incoming:
    body = wake_ups(TYPE, [(uuid7(), "acme", None, None) for _ in range(events)])
    return Incoming(body, CONTENT_TYPE, TYPE, TYPE, None, {}, False, None, 1, 1)


async def turns(n: int = 8) -> None:
    """Of the loop, in which what may go would have gone."""
    for _ in range(n):
        await asyncio.sleep(0)


async def test_after_a_batch_that_was_not_small_the_next_waits_for_company() -> None:
    stage, verdicts = Stage(), Verdicts()
    intake = Intake(stage, queue="q", linger=0.02)
    intake.attach(verdicts)  # type: ignore[arg-type]

    async def settled(count: int) -> None:
        async with asyncio.timeout(10):
            while verdicts.settled < count:
                await asyncio.sleep(0.001)

    intake.take(message())
    await turns()
    assert stage.sizes == [1]  # at once
    intake.take(message(BUSY))
    await turns()
    assert stage.sizes == [1, BUSY]
    intake.take(message())
    await turns()
    assert stage.sizes == [1, BUSY]  # it waits
    intake.take(message())
    await settled(4)
    assert stage.sizes == [1, BUSY, 2]
    intake.take(message())
    await turns()
    assert stage.sizes == [1, BUSY, 2, 1]  # after a small one nobody waits
    await intake.drain(1)
