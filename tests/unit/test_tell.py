"""Results are told after their commit, and nobody's work waits for a listener that never confirms."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from schemas.ids import uuid7
from store.results import Batch, CoreEventRow
from workers.tell import Teller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from topology.burst import Outgoing


class Broker:
    """Publisher and marks: confirms when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.confirming = asyncio.Event()
        self.marked: list[UUID] = []
        self.left: asyncio.Queue[None] = asyncio.Queue()

    async def publish_all(self, messages: Sequence[Outgoing]) -> list[None]:
        self.asked += 1
        await self.confirming.wait()
        return [None] * len(messages)

    def add(self, ids: Sequence[UUID]) -> None:
        self.marked += ids
        self.left.put_nowait(None)


def batches(count: int) -> list[Batch]:
    row = CoreEventRow("acme", None, "core.reservation.upserted", "s", "{}", UUID(int=1), None)
    return [Batch(uuid7(), [row]) for _ in range(count)]


def teller(broker: Broker, patience: float) -> Teller:
    return Teller(cast("Any", broker), cast("Any", broker), most=2, patience=patience)


async def test_what_a_silent_listener_leaves_no_room_for_is_left_to_the_relay() -> None:
    broker = Broker()
    telling = teller(broker, patience=0.01)
    told = batches(50)
    async with asyncio.timeout(5):
        await telling.tell(told)
        await asyncio.sleep(0)
    assert broker.asked == 2  # the others are neither sent nor kept in memory
    broker.confirming.set()
    await broker.left.get()
    await broker.left.get()
    assert broker.marked == [batch.id for batch in told[:2]]
    while telling._room.locked():
        await asyncio.sleep(0)
    (later,) = batches(1)
    await telling.tell([later])
    await broker.left.get()
    assert broker.marked[2:] == [later.id]


async def test_nobody_waits_twice_for_a_silent_listener() -> None:
    """The first one waits in vain; those after it do not try until there was room."""
    broker = Broker()
    telling = teller(broker, patience=0.01)
    await telling.tell(batches(3))
    telling._patience = 3600.0
    async with asyncio.timeout(5):
        await telling.tell(batches(50))


async def test_a_burst_waits_for_the_broker() -> None:
    broker = Broker()
    telling = teller(broker, patience=3600.0)
    told = batches(20)
    work = asyncio.create_task(telling.tell(told))
    while broker.asked < 2:
        await asyncio.sleep(0)
    broker.confirming.set()
    await work
    for _ in told:
        await broker.left.get()
    assert broker.marked == [batch.id for batch in told]
