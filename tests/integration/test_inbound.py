"""Webhooks become reservations: the real processes, the real broker, the real database."""

from __future__ import annotations

import copy

import aio_pika
import orjson
import pytest

from simulators.bookings import deliveries, generate, truth
from tests.fleet import COMPANY, World


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
