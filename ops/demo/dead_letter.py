"""Scene 3: Beds24 is broken until a command gives up; nothing is lost, and an operator sends it again."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .outbound import KEPT, UPDATE

if TYPE_CHECKING:
    from .stage import Scene
    from .world import World

ADULTS = 4


async def play(world: World, scene: Scene) -> None:
    await world.lever("POST", "/faults", {"kind": "server_error", "operation": "POST /bookings", "count": None})
    event_id = await _gives_up(world, scene)
    await _is_shown(world, scene, event_id)
    await world.lever("DELETE", "/faults")
    await _goes_again(world, scene, event_id)


async def _gives_up(world: World, scene: Scene) -> str:
    calls = len(world.sim.account.calls)
    scene.does(f"Beds24 answers 500 to everything that writes; {UPDATE} {KEPT}: {ADULTS} adults")
    await world.publish(UPDATE, KEPT, {"reservationId": KEPT, "adults": ADULTS}, f"update-{KEPT}")
    scene.say("tried again after 1 s and 2 s (policy channel_event) …", "dim")
    event = await world.result(UPDATE, KEPT, 30)
    scene.check(
        event.type == "core.command.failed", f"the core heard {event.type}: {event.data.get('error')}", event.type
    )
    # Before it is said again Beds24 is asked whether it was done after all; here the attempts count.
    seen = [call for call in world.calls_since(calls) if call.method == "POST"]
    gaps = [f"{(b.at - a.at).total_seconds():.1f} s" for a, b in pairwise(seen)]
    answers = ", ".join(str(call.status) for call in seen)
    scene.check(len(seen) == 3, f"{len(seen)} attempts, {' and '.join(gaps)} apart, answered {answers}", answers)
    return str(event.data["deliveryId"])


async def _is_shown(world: World, scene: Scene, event_id: str) -> None:
    listed = await world.ask_admin("GET", "/admin/events?status=failed&limit=50")
    scene.does(f"GET /admin/events?status=failed → total {listed['total']}")
    scene.table(
        ("event", "type", "entity", "status", "attempts", "class"),
        [
            (e["id"], e["event_type"], e["entity_internal_id"], e["status"], e["attempts"], e["error_class"])
            for e in listed["events"]
        ],
    )
    ids = [event["id"] for event in listed["events"]]
    scene.check(ids == [event_id], "the failed command is there, and only it", ids)
    letters = (await world.ask_admin("GET", "/admin/dead-letters"))["dead_letters"]
    scene.does(f"GET /admin/dead-letters → {len(letters)}")
    scene.table((), [(name, letters[0][name]) for name in _LETTER] if letters else [])
    right = [(letter["event_id"], letter["status"], letter["attempts"]) for letter in letters]
    scene.check(right == [(event_id, "pending", 3)], "a dead letter, pending, with its reason and its owner", right)
    _history(scene, await world.ask_admin("GET", f"/admin/events/{event_id}"))


_LETTER = ("operation", "error_class", "error_code", "error_message", "attempts", "owner", "status")


async def _goes_again(world: World, scene: Scene, event_id: str) -> None:
    answer = await world.http.post(world.ingress(f"/admin/events/{event_id}/retry"), headers=world.admin)
    scene.does(f"Beds24 is repaired; POST /admin/events/{event_id}/retry")
    scene.check(answer.status_code == 202, f"answered {answer.status_code}: it goes again", answer.text)
    event = await world.result(UPDATE, KEPT, 30)
    scene.check(event.type == "core.command.succeeded", f"the core heard {event.type}", event.data.get("error"))
    shown = await world.ask_admin("GET", f"/admin/events/{event_id}")
    scene.check(shown["status"] == "done", f"the event is {shown['status']}", shown["status"])
    letter = await world.db.fetchrow("SELECT status, resolved_by FROM dead_letters WHERE event_id = $1::uuid", event_id)
    scene.check(
        letter is not None and letter["status"] == "resolved",
        f"its dead letter is {letter and letter['status']} (by {letter and letter['resolved_by']})",
    )
    outcomes = _history(scene, shown)
    scene.check(outcomes == ["retry", "retry", "park", "done"], f"the history is whole: {', '.join(outcomes)}")
    external = event.data.get("externalId")
    adults = world.sim.account.bookings.get(int(external or 0), {}).get("numAdult")
    scene.check(adults == ADULTS, f"Beds24's {external} has {adults} adults", adults)
    left = (await world.ask_admin("GET", "/admin/events?status=failed"))["total"]
    scene.check(left == 0, f"failed events left: {left}", left)


def _history(scene: Scene, shown: dict[str, Any]) -> list[str]:
    history = shown["history"]
    scene.say(f"its history (event {shown['status']}):")
    scene.table(
        ("attempt", "at", "outcome", "class", "code", "text"),
        [
            (
                entry["attempt"],
                str(entry["finished_at"])[11:23],
                entry["outcome"],
                entry["error_class"],
                entry["error_code"],
                entry["error"],
            )
            for entry in history
        ],
    )
    return [entry["outcome"] for entry in history]
