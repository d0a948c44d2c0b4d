"""An event that began again and again and never ended is parked by itself; one that began less often is done."""

from __future__ import annotations

import pytest

from ops.fleet import inbound_stage
from ops.parts import open_parts
from schemas.event import Event
from simulators.bookings import generate
from simulators.core_pms import CorePms
from tests.fleet import COMPANY, PROPERTY, ROOM, World
from workers.decide import MAX_STARTS


@pytest.mark.parametrize(("starts", "status"), [(MAX_STARTS - 1, "done"), (MAX_STARTS, "failed")])
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
            MAX_STARTS,
        )
        told = await core.wait_for(lambda e: e.type == "core.command.failed")
    assert told.data["fault"] == "poison"
    assert len(world.sim.account.calls) == calls
