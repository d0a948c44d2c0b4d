"""Commands about one entity reach the vendor in the order in which they were given, whoever routes and delivers them."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest

from ops.parts import open_parts
from schemas.event import Event
from schemas.ids import uuid7
from simulators.core_pms import CorePms
from store import connections, outbound
from store.pool import open_pool
from tests.fleet import COMPANY, PROPERTY, ROOM, World, free_port
from tests.integration.test_relay_rows import insert
from topology.announce import WakeUp, announce
from workers.commands import command_row

if TYPE_CHECKING:
    from store.pool import Pool

ENTITIES = 50
VERBS = ("create", "update", "update", "cancel")


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    owner = await asyncpg.connect(database_url)
    await connections.add_company(owner, "acme", "Acme", b"key")
    await connections.add_connection(owner, "beds24-acme", "acme", "beds24", "Acme", None, {})
    await owner.close()
    opened = await open_pool(database_url, name="test")
    yield opened
    await opened.close()


async def lane(url: str, status: str = "received", policy: str = "supersede") -> UUID:
    return await insert(url, status, lane="'room_type:RT1@beds24-acme'", lane_policy=f"'{policy}'")


async def claim(pool: Pool, id_: UUID, worker: str) -> list[UUID]:
    async with pool.acquire() as database:
        return [row.id for row in await outbound.claim(database, [id_], worker, 120, uuid4())]


async def test_two_workers_never_send_two_commands_of_a_lane_at_once(database_url: str, pool: Pool) -> None:
    """The second comes while the first has claimed and not committed: it cannot see that, and must not guess."""
    older = await lane(database_url)
    watcher = await asyncpg.connect(database_url)
    async with pool.acquire() as first, first.transaction():
        assert [row.id for row in await outbound.claim(first, [older], "first", 120, uuid4())] == [older]
        newer = await lane(database_url)
        second = asyncio.create_task(claim(pool, newer, "second"))
        waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
        async with asyncio.timeout(10):
            while not second.done() and not await watcher.fetchval(waits):
                await asyncio.sleep(0.01)
    assert await second == []
    await watcher.close()


@pytest.mark.parametrize("policy", ["supersede", "hold"])
async def test_one_of_a_lane_is_claimed_of_those_that_are_woken_together(
    database_url: str, pool: Pool, policy: str
) -> None:
    ids = [await lane(database_url, policy=policy) for _ in range(3)]
    async with pool.acquire() as database:
        claimed = [row.id for row in await outbound.claim(database, ids, "worker", 120, uuid4())]
    assert claimed == ([ids[-1]] if policy == "supersede" else [ids[0]])


@pytest.mark.parametrize(
    ("policy", "statuses", "woken"),
    [
        ("supersede", ["received", "received", "failed"], 1),  # what failed holds nobody: the newest that waits is next
        ("supersede", ["failed", "received"], 1),
        ("hold", ["received", "received"], 0),
        ("hold", ["done", "failed", "received"], 1),
    ],
)
async def test_who_is_next_in_a_lane(
    database_url: str, pool: Pool, policy: str, statuses: list[str], woken: int
) -> None:
    ids = [await lane(database_url, status, policy) for status in statuses]
    async with pool.acquire() as database:
        (head,) = await outbound.lane_heads(database, ["room_type:RT1@beds24-acme"])
    assert (head.id, head.status) == (ids[woken], statuses[woken])


async def test_a_lane_that_is_held_by_what_failed_is_where_its_entity_is(database_url: str, pool: Pool) -> None:
    """The update of a booking whose create has failed waits behind it, and is no dead letter of its own."""
    failed = await lane(database_url, "failed", "hold")
    async with pool.acquire() as database:
        await database.execute("UPDATE channel_events SET lane = 'reservation:B-1@beds24-acme' WHERE id = $1", failed)
        prefix = outbound.lane_prefix("reservation", "B-1")
        found = await outbound.laned_connections(database, [("acme", prefix)])
    assert found == {("acme", prefix): [("beds24-acme", "beds24")]}


# ------------------------------------------------------------------------------------------------ the whole way


@dataclass
class Core:
    """The commands of many bookings, as fast as they can be told; each verb of each booking has a key of its own."""

    world: World
    core: CorePms

    def commands(self, bookings: range) -> list[tuple[str, str, dict[str, Any], str]]:
        """(type, booking, data, key): one verb after the other, for all bookings."""
        made = []
        for turn, verb in enumerate(VERBS):
            for n in bookings:
                arrival = date(2027, 3, 1) + timedelta(days=n)
                data: dict[str, Any] = {"reservationId": f"B-{n}"}
                if verb == "create":
                    data |= {"propertyId": "P1", "roomTypeId": "RT1", "adults": 1}
                    data |= {"checkIn": arrival.isoformat(), "checkOut": (arrival + timedelta(days=2)).isoformat()}
                elif verb == "update":
                    data |= {"adults": 1 + turn}
                made.append((f"pms.booking.{verb}", f"B-{n}", data, f"{n}-{turn}"))
        return made

    async def publish(self, bookings: range) -> None:
        for type_, booking, data, key in self.commands(bookings):
            await self.core.publish(type_, booking, COMPANY, data, key)

    async def write(self, bookings: range) -> None:
        """The same by rows of `outbox`, all at once."""
        rows = [
            (COMPANY, type_, booking, orjson.dumps(data).decode(), key)
            for type_, booking, data, key in self.commands(bookings)
        ]
        service = await asyncpg.connect(self.world.database_url)
        await service.executemany(
            "INSERT INTO outbox (company_id, event_type, subject, payload, idempotency_key) VALUES ($1, $2, $3, $4::jsonb, $5)",
            rows,
        )
        await service.close()

    async def turns(self) -> dict[int, list[int]]:
        """Booking → the turns of its commands as the vendor was called, repetitions of one left out."""
        rows = await self.world.db.fetch("SELECT id, idempotency_key FROM channel_events WHERE parent_id IS NULL")
        keys = {str(row["id"]): row["idempotency_key"] for row in rows}
        found: dict[int, list[int]] = defaultdict(list)
        for call in self.world.sim.account.calls:
            if call.operation == "POST /bookings" and call.idempotency_key:
                booking, turn = map(int, keys[call.idempotency_key.partition("@")[0]].split("-"))
                if found[booking][-1:] != [turn]:
                    found[booking].append(turn)
        return dict(found)

    async def in_order(self) -> None:
        turns = await self.turns()
        assert sorted(turns) == list(range(ENTITIES))
        assert {n: order for n, order in turns.items() if order != list(range(len(VERBS)))} == {}
        bookings = self.world.sim.account.bookings.values()
        assert len(bookings) == ENTITIES
        assert {(booking["numAdult"], booking["status"]) for booking in bookings} == {(3, "cancelled")}


@pytest.fixture
async def core(world: World) -> AsyncIterator[Core]:
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    world.sim.account.credits.limit = 100_000  # type: ignore[assignment]
    async with CorePms(world.amqp_url) as listening:
        yield Core(world, listening)


class Outbounds:
    """Two outbound processes, each with a port of its own; one of them is the active router."""

    def __init__(self, world: World) -> None:
        world.apart = True
        world.extra["grace"] = 5.0
        self._world = world
        self._ports = itertools.cycle([world.ports["outbound"], free_port()])

    async def start(self, name: str) -> None:
        """World knows one process of each kind: it goes by another name once it runs."""
        world = self._world
        world.ports["outbound"] = next(self._ports)
        await world.start("outbound")
        world.processes[name] = world.processes.pop("outbound")

    async def end(self, name: str, how: signal.Signals) -> None:
        process = self._world.processes.pop(name)
        process.send_signal(how)
        assert await asyncio.to_thread(process.wait, 40) == (-9 if how is signal.SIGKILL else 0)


async def routed(world: World, count: int) -> None:
    await world.until(
        "SELECT count(*) >= $1 FROM channel_events WHERE parent_id IS NOT NULL", count, equals=True, timeout=60
    )


async def test_two_routers_keep_the_order_of_what_is_published_and_of_what_is_written(world: World, core: Core) -> None:
    outbounds = Outbounds(world)
    await outbounds.start("first")
    await outbounds.start("second")
    await world.start("scheduler")
    await asyncio.gather(core.publish(range(25)), core.write(range(25, ENTITIES)))
    await routed(world, ENTITIES * len(VERBS))
    await world.all_settled(timeout=90)
    await core.in_order()


async def test_the_order_outlives_the_router_whether_it_is_killed_or_stopped(world: World, core: Core) -> None:
    outbounds = Outbounds(world)
    await outbounds.start("first")
    await outbounds.start("second")
    await world.start("scheduler")
    # One of the two is the router; so each is ended, in each way, in the middle of a part of the bookings.
    endings = [
        ("first", signal.SIGKILL),
        ("second", signal.SIGTERM),
        ("first", signal.SIGTERM),
        ("second", signal.SIGKILL),
    ]
    for part, (name, how) in enumerate(endings):
        begin, middle, end = (ENTITIES * share // 8 for share in (2 * part, 2 * part + 1, 2 * part + 2))
        async with asyncio.TaskGroup() as telling:
            telling.create_task(core.publish(range(begin, middle)))
            telling.create_task(core.write(range(middle, end)))
            await routed(world, begin * len(VERBS) + 10)
            await outbounds.end(name, how)
            await outbounds.start(name)
    await routed(world, ENTITIES * len(VERBS))
    await world.all_settled(timeout=110)
    await core.in_order()


@pytest.mark.parametrize("most", [500, 2])
async def test_what_was_recorded_first_is_routed_first_whichever_is_woken(
    world: World, core: Core, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The create's wake-up is lost: the update's does for both, however much stands before it."""
    monkeypatch.setattr("workers.router.MOST", most)
    await world.start("outbound")  # and no scheduler, which would find the create after a while
    cipher = await world.cipher()
    events = [
        Event(
            id=str(uuid7()),
            source="/outbox",
            type=type_,
            subject=booking,
            companyid=COMPANY,
            idempotencykey=key,
            data=data,
        )
        for type_, booking, data, key in core.commands(range(1))
    ]
    async with world.db.transaction():
        await outbound.insert_commands(world.db, [command_row(e.row_id, COMPANY, e, cipher.seal) for e in events])
        await world.db.execute("UPDATE channel_events SET published_at = clock_timestamp()")
    async with open_parts("test", world.settings()) as parts:
        await announce(parts.publisher, [WakeUp(e.row_id, COMPANY, e.type, e.type) for e in events[2:3]])
        await world.until("SELECT count(*) FROM channel_events WHERE status = 'done'", equals=6)
        assert await core.turns() == {0: [0, 1, 2]}
        await announce(parts.publisher, [WakeUp(e.row_id, COMPANY, e.type, e.type) for e in events])
        await world.all_settled()
    assert await core.turns() == {0: [0, 1, 2, 3]}
