"""Scene 1: guests book at Beds24, its webhooks come doubled, late and forged, and the gateway ends at Beds24's truth."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from simulators.beds24.webhooks import Chaos

from .seed import LOFT, STUDIO
from .stage import plain
from .world import EMAIL, FIRST_NAME, LAST_NAME, next_second

if TYPE_CHECKING:
    from .stage import Scene
    from .world import World

RATES = {STUDIO: 80, LOFT: 140}
ROOMS = {STUDIO: "Studio", LOFT: "Loft"}


async def play(world: World, scene: Scene) -> None:
    first = await _books(world, scene, STUDIO, 20, 3)
    second = await _books(world, scene, LOFT, 30, 2)
    await next_second()
    await _stays_longer(world, scene, first)
    await _cancels(world, scene, second)
    await _sends_again(world, scene)
    late = await _comes_out_of_order(world, scene)
    await _is_forged(world, scene, first)
    await world.settled()
    await _order_did_not_matter(world, scene, late)
    await _events_and_speed(world, scene)
    await _same_as_at_beds24(world, scene)
    await _core_heard(world, scene)
    await _nothing_personal_readable(world, scene)


async def _books(world: World, scene: Scene, room: str, in_days: int, nights: int) -> dict[str, Any]:
    booking, answers = await world.webhooks_after(lambda: _book(world, room, in_days, nights))
    scene.does(f"a guest books the {ROOMS[room]}, {booking['arrival']} → {booking['departure']}: {booking['id']}")
    scene.check(answers == [202], f"its webhook, signed, was answered {_list(answers)}: recorded", answers)
    return booking


async def _book(world: World, room: str, in_days: int, nights: int) -> dict[str, Any]:
    arrival = date.today() + timedelta(days=in_days)  # noqa: DTZ011 - weeks ahead, any zone's date will do
    stay = {"arrival": arrival.isoformat(), "departure": (arrival + timedelta(days=nights)).isoformat()}
    price = nights * RATES[room]
    who = {"firstName": FIRST_NAME, "lastName": LAST_NAME, "email": EMAIL}
    booked: dict[str, Any] = await world.lever(
        "POST", "/bookings", {"roomId": int(room), "numAdult": 2, "price": price, **stay, **who}
    )
    return booked


async def _stays_longer(world: World, scene: Scene, booking: dict[str, Any]) -> None:
    until = _later(booking["departure"], 2)
    _, answers = await world.webhooks_after(lambda: _change(world, booking, {"departure": until}))
    scene.does(f"the first guest stays until {until}")
    scene.check(answers == [202], f"its webhook was answered {_list(answers)}", answers)


async def _change(world: World, booking: dict[str, Any], changes: dict[str, Any]) -> None:
    await world.lever("PATCH", f"/bookings/{booking['id']}", changes)


async def _cancels(world: World, scene: Scene, booking: dict[str, Any]) -> None:
    _, answers = await world.webhooks_after(lambda: world.lever("POST", f"/bookings/{booking['id']}/cancel"))
    scene.does("the second guest cancels")
    scene.check(answers == [202], f"its webhook was answered {_list(answers)}", answers)


async def _sends_again(world: World, scene: Scene) -> None:
    _, answers = await world.webhooks_after(lambda: world.lever("POST", "/replay-webhooks", {"last": 1}))
    scene.does("Beds24 sends that webhook once more")
    scene.check(answers == [200], f"answered {_list(answers)}: a duplicate, nothing recorded", answers)


async def _comes_out_of_order(world: World, scene: Scene) -> dict[str, Any]:
    """The booking's own webhook is on its way for so long that the change's overtakes it, and is handled before."""
    sender = world.sim.sender
    before = len(sender.attempts)
    sender.chaos = Chaos(late=1.0, late_by=2.5)
    booking = await _book(world, STUDIO, 40, 4)
    sender.chaos = Chaos()
    await next_second()
    await _change(world, booking, {"numAdult": 1, "departure": _later(booking["departure"], -1)})
    await sender.drain()
    answers = [attempt.status for attempt in list(sender.attempts)[before:]]
    scene.does(f"a third guest books and changes {booking['id']}; the change's webhook arrives first")
    scene.check(answers == [202, 202], f"answered {_list(answers)}: both recorded", answers)
    return booking


async def _is_forged(world: World, scene: Scene, booking: dict[str, Any]) -> None:
    body = world.sim.account.webhook_body(booking["id"]) | {"retries": 0}
    body["booking"]["status"] = "cancelled"
    answer = await world.http.post(
        world.ingress(f"/webhooks/beds24/{world.tenant.connection}"),
        json=body,
        headers={"X-Beds24-Signature": "sha256=" + "0" * 64},
    )
    scene.does("somebody forges a cancellation of the first booking")
    scene.check(answer.status_code == 403, f"answered {answer.status_code}: the signature does not fit", answer.text)


async def _order_did_not_matter(world: World, scene: Scene, booking: dict[str, Any]) -> None:
    rows = await world.db.fetch(
        "SELECT event_type, status, last_error FROM channel_events "
        "WHERE company_id = $1 AND entity_external_id = $2 ORDER BY seq",
        world.tenant.company,
        str(booking["id"]),
    )
    found = [(row["event_type"], row["status"]) for row in rows]
    wanted = [("beds24.booking.modified", "done"), ("beds24.booking.created", "skipped")]
    scene.check(found == wanted, f"of {booking['id']}'s two, the late one was skipped: {rows[-1]['last_error']}", found)


async def _events_and_speed(world: World, scene: Scene) -> None:
    row = await world.db.fetchrow(
        "SELECT count(*) AS n, count(*) FILTER (WHERE status = 'done') AS done, "
        "percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM processed_at - received_at)) AS median "
        "FROM channel_events WHERE company_id = $1 AND direction = 'inbound'",
        world.tenant.company,
    )
    happened = len(world.sim.sender.history)
    n, done, median = (row["n"], row["done"], row["median"]) if row else (0, 0, None)
    scene.check(
        n == happened,
        f"{happened} changes at Beds24, {n} events: {done} done, {n - done} skipped; "
        f"half of them within {float(median or 0) * 1000:.0f} ms",
        n,
    )


async def _same_as_at_beds24(world: World, scene: Scene) -> None:
    rows = await world.db.fetch(
        "SELECT external_id, external_room_type_id, check_in, check_out, adults, status, total_price, currency "
        "FROM int_reservations WHERE company_id = $1 ORDER BY external_id",
        world.tenant.company,
    )
    scene.say("the reservations as stored:")
    scene.table(
        ("beds24 id", "room", "check in", "check out", "adults", "status", "price"),
        [
            (
                row["external_id"],
                ROOMS.get(row["external_room_type_id"]),
                row["check_in"],
                row["check_out"],
                row["adults"],
                row["status"],
                f"{row['total_price'] / 100:.2f} {row['currency']}",
            )
            for row in rows
        ],
    )
    stored = {
        (row[0], row[1], plain(row[2]), plain(row[3]), row[4], row["status"] == "cancelled", row["total_price"])
        for row in rows
    }
    wanted = {
        (
            str(b["id"]),
            str(b["roomId"]),
            b["arrival"],
            b["departure"],
            b["numAdult"],
            b["status"] == "cancelled",
            round(b["price"] * 100),
        )
        for b in world.sim.account.bookings.values()
    }
    scene.check(
        stored == wanted,
        f"{len(stored & wanted)} of Beds24's {len(wanted)} bookings are stored, equal in every column",
        sorted(stored ^ wanted),
    )


async def _core_heard(world: World, scene: Scene) -> None:
    """One event for each change that was applied, none for duplicates and stale ones."""
    applied = await world.db.fetchval(
        "SELECT count(*) FROM channel_events WHERE company_id = $1 AND direction = 'inbound' AND status = 'done'",
        world.tenant.company,
    )

    async def heard() -> list[Any] | None:
        found = [event for event in world.core.of("core.reservation.upserted") if event.company == world.tenant.company]
        return found if len({event.id for event in found}) >= applied else None

    events = await world.until("the core PMS hears of every change", heard)
    scene.say("what the core PMS heard on RabbitMQ:")
    told = [event.data["reservation"] for event in events]
    scene.table(
        ("event", "beds24 id", "check in", "check out", "adults", "status"),
        [
            (event.type, said["externalId"], said["checkIn"], said["checkOut"], said["adults"], said["status"])
            for event, said in zip(events, told, strict=True)
        ],
    )
    scene.check(
        len(events) == applied and not world.core.duplicates,
        f"{len(events)} core events for {applied} applied changes, none twice",
        (len(events), world.core.duplicates),
    )


async def _nothing_personal_readable(world: World, scene: Scene) -> None:
    sealed = await world.db.fetchval("SELECT count(*) FROM int_guests WHERE company_id = $1", world.tenant.company)
    readable = await world.readable_guests()
    scene.check(
        sealed > 0 and not readable,
        f"{sealed} guests are stored, sealed: their names and addresses are readable in no row and no log",
        readable,
    )


def _later(day: str, days: int) -> str:
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()


def _list(answers: list[int | None]) -> str:
    return ", ".join("nothing" if status is None else str(status) for status in answers) or "nothing"
