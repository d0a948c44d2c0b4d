"""The relay and the broker's queues: what a long one still holds is not sent again, what is lost is."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import aio_pika
import asyncpg
import pytest

import workers.relay
from adapters.registry import adapters
from ops.parts import declared
from schemas.event import decode
from schemas.ids import uuid7
from store import results
from store.directory import Directory
from store.pool import open_pool
from store.results import CoreEventRow
from topology.announce import WakeUp, announce
from topology.apply import apply
from topology.burst import Outgoing
from topology.declared import EVENTS, inbound_queue, outbound_queue
from topology.depth import Depths
from topology.publisher import FaultKind, Publisher, PublishFault
from workers.relay import BATCHES, FIRST_REST, KNOWN, LEAST, LONG, MOST, READ, READ_AGAIN, Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from uuid import UUID

    from store.pool import Pool

INBOUND, OUTBOUND = inbound_queue("beds24"), outbound_queue("beds24")
TYPE = "beds24.booking.modified"
ROWS = (
    "INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,"
    " received_at, published_at) SELECT gen_random_uuid(), $1, 'beds24-acme', {parent}, $2, $3, gen_random_uuid(), '{{}}',"
    " now() - interval '1 hour', {published} + n * interval '1 microsecond' FROM generate_series(1, $4) n RETURNING id"
)
PAUSE, IDLE = 0.1, 0.5  # between the relay's rounds
R = TypeVar("R", bound=Relay)
LONG_AGO = "now() - interval '5 minutes'"


@dataclass
class Ground:
    amqp_url: str
    db: Any
    pool: Pool
    publisher: Publisher
    now: float = 0.0
    asked: list[set[str]] = field(default_factory=list)

    def relay(self, kind: type[R] = Relay) -> R:  # type: ignore[assignment]
        directory = Directory(self.pool, None)  # type: ignore[arg-type] - these looks open nothing that is sealed
        return kind(self.pool, directory, self.publisher, self.depths, clock=lambda: self.now, pause=PAUSE, idle=IDLE)

    async def pause(self) -> None:
        """The connection of all deliveries."""
        await self.db.execute("UPDATE connections SET status = 'paused'")

    async def depths(self, queues: Iterable[str]) -> Mapping[str, int]:
        self.asked.append(set(queues))
        async with Depths(self.amqp_url, name="test depths") as depths:
            return await depths.ask(self.asked[-1])

    async def facts(self, company: str, count: int, published: str) -> list[Any]:
        sql = ROWS.format(parent="NULL", published=published)
        return [row["id"] for row in await self.db.fetch(sql, company, "inbound", TYPE, count)]

    async def delivery(self, published: str) -> Any:
        sql = ROWS.format(parent="gen_random_uuid()", published=published)
        return await self.db.fetchval(sql, "acme", "outbound", "pms.booking.update", 1)

    async def fill(self, messages: int) -> None:
        """A queue in which so many messages wait, each of one event."""
        for id_ in await self.facts("acme", messages, "now()"):
            await announce(self.publisher, [WakeUp(id_, "acme", TYPE, TYPE)])

    async def drain(self, queue: str = INBOUND) -> list[str]:
        """The events that its messages name."""
        connection = await aio_pika.connect(self.amqp_url)
        async with connection:
            channel = await connection.channel()
            found = []
            source = await channel.get_queue(queue, ensure=False)
            while (message := await source.get(fail=False)) is not None:
                found += [event.id for event in decode(message.body)]
                await message.ack()
        return found


@pytest.fixture
async def ground(database_url: str, amqp_url: str) -> AsyncIterator[Ground]:
    await apply(amqp_url, declared(adapters()))
    db = await asyncpg.connect(database_url)
    await db.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '')")
    await db.execute(
        "INSERT INTO connections (id, company_id, vendor, name) VALUES ('beds24-acme', 'acme', 'beds24', 'x')"
    )
    pool = await open_pool(database_url, name="test")
    publisher = Publisher(amqp_url, name="test")
    await publisher.start(wait=10)
    yield Ground(amqp_url, db, pool, publisher)
    await publisher.stop()
    await pool.close()
    await db.close()


async def test_what_a_long_queue_holds_is_not_sent_again_and_once_it_is_short_it_is(ground: Ground) -> None:
    await ground.fill(LONG + 1)
    rows = await ground.facts("acme", 50, LONG_AGO)
    written = await ground.db.fetch("SELECT id, xmin FROM channel_events ORDER BY id")
    relay = ground.relay()
    assert [await relay.wake_stale() for _ in range(3)] == [0, 0, 0]
    assert await ground.db.fetch("SELECT id, xmin FROM channel_events ORDER BY id") == written  # nor written
    assert len(await ground.drain()) == LONG + 1
    ground.now += KNOWN + 1
    assert await relay.wake_stale() == 50
    assert Counter(await ground.drain()) == Counter(str(id_) for id_ in rows)
    assert await relay.wake_stale() == 0


async def test_a_short_queue_has_lost_what_is_so_late(ground: Ground) -> None:
    await ground.fill(LONG)
    await ground.facts("acme", 50, LONG_AGO)
    assert await ground.relay().wake_stale() == 50


async def test_another_queues_rows_are_found_behind_those_of_a_long_one(ground: Ground) -> None:
    await ground.fill(LONG + 1)
    await ground.facts("acme", 2 * READ, LONG_AGO)
    late = await ground.delivery("now() - interval '2 minutes'")
    relay = ground.relay()
    assert [await relay.wake_stale() for _ in range(4)] == [0, 0, 1, 0]
    assert await ground.drain(OUTBOUND) == [str(late)]


async def test_the_broker_is_asked_only_about_rows_that_look_lost_and_now_and_then(ground: Ground) -> None:
    relay = ground.relay()
    await relay.wake_stale()
    assert ground.asked == []
    await ground.fill(LONG + 1)
    await ground.facts("acme", 1, LONG_AGO)
    await ground.delivery(LONG_AGO)
    for _ in range(3):
        await relay.wake_stale()
    assert ground.asked == [{INBOUND, OUTBOUND}]
    ground.now += KNOWN + 1
    await relay.wake_stale()
    assert ground.asked[1:] == [{INBOUND}]


async def test_when_the_broker_does_not_say_it_is_sent_again(ground: Ground) -> None:
    await ground.fill(LONG + 1)
    await ground.facts("acme", 50, LONG_AGO)
    ground.amqp_url = "amqp://127.0.0.1:1/"
    assert await ground.relay().wake_stale() == 50


async def test_two_relays_at_once_wake_no_row_twice(ground: Ground) -> None:
    ids = await ground.facts("acme", 300, "NULL::timestamptz") + await ground.facts("zeta", 300, "NULL::timestamptz")
    lost = await ground.facts("acme", 300, LONG_AGO)
    relays = ground.relay(), ground.relay()
    while await ground.db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'"):
        await asyncio.gather(*(relay.wake_unpublished() for relay in relays))
        await asyncio.gather(*(relay.wake_stale() for relay in relays))
        await ground.db.execute(
            "UPDATE channel_events SET status = 'done' WHERE published_at > now() - interval '1 minute'"
        )
    assert Counter(await ground.drain()) == Counter(str(id_) for id_ in (*ids, *lost))


async def test_what_was_given_back_at_one_time_hides_nothing_behind_it(ground: Ground) -> None:
    await ground.fill(LONG + 1)
    await ground.facts("acme", 2 * READ, LONG_AGO)
    late = await ground.delivery(LONG_AGO)
    await ground.db.execute(
        "UPDATE channel_events SET published_at = '2000-01-01Z' WHERE published_at < now() - interval '4 min'"
    )
    relay = ground.relay()
    assert sum([await relay.wake_stale() for _ in range(4)]) == 1
    assert await ground.drain(OUTBOUND) == [str(late)]


class Counting(Relay):
    reads = 0

    async def wake_stale(self) -> int:
        self.reads += 1
        return await super().wake_stale()


async def test_a_paused_connections_backlog_is_read_now_and_then_and_woken_soon_after_it_is_resumed(
    ground: Ground,
) -> None:
    await ground.pause()
    waiting = await ground.delivery(LONG_AGO)
    relay = ground.relay(Counting)
    assert [await relay._round() for _ in range(3)] == [IDLE] * 3
    assert relay.reads == 1
    await ground.db.execute("UPDATE connections SET status = 'active'")
    ground.now += READ_AGAIN
    assert await relay._round() == PAUSE
    assert relay.reads == 2
    assert await ground.drain(OUTBOUND) == [str(waiting)]


async def test_a_backlog_is_read_in_parts_and_what_is_lost_behind_it_is_found(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.relay, "READ", 2)
    await ground.pause()
    for _ in range(5):
        await ground.delivery(LONG_AGO)
    (lost,) = await ground.facts("acme", 1, "now() - interval '2 minutes'")
    relay = ground.relay(Counting)
    # The third look finds the lost one, and the fourth that there are no more.
    assert [await relay._round() for _ in range(6)] == [PAUSE] * 3 + [IDLE] * 3
    assert relay.reads == 4
    assert await ground.drain() == [str(lost)]
    ground.now += READ_AGAIN
    assert [await relay._round() for _ in range(6)] == [PAUSE] * 2 + [IDLE] * 4
    assert relay.reads == 7


async def test_results_that_one_listener_refuses_keep_nobody_else_waiting(ground: Ground) -> None:
    connection = await aio_pika.connect(ground.amqp_url)
    channel = await connection.channel()
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    for name, pattern, arguments in (("full", "core.reservation.#", full), ("other", "core.#", None)):
        await (await channel.declare_queue(name, durable=True, arguments=arguments)).bind(EVENTS, pattern)
    assert await ground.publisher.publish_all([Outgoing("core.reservation.upserted", b"x", "text/plain")]) == [None]
    other = await channel.declare_queue("other", passive=True)
    await other.purge()

    async def keep(type_: str) -> UUID:
        row = CoreEventRow("acme", "beds24-acme", type_, "s", "{}", uuid7(), None)
        await results.keep(ground.db, [row])
        return row.id

    for _ in range(BATCHES):
        await keep("core.reservation.upserted")
    mine = await keep("core.command.succeeded")
    await ground.db.execute("UPDATE core_batches SET created_at = created_at - interval '1 minute'")
    relay = ground.relay()
    assert [await relay.tell() for _ in range(4)] == [0, 1, 0, 0]
    assert len(await ground.drain("other")) == BATCHES + 1  # and not again and again
    assert not await ground.db.fetchval("SELECT count(*) FROM core_batches WHERE $1 = ANY (event_ids)", mine)
    await (await channel.get_queue("full")).delete(if_empty=False)
    ground.now += FIRST_REST + 0.1
    assert await relay.tell() == BATCHES
    await connection.close()


class Unconfirmed(Publisher):
    """Results about reservations go to a queue without a quorum. When nothing else is confirmed, the connection is given up."""

    heard = 0
    lost = False

    @property
    def ready(self) -> bool:
        return super().ready and not self.lost

    async def publish_all(self, messages: Sequence[Outgoing]) -> list[PublishFault | None]:
        if messages[0].routing_key == "core.command.succeeded":
            self.heard += 1
            return await super().publish_all(messages)
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not self.heard:
                    await asyncio.sleep(0.01)
        self.lost = not self.heard
        return [PublishFault(FaultKind.TIMEOUT)] * len(messages)


@pytest.mark.parametrize("silent", [BATCHES - 1, BATCHES])
async def test_results_that_one_listeners_queue_never_confirms_keep_nobody_else_waiting(
    ground: Ground, silent: int
) -> None:
    """Neither those of the same look, nor those behind it."""
    for n in range(silent + 1):
        type_ = "core.reservation.upserted" if n < silent else "core.command.succeeded"
        await results.keep(ground.db, [CoreEventRow("acme", "beds24-acme", type_, "s", "{}", uuid7(), None)])
    await ground.db.execute("UPDATE core_batches SET created_at = created_at - interval '1 minute'")
    ground.publisher = publisher = Unconfirmed(ground.amqp_url, name="test")
    await publisher.start(wait=10)
    relay = ground.relay()
    async with asyncio.timeout(5):
        told = [await relay.tell()]
        assert publisher.lost == (silent == BATCHES)
        publisher.lost = False
        told.append(await relay.tell())
    assert told == [int(silent < BATCHES), int(silent == BATCHES)]
    await publisher.stop()


async def test_two_floods_are_woken_in_turn_and_nobody_waits_behind_them(ground: Ground) -> None:
    owner = {}
    for company, count in (("acme", 900), ("besa", 900), ("zeta", 5)):
        owner |= dict.fromkeys(map(str, await ground.facts(company, count, "NULL::timestamptz")), company)
    relay = ground.relay()
    woken: Counter[str] = Counter()

    async def look() -> int:
        found = await relay.wake_unpublished()
        woken.update(owner[id_] for id_ in await ground.drain())
        return found

    assert await look() <= LEAST
    assert woken["acme"] == woken["besa"]
    assert woken["zeta"] == 5
    while await look():  # until some of them are settled
        pass
    assert woken.total() < 4 * LEAST
    while woken.total() < len(owner):
        await ground.db.execute("UPDATE channel_events SET status = 'done' WHERE published_at IS NOT NULL")
        assert await look() > 0
        assert abs(woken["acme"] - woken["besa"]) <= 20
    assert woken == {"acme": 900, "besa": 900, "zeta": 5}


async def test_what_is_on_its_way_at_once_follows_what_is_settled(ground: Ground) -> None:
    await ground.facts("acme", 4 * MOST, "NULL::timestamptz")
    relay = ground.relay()
    found = []
    for settled in (*[MOST] * 6, 10, 10, MOST, MOST):
        found.append(await relay.wake_unpublished())
        await ground.db.execute(
            "UPDATE channel_events SET status = 'done' WHERE id IN (SELECT id FROM channel_events"
            " WHERE published_at IS NOT NULL AND status = 'received' LIMIT $1)",
            settled,
        )
    assert found == [LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST, 16 * LEAST, MOST, MOST, 10, 0, LEAST]
