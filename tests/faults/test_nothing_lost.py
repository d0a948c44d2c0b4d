"""1,000 webhooks, 30 % of them twice, in any order, while processes and servers die: nothing lost, no effect twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from simulators.beds24.state import Account
from simulators.bookings import Change, deliveries, generate, truth
from simulators.core_pms import CorePms
from tests.fleet import COMPANY, PROPERTY, ROOM, World

if TYPE_CHECKING:
    from ops.stack.local import Stack

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

HISTORY = generate(seed=7, bookings=154, changes=4)  # 770 facts
ARRIVING = deliveries(HISTORY, seed=7, duplicates=0.3)  # about 1,000 webhooks
Chaos = Callable[[], Awaitable[None]]


async def send_all(world: World, arriving: list[Change], chaos: Chaos) -> None:
    """Eight senders; chaos runs beside them until all is sent."""
    queue = list(reversed(arriving))

    async def sender() -> None:
        while queue:
            await world.deliver(queue.pop().body)

    disorder = asyncio.create_task(chaos())
    await asyncio.gather(*(sender() for _ in range(8)))
    disorder.cancel()
    await asyncio.gather(disorder, return_exceptions=True)


async def check(world: World) -> None:
    """The oracle. Rows are the facts; the state is the vendor's; each effect happened once."""
    await world.all_settled(timeout=120)
    facts = await world.db.fetch("SELECT status, count(*) AS n FROM channel_events GROUP BY 1")
    counts = {row["status"]: row["n"] for row in facts}
    assert sum(counts.values()) == len(HISTORY), counts
    assert set(counts) <= {"done", "skipped"}, counts
    expected = truth(HISTORY)
    stored = {row["external_id"]: row for row in await world.db.fetch("SELECT * FROM int_reservations")}
    assert stored.keys() == {str(id_) for id_ in expected}
    for id_, booking in expected.items():
        row = stored[str(id_)]
        state = (row["check_in"].isoformat(), row["check_out"].isoformat(), row["adults"], row["status"])
        status = "cancelled" if booking["status"] == "cancelled" else row["status"]
        assert state == (booking["arrival"], booking["departure"], booking["numAdult"], status), id_
        assert (booking["status"] == "cancelled") == (row["status"] == "cancelled")
    # One result for each fact that changed something, none twice, none missing.
    doubled = await world.db.fetch("SELECT cause_id FROM core_events GROUP BY 1 HAVING count(*) > 1")
    assert doubled == []
    assert await world.db.fetchval("SELECT count(*) FROM core_events") == counts["done"]
    await world.until("SELECT count(*) FROM core_batches", equals=0, timeout=60)
    # A reservation that a later fact replaced never shows an earlier one: the results of each go forward in time.
    behind = await world.db.fetchval(
        "SELECT count(*) FROM int_reservations r JOIN channel_events e ON e.entity_external_id = r.external_id"
        " WHERE e.status = 'done' AND (e.payload->'booking'->>'modifiedTime')::timestamptz > r.source_version"
    )
    assert behind == 0
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_kill_9_of_any_process_at_any_moment(world: World) -> None:
    await world.start()
    dice = random.Random(20261121)
    killed = 0

    async def chaos() -> None:
        nonlocal killed
        while True:
            await asyncio.sleep(dice.uniform(0.05, 0.6))
            victim = dice.choice(["ingress", "inbound", "scheduler", "inbound", "ingress"])
            world.kill(victim)
            killed += 1
            await world.start(victim, ready=False)
            await world.wait_ready(victim)

    await send_all(world, ARRIVING, chaos)
    await check(world)
    assert killed >= 3


@pytest.mark.parametrize("how", ["kill", "restart"])
@pytest.mark.parametrize("server", ["rabbitmq", "postgres"])
async def test_a_server_dies_and_comes_back(world: World, stack: Stack, server: str, how: str) -> None:
    await world.start()
    # A quorum queue whose broker is killed within a second of its declaration is lost for good (docs/messaging).
    await asyncio.sleep(1.5)
    target = getattr(stack, server)
    over = asyncio.Event()

    async def chaos() -> None:
        await asyncio.sleep(0.3)
        if how == "kill":
            await asyncio.to_thread(target.kill)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(target.start)
        else:
            await asyncio.to_thread(target.restart)
        over.set()

    disorder = asyncio.create_task(chaos())

    async def wait() -> None:
        await over.wait()

    await send_all(world, ARRIVING, wait)
    await disorder
    await world.reconnect()
    await check(world)


async def test_commands_survive_kill_9_without_a_second_effect(world: World) -> None:
    """Creates and updates while the outbound worker and the scheduler are killed: one booking each, in order."""
    world.sim.account.credits.limit = Decimal(10**9)
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    await world.start("outbound", "scheduler")
    dice = random.Random(3)
    count = 40

    async def chaos() -> None:
        while True:
            await asyncio.sleep(dice.uniform(0.2, 0.7))
            victim = dice.choice(["outbound", "outbound", "scheduler"])
            world.kill(victim)
            await world.start(victim, ready=False)
            await world.wait_ready(victim)

    disorder = asyncio.create_task(chaos())
    async with CorePms(world.amqp_url) as core:
        for number in range(count):
            stay = {
                "reservationId": f"B-{number}", "propertyId": "P1", "roomTypeId": "RT1",
                "checkIn": "2027-03-01", "checkOut": "2027-03-04", "guest": {"lastName": f"Guest {number}"},
            }  # fmt: skip
            await core.publish("pms.booking.create", f"B-{number}", COMPANY, stay, f"c-{number}")
            update = {"reservationId": f"B-{number}", "adults": 3}
            await core.publish("pms.booking.update", f"B-{number}", COMPANY, update, f"u-{number}")
            await asyncio.sleep(0.02)
    disorder.cancel()
    await asyncio.gather(disorder, return_exceptions=True)
    for name in ("outbound", "scheduler"):
        if name not in world.processes:
            await world.start(name)
    # What a killed worker had begun is taken over when its lock has been free for five seconds, long before its lease ends.
    await world.until(
        "SELECT count(*) FROM channel_events WHERE status = 'done' AND parent_id IS NOT NULL",
        equals=2 * count,
        timeout=60,
    )
    account: Account = world.sim.account
    assert len(account.bookings) == count
    assert all(booking["numAdult"] == 3 for booking in account.bookings.values())
    assert set(account.created.values()) == {1}
