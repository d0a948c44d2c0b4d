"""Commands become bookings at the vendor, once, in order, and come back as mappings and results."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import orjson
import pytest

from schemas.connection import Connection
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.state import Author
from simulators.bookings import generate
from simulators.core_pms import CorePms
from store import connections, dead_letters, outbound
from tests.fleet import COMPANY, CONNECTION, PROPERTY, ROOM, World
from tests.topology.odd_frames import ODD, publish
from topology.declared import EVENTS

CREATE: dict[str, Any] = {
    "propertyId": "P1",
    "roomTypeId": "RT1",
    "checkIn": "2027-03-01",
    "checkOut": "2027-03-04",
    "adults": 2,
    "guest": {"firstName": "Zoë", "lastName": "Ångström 🛎", "email": "zoe@example.invalid"},
    "totalPrice": 45050,
    "currency": "EUR",
}


async def create(core: CorePms, booking: str, key: str | None = None, **changes: Any) -> None:
    data = {**CREATE, "reservationId": booking, **changes}
    await core.publish("pms.booking.create", booking, COMPANY, data, key or f"create-{booking}")


def created(world: World) -> list[Any]:
    return [call for call in world.sim.account.calls if call.operation == "POST /bookings" and call.effects]


async def test_create_update_cancel_reach_the_vendor_in_order(world: World, core: CorePms) -> None:
    await create(core, "B-1")
    update = {"reservationId": "B-1", "checkOut": "2027-03-06", "adults": 3}
    await core.publish("pms.booking.update", "B-1", COMPANY, update, "update-B-1")
    await core.publish("pms.booking.cancel", "B-1", COMPANY, {"reservationId": "B-1"}, "cancel-B-1")
    ended = await core.wait_for(
        lambda e: e.type == "core.command.succeeded" and e.data["command"] == "pms.booking.cancel", timeout=20
    )
    (booking,) = world.sim.account.bookings.values()
    assert ended.data["externalId"] == str(booking["id"])
    assert (booking["departure"], booking["numAdult"], booking["status"]) == ("2027-03-06", 3, "cancelled")
    assert booking["lastName"] == CREATE["guest"]["lastName"]
    assert booking["price"] == 450.5
    assert [call.operation for call in created(world)] == ["POST /bookings"] * 3
    mapped = await world.db.fetchval("SELECT external_entity_id FROM int_mappings WHERE internal_entity_id = 'B-1'")
    assert mapped == str(booking["id"])
    keys = [call.idempotency_key for call in created(world)]
    commands = await world.db.fetch("SELECT id FROM channel_events WHERE parent_id IS NULL ORDER BY seq")
    assert keys == [f"{command['id']}@{CONNECTION}" for command in commands]


async def test_the_same_command_twice_makes_one_booking(world: World, core: CorePms) -> None:
    for _ in range(3):
        await create(core, "B-2", key="same")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    await world.all_settled()
    assert len(world.sim.account.bookings) == 1


async def test_a_create_with_another_key_hears_the_id_and_books_nothing(world: World, core: CorePms) -> None:
    await create(core, "B-2", key="one")
    first = await core.wait_for(lambda e: e.type == "core.command.succeeded")
    await create(core, "B-2", key="two", adults=3)
    again = await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.id != first.id)
    assert "existed" not in first.data
    assert (again.data["externalId"], again.data["existed"]) == (first.data["externalId"], True)
    await core.publish("pms.booking.cancel", "B-2", COMPANY, {"reservationId": "B-2"}, "cancel-B-2")
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.data["command"] == "pms.booking.cancel")
    (booking,) = world.sim.account.bookings.values()
    assert (booking["numAdult"], booking["status"]) == (2, "cancelled")
    assert len(created(world)) == 2
    assert await world.db.fetchval("SELECT count(*) FROM own_writes") == 2


async def test_a_create_whose_record_is_refused_keeps_its_id_and_is_not_done_again(world: World, core: CorePms) -> None:
    """Somebody maps the reservation to another booking while it is made."""
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /bookings", seconds=1.5))
    await create(core, "B-2")
    await world.until("SELECT count(*) FROM own_writes", equals=1)
    await world.map("reservation", "4711", "B-2")
    failed = await core.wait_for(lambda e: e.type == "core.command.failed", timeout=20)
    (booking,) = world.sim.account.bookings
    assert f"under the id '{booking}'" in failed.data["error"]
    assert await dead_letters.requeue(world.db, [failed.data["deliveryId"]], "test")
    await world.two_seconds_pass()
    await world.until("SELECT attempts FROM dead_letters", equals=2)
    assert len(created(world)) == 1


@pytest.mark.parametrize("kind", [FaultKind.TIMEOUT_AFTER_COMMIT, FaultKind.CUT_JSON, FaultKind.HTML_200])
async def test_a_create_whose_answer_is_lost_is_looked_up_and_not_doubled(
    world: World, core: CorePms, kind: FaultKind
) -> None:
    world.sim.faults.add(Fault(kind, operation="POST /bookings", close=True))
    await create(core, "B-3")
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert len(world.sim.account.bookings) == 1
    assert await world.db.fetchval("SELECT response->>'found' FROM sync_log WHERE direction = 'outbound'") == "true"


async def test_an_outbox_row_that_is_no_command_says_why_and_stops_no_other(world: World, core: CorePms) -> None:
    await world.db.execute("INSERT INTO companies (id, name, data_key) VALUES ('locked', 'x', '\\x00')")
    deep = '{"a":' * 300 + "1" + "}" * 300
    rows = [
        (COMPANY, "pms.booking.update", deep, "payload: nested too deeply"),
        ("locked", "pms.booking.update", "{}", "data key"),
        (COMPANY, "core.reservation.upserted", "{}", "type: core.reservation.upserted is no command"),
        (COMPANY, "foo.bar", "{}", "type: foo.bar is no command"),
        ("nobody", "pms.booking.update", "{}", "company_id: nobody does not exist"),
        (COMPANY, "pms.booking.create", orjson.dumps({**CREATE, "reservationId": "B-9"}).decode(), None),
    ]
    for company, type_, payload, _ in rows:
        sql = "INSERT INTO outbox (company_id, event_type, payload) VALUES ($1, $2, $3::jsonb)"
        await world.db.execute(sql, company, type_, payload)
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.subject == "B-9", timeout=20)
    told = [row["error"] for row in await world.db.fetch("SELECT error FROM outbox ORDER BY created_at")]
    for error, (*_, expected) in zip(told, rows, strict=True):
        assert error is expected is None or expected in error


async def test_failure_dead_letter_requeue_success(world: World, core: CorePms) -> None:
    await create(core, "B-4")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="POST /bookings", count=None))
    await core.publish("pms.booking.update", "B-4", COMPANY, {"reservationId": "B-4", "adults": 4}, "update-B-4")
    failed = await core.wait_for(lambda e: e.type == "core.command.failed", timeout=30)
    letter = await world.db.fetchrow("SELECT * FROM dead_letters")
    assert (letter["status"], letter["attempts"], letter["vendor"]) == ("pending", 3, "beds24")
    world.sim.faults.clear()
    from store.connections import add_api_key

    key = await add_api_key(world.db, None, "test", ["admin"])
    headers = {"authorization": f"Bearer {key}"}
    listed = (
        await world.http.get(world.url("ingress", "/admin/events?status=failed&limit=50"), headers=headers)
    ).json()
    assert listed["total"] == 1
    event_id = listed["events"][0]["id"]
    assert event_id == failed.data["deliveryId"]
    answer = await world.http.post(world.url("ingress", f"/admin/events/{event_id}/retry"), headers=headers)
    assert answer.status_code == 202, answer.text
    await world.two_seconds_pass()
    await world.until("SELECT status FROM channel_events WHERE id = $1", event_id, equals="done")
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"
    history = await world.db.fetch("SELECT outcome FROM event_attempts WHERE event_id = $1 ORDER BY id", event_id)
    assert [row["outcome"] for row in history] == ["retry", "retry", "park", "done"]
    (booking,) = world.sim.account.bookings.values()
    assert booking["numAdult"] == 4


async def test_what_was_put_off_after_a_requeue_still_closes_its_dead_letter(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="POST /bookings", count=3))
    await create(core, "B-9")
    await core.wait_for(lambda e: e.type == "core.command.failed", timeout=30)
    event_id = await world.db.fetchval("SELECT event_id FROM dead_letters")
    await world.db.execute("UPDATE rate_budgets SET remaining = 0, resets_at = clock_timestamp() + interval '1 h'")
    assert await dead_letters.requeue(world.db, [event_id], "test")
    await world.until("SELECT last_error LIKE 'rate limit%' FROM channel_events WHERE id = $1", event_id)
    await world.db.execute("UPDATE rate_budgets SET remaining = 90")
    await world.db.execute("UPDATE channel_events SET next_attempt_at = clock_timestamp() WHERE id = $1", event_id)
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=30)
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"


async def test_the_echo_of_our_own_write_is_skipped(world: World, core: CorePms) -> None:
    await create(core, "B-5")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    (booking,) = world.sim.account.bookings.values()
    answer = await world.webhook(world.sim.account.webhook_body(booking["id"]))
    event_id = answer.json()["events"][0]
    await world.all_settled()
    row = await world.db.fetchrow("SELECT status, last_error FROM channel_events WHERE id = $1", event_id)
    assert row["status"] == "skipped"
    assert "echo" in row["last_error"]
    assert core.of("core.reservation.upserted") == []
    assert await world.db.fetchval("SELECT count(*) FROM int_reservations") == 1


async def test_what_was_refused_hides_nobodys_own_change(world: World, core: CorePms) -> None:
    await create(core, "B-5")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    (booking,) = world.sim.account.bookings.values()
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings"))
    await core.publish("pms.booking.cancel", "B-5", COMPANY, {"reservationId": "B-5"}, "cancel-B-5")
    await core.wait_for(lambda e: e.type == "core.command.failed", timeout=20)
    world.sim.account.cancel(booking["id"], by="cancelledByGuest")
    await world.webhook(world.sim.account.webhook_body(booking["id"]))
    told = await core.wait_for(lambda e: e.type == "core.reservation.upserted", timeout=20)
    assert told.data["reservation"]["status"] == "cancelled"


async def test_the_echo_of_what_may_have_been_done_is_still_known(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="*", count=None, skip=1))
    await create(core, "B-5")
    await core.wait_for(lambda e: e.type == "core.command.failed", timeout=30)
    assert await world.db.fetchval("SELECT count(*) FROM own_writes") == 1


async def test_bad_commands_become_dead_letters_that_name_the_field(world: World, core: CorePms) -> None:
    await create(core, "B-6", checkOut="2027-03-01")
    await create(core, "B-7", propertyId="nowhere")
    await core.publish("pms.booking.create", "x", "no-such-company", {}, "k-1")
    await core.publish("pms.nonsense.do", "x", COMPANY, {}, "k-2")
    await world.until("SELECT count(*) FROM dead_letters", equals=4)
    texts = [r["error_message"] for r in await world.db.fetch("SELECT error_message FROM dead_letters")]
    for word in ("checkOut", "nowhere is not mapped", "no-such-company does not exist", "pms.nonsense.do"):
        assert any(word in text for text in texts), (word, texts)
    assert world.sim.account.bookings == {}


async def test_what_is_not_mapped_tells_the_causes_apart(world: World, core: CorePms) -> None:
    wanted = [
        {"propertyId": "P-1"},
        {"propertyId": "P-1"},
        {"propertyId": "P-2"},
        {"roomTypeId": "R-1"},
        {"roomTypeId": "R-2"},
    ]
    for number, changes in enumerate(wanted):
        await create(core, f"B-2{number}", **changes)
    await world.until("SELECT count(*) FROM dead_letters", equals=5)
    groups = await dead_letters.groups(world.db, dead_letters.Filter(error_class="unmapped"))
    found = {" ".join(row["error"].split()[:2]): row["letters"] for row in groups}
    assert found == {"property: P-1": 2, "property: P-2": 1, "room_type: R-1": 1, "room_type: R-2": 1}


async def test_a_malformed_event_of_a_batch_takes_none_of_the_others_with_it(world: World, core: CorePms) -> None:
    def event(booking: str) -> dict[str, Any]:
        data = {**CREATE, "reservationId": booking}
        return {"id": booking, "source": "/core", "type": "pms.booking.create", "companyid": COMPANY, "data": data}

    odd: dict[str, Any] = {"type": "pms.booking.create", "data": {"notes": "x" * 70_000}}
    async with await aio_pika.connect(world.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange("pms.events", ensure=False)
        batch = orjson.dumps([event("B-21"), odd, event("B-22")])
        await exchange.publish(aio_pika.Message(batch), "pms.booking.create")
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    (letter,) = await world.db.fetch("SELECT * FROM dead_letters")
    assert (letter["error_message"], letter["queue"]) == ("id: Field required", "pms.outbound")
    assert orjson.loads(letter["routing"]) == {"queue": "pms.outbound", "key": "pms.booking.create", "place": 1}
    assert orjson.loads(world.keys.installation.open_bytes(letter["sealed"])) == odd


async def test_a_delivery_that_somebody_published_is_kept_as_a_dead_letter(world: World, core: CorePms) -> None:
    await create(core, "B-23")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    row = await world.db.fetchval("SELECT id FROM channel_events WHERE parent_id IS NOT NULL")
    said = {"type": "pms.booking.create", "companyid": COMPANY, "data": {**CREATE, "reservationId": "B-24"}}
    async with await aio_pika.connect(world.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange("pms.events", ensure=False)
        for event in ({"id": "x"}, {"id": "y", "source": "/me"}, {"id": str(row)}, {"id": "w", "data": None}):
            await exchange.publish(
                aio_pika.Message(orjson.dumps({**said, **event})), "deliver.beds24.pms.booking.create"
            )
    await world.until("SELECT count(*) FROM dead_letters", equals=2)
    await create(core, "B-25")  # behind them
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.subject == "B-25")
    letters = await world.db.fetch("SELECT error_message, sealed FROM dead_letters")
    kept = [orjson.loads(world.keys.installation.open_bytes(letter["sealed"])) for letter in letters]
    assert {event["id"] for event in kept} == {"x", "y"}
    assert all(event["data"] == said["data"] for event in kept)
    assert all("deliveries are made of commands" in letter["error_message"] for letter in letters)


async def test_what_a_stranger_puts_into_the_properties_stops_nobody_s_commands(world: World, core: CorePms) -> None:
    """In the work queue and in the dead letters': none of them costs a connection."""
    async with await aio_pika.connect(world.amqp_url) as connection:
        channel = await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
        for name, (last, properties) in ODD.items():
            await publish(channel, name.encode(), b"pms." + last, properties)
    await create(core, "B-20")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    await world.until("SELECT count(*) FROM dead_letters", equals=len(ODD))
    letters = await world.db.fetch("SELECT sealed FROM dead_letters")
    kept = {world.keys.installation.open_bytes(letter["sealed"]).decode() for letter in letters}
    assert kept == set(ODD)


async def test_a_token_that_the_vendor_does_not_know_everywhere_yet_costs_no_more_than_time(
    world: World, core: CorePms
) -> None:
    access = world.sim.account.access
    access.settling = timedelta(hours=1)
    await create(core, "B-26")
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    assert (
        await world.db.fetchval("SELECT error_class FROM channel_events WHERE status = 'retrying'") == "misconfigured"
    )
    access.settling = timedelta(0)
    await world.db.execute("UPDATE channel_events SET next_attempt_at = now() WHERE status = 'retrying'")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert len(world.sim.account.bookings) == 1


async def test_a_token_that_stays_refused_is_a_dead_letter_of_the_tenant_and_few_are_asked_for(
    world: World, core: CorePms
) -> None:
    world.sim.account.access.settling = timedelta(hours=1)
    for number in range(5):
        await create(core, f"B-27{number}")
    async with asyncio.timeout(30):
        while await world.db.fetchval("SELECT count(*) FROM dead_letters") < 5:
            await world.db.execute("UPDATE channel_events SET next_attempt_at = now() WHERE status = 'retrying'")
            await asyncio.sleep(0.02)
    letters = await world.db.fetch("SELECT error_class, owner, attempts, error_message FROM dead_letters")
    assert {tuple(letter)[:3] for letter in letters} == {("misconfigured", "tenant", 3)}
    assert all("is not accepted, nor" in letter["error_message"] for letter in letters)
    asked = [call for call in world.sim.account.calls if "authentication" in call.operation]
    assert len(asked) == 2, "the first one, and the one in its place"


async def test_a_refused_item_inside_a_201_is_a_dead_letter_of_the_tenant(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings", field="arrival"))
    await create(core, "B-8")
    await core.wait_for(lambda e: e.type == "core.command.failed")
    letter = await world.db.fetchrow("SELECT * FROM dead_letters")
    assert (letter["error_class"], letter["owner"], letter["attempts"]) == ("rejected", "tenant", 1)
    assert "arrival" in letter["error_message"]


async def test_credits_that_are_used_up_defer_and_do_not_count(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation="POST /bookings", seconds=1))
    await create(core, "B-9")
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert len(world.sim.account.bookings) == 1
    row = await world.db.fetchrow("SELECT attempts, starts FROM channel_events WHERE parent_id IS NOT NULL")
    assert tuple(row) == (1, 0)
    # What the vendor said of its budget is written when the core has heard of the booking.
    await world.until("SELECT remaining < 100 FROM rate_budgets")


@pytest.mark.parametrize("kind", [FaultKind.RATE_LIMITED, FaultKind.RATE_LIMITED_BARE])
async def test_a_vendor_that_refuses_for_its_rate_limit_costs_no_attempt_and_no_look_up(
    world: World, core: CorePms, kind: FaultKind
) -> None:
    """As where another tool uses the same account up, window after window."""
    world.sim.faults.add(Fault(kind, operation="POST /bookings", seconds=0, count=4))
    for n in range(3):
        await create(core, f"B-{n}")
    done = "SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'"
    await world.until(done, equals=3, timeout=60)
    assert world.sim.faults.pending == []
    assert len(created(world)) == 3
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    rows = await world.db.fetch("SELECT attempts FROM channel_events WHERE parent_id IS NOT NULL")
    assert [row["attempts"] for row in rows] == [1, 1, 1]
    assert [call for call in world.sim.account.calls if call.operation == "GET /bookings"] == []


async def test_a_failed_head_holds_its_lane_and_nobody_elses(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings"))
    await create(core, "B-10")
    await core.publish("pms.booking.update", "B-10", COMPANY, {"reservationId": "B-10", "adults": 3}, "u-10")
    await core.wait_for(lambda e: e.type == "core.command.failed")
    await create(core, "B-11")
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.subject == "B-11")
    waiting = await world.db.fetchval(
        "SELECT status FROM channel_events WHERE event_type = 'pms.booking.update' AND parent_id IS NOT NULL"
    )
    assert waiting == "received"
    failed = await world.db.fetchval("SELECT event_id FROM dead_letters WHERE status = 'pending'")
    await dead_letters.requeue(world.db, [failed], "test")
    await world.two_seconds_pass()
    await core.wait_for(
        lambda e: e.type == "core.command.succeeded" and e.data["command"] == "pms.booking.update", timeout=20
    )
    assert [b["numAdult"] for b in world.sim.account.bookings.values()] == [2, 3]


async def test_one_trace_from_the_webhook_to_its_result(world: World, core: CorePms) -> None:
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    body = generate(5, 1, 0)[0].body
    assert (await world.webhook(body, traceparent=trace)).status_code == 202
    told = await core.wait_for(lambda e: e.type == "core.reservation.upserted")
    assert told.attributes["traceparent"] == trace
    assert await world.db.fetchval("SELECT trace FROM channel_events WHERE direction = 'inbound'") == trace
    assert "guest" not in orjson.dumps(told.data["reservation"]).decode()
    assert body["booking"]["lastName"] not in orjson.dumps(told.data).decode()


async def test_a_create_that_failed_unknown_is_requeued_and_looked_up_first(world: World, core: CorePms) -> None:
    """Three times 500 leaves it open whether it was done; the requeue asks, and it is no poison."""
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="POST /bookings", count=3, commit=True))
    await create(core, "B-13")
    for round_ in range(2):
        found = await core.wait_for(lambda e: e.type.startswith("core.command."), timeout=30)
        if found.type == "core.command.succeeded" or round_:
            break
        failed = await world.db.fetchval("SELECT event_id FROM dead_letters WHERE status = 'pending'")
        await dead_letters.requeue(world.db, [failed], "test")
        await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert len(world.sim.account.bookings) == 1
    assert await world.db.fetchval("SELECT count(*) FROM channel_events WHERE error_class = 'poison'") == 0


async def test_a_requeued_create_that_was_never_done_is_done_once(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="*", count=None, skip=1))
    await create(core, "B-14")
    await core.wait_for(lambda e: e.type == "core.command.failed", timeout=30)
    world.sim.faults.clear()
    failed = await world.db.fetchval("SELECT event_id FROM dead_letters WHERE status = 'pending'")
    await dead_letters.requeue(world.db, [failed], "test")
    await world.two_seconds_pass()
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert len(world.sim.account.bookings) == 1


async def test_a_doubt_outlives_a_look_up_that_fails(world: World, core: CorePms) -> None:
    """The create was done and not answered; then the look-up fails too: the next attempt must look up again."""
    world.sim.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT, operation="POST /bookings", close=True))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="GET /bookings"))
    await create(core, "B-15")
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=30)
    assert len(world.sim.account.bookings) == 1
    calls = [call.operation for call in world.sim.account.calls if "bookings" in call.operation]
    assert calls == ["POST /bookings", "GET /bookings", "GET /bookings"]


async def test_a_look_up_that_the_vendor_refuses_is_no_refusal_of_the_command(world: World, core: CorePms) -> None:
    """Nothing is done once more, nobody is told that the vendor said no to the booking, and a requeue asks again."""
    world.sim.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT, operation="POST /bookings", close=True))
    world.sim.faults.add(Fault(FaultKind.REFUSED, operation="GET /bookings"))
    await create(core, "B-17")
    await core.wait_for(lambda e: e.type == "core.command.failed", timeout=30)
    letter = await world.db.fetchrow("SELECT event_id, error_class, error_message FROM dead_letters")
    assert letter["error_class"] == "misconfigured"
    assert "it was asked whether pms.booking.create has been done, and that is not known" in letter["error_message"]
    await dead_letters.requeue(world.db, [letter["event_id"]], "test")
    await world.two_seconds_pass()
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert len(world.sim.account.bookings) == 1
    calls = [call.operation for call in world.sim.account.calls if "bookings" in call.operation]
    assert calls == ["POST /bookings", "GET /bookings", "GET /bookings"]


async def test_a_create_that_lands_after_its_look_up_is_not_done_once_more(world: World, core: CorePms) -> None:
    """The vendor is slow: it does not show what it is doing yet, and before it has done it the second call is not sent."""

    async def said(times: int) -> Any:
        async with asyncio.timeout(20):
            while (
                len(calls := [call for call in world.sim.account.calls if call.operation == "POST /bookings"]) < times
            ):
                await asyncio.sleep(0.01)
        return calls[0].body[0]

    world.sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, operation="POST /bookings", close=True))
    await create(core, "B-16")
    await said(1)
    world.sim.faults.add(Fault(FaultKind.EXPIRED_TOKEN, operation="POST /bookings"))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="GET /authentication/token"))
    world.sim.account.write_booking(await said(2), Author())
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=30)
    assert len(world.sim.account.bookings) == 1


async def test_a_claim_that_a_network_held_back_holds_nothing_for_long(world: World, core: CorePms) -> None:
    """It comes through when its worker has given it up: the lease is the worker's, and nobody in it knows of it."""
    world.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation="POST /bookings", seconds=60))
    await create(core, "B-17")
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    row = await world.db.fetchrow("SELECT id, worker FROM channel_events WHERE status = 'retrying'")
    async with world.db.transaction():
        await world.db.execute("UPDATE channel_events SET next_attempt_at = NULL WHERE id = $1", row["id"])
        assert await outbound.claim(world.db, [row["id"]], row["worker"], 120, uuid4())
    await world.until("SELECT error_class = 'unknown' FROM channel_events WHERE id = $1", row["id"], timeout=30)


async def test_a_command_without_data_is_a_dead_letter_and_not_silence(world: World, core: CorePms) -> None:
    await core.publish("pms.booking.create", "x", COMPANY, None, "k-1")
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    assert "data: missing" in await world.db.fetchval("SELECT error_message FROM dead_letters")


@pytest.mark.parametrize(
    ("changes", "event_id", "problem"),
    [
        ({"periods": [{"first": 1}, {"first": "x\0y"}]}, "order-7", "data.periods.1.first: holds a NUL character"),
        ({"Jane Roe": {"first": "\0"}}, "order-7", "data.an unknown member.first: holds a NUL character"),
        ({"guest": {"last\0Name": "Roe"}}, "order-7", "data.guest: holds a NUL character"),
        ({}, "order\0", "id: holds a NUL character"),
        ({"reservationId": "refused"}, "order-7", "the database refuses it: CheckViolationError"),
    ],
)
async def test_a_command_that_the_database_cannot_keep_is_kept_whole(
    world: World, core: CorePms, changes: dict[str, Any], event_id: str, problem: str
) -> None:
    await world.db.execute("ALTER TABLE channel_events ADD CHECK (entity_internal_id <> 'refused')")
    data = {**CREATE, "reservationId": "B-18", **changes}
    await core.publish("pms.booking.create", "B-18", COMPANY, data, "k-1", event_id=event_id)
    await create(core, "B-19")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    letter = await world.db.fetchrow(
        "SELECT company_id, error_message, sealed, routing::text AS routing FROM dead_letters"
    )
    assert (letter["company_id"], letter["error_message"].partition(",")[0]) == (COMPANY, problem)
    assert orjson.loads(letter["routing"])["id"] == event_id.replace("\0", "\ufffd")
    kept = orjson.loads((await world.cipher()).open_bytes(letter["sealed"]))
    assert (kept["id"], kept["data"]) == (event_id, data)


async def test_a_company_with_a_nul_is_nobodys(world: World, core: CorePms) -> None:
    await core.publish("pms.booking.create", "B-18", f"{COMPANY}\0", {}, "k-1")
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    letter = await world.db.fetchrow("SELECT company_id, error_message FROM dead_letters")
    assert letter["company_id"] is None
    assert letter["error_message"].startswith("companyid: holds a NUL character")


@pytest.mark.parametrize(
    ("key", "body", "problem"),
    [
        ("pms.booking.create", b"{no event", "Invalid JSON"),
        ("pms.a\0b", b" " * 600_000, "a body of 600000 bytes"),
        ("pms.booking.create", b"[]", "an empty batch"),
    ],
)
async def test_what_nobody_can_read_is_filed_under_the_key_it_came_by(
    world: World, core: CorePms, key: str, body: bytes, problem: str
) -> None:
    async with await aio_pika.connect(world.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange(EVENTS, ensure=False)
        await exchange.publish(aio_pika.Message(body), key)
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    letter = await world.db.fetchrow("SELECT operation, error_message, routing::text AS routing FROM dead_letters")
    assert letter["error_message"].startswith(problem)
    assert letter["operation"] == orjson.loads(letter["routing"])["key"] == key.replace("\0", "\ufffd")


async def test_a_sealed_part_that_cannot_be_opened_is_a_dead_letter_of_the_pipeline(
    world: World, core: CorePms
) -> None:
    await create(core, "B-16")
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    id_ = await world.db.fetchval("SELECT id FROM channel_events WHERE parent_id IS NULL")
    await world.db.execute(
        "UPDATE channel_events SET status = 'received', published_at = NULL, sealed = '\\x0102' WHERE id = $1", id_
    )
    await world.until("SELECT status FROM channel_events WHERE id = $1", id_, equals="failed")
    letter = await world.db.fetchrow("SELECT owner, error_message FROM dead_letters")
    assert letter["owner"] == "pipeline"
    assert "key file" in letter["error_message"]


async def test_a_connection_whose_secret_cannot_be_opened_fails_alone(world: World, core: CorePms) -> None:
    other = Connection("c-other", COMPANY, "beds24", "Other")
    config = {"base_url": f"{world.sim_url}/api/v2", "currency": "EUR"}
    await connections.add_connection(world.db, other.id, COMPANY, "beds24", other.name, None, config)
    await connections.put_secret(world.db, other, "webhook_secret", b"sealed by another key")
    await connections.add_mapping(world.db, other, "property", PROPERTY, "P1")
    await connections.add_mapping(world.db, other, "room_type", ROOM, "RT1")
    for n in range(4):
        await create(core, f"B-{n}")
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=8)
    await world.all_settled(20)
    ended = await world.db.fetch(
        "SELECT connection_id, status, count(*) FROM channel_events WHERE parent_id IS NOT NULL GROUP BY 1, 2 ORDER BY 1"
    )
    assert [tuple(row) for row in ended] == [(CONNECTION, "done", 4), ("c-other", "failed", 4)]
    texts = await world.db.fetchval("SELECT array_agg(DISTINCT error_message) FROM dead_letters")
    assert len(texts) == 1
    assert "webhook secret" in texts[0]
