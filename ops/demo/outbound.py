"""Scene 2: the core PMS commands, by message and by outbox row, and Beds24 has each booking once."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from .seed import STUDIO
from .world import EMAIL, FIRST_NAME, LAST_NAME

if TYPE_CHECKING:
    from simulators.core_pms import Heard

    from .stage import Scene
    from .world import World

CREATE, UPDATE, CANCEL = "pms.booking.create", "pms.booking.update", "pms.booking.cancel"
AVAILABILITY = "pms.availability.update"
KEPT = "R-1003"  # stays, for the next scene


async def play(world: World, scene: Scene) -> None:
    await _create(world, scene, "R-1001")
    await _update(world, scene, "R-1001")
    await _availability(world, scene)
    await _cancel(world, scene, "R-1001")
    await _twice(world, scene, "R-1002")
    await _lost_answer(world, scene, KEPT)
    await _log(world, scene)
    readable = await world.readable_guests()
    scene.check(not readable, "of the commands' guest, too, nothing is readable in rows and logs", readable)


async def _create(world: World, scene: Scene, reservation: str) -> None:
    data = _stay(reservation, 50)
    scene.does(f"the core PMS publishes {CREATE} {reservation}: RT-STUDIO, {data['checkIn']} → {data['checkOut']}")
    await world.publish(CREATE, reservation, data, f"create-{reservation}")
    _told(scene, await world.result(CREATE, reservation))
    external = await _mapped(world, reservation)
    scene.check(external is not None, f"Beds24 gave it the id {external}; the mapping is stored")
    _compare(world, scene, external, arrival=data["checkIn"], departure=data["checkOut"], numAdult=2, price=412.5)


async def _update(world: World, scene: Scene, reservation: str) -> None:
    until = _in(56)
    scene.does(f"{UPDATE} {reservation}: until {until}, 1 adult")
    data = {"reservationId": reservation, "checkOut": until, "adults": 1}
    await world.publish(UPDATE, reservation, data, f"update-{reservation}")
    _told(scene, await world.result(UPDATE, reservation))
    _compare(world, scene, await _mapped(world, reservation), departure=until, numAdult=1)


async def _availability(world: World, scene: Scene) -> None:
    first, last = date.fromisoformat(_in(70)), date.fromisoformat(_in(72))
    period = {"first": first.isoformat(), "last": last.isoformat(), "available": 2, "price": 13_900, "minStay": 2}
    data = {"propertyId": "P-HARBOUR", "roomTypeId": "RT-STUDIO", "currency": "EUR", "periods": [period]}
    scene.does(f"a row in `outbox`, by SQL: {AVAILABILITY} RT-STUDIO, {first} to {last}")
    row_id = await world.db.fetchval(
        "INSERT INTO outbox (company_id, event_type, payload) VALUES ($1, $2, $3::jsonb) RETURNING id",
        world.tenant.company,
        AVAILABILITY,
        orjson.dumps(data).decode(),
    )
    _told(scene, await world.result(AVAILABILITY, "RT-STUDIO"))
    event = await world.db.fetchval("SELECT event_id FROM outbox WHERE id = $1", row_id)
    found = world.sim.account.inventory.ranges(int(STUDIO), first, last, {"numAvail", "price1", "minStay"})
    wanted = [{"from": str(first), "to": str(last), "numAvail": 2, "price1": 139, "minStay": 2}]
    scene.check(
        found == wanted and event is not None,
        f"Beds24's calendar says: {', '.join(f'{k} {v}' for k, v in (found or [{}])[0].items())}",
        found,
    )


async def _cancel(world: World, scene: Scene, reservation: str) -> None:
    scene.does(f"{CANCEL} {reservation}")
    await world.publish(CANCEL, reservation, {"reservationId": reservation}, f"cancel-{reservation}")
    _told(scene, await world.result(CANCEL, reservation))
    _compare(world, scene, await _mapped(world, reservation), status="cancelled")


async def _twice(world: World, scene: Scene, reservation: str) -> None:
    bookings, calls = len(world.sim.account.bookings), len(world.sim.account.calls)
    scene.does(f"{CREATE} {reservation}, published twice with the same idempotency key")
    for _ in range(2):
        await world.publish(CREATE, reservation, _stay(reservation, 60), f"create-{reservation}")
    _told(scene, await world.result(CREATE, reservation))
    await world.settled()
    made = len(world.sim.account.bookings) - bookings
    posts = [call for call in world.calls_since(calls) if call.operation == "POST /bookings"]
    scene.check(
        (made, len(posts), len(world.results(CREATE, reservation))) == (1, 1, 1),
        f"{made} booking at Beds24, by {len(posts)} call; the core heard {len(world.results(CREATE, reservation))} result",
    )


async def _lost_answer(world: World, scene: Scene, reservation: str) -> None:
    """The worst place for a cut: the vendor has done it and nobody was told."""
    bookings, calls = len(world.sim.account.bookings), len(world.sim.account.calls)
    fault = {"kind": "timeout_after_commit", "operation": "POST /bookings", "count": 1, "close": True}
    await world.lever("POST", "/faults", fault)
    scene.does(f"{CREATE} {reservation}; Beds24 books it, and the connection breaks before the answer")
    await world.publish(CREATE, reservation, _stay(reservation, 80), f"create-{reservation}")
    _told(scene, await world.result(CREATE, reservation))
    made = len(world.sim.account.bookings) - bookings
    seen = [f"{call.operation} → {call.status or 'no answer'}" for call in world.calls_since(calls)]
    scene.check(made == 1, f"{made} booking at Beds24, not two; the calls: {'; '.join(seen)}", made)
    found = await world.db.fetchval(
        "SELECT response->>'found' FROM sync_log WHERE company_id = $1 AND entity_internal_id = $2 AND response IS NOT NULL",
        world.tenant.company,
        reservation,
    )
    external = await _mapped(world, reservation)
    scene.check(found == "true", f"it was looked up by our marker and found as {external}", found)


async def _log(world: World, scene: Scene) -> None:
    rows = await world.db.fetch(
        "SELECT entity_internal_id, action, state, retry_count, extract(epoch FROM finished_at - triggered_at) AS took "
        "FROM sync_log WHERE company_id = $1 AND direction = 'outbound' ORDER BY id",
        world.tenant.company,
    )
    scene.say("the sync log:")
    scene.table(
        ("entity", "action", "state", "retries", "took"),
        [
            (r["entity_internal_id"], r["action"], r["state"], r["retry_count"], f"{float(r['took']) * 1000:.0f} ms")
            for r in rows
        ],
    )
    scene.check(
        bool(rows) and all(row["state"] == "success" for row in rows), f"{len(rows)} commands, all of them done"
    )


def _told(scene: Scene, event: Heard) -> None:
    said = f"externalId={event.data.get('externalId')}" if event.type.endswith("succeeded") else event.data.get("error")
    scene.check(event.type == "core.command.succeeded", f"the core heard {event.type} {said}", f"{event.type}: {said}")


def _compare(world: World, scene: Scene, external: str | None, **wanted: Any) -> None:
    """Names as Beds24 has them."""
    booking = world.sim.account.bookings.get(int(external or 0), {})
    found = {name: booking.get(name) for name in wanted}
    scene.check(found == wanted, f"Beds24's {external}: " + ", ".join(f"{k} {v}" for k, v in found.items()), found)


async def _mapped(world: World, reservation: str) -> str | None:
    external: str | None = await world.db.fetchval(
        "SELECT external_entity_id FROM int_mappings WHERE connection_id = $1 AND internal_entity_id = $2",
        world.tenant.connection,
        reservation,
    )
    return external


def _stay(reservation: str, in_days: int) -> dict[str, Any]:
    return {
        "reservationId": reservation,
        "propertyId": "P-HARBOUR",
        "roomTypeId": "RT-STUDIO",
        "checkIn": _in(in_days),
        "checkOut": _in(in_days + 3),
        "adults": 2,
        "guest": {"firstName": FIRST_NAME, "lastName": LAST_NAME, "email": EMAIL},
        "totalPrice": 41_250,
        "currency": "EUR",
    }


def _in(days: int) -> str:
    return (date.today() + timedelta(days=days)).isoformat()  # noqa: DTZ011 - weeks ahead, any zone's date will do
