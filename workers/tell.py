"""Publishing results after their commit. What is not confirmed now, the relay publishes later: never zero times."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from schemas.event import CONTENT_TYPE, SOURCE
from topology.burst import Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from store.marks import Marks
    from store.results import Batch, CoreEventRow
    from topology.publisher import Publisher


def message(row: CoreEventRow) -> Outgoing:
    """Always single: others bind to these, and not everybody reads batches. Nobody need listen, so no queue is no fault."""
    body = {
        "specversion": "1.0",
        "id": str(row.id),
        "source": SOURCE,
        "type": row.event_type,
        "subject": row.subject,
        "companyid": row.company_id,
        "connectionid": row.connection_id,
        "traceparent": row.trace,
        "datacontenttype": "application/json",
        "data": orjson.Fragment(row.data),
    }
    return Outgoing(
        routing_key=row.event_type,
        body=orjson.dumps({name: value for name, value in body.items() if value is not None}),
        content_type=CONTENT_TYPE,
        correlation_id=str(row.id),
        mandatory=False,
    )


async def publish(publisher: Publisher, batch: Batch) -> bool:
    """Whether the broker confirmed every one of them."""
    faults = await publisher.publish_all([message(row) for row in batch.rows])
    return all(fault is None for fault in faults)


class Teller:
    """Memory stays: what finds no room is left to the relay.

    marks     of told batches
    most      batches that wait for their confirms at once
    patience  seconds that one waits for room; once in vain, and none does until there is room again
    """

    def __init__(self, publisher: Publisher, marks: Marks, *, most: int = 8, patience: float = 0.5) -> None:
        self._publisher = publisher
        self._marks = marks
        self._room = asyncio.Semaphore(most)
        self._patience = patience
        self._in_vain = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def tell(self, batches: Iterable[Batch | None]) -> None:
        for batch in batches:
            if batch is not None and await self._has_room():
                task = asyncio.create_task(self._publish(batch))
                self._tasks.add(task)
                task.add_done_callback(self._told)

    async def _has_room(self) -> bool:
        """A burst waits for the broker; nobody waits for a listener's queue that never confirms."""
        if self._in_vain and self._room.locked():
            return False
        try:
            async with asyncio.timeout(self._patience):
                await self._room.acquire()
        except TimeoutError:
            self._in_vain = True
            return False
        self._in_vain = False
        return True

    async def stop(self) -> None:
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)
        await self._marks.stop()

    def _told(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled():
            task.result()

    async def _publish(self, batch: Batch) -> None:
        if await publish(self._publisher, batch):
            self._marks.add([batch.id])
