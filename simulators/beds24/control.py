"""The levers under `/_sim`, for people and tests: guests who book, faults, webhooks, and what happened so far.

    POST   /_sim/bookings                {"channel": "airbnb", "roomId": 713992, "arrival": …}   or {}: all is invented
    PATCH  /_sim/bookings/{id}           {"departure": "2026-12-06"}        somebody changes it in the panel
    POST   /_sim/bookings/{id}/cancel    {"subStatus": "noShow"}            or {}: the guest cancels
    POST   /_sim/bookings/{id}/messages  {"message": "When is breakfast?"}
    POST   /_sim/faults                  {"kind": "timeout_after_commit", "operation": "POST /bookings", "count": 1, "close": true}
    DELETE /_sim/faults
    GET    /_sim/state · /_sim/calls?operation=POST%20/bookings
    POST   /_sim/webhook-target          {"url": "https://…", "version": "twoWithPersonalData", "customHeader": "X-Key: v",
                                          "secret": "…", "wrapInArray": false, "inventoryUrl": "https://…"}
    POST   /_sim/hold-webhooks · /_sim/release-webhooks {"shuffle": true, "duplicates": 0.3}
    POST   /_sim/replay-webhooks         {"duplicates": 0.3, "shuffle": true, "last": 50, "seed": 7}
    POST   /_sim/invite-code             {"scopes": ["all:bookings"]}       or {}: all scopes; answers {"code": …}
    POST   /_sim/expire-tokens · /_sim/exhaust-credits

Answers are JSON; a refused order is 400 with `{"error": …}`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields
from datetime import timedelta
from html import escape
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from simulators.beds24.access import ALL_SCOPES
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.members import WEBHOOK_VERSIONS, Json
from simulators.beds24.state import Account, Author, Outcome

if TYPE_CHECKING:
    from simulators.beds24.app import Beds24

Lever = Callable[[Json, Request], Awaitable[Any]]
FIRST_NAMES = ("Ada", "Bruno", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas")
LAST_NAMES = ("Almeida", "Berg", "Costa", "Dubois", "Ek", "Ferrari", "Grau", "Holm", "Ivanov", "Jansen")


class Refused(Exception):  # noqa: N818 - named for what happened
    """400 from a lever, with the reason."""


def control_routes(sim: Beds24) -> list[Route]:
    levers = Levers(sim)
    table: tuple[tuple[str, str, Lever], ...] = (
        ("POST", "/_sim/bookings", levers.book),
        ("PATCH", "/_sim/bookings/{id:int}", levers.change),
        ("POST", "/_sim/bookings/{id:int}/cancel", levers.cancel),
        ("POST", "/_sim/bookings/{id:int}/messages", levers.guest_message),
        ("POST", "/_sim/faults", levers.add_fault),
        ("DELETE", "/_sim/faults", levers.clear_faults),
        ("GET", "/_sim/state", levers.state),
        ("GET", "/_sim/calls", levers.calls),
        ("POST", "/_sim/webhook-target", levers.webhook_target),
        ("POST", "/_sim/hold-webhooks", levers.hold),
        ("POST", "/_sim/release-webhooks", levers.release),
        ("POST", "/_sim/replay-webhooks", levers.replay),
        ("POST", "/_sim/invite-code", levers.invite),
        ("POST", "/_sim/expire-tokens", levers.expire_tokens),
        ("POST", "/_sim/exhaust-credits", levers.exhaust_credits),
    )
    routes = [Route(path, _endpoint(lever), methods=[method]) for method, path, lever in table]
    return [Route("/", levers.page), *routes]


def _endpoint(lever: Lever) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        raw = await request.body()
        status = 200
        try:
            given = orjson.loads(raw) if raw else {}
            if not isinstance(given, dict):
                raise Refused("the body must be an object")  # noqa: TRY301 - one place answers refusals
            shown = await lever(given, request)
        except (Refused, orjson.JSONDecodeError) as error:
            status, shown = 400, {"error": str(error)}
        return Response(orjson.dumps(shown, default=str), status, media_type="application/json")

    return endpoint


class Levers:
    def __init__(self, sim: Beds24) -> None:
        self.sim = sim

    async def book(self, given: Json, _: Request) -> Json:
        """A guest books through a channel. Whatever is not given is invented."""
        account = self.sim.account
        channel = given.pop("channel", "booking")
        return self._done(account.book(invented(account) | given, channel=channel))

    async def change(self, given: Json, request: Request) -> Json:
        return self._done(self.sim.account.write_booking(given | {"id": request.path_params["id"]}, Author(api=False)))

    async def cancel(self, given: Json, request: Request) -> Json:
        by = given.get("subStatus", "cancelledByGuest")
        return self._done(self.sim.account.cancel(request.path_params["id"], by=by))

    async def guest_message(self, given: Json, request: Request) -> Json:
        booking_id = request.path_params["id"]
        if booking_id not in self.sim.account.bookings or not isinstance(given.get("message"), str):
            raise Refused("needs a known booking and a message")
        message = self.sim.account.add_message(booking_id, given["message"], "guest")
        self.sim.fire_events()
        return message

    async def add_fault(self, given: Json, _: Request) -> Json:
        known = {member.name for member in fields(Fault)}
        if not given.keys() <= known or "kind" not in given:
            raise Refused(f"members: {', '.join(sorted(known))}; kind is required")
        try:
            fault = Fault(**given | {"kind": FaultKind(given["kind"])})
        except ValueError:
            raise Refused(f"kinds: {', '.join(FaultKind)}") from None
        self.sim.faults.add(fault)
        return asdict(fault)

    async def clear_faults(self, _given: Json, _: Request) -> Json:
        self.sim.faults.clear()
        return {"faults": []}

    async def state(self, _given: Json, _: Request) -> Json:
        account, sender = self.sim.account, self.sim.sender
        return {
            "now": account.now(),
            "properties": list(account.properties.values()),
            "rooms": list(account.rooms.values()),
            "bookings": [account.view(b, invoice=True, info=True, group=True) for b in account.bookings],
            "messages": account.messages,
            "created": account.created,
            "credits": {"remaining": account.credits.remaining(), "resetsIn": account.credits.resets_in()},
            "faults": [asdict(fault) for fault in self.sim.faults.pending],
            "webhooks": {"fired": len(sender.history), "attempts": [asdict(a) for a in list(sender.attempts)[-100:]]},
        }

    async def calls(self, _given: Json, request: Request) -> Json:
        wanted = request.query_params.get("operation")
        calls = [asdict(c) for c in self.sim.account.calls if wanted in {None, c.operation}]
        return {"count": len(calls), "effects": sum(len(c["effects"]) for c in calls), "calls": calls}

    async def webhook_target(self, given: Json, _: Request) -> Json:
        account, target = self.sim.account, self.sim.sender.target
        if given.get("version", WEBHOOK_VERSIONS[0]) not in WEBHOOK_VERSIONS:
            raise Refused(f"versions: {', '.join(WEBHOOK_VERSIONS)}")
        places = [given["propertyId"]] if "propertyId" in given else list(account.properties)
        settings: Json = {name: given[name] for name in ("url", "version", "customHeader") if name in given}
        for place in places:
            outcome = account.write_property({"id": place, "webhooks": settings})
            if outcome.errors:
                raise Refused(f"{outcome.errors}")
        target.secret = given.get("secret", target.secret)
        target.wrap_in_array = given.get("wrapInArray", target.wrap_in_array)
        target.inventory_url = given.get("inventoryUrl", target.inventory_url)
        target.inventory_header = given.get("inventoryHeader", target.inventory_header)
        return {"properties": places, **settings, "signed": bool(target.secret)}

    async def hold(self, _given: Json, _: Request) -> Json:
        self.sim.sender.hold()
        return {"holding": True}

    async def release(self, given: Json, _: Request) -> Json:
        sent = await self.sim.sender.release(
            shuffle=bool(given.get("shuffle", False)), duplicates=float(given.get("duplicates", 0.0))
        )
        return {"sent": sent}

    async def replay(self, given: Json, _: Request) -> Json:
        sent = await self.sim.sender.replay(
            last=given.get("last"),
            shuffle=bool(given.get("shuffle", False)),
            duplicates=float(given.get("duplicates", 0.0)),
            seed=given.get("seed"),
        )
        return {"sent": sent}

    async def invite(self, given: Json, _: Request) -> Json:
        return {"code": self.sim.account.access.invite(given.get("scopes", ALL_SCOPES))}

    async def expire_tokens(self, _given: Json, _: Request) -> Json:
        self.sim.account.access.expire_all()
        return {"tokens": 0}

    async def exhaust_credits(self, _given: Json, _: Request) -> Json:
        self.sim.account.credits.exhaust()
        return {"remaining": 0, "resetsIn": self.sim.account.credits.resets_in()}

    async def page(self, _: Request) -> Response:
        return HTMLResponse(page(self.sim.account))

    def _done(self, outcome: Outcome) -> Json:
        if outcome.errors:
            raise Refused(f"{outcome.errors}")
        self.sim.fire_events()
        return self.sim.account.view(outcome.id or 0, invoice=True, info=True, group=True)


def invented(account: Account) -> Json:
    """A plausible channel booking in the next weeks."""
    rng: random.Random = account.rng
    room = account.rooms[rng.choice(list(account.rooms))]
    arrival = account.today(room["propertyId"]) + timedelta(days=rng.randint(1, 30))
    stay = rng.randint(1, 6)
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    return {
        "roomId": room["id"],
        "arrival": arrival.isoformat(),
        "departure": (arrival + timedelta(days=stay)).isoformat(),
        "numAdult": rng.randint(1, 2),
        "firstName": first,
        "lastName": last,
        "email": f"{first}.{last}@example.com".lower(),
        "phone": f"+35191{rng.randint(0, 9_999_999):07d}",
        "price": stay * room["minPrice"],
        "reference": f"{rng.randint(10**9, 10**10 - 1)}",
        "apiReference": f"{rng.randint(10**9, 10**10 - 1)}",
        "lang": rng.choice(("en", "pt", "de")),
    }


def page(account: Account) -> str:
    columns = (
        "id",
        "status",
        "roomId",
        "unitId",
        "arrival",
        "departure",
        "lastName",
        "apiSource",
        "price",
        "modifiedTime",
    )
    head = "".join(f"<th>{name}</th>" for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(booking[name]))}</td>" for name in columns) + "</tr>"
        for booking in sorted(account.bookings.values(), key=lambda b: str(b["arrival"]))
    )
    names = ", ".join(escape(str(place["name"])) for place in account.properties.values())
    style = "body{font:14px sans-serif;margin:2em}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:left}"
    return (
        f"<!DOCTYPE html><html lang=en><title>Beds24 simulator</title><style>{style}</style>"
        f"<h1>Beds24 simulator: {names}</h1>"
        f"<p>{len(account.bookings)} bookings, {account.occupancy()} holding a room, {len(account.calls)} API calls, "
        f"{account.credits.remaining()} credits left. API under <code>/api/v2</code>, levers under <code>/_sim</code>.</p>"
        f"<table><tr>{head}</tr>{rows}</table>"
    )
