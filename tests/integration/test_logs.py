"""Logs tell event, company, vendor and trace; never a guest or a secret. Each process in its own, as in production."""

from __future__ import annotations

import orjson

from simulators.bookings import generate
from simulators.core_pms import CorePms
from tests.fleet import COMPANY, PROPERTY, ROOM, SECRET, World


async def test_logs_name_the_event_and_nobody(world: World) -> None:
    world.apart = True
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    await world.start()
    body = generate(21, 1, 0)[0].body
    body["booking"].update(firstName="Hildegard", lastName="Unmistakable", email="hildegard@example.invalid")
    event_id = (await world.webhook(body)).json()["events"][0]
    broken = generate(22, 1, 0)[0].body
    broken["booking"].update(firstName="Hildegard", arrival="whenever Unmistakable likes")
    await world.webhook(broken)
    async with CorePms(world.amqp_url) as core:
        guest = {"firstName": "Hildegard", "lastName": "Unmistakable", "email": "hildegard@example.invalid"}
        stay = {"reservationId": "B-1", "propertyId": "P1", "roomTypeId": "RT1", "guest": guest}
        dates = {"checkIn": "2027-03-01", "checkOut": "2027-03-04"}
        await core.publish("pms.booking.create", "B-1", COMPANY, {**stay, **dates}, "c-1")
        await core.publish("pms.booking.create", "B-2", COMPANY, {**stay, "checkIn": "Unmistakable"}, "c-2")
        await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=30)
    await world.all_settled()
    await world.until("SELECT count(*) > 0 FROM dead_letters")
    metrics = [
        (await world.http.get(world.url(name, "/metrics"))).text
        for name in ("ingress", "inbound", "outbound", "scheduler")
    ]
    await world.stop_all()
    logs = {name: world.log(name) for name in ("ingress", "inbound", "outbound", "scheduler")}
    letters = str([dict(row) for row in await world.db.fetch("SELECT * FROM dead_letters")])
    for text in (*logs.values(), *metrics, letters):
        for word in ("Hildegard", "Unmistakable", "hildegard@", SECRET):
            assert word not in text
    lines = [orjson.loads(line) for line in logs["inbound"].splitlines()]
    told = [event for line in lines for event in line.get("events", []) if event["event_id"] == event_id]
    assert [(t["company_id"], t["vendor"], t["outcome"]) for t in told] == [(COMPANY, "beds24", "done")]
    assert told[0]["trace"].startswith("00-")
    assert any(COMPANY in line and "delivery settled" in line for line in logs["outbound"].splitlines())
