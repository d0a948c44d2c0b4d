"""Every sample of ../shared/vendors/samples/beds24 through the real ingress: the right reservation, or a clear refusal."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.fleet import World

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared/vendors/samples/beds24"
FILES = sorted(SAMPLES.glob("*.json")) if SAMPLES.exists() else []

needs_samples = pytest.mark.skipif(not FILES, reason="real payloads are not published: ../shared/vendors is not here")


@needs_samples
async def test_each_sample_is_recorded_or_refused_with_words(world: World) -> None:
    await world.start("ingress", "inbound", "scheduler")
    for file in FILES:
        answer = await world.webhook(file.read_bytes())
        assert answer.status_code in {200, 202, 400}, (file.name, answer.text)
        if answer.status_code == 400:
            assert answer.json()["field"], file.name
    # What was recorded is settled one way or the other: applied, or a dead letter with a reason, never waiting for ever.
    await world.all_settled()
    for letter in await world.db.fetch("SELECT error_message, owner FROM dead_letters"):
        assert ":" in letter["error_message"]


@needs_samples
async def test_the_real_webhook_becomes_the_right_reservation(world: World) -> None:
    await world.start("ingress", "inbound", "scheduler")
    raw = (SAMPLES / "webhook.booking.v2.real.json").read_bytes()
    assert (await world.webhook(raw)).status_code == 202
    await world.all_settled()
    (sent,) = orjson.loads(raw)
    booking = sent["booking"]
    row = await world.db.fetchrow("SELECT * FROM int_reservations")
    assert row["external_id"] == str(booking["id"])
    assert row["external_property_id"] == str(booking["propertyId"])
    assert row["external_room_type_id"] == str(booking["roomId"])
    assert row["status"] == "confirmed"
    assert (row["check_in"].isoformat(), row["check_out"].isoformat()) == (booking["arrival"], booking["departure"])
    assert (row["adults"], row["children"]) == (booking["numAdult"], booking["numChild"])
    assert (row["total_price"], row["currency"]) == (booking["price"] * 100, "EUR")
    kept = orjson.loads(row["raw_data"])
    assert [item["id"] for item in kept["invoiceItems"]] == [item["id"] for item in sent["invoiceItems"]]
    assert kept["booking"]["allowCancellation"] == booking["allowCancellation"]
