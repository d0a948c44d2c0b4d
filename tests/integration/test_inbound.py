"""Webhooks become reservations: the real processes, the real broker, the real database."""

from __future__ import annotations

import asyncio
import copy
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import aio_pika
import orjson
import pytest

from ops.fleet import inbound_stage
from ops.parts import open_parts
from schemas.connection import Connection
from schemas.event import BATCH_CONTENT_TYPE, CONTENT_TYPE, Event, decode
from simulators.bookings import deliveries, generate, truth
from store import connections, dead_letters
from telemetry import metrics
from tests.fleet import COMPANY, CONNECTION, World
from tests.topology.odd_frames import HOSTILE_DEATHS, give_up, publish, with_death
from workers import inbound as workers_inbound


@pytest.fixture
async def inbound(world: World) -> World:
    await world.start("ingress", "inbound", "scheduler")
    return world


async def test_a_webhook_becomes_a_reservation_with_guest_mapping_and_result(inbound: World) -> None:
    change = generate(1, 1, 0)[0]
    answer = await inbound.webhook(change.body)
    assert answer.status_code == 202, answer.text
    event_id = answer.json()["events"][0]
    await inbound.until("SELECT status FROM channel_events WHERE id = $1", event_id, equals="done")
    booking = change.body["booking"]
    row = await inbound.db.fetchrow("SELECT * FROM int_reservations WHERE external_id = $1", str(booking["id"]))
    assert row["company_id"] == COMPANY
    assert row["check_in"].isoformat() == booking["arrival"]
    assert row["check_out"].isoformat() == booking["departure"]
    assert row["external_room_type_id"] == str(booking["roomId"])
    guest = await inbound.db.fetchrow("SELECT * FROM int_guests WHERE id = $1", row["guest_id"])
    opened = (await inbound.cipher()).open(guest["sealed"])
    assert opened["last_name"] == booking["lastName"]
    mapping = await inbound.db.fetchrow("SELECT * FROM int_mappings")
    assert (mapping["external_entity_id"], mapping["internal_entity_id"]) == (str(booking["id"]), str(row["id"]))
    assert await inbound.db.fetchval("SELECT event_type FROM core_events") == "core.reservation.upserted"
    await inbound.until("SELECT count(*) FROM core_batches", equals=0)
    log = await inbound.db.fetchrow("SELECT status, signature, event_ids FROM webhook_log")
    assert (log["status"], log["signature"], [str(i) for i in log["event_ids"]]) == (202, "valid", [event_id])
    assert await inbound.db.fetchval("SELECT state FROM sync_log WHERE event_id = $1", event_id) == "success"


async def test_a_resend_is_a_duplicate_and_a_second_change_is_not(inbound: World) -> None:
    first, second = generate(2, 1, 1)
    assert (await inbound.webhook(first.body)).status_code == 202
    resent = copy.deepcopy(first.body)
    resent["retries"] = 3
    assert (await inbound.webhook(resent)).status_code == 200
    assert (await inbound.webhook(second.body)).status_code == 202
    await inbound.all_settled()
    assert await inbound.db.fetchval("SELECT count(*) FROM channel_events") == 2
    assert await inbound.db.fetchval("SELECT count(*) FROM webhook_log") == 3


async def test_disorder_and_duplicates_end_at_the_vendors_truth(inbound: World) -> None:
    history = generate(3, 60, 4)
    arriving = deliveries(history, seed=3, duplicates=0.3)
    statuses = [(await inbound.webhook(change.body)).status_code for change in arriving]
    assert statuses.count(202) == len(history)
    assert statuses.count(200) == len(arriving) - len(history)
    await inbound.all_settled()
    assert await inbound.db.fetchval("SELECT count(*) FROM channel_events") == len(history)
    stored = {row["external_id"]: row for row in await inbound.db.fetch("SELECT * FROM int_reservations")}
    expected = truth(history)
    assert len(stored) == len(expected)
    for booking_id, booking in expected.items():
        row = stored[str(booking_id)]
        assert row["check_in"].isoformat() == booking["arrival"]
        assert row["check_out"].isoformat() == booking["departure"]
        assert (row["status"] == "cancelled") == (booking["status"] == "cancelled")
        assert row["adults"] == booking["numAdult"]


async def test_what_comes_by_the_exchange_in_the_wrong_way_is_kept_as_a_dead_letter(inbound: World) -> None:
    async with await aio_pika.connect(inbound.amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("pms.events", ensure=False)
        fact = {"specversion": "1.0", "id": "x", "source": "/me", "type": "beds24.booking.created", "data": {"id": 1}}
        for raw in (orjson.dumps(fact), b"not json", b'{"id": 7}', b"[]"):
            await exchange.publish(aio_pika.Message(raw), "beds24.booking.created")
    await inbound.until("SELECT count(*) FROM dead_letters", equals=4)
    letters = await inbound.db.fetch("SELECT error_message, sealed, queue, routing FROM dead_letters")
    texts = [letter["error_message"] for letter in letters]
    for word in ("type: vendors' facts", "Invalid JSON", "id: Input should be a valid string", "empty batch"):
        assert any(word in text for text in texts), texts
    for letter in letters:
        assert inbound.keys.installation.open_bytes(letter["sealed"])


async def test_a_message_that_comes_again_adds_to_its_dead_letter(inbound: World) -> None:
    """The worker that kept it died before the ack, or the answer to its commit was lost: the broker, or it, brings it again."""
    fact = orjson.dumps({"id": "x", "source": "/me", "type": "beds24.booking.created", "data": {"id": 1}})
    other = fact.replace(b'"id":1', b'"id":2')
    batch = b'[{"id": 7}, {"id": 7}, {"id": "y", "type": "beds24.booking.created"}]'
    async with await aio_pika.connect(inbound.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange("pms.events", ensure=False)

        async def come(*bodies: bytes, key: str = "beds24.booking.created") -> None:
            for body in bodies:
                kind = BATCH_CONTENT_TYPE if body is batch else CONTENT_TYPE
                await exchange.publish(aio_pika.Message(body, content_type=kind), key)

        await come(b"not json", fact, batch, b"not json", fact, batch)
        await come(b"not json", key="beds24.booking.modified")
        await come(fact, other, other)
        await inbound.until("SELECT sum(attempts) FROM dead_letters", equals=12)
        rows = await inbound.db.fetch("SELECT attempts, status FROM dead_letters ORDER BY id")
        assert sorted(row["attempts"] for row in rows) == [1, 2, 2, 2, 2, 3]
        await inbound.db.execute("UPDATE dead_letters SET status = 'abandoned'")
        await come(fact)
        await inbound.until("SELECT count(*) FROM dead_letters WHERE status = 'pending'", equals=1)


async def test_what_nobody_can_read_is_kept_and_the_brokers_dead_letters_go_on_whatever_it_says_of_its_deaths(
    inbound: World,
) -> None:
    """RabbitMQ 3.10 dead-letters nothing more once it has given up a message with such a header."""
    async with await aio_pika.connect(inbound.amqp_url) as connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        for name, death in HOSTILE_DEATHS.items():
            await publish(channel, name.encode(), b"beds24.booking.odd", with_death(death))
        await publish(channel, b"x" * 70_000, b"beds24.booking.odd")
        await inbound.until("SELECT count(*) FROM dead_letters", equals=len(HOSTILE_DEATHS) + 1)
        letters = await inbound.db.fetch("SELECT * FROM dead_letters")
        kept = [inbound.keys.installation.open_bytes(letter["sealed"]).decode() for letter in letters]
        assert sorted(kept) == sorted([*HOSTILE_DEATHS, "x" * 65_536])
        for letter in letters:
            assert (letter["queue"], letter["operation"]) == ("beds24.inbound", "beds24.booking.odd")
            assert (letter["error_class"], letter["error_code"]) == ("invalid", "unreadable_message")
            assert letter["error_message"].startswith("Invalid JSON")
            assert orjson.loads(letter["routing"]) == {"queue": "beds24.inbound", "key": "beds24.booking.odd"}
        worker, stop = inbound.tasks.pop("inbound")
        stop.set()
        await worker
        await publish(channel, b"given up", b"beds24.booking.odd")
        await give_up(channel, "beds24.inbound")
    await inbound.until("SELECT count(*) FROM dead_letters WHERE queue = 'beds24.dlq'", equals=1)


@pytest.mark.parametrize("came_back", [False, True])
async def test_a_fact_that_does_not_say_who_sent_it_is_kept_too(world: World, came_back: bool) -> None:
    """A missing source is read as ours; but ours never carry data."""
    fact, wake_up = (
        {"id": id_, "type": "beds24.booking.created", **more} for id_, more in (("x", {"data": {"id": 1}}), ("y", {}))
    )
    events = decode(orjson.dumps([fact, wake_up]))
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        if came_back:
            for event in events:
                await stage.process_alone(event)
        else:
            await stage.process(events)
    (letter,) = await world.db.fetch("SELECT error_message, sealed FROM dead_letters")
    assert "type: vendors' facts" in letter["error_message"]
    assert orjson.loads(world.keys.installation.open_bytes(letter["sealed"]))["data"] == {"id": 1}


@pytest.mark.parametrize("came_back", [False, True])
async def test_a_message_for_facts_that_names_a_delivery_leaves_it_alone(world: World, came_back: bool) -> None:
    """Whoever sends its own word of it the wrong way: the delivery is not taken for a fact, and what was sent is kept."""
    id_ = await world.db.fetchval(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,
               entity_external_id, idempotency_key, payload)
           VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'reservation', '1', 'k', '{}')
           RETURNING id""",
        COMPANY,
        CONNECTION,
    )
    (event,) = decode(orjson.dumps({"id": str(id_), "source": "/core", "type": "beds24.booking.modified", "data": {}}))
    async with open_parts("inbound", world.settings()) as parts:
        stage = inbound_stage(parts)
        await (stage.process_alone(event) if came_back else stage.process([event]))
    assert tuple(await world.db.fetchrow("SELECT status, starts FROM channel_events")) == ("received", 0)
    assert "vendors' facts" in await world.db.fetchval("SELECT error_message FROM dead_letters")


async def test_two_workers_with_the_same_events_apply_and_tell_each_once(world: World) -> None:
    await world.start("ingress")
    history = generate(5, 12, 3)
    for _ in range(3):
        turn, history = history[:16], history[16:]
        events = [await recorded(world, change.body) for change in turn]
        async with open_parts("inbound", world.settings()) as one, open_parts("inbound", world.settings()) as other:
            await asyncio.gather(*(inbound_stage(parts).process(events) for parts in (one, other)))
    ended = dict(await world.db.fetch("SELECT status, count(*) FROM channel_events GROUP BY status"))
    assert ended.keys() <= {"done", "skipped"}
    assert await world.db.fetchval("SELECT count(*) FROM core_events") == ended["done"]
    assert await world.db.fetchval("SELECT count(DISTINCT cause_id) FROM core_events") == ended["done"]


async def test_what_somebody_else_ended_meanwhile_is_left_out_and_the_rest_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an operator: nothing of that event's state may be applied, nor told."""
    await world.start("ingress")
    events = [await recorded(world, change.body) for change in generate(6, 3, 0)]
    load = workers_inbound.store.load

    async def slow_load(connection: Any, ids: Any) -> Any:
        found = await load(connection, ids)
        await world.db.execute("UPDATE channel_events SET status = 'abandoned' WHERE id = $1", events[1].row_id)
        return found

    monkeypatch.setattr(workers_inbound.store, "load", slow_load)
    async with open_parts("inbound", world.settings()) as parts:
        await inbound_stage(parts).process(events)
    rows = await world.db.fetch(
        "SELECT e.status, (SELECT count(*) FROM int_reservations r WHERE r.source_event = e.id) AS applied,"
        " (SELECT count(*) FROM core_events c WHERE c.cause_id = e.id) AS told FROM channel_events e ORDER BY e.seq"
    )
    assert [tuple(row) for row in rows] == [("done", 1, 1), ("abandoned", 0, 0), ("done", 1, 1)]


FAILS_ONCE = """
    CREATE SEQUENCE commits;
    CREATE FUNCTION fails_once() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF nextval('commits') = 1 THEN RAISE EXCEPTION 'not now' USING ERRCODE = 'serialization_failure'; END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER fails_once AFTER UPDATE ON channel_events DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION fails_once();
"""


async def test_what_is_committed_at_the_second_try_is_counted_once(world: World) -> None:
    await world.start("ingress")
    event = await recorded(world, generate(6, 1, 0)[0].body)
    await world.db.execute("UPDATE channel_events SET attempts = 1")  # not by one statement
    await world.db.execute(FAILS_ONCE)
    counted = metrics.EVENTS.labels("beds24", "inbound", "done")._value
    before = counted.get()
    async with open_parts("inbound", world.settings()) as parts:
        await inbound_stage(parts).process([event])
    assert await world.db.fetchval("SELECT status FROM channel_events") == "done"
    assert await world.db.fetchval("SELECT last_value FROM commits") == 2
    assert counted.get() == before + 1


# Of the fact that tells booking $1 as it was at $2.
ECHO = (
    "INSERT INTO own_writes (event_id, company_id, connection_id, external_id, marker, expected, written_at, expires_at)"
    " SELECT gen_random_uuid(), company_id, connection_id, external_id, '', jsonb_build_object('adults', adults),"
    " $2, now() + interval '1 hour' FROM int_reservations WHERE external_id = $1"
)
PULLED = (
    "UPDATE channel_events SET payload = jsonb_set(payload::jsonb, '{booking,modifiedTime}', to_jsonb("
    "to_char($2::timestamptz AT TIME ZONE 'UTC' - interval '1 minute', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')))"
    " || '{\"pulledAt\": \"2026-01-01T00:00:00Z\"}' WHERE status = 'received' AND entity_external_id = $1"
)


@pytest.mark.parametrize("kind", [ECHO, PULLED], ids=["an echo", "what a pull brought, of the version that is stored"])
async def test_a_batch_takes_its_bookings_in_the_order_that_every_batch_takes_them(world: World, kind: str) -> None:
    """Those that it looks at before the others, too: another batch never waits for one that waits for it."""
    await world.start("ingress")
    first, second = [change.body for change in generate(7, 2, 0)]
    ids = sorted((str(body["booking"]["id"]) for body in (first, second)), key=str.encode)
    async with open_parts("inbound", world.settings()) as parts, parts.pool.acquire() as other:
        stage = inbound_stage(parts)
        await stage.process([await recorded(world, body) for body in (first, second)])
        events = [await recorded(world, later(body)) for body in (first, second)]
        looked_at = next(body for body in (first, second) if str(body["booking"]["id"]) == ids[1])
        await world.db.execute(kind, ids[1], modified(later(looked_at)))
        await world.db.execute("UPDATE channel_events SET attempts = 1 WHERE status = 'received'")
        look = "SELECT FROM int_reservations WHERE external_id = $1 FOR UPDATE NOWAIT"
        async with other.transaction():
            await other.execute(look, ids[0])
            batch = asyncio.create_task(stage.process(events))
            await world.until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", equals=1)
            await other.execute(look, ids[1])
        await batch
        # What was pulled is asked for.
        await world.until("SELECT count(*) FROM channel_events WHERE status IN ('received', 'processing')", equals=0)
        await stage.drain(10)
    reasons = await world.db.fetch("SELECT last_error FROM channel_events WHERE status <> 'done'")
    assert [row["last_error"][:4] for row in reasons] == ["echo" if kind is ECHO else "not "]


def later(body: dict[str, Any]) -> dict[str, Any]:
    """The same booking, changed a minute later."""
    changed = copy.deepcopy(body)
    changed["booking"]["modifiedTime"] = (modified(body) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return changed


def modified(body: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(body["booking"]["modifiedTime"])


async def recorded(world: World, body: dict[str, Any]) -> Event:
    """The wake-up of a webhook that nobody has taken yet."""
    answer = await world.webhook(body)
    assert answer.status_code == 202, answer.text
    (id_,) = answer.json()["events"]
    return Event(id=id_, type="beds24.booking.modified")


async def test_what_cannot_be_opened_is_a_dead_letter_and_its_neighbours_are_done(world: World) -> None:
    """Of a connection that no process could open yet; once its secret is right again, it goes on."""
    await connections.add_connection(world.db, "locked", COMPANY, "beds24", "Locked", None, {"currency": "EUR"})
    locked = Connection("locked", COMPANY, "beds24", "Locked")
    await connections.put_secret(world.db, locked, "webhook_secret", b"sealed with another key")
    await world.start("ingress", "scheduler")
    ids = [(await world.webhook(change.body)).json()["events"][0] for change in generate(5, 6, 0)]
    await world.db.execute("UPDATE channel_events SET connection_id = 'locked' WHERE id = ANY ($1::uuid[])", ids[::2])
    await world.start("inbound")
    await world.all_settled()
    ends = await world.db.fetch("SELECT id, status, starts, error_class FROM channel_events ORDER BY id")
    bad, good = ("failed", 0, "misconfigured"), ("done", 0, None)
    assert {str(id_): tuple(end) for id_, *end in ends} == {id_: (good, bad)[id_ in ids[::2]] for id_ in ids}
    letters = await world.db.fetch("SELECT owner, error_code, error_message FROM dead_letters")
    assert {tuple(letter)[:2] for letter in letters} == {("pipeline", "sealed")}
    assert "connection locked: its webhook_secret" in letters[0]["error_message"]
    sealed = (await world.cipher()).seal_bytes(b"right")
    await connections.put_secret(world.db, locked, "webhook_secret", sealed)
    async with world.db.transaction():
        await dead_letters.requeue(world.db, [UUID(id_) for id_ in ids[::2]], "test")
    await world.two_seconds_pass()
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'done'", equals=len(ids))
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters WHERE status = 'resolved'") == 3
