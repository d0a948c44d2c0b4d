"""An event that began again and again and never ended is parked by itself; one that began less often is done."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import aio_pika
import orjson
import pytest

from ops.fleet import inbound_stage
from ops.parts import open_parts
from schemas.event import Event, decode, encode
from schemas.vocabulary import MAX_STARTS
from simulators.bookings import generate
from simulators.core_pms import CorePms
from store import inbound
from store.presence import Presence
from telemetry import metrics
from tests.fleet import COMPANY, CONNECTION, PROPERTY, ROOM, World
from tests.topology.odd_frames import HOSTILE_DEATHS, publish, with_death
from topology.declared import DEAD_LETTERS, dlq, outbound_queue


@pytest.mark.parametrize(("starts", "status"), [(MAX_STARTS, "done"), (MAX_STARTS + 1, "failed")])
async def test_an_inbound_event_that_came_back_is_run_alone_until_it_is_a_poison(
    world: World, starts: int, status: str
) -> None:
    await world.start("ingress")  # and no worker: the stage is run by hand
    event_id = (await world.webhook(generate(31, 1, 0)[0].body)).json()["events"][0]
    await world.db.execute("UPDATE channel_events SET starts = $1", starts)
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        await stage.process_alone(Event(id=event_id, type="beds24.booking.created"))
    row = await world.db.fetchrow("SELECT status, error_class FROM channel_events")
    assert row["status"] == status
    letters = await world.db.fetch("SELECT error_class, owner, error_message FROM dead_letters")
    if status == "done":
        assert letters == []
        assert await world.db.fetchval("SELECT starts FROM channel_events") == 0
    else:
        (letter,) = letters
        assert (letter["error_class"], letter["owner"]) == ("poison", "pipeline")
        assert f"started {MAX_STARTS} times" in letter["error_message"]


@pytest.mark.parametrize(
    ("starts", "status", "after"),
    [(0, "retrying", 0), (MAX_STARTS, "retrying", MAX_STARTS - 1), (MAX_STARTS + 1, "failed", 0)],
)
async def test_a_hint_that_came_back_has_its_last_start_if_it_only_waited_for_it(
    world: World, starts: int, status: str, after: int
) -> None:
    """Its worker may have died of another one."""
    await world.start("ingress")  # and no worker: the stage is run by hand
    event_id = (await world.webhook({"booking": {"id": 999_999_999}})).json()["events"][0]
    await world.db.execute("UPDATE channel_events SET starts = $1", starts)
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        await stage.process_alone(Event(id=event_id, type="beds24.booking.hinted"))
        await world.until("SELECT status FROM channel_events", equals=status)  # the vendor does not show it yet
        await stage.drain(10)
    assert await world.db.fetchval("SELECT starts FROM channel_events") == after


async def test_what_is_leased_is_not_counted_by_a_wake_up_that_comes_back(world: World) -> None:
    await world.start("ingress")
    event_id = (await world.webhook({"booking": {"id": 999_999_999}})).json()["events"][0]
    await world.db.execute(
        "UPDATE channel_events SET status = 'processing', worker = 'w', lease_until = now() + interval '1 hour', starts = $1",
        MAX_STARTS,
    )
    async with open_parts("inbound", world.settings()) as parts:
        await inbound_stage(parts).process_alone(Event(id=event_id, type="beds24.booking.hinted"))
    row = await world.db.fetchrow("SELECT status, worker, starts FROM channel_events")
    assert tuple(row) == ("processing", "w", MAX_STARTS)


async def test_what_waits_for_its_time_is_not_counted_by_a_wake_up_that_comes_back(world: World) -> None:
    """It may share its message with one that kills each worker, as often as that takes."""
    await world.start("ingress")
    event_id = (await world.webhook({"booking": {"id": 999_999_999}})).json()["events"][0]
    await world.db.execute("UPDATE channel_events SET status = 'retrying', next_attempt_at = now() + interval '1 hour'")
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        for _ in range(MAX_STARTS + 1):
            await stage.process_alone(Event(id=event_id, type="beds24.booking.hinted"))
    assert tuple(await world.db.fetchrow("SELECT status, starts FROM channel_events")) == ("retrying", 0)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (MAX_STARTS - 1, MAX_STARTS + 1), (MAX_STARTS, MAX_STARTS + 1)])
async def test_a_start_alone_whose_answer_was_lost_is_counted_once(world: World, before: int, after: int) -> None:
    await world.start("ingress")
    event_id = UUID((await world.webhook({"booking": {"id": 999_999_999}})).json()["events"][0])
    await world.db.execute("UPDATE channel_events SET starts = $1", before)
    token = uuid4()
    assert await inbound.start_alone(world.db, event_id, token) == before
    again = await inbound.start_alone(world.db, event_id, token)
    assert again is not None
    assert again <= MAX_STARTS  # it runs
    assert await world.db.fetchval("SELECT starts FROM channel_events") == after
    assert await inbound.start_alone(world.db, event_id, uuid4()) == after


@pytest.mark.parametrize("in_hand", [0, 1], ids=["one that came back", "a batch"])
async def test_what_came_back_runs_beside_nothing(world: World, in_hand: int) -> None:
    """What kills a worker kills all that runs in it: beside it an innocent one would be counted, and parked in the end."""
    await world.start("ingress")  # and no worker: the stage is run by hand
    ids = [(await world.webhook(change.body)).json()["events"][0] for change in generate(31, 3, 0)]
    came_back, fresh, other = events = [Event(id=id_, type="beds24.booking.created") for id_ in ids]
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        works = [stage.process_alone(came_back), stage.process([fresh])]
        async with world.db.transaction():
            await world.db.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", events[in_hand].row_id)
            tasks = [asyncio.create_task(work) for work in (works.pop(in_hand), *works, stage.process_alone(other))]
            ended, _ = await asyncio.wait(tasks, timeout=0.5)
            assert ended == set()
            assert await world.db.fetchval("SELECT starts FROM channel_events WHERE id = $1", other.row_id) == 0
        await asyncio.gather(*tasks)
    assert await world.db.fetch("SELECT DISTINCT status, starts FROM channel_events") == [("done", 0)]


async def test_a_delivery_that_is_a_poison_is_parked_without_a_call(world: World) -> None:
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    await world.start("outbound", "scheduler")
    stay = {"reservationId": "B-1", "propertyId": "P1", "roomTypeId": "RT1"}
    dates = {"checkIn": "2027-03-01", "checkOut": "2027-03-04"}
    async with CorePms(world.amqp_url) as core:
        await core.publish("pms.booking.create", "B-1", COMPANY, {**stay, **dates}, "c-1")
        await core.wait_for(lambda e: e.type == "core.command.succeeded")
        calls = len(world.sim.account.calls)
        await world.db.execute(
            "UPDATE channel_events SET status = 'received', published_at = NULL, error_class = 'unknown', starts = $1"
            " WHERE parent_id IS NOT NULL",
            MAX_STARTS + 1,
        )
        await world.two_seconds_pass()
        told = await core.wait_for(lambda e: e.type == "core.command.failed")
    assert told.data["fault"] == "poison"
    assert len(world.sim.account.calls) == calls


async def test_a_delivery_whose_message_the_broker_gave_up_is_parked_for_its_vendor_and_told(world: World) -> None:
    await world.start("scheduler")  # and no worker: the last one has died of it
    event_id = await world.db.fetchval(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,
               entity_internal_id, idempotency_key, payload, status, attempts, starts, worker, lease_until, published_at)
           VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'reservation', 'B-1', 'k',
               '{}', 'processing', 4, $3, 'w', now() + interval '1 hour', now()) RETURNING id""",
        COMPANY,
        CONNECTION,
        MAX_STARTS + 1,
    )
    counted = metrics.EVENTS.labels("beds24", "outbound", "park")._value
    before = counted.get()
    async with CorePms(world.amqp_url) as core:
        async with await aio_pika.connect(world.amqp_url) as connection:
            wake_up = aio_pika.Message(encode(Event(id=str(event_id), type="pms.booking.cancel", companyid=COMPANY)))
            await (await connection.channel()).default_exchange.publish(wake_up, dlq("beds24"))
        told = await core.wait_for(lambda e: e.type == "core.command.failed")
    assert (told.subject, told.data["fault"], told.data["connectionId"]) == ("B-1", "poison", CONNECTION)
    letter = await world.db.fetchrow("SELECT event_id, vendor, error_class FROM dead_letters")
    assert tuple(letter) == (event_id, "beds24", "poison")
    attempt = await world.db.fetchrow("SELECT attempt, outcome, error_class, error FROM event_attempts")
    assert tuple(attempt) == (5, "park", "poison", f"started {MAX_STARTS} times and never ended")
    assert counted.get() == before + 1


async def test_a_delivery_whose_message_the_broker_gave_up_is_not_parked_while_a_living_worker_has_it(
    world: World,
) -> None:
    """Its last start counts while it goes on; what comes of it would be lost."""
    living = Presence(world.database_url, "living")
    await living.start()
    await world.start("scheduler")
    ids = [
        await world.db.fetchval(
            """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
                   status, starts, worker, lease_until, published_at)
               VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.booking.cancel', $3, '{}', 'processing', $4,
                   $3, now() + interval '1 hour', now()) RETURNING id""",
            COMPANY,
            CONNECTION,
            worker,
            MAX_STARTS + 1,
        )
        for worker in ("living", "dead")
    ]
    async with await aio_pika.connect(world.amqp_url) as connection:
        wake_ups = [{"id": str(id_), "type": "pms.booking.cancel", "companyid": COMPANY} for id_ in ids]
        await (await connection.channel()).default_exchange.publish(
            aio_pika.Message(orjson.dumps(wake_ups)), dlq("beds24")
        )
        await world.until("SELECT count(*) FROM dead_letters", equals=1)
    found = await world.db.fetch("SELECT worker, status FROM channel_events ORDER BY worker")
    assert list(map(tuple, found)) == [("dead", "failed"), ("living", "processing")]
    await living.stop()


async def test_availability_that_waits_behind_a_delivery_that_the_broker_gave_up_fails_with_it(world: World) -> None:
    """It may have been done: what is older would reopen what it closed."""
    await world.start("scheduler")
    older, newest = [
        await world.db.fetchval(
            """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,
                   entity_internal_id, idempotency_key, payload, status, starts, lane, lane_policy, lease_until, published_at)
               VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.availability.update', 'room_type', 'RT1',
                   $3, '{}', $3, $4, 'room_type:RT1@' || $2, 'supersede', now() + interval '1 hour', now()) RETURNING id""",
            COMPANY,
            CONNECTION,
            status,
            starts,
        )
        for status, starts in (("received", 0), ("processing", MAX_STARTS + 1))
    ]
    async with CorePms(world.amqp_url) as core:
        async with await aio_pika.connect(world.amqp_url) as connection:
            wake_up = aio_pika.Message(encode(Event(id=str(newest), type="pms.availability.update", companyid=COMPANY)))
            await (await connection.channel()).default_exchange.publish(wake_up, dlq("beds24"))
        for id_ in (older, newest):
            told = await core.wait_for(lambda e, id_=id_: e.data.get("deliveryId") == str(id_))  # type: ignore[misc]
            assert (told.type, told.data["fault"]) == ("core.command.failed", "poison")
    assert await world.db.fetch("SELECT DISTINCT status FROM channel_events") == [("failed",)]
    letters = dict(await world.db.fetch("SELECT event_id, vendor FROM dead_letters"))
    assert letters == {older: "beds24", newest: "beds24"}


async def test_a_delivery_whose_message_the_broker_gave_up_is_woken_under_its_connection(world: World) -> None:
    """By which a worker counts what it has under way there."""
    await world.start("scheduler")
    event_id = await world.db.fetchval(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
               status, starts, published_at)
           VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'k', '{}', 'received', 0, now())
           RETURNING id""",
        COMPANY,
        CONNECTION,
    )
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        dead = aio_pika.Message(encode(Event(id=str(event_id), type="pms.booking.cancel", companyid=COMPANY)))
        await channel.default_exchange.publish(dead, dlq("beds24"))
        outbound = await channel.get_queue(outbound_queue("beds24"), ensure=False)
        async with outbound.iterator(timeout=10) as messages:
            (woken,) = decode((await anext(messages)).body)
    assert (woken.id, woken.connectionid) == (str(event_id), CONNECTION)


async def test_what_lies_among_the_dead_letters_is_kept_whatever_it_says_of_its_deaths(world: World) -> None:
    """And a batch of which only a part is no event loses nothing but that part."""
    await world.start("scheduler")
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        for name, death in HOSTILE_DEATHS.items():
            await publish(channel, name.encode(), dlq("beds24").encode(), with_death(death), exchange=DEAD_LETTERS)
    await world.until("SELECT count(*) FROM dead_letters", equals=len(HOSTILE_DEATHS))
    letters = await world.db.fetch("SELECT operation, queue, sealed FROM dead_letters")
    assert {world.keys.installation.open_bytes(letter["sealed"]).decode() for letter in letters} == set(HOSTILE_DEATHS)
    assert {(letter["operation"], letter["queue"]) for letter in letters} == {("beds24.dlq", "beds24.dlq")}


async def test_of_a_dead_batch_that_nobody_recorded_each_event_is_kept_whole(world: World) -> None:
    """However large they are together."""
    await world.start("scheduler")
    events = [
        {
            "id": f"c-{n}",
            "source": "/core",
            "type": "pms.booking.cancel",
            "companyid": COMPANY,
            "data": {"reason": "x" * 60_000},
        }
        for n in range(3)
    ]
    async with await aio_pika.connect(world.amqp_url) as connection:
        batch = aio_pika.Message(orjson.dumps(events))
        await (await connection.channel()).default_exchange.publish(batch, dlq("pms"))
        await world.until("SELECT count(*) FROM dead_letters", equals=3)
    letters = await world.db.fetch("SELECT sealed FROM dead_letters ORDER BY id")
    kept = [orjson.loads(world.keys.installation.open_bytes(letter["sealed"])) for letter in letters]
    assert [{name: one[name] for name in events[0]} for one in kept] == events


async def test_of_a_dead_batch_only_what_is_malformed_is_kept_and_the_rest_is_woken(world: World) -> None:
    await world.start("ingress")
    event_id = (await world.webhook(generate(31, 1, 0)[0].body)).json()["events"][0]
    await world.until("SELECT published_at IS NOT NULL FROM channel_events")
    await world.start("scheduler")
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await connection.channel()
        inbound = await channel.get_queue("beds24.inbound", ensure=False)
        await (await inbound.get()).ack()  # its wake-up is lost, and its row would be stale in a minute
        batch = aio_pika.Message(orjson.dumps([{"id": event_id, "type": "beds24.booking.created"}, {"id": 7}]))
        await channel.default_exchange.publish(batch, dlq("beds24"))
        await world.until("SELECT count(*) FROM dead_letters", equals=1)
        async with inbound.iterator(timeout=10) as messages:
            assert orjson.loads((await anext(messages)).body)["id"] == event_id
    letter = await world.db.fetchrow("SELECT error_message, sealed, routing FROM dead_letters")
    assert letter["error_message"] == "id: Input should be a valid string"
    assert orjson.loads(letter["routing"])["place"] == 1
    assert orjson.loads(world.keys.installation.open_bytes(letter["sealed"])) == {"id": 7}
