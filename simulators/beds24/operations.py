"""The API's operations: each a function from account and request to an answer, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from starlette.datastructures import URL

from simulators.beds24.access import Token
from simulators.beds24.faults import Fault
from simulators.beds24.inventory import INCLUDES, days
from simulators.beds24.members import CALENDAR_DAY, LISTED_BY_DEFAULT, LISTED_BY_FILTER, STATUSES, Json, day, moment
from simulators.beds24.query import BadRequest, Query
from simulators.beds24.state import Account, Author, Outcome, checked

PAGE_SIZE = 100  # reported, not documented
MOST_ITEMS = 10_000
MOST_DAYS = 1_500  # ours: keeps a typing error from listing centuries

LIFTS_UPCOMING = (
    "filter",
    "id",
    "masterId",
    "apiReference",
    "arrival",
    "arrivalFrom",
    "arrivalTo",
    "departure",
    "departureFrom",
    "departureTo",
    "bookingTimeFrom",
    "bookingTimeTo",
    "modifiedFrom",
    "modifiedTo",
    "searchString",
)
"""Filters that end the "only upcoming" default. That property, room, channel and status do not is our strict reading."""


@dataclass(slots=True)
class Ask:
    """One authorised request. `body` is None when it is not JSON; `refuse` is the fault that refuses an item."""

    query: Query
    headers: Mapping[str, str]
    body: Any
    url: URL
    client: str
    token: Token | None = None
    refuse: Fault | None = None

    def may(self, verb: str, resource: str) -> bool:
        return self.token is not None and self.token.may(verb, resource)

    def items(self) -> list[Any]:
        if not isinstance(self.body, list):
            raise BadRequest("Request body must be an array")
        if len(self.body) > MOST_ITEMS:
            raise BadRequest("Request body has too many items")
        return self.body


@dataclass(slots=True)
class Answer:
    status: int
    body: Any
    effects: list[str] = field(default_factory=list)


Handler = Callable[[Account, Ask], Answer]


@dataclass(frozen=True, slots=True)
class Operation:
    """scope: (verb, resource) that the token needs; None for the calls that hand out tokens."""

    method: str
    path: str
    handler: Handler
    scope: tuple[str, str] | None
    cost: Decimal = Decimal(1)

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


# --- authentication ---


def set_up(account: Account, ask: Ask) -> Answer:
    granted = account.access.set_up(ask.headers.get("code", ""), ask.headers.get("deviceName", ""))
    if granted is None:
        raise BadRequest("Invite code is not valid")
    refresh, token = granted
    return Answer(200, {"token": token.text, "expiresIn": _expires_in(account, token), "refreshToken": refresh})


def get_token(account: Account, ask: Ask) -> Answer:
    token = account.access.refresh(ask.headers.get("refreshToken", ""))
    if token is None:
        raise BadRequest("Refresh token is not valid")
    return Answer(200, {"token": token.text, "expiresIn": _expires_in(account, token)})


def delete_token(account: Account, ask: Ask) -> Answer:
    if not account.access.revoke(ask.headers.get("refreshToken", "")):
        raise BadRequest("Refresh token is not valid")
    return Answer(200, {"success": True}, ["refreshToken"])


def token_details(account: Account, ask: Ask) -> Answer:
    """Tells whether a token is valid, so an invalid one is an answer here and no 401."""
    token = account.access.valid(ask.headers.get("token", ""))
    diagnostics = {"requestIp": ask.client}
    if token is None:
        return Answer(200, {"validToken": False, "diagnostics": diagnostics})
    details = {
        "ownerId": account.owner_id,
        "expiresIn": _expires_in(account, token),
        "created": moment(token.created),
        "scopes": sorted(token.scopes),
        "deviceName": token.device,
        "linkedProperties": False,
        "onlyPropertyId": None,
        "whiteListOnly": False,
        "whiteList": [],
    }
    return Answer(200, {"validToken": True, "token": details, "diagnostics": diagnostics})


def _expires_in(account: Account, token: Token) -> int:
    if token.expires is None:
        return 0
    return int((token.expires - account.clock()).total_seconds())


# --- bookings ---


def get_bookings(account: Account, ask: Ask) -> Answer:
    query = ask.query
    keep = [*_member_filters(query), *_date_filters(query), _status_filter(query), *_text_filters(query)]
    keep.append(_relative_filter(account, query))
    wanted = query.ints("id") & account.bookings.keys() if query.has("id") else account.bookings.keys()
    found = [number for number in sorted(wanted) if all(kept(account.bookings[number]) for kept in keep)]
    include = {name: query.flag(f"include{name}") for name in ("InvoiceItems", "InfoItems", "Guests", "BookingGroup")}
    return listed(
        "booking",
        found,
        ask,
        lambda booking_id: account.view(
            booking_id,
            invoice=include["InvoiceItems"],
            info=include["InfoItems"],
            guests=include["Guests"],
            group=include["BookingGroup"],
            personal=ask.may("read", "bookings-personal"),
            financial=ask.may("read", "bookings-financial"),
        ),
    )


Kept = Callable[[Json], bool]


def _among(member: str, values: Iterable[object]) -> Kept:
    allowed = set(values)
    return lambda booking: booking[member] in allowed


def _member_filters(query: Query) -> list[Kept]:
    numbers = [_among(name, query.ints(name)) for name in ("propertyId", "roomId", "id", "masterId") if query.has(name)]
    texts = [_among(name, query.texts(name)) for name in ("apiReference", "channel") if query.has(name)]
    return [*numbers, *texts]


def _date_filters(query: Query) -> list[Kept]:
    """From and To are inclusive here; the specification says only "after" and "before"."""
    keep: list[Kept] = []
    for member in ("arrival", "departure"):
        exact, first, last = query.day(member), query.day(f"{member}From"), query.day(f"{member}To")
        keep.append(_within(member, (exact or first or date.min).isoformat(), (exact or last or date.max).isoformat()))
    for name, member in (("bookingTime", "bookingTime"), ("modified", "modifiedTime")):
        start, end = query.moment(f"{name}From"), query.moment(f"{name}To")
        keep.append(_within(member, moment(start) if start else "", moment(end) if end else "~"))
    return keep


def _within(member: str, low: str, high: str) -> Kept:
    return lambda booking: low <= booking[member] <= high


def _status_filter(query: Query) -> Kept:
    """Cancelled bookings are listed only when asked for, whatever else is asked (measured)."""
    default = LISTED_BY_FILTER if query.has("filter") else LISTED_BY_DEFAULT
    return _among("status", query.choices("status", STATUSES) or default)


def _text_filters(query: Query) -> list[Kept]:
    wanted = query.text("searchString")
    if wanted is None:
        return []
    needle = wanted.casefold()

    def matches(booking: Json) -> bool:
        name = f"{booking['firstName']} {booking['lastName']}"
        fields = (name, booking["email"], booking["apiReference"], booking["reference"])
        return needle == str(booking["id"]) or any(needle in str(value).casefold() for value in fields)

    return [matches]


def _relative_filter(account: Account, query: Query) -> Kept:
    """`filter=` in the property's own date; without any filter only what has not departed yet ("upcoming")."""

    def today(booking: Json) -> str:
        return account.today(booking["propertyId"]).isoformat()

    kinds: Mapping[str, Kept] = {
        "arrivals": lambda b: b["arrival"] == today(b),
        "departures": lambda b: b["departure"] == today(b),
        "current": lambda b: b["arrival"] <= today(b) <= b["departure"],
        "new": lambda b: b["bookingTime"] >= moment(account.clock() - timedelta(days=1)),
    }
    chosen = query.choices("filter", tuple(kinds))
    if chosen:
        return kinds[chosen.pop()]
    if query.has(*LIFTS_UPCOMING):
        return lambda _: True
    return lambda b: b["departure"] >= today(b)


def post_bookings(account: Account, ask: Ask) -> Answer:
    author = Author(financial=ask.may("write", "bookings-financial"))
    group: list[int] = []
    answer = Answer(201, [])
    for position, item in enumerate(ask.items()):
        if ask.refuse is not None and position == 0:
            outcome = Outcome("modify booking" if isinstance(item, dict) and "id" in item else "new booking")
            outcome.refuse(ask.refuse.field, ask.refuse.message)
        else:
            outcome = account.write_booking(item, author, group)
        answer.body.append(outcome.answer())
        if outcome.changed:
            answer.effects.append(str(outcome.id))
    return answer


def delete_bookings(account: Account, ask: Ask) -> Answer:
    if not ask.query.has("id"):
        raise BadRequest("id is required")
    answer = Answer(201, [])
    for booking_id in sorted(ask.query.ints("id")):
        outcome = Outcome("delete booking", id=booking_id)
        if account.erase(booking_id):
            outcome.info.append({"action": "delete booking", "id": booking_id})
            answer.effects.append(str(booking_id))
        else:
            outcome.refuse("id", "invalid")
        answer.body.append(outcome.answer())
    return answer


# --- messages ---

SOURCES = ("host", "guest", "internalNote", "system")


def get_messages(account: Account, ask: Ask) -> Answer:
    query = ask.query
    keep = [_among(n, query.ints(n)) for n in ("id", "propertyId", "roomId", "bookingId") if query.has(n)]
    if query.has("source"):
        keep.append(_among("source", query.choices("source", SOURCES)))
    if query.has("filter"):
        keep.append(_among("read", {kind == "read" for kind in query.choices("filter", ("read", "unread"))}))
    if query.has("maxAge"):
        oldest = moment(account.clock() - timedelta(days=max(query.ints("maxAge"))))
        keep.append(lambda message: message["time"] >= oldest)
    found = [message for message in account.messages if all(kept(message) for kept in keep)]
    return listed("message", found, ask, dict)


def post_messages(account: Account, ask: Ask) -> Answer:
    """`bookingId` and `message` send; `id` and `read` mark. Internal notes are taken on any booking (unverified)."""
    answer = Answer(201, [])
    for item in ask.items():
        outcome = Outcome("new message")
        _write_message(account, item if isinstance(item, dict) else {}, outcome)
        answer.body.append(outcome.answer())
        if outcome.changed:
            answer.effects.append(str(outcome.id))
    return answer


def _write_message(account: Account, item: Json, outcome: Outcome) -> None:
    if "id" in item:
        outcome.action = "modify message"
        known = next((m for m in account.messages if m["id"] == item["id"]), None)
        if known is None:
            outcome.refuse("id", "invalid")
        else:
            known["read"] = bool(item.get("read", known["read"]))
            outcome.id, outcome.changed, outcome.modified = known["id"], True, {"read": known["read"]}
        return
    source = item.get("source", "host")
    if not isinstance(item.get("bookingId"), int) or item["bookingId"] not in account.bookings:
        outcome.refuse("bookingId", "invalid")
    if not isinstance(item.get("message"), str) or not item["message"]:
        outcome.refuse("message", "invalid")
    if source not in ("host", "internalNote"):
        outcome.refuse("source", "invalid")
    if outcome.errors:
        return
    attachment: Json = {
        name: item[name] for name in ("attachment", "attachmentName", "attachmentMimeType") if name in item
    }
    message = account.add_message(item["bookingId"], item["message"], source, attachment=attachment)
    outcome.id, outcome.changed, outcome.new = message["id"], True, {"id": message["id"]}
    outcome.info.append({"action": "new message", "id": message["id"]})


# --- properties and rooms ---


def get_properties(account: Account, ask: Ask) -> Answer:
    """Rooms come with `includeAllRooms`, or those that `roomId` names."""
    query = ask.query
    all_rooms, ids, rooms = query.flag("includeAllRooms"), query.ints("id"), query.ints("roomId")
    owners = {account.rooms[room]["propertyId"] for room in rooms if room in account.rooms}

    def show(place: Json) -> Json:
        if not all_rooms and not rooms:
            return dict(place)
        own = [room for room in account.rooms.values() if room["propertyId"] == place["id"]]
        return place | {"roomTypes": [room for room in own if all_rooms or room["id"] in rooms]}

    found = [
        place
        for place in account.properties.values()
        if (not ids or place["id"] in ids) and (not rooms or place["id"] in owners)
    ]
    return listed("property", found, ask, show)


def post_properties(account: Account, ask: Ask) -> Answer:
    answer = Answer(201, [])
    for item in ask.items():
        outcome = account.write_property(item)
        answer.body.append(outcome.answer())
        if outcome.changed:
            answer.effects.append(str(outcome.id))
    return answer


def get_rooms(account: Account, ask: Ask) -> Answer:
    return listed("room", _rooms(account, ask.query, "id"), ask, dict)


def _rooms(account: Account, query: Query, id_name: str) -> list[Json]:
    ids, places = query.ints(id_name), query.ints("propertyId")
    return [
        room
        for room in account.rooms.values()
        if (not ids or room["id"] in ids) and (not places or room["propertyId"] in places)
    ]


# --- availability and calendar ---


def get_availability(account: Account, ask: Ask) -> Answer:
    """`endDate` is the last night. Both default to today (unverified)."""

    def show(room: Json) -> Json:
        first = ask.query.day("startDate") or account.today(room["propertyId"])
        last = ask.query.day("endDate") or first
        nights = {at: account.inventory.open(room["id"], at) for at in _span(first, last)}
        return {"roomId": room["id"], "propertyId": room["propertyId"], "name": room["name"], "availability": nights}

    return listed("availability", _rooms(account, ask.query, "roomId"), ask, show)


def get_calendar(account: Account, ask: Ask) -> Answer:
    first, last = ask.query.day("startDate"), ask.query.day("endDate")
    if first is None or last is None:
        raise BadRequest("startDate and endDate are required")
    _span(first, last)
    names = {name for flag, members in INCLUDES.items() if ask.query.flag(flag) for name in members}

    def show(room: Json) -> Json:
        ranges = account.inventory.ranges(room["id"], first, last, names)
        return {"roomId": room["id"], "propertyId": room["propertyId"], "calendar": ranges}

    return listed("calendar", _rooms(account, ask.query, "roomId"), ask, show)


def post_calendar(account: Account, ask: Ask) -> Answer:
    answer = Answer(201, [])
    for position, item in enumerate(ask.items()):
        outcome = Outcome("modify calendar")
        if ask.refuse is not None and position == 0:
            outcome.refuse(ask.refuse.field, ask.refuse.message)
        else:
            _write_calendar(account, item, outcome)
        answer.body.append(outcome.answer())
        if outcome.changed:
            answer.effects.append(str(outcome.id))
    return answer


def _write_calendar(account: Account, item: object, outcome: Outcome) -> None:
    room_id = item.get("roomId") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(room_id, int) or room_id not in account.rooms:
        outcome.refuse("roomId", "invalid")
        return
    entries = item.get("calendar")
    if not isinstance(entries, list):
        outcome.refuse("calendar", "invalid")
        return
    for entry in entries:
        values = checked(entry, CALENDAR_DAY, outcome, ignore={"from", "to"})
        span = _entry_span(entry, outcome)
        if outcome.errors or span is None:
            return
        account.inventory.set_days(room_id, *span, values)
        outcome.id, outcome.changed = room_id, True
        outcome.modified = {"roomId": room_id, "calendar": [*outcome.modified.get("calendar", []), entry]}


def _entry_span(entry: object, outcome: Outcome) -> tuple[date, date] | None:
    if not isinstance(entry, dict):
        return None
    try:
        first = date.fromisoformat(day(entry.get("from")))
    except ValueError:
        outcome.refuse("from", "invalid")
        return None
    try:
        last = date.fromisoformat(day(entry.get("to", first.isoformat())))
    except ValueError:
        last = date.min
    if not timedelta(0) <= last - first <= timedelta(days=MOST_DAYS):
        outcome.refuse("to", "invalid")
        return None
    return first, last


def _span(first: date, last: date) -> list[str]:
    if not timedelta(0) <= last - first <= timedelta(days=MOST_DAYS):
        raise BadRequest("endDate is not valid")
    return list(days(first, last))


# --- the list envelope ---


def listed(kind: str, found: list[Any], ask: Ask, show: Callable[[Any], Json]) -> Answer:
    page = ask.query.page()
    start = (page - 1) * PAGE_SIZE
    data = [show(item) for item in found[start : start + PAGE_SIZE]]
    more = len(found) > start + PAGE_SIZE
    link = str(ask.url.include_query_params(page=page + 1)) if more else None
    pages = {"nextPageExists": more, "nextPageLink": link}
    return Answer(200, {"success": True, "type": kind, "count": len(data), "pages": pages, "data": data})


OPERATIONS = (
    Operation("GET", "/authentication/setup", set_up, None),
    Operation("GET", "/authentication/token", get_token, None),
    Operation("DELETE", "/authentication/token", delete_token, None),
    Operation("GET", "/authentication/details", token_details, None),
    Operation("GET", "/bookings", get_bookings, ("read", "bookings")),
    Operation("POST", "/bookings", post_bookings, ("write", "bookings"), Decimal("1.1")),
    Operation("DELETE", "/bookings", delete_bookings, ("delete", "bookings")),
    Operation("GET", "/bookings/messages", get_messages, ("read", "bookings-personal")),
    Operation("POST", "/bookings/messages", post_messages, ("write", "bookings-personal")),
    Operation("GET", "/properties", get_properties, ("read", "properties")),
    Operation("POST", "/properties", post_properties, ("write", "properties")),
    Operation("GET", "/properties/rooms", get_rooms, ("read", "properties")),
    Operation("GET", "/inventory/rooms/availability", get_availability, ("read", "inventory")),
    Operation("GET", "/inventory/rooms/calendar", get_calendar, ("read", "inventory")),
    Operation("POST", "/inventory/rooms/calendar", post_calendar, ("write", "inventory")),
)
