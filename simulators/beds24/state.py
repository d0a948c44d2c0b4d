"""One Beds24 account in memory: properties, rooms, bookings with their items and messages, and what happened to them.

All writing goes through `Account.write_booking`, whoever writes (the API, a channel, a person in the panel): it judges
the item, keeps the calendar right, sets `modifiedTime`, and leaves an event for the webhook sender.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TypeVar
from zoneinfo import ZoneInfo

import orjson

from simulators.beds24.access import Access, Clock, Credits
from simulators.beds24.faults import Call
from simulators.beds24.inventory import Inventory
from simulators.beds24.members import (
    AFFECTS_AVAILABILITY,
    FINANCIAL,
    INFO_ITEM,
    INVOICE_ITEM,
    OCCUPYING,
    PERSONAL,
    WEBHOOK_SETTINGS,
    WRITABLE,
    Check,
    Json,
    amount,
    blank_booking,
    moment,
)

LONGEST_STAY = 999  # nights; ours, so that a typing error in a year cannot fill the memory
SHOWN_ONLY = frozenset({"id", "propertyId", "bookingGroup", "bookingTime", "modifiedTime", "cancelTime", "guests"})
"""Members of an answer that a client may send back unharmed: not written, not complained about."""
ITEM_SHOWN_ONLY = frozenset({"id", "bookingId", "invoiceId", "createdBy", "createTime", "lineTotal"})
ITEM_NAMES = {"invoiceItems": "invoice item", "infoItems": "info item"}
NOT_MEMBERS = SHOWN_ONLY | {"actions", "invoiceItems", "infoItems"}

SOURCES: Mapping[str, tuple[int, str]] = {
    "direct": (0, "Direct"),
    "booking": (19, "Booking.com"),
    "airbnb": (46, "Airbnb"),
    "expedia": (14, "Expedia"),
    "vrbo": (53, "Vrbo"),
}


@dataclass(frozen=True, slots=True)
class RoomSeed:
    """A room type; `qty` physical units of it."""

    id: int
    name: str
    qty: int
    room_type: str = "studio"
    max_people: int = 2
    min_price: int = 80


@dataclass(frozen=True, slots=True)
class PropertySeed:
    id: int
    name: str
    rooms: tuple[RoomSeed, ...]
    currency: str = "EUR"
    zone: str = "Europe/Lisbon"
    city: str = "Lisbon"
    country: str = "PT"


DEFAULT_SEED = (
    PropertySeed(
        345754,
        "Harbour Lofts",
        (RoomSeed(713992, "Studio", 4), RoomSeed(713993, "Loft", 2, room_type="suite", max_people=4, min_price=140)),
    ),
)


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes a booking, which decides what fires and how the booking is labelled."""

    api: bool = True
    channel: str = "direct"
    financial: bool = True
    """whether the token may write prices and invoice items"""


@dataclass(frozen=True, slots=True)
class BookingChanged:
    booking_id: int
    property_id: int
    body: Json
    """the whole V2 webhook body as of now, guest data included"""


@dataclass(frozen=True, slots=True)
class RoomChanged:
    room_id: int
    property_id: int


Event = BookingChanged | RoomChanged


@dataclass(slots=True)
class Outcome:
    """The vendor's answer for one item of a POST. `success: false` may still have changed some members."""

    action: str
    new: Json = field(default_factory=dict)
    modified: Json = field(default_factory=dict)
    errors: list[Json] = field(default_factory=list)
    warnings: list[Json] = field(default_factory=list)
    info: list[Json] = field(default_factory=list)
    id: int | None = None
    changed: bool = False

    def refuse(self, member: str, message: str) -> None:
        self.errors.append({"action": self.action, "field": member, "message": message})

    def warn(self, member: str, message: str) -> None:
        self.warnings.append({"action": self.action, "field": member, "message": message})

    def answer(self) -> Json:
        parts = {
            "new": self.new,
            "modified": self.modified,
            "errors": self.errors,
            "warnings": self.warnings,
            "info": self.info,
        }
        return {"success": not self.errors, **{name: part for name, part in parts.items() if part}}


def system_clock() -> datetime:
    return datetime.now(UTC)


class Account:
    """The account's whole state. Not thread safe: it lives in one event loop, and every change is one step."""

    def __init__(
        self,
        seed: Sequence[PropertySeed] = DEFAULT_SEED,
        *,
        clock: Clock = system_clock,
        rng: random.Random | None = None,
        credit_limit: Decimal | float = 100,
        owner_id: int = 118_204,
        first_booking_id: int = 90_923_001,
    ) -> None:
        self.clock = clock
        self.rng = rng or random.Random(24)  # noqa: S311 - reproducible test data
        self.owner_id = owner_id
        self.access = Access(clock, self.rng)
        self.credits = Credits(clock, Decimal(str(credit_limit)))
        self.properties: dict[int, Json] = {}
        self.rooms: dict[int, Json] = {}
        self.zones: dict[int, ZoneInfo] = {}
        self.bookings: dict[int, Json] = {}
        self.invoice_items: dict[int, list[Json]] = {}
        self.info_items: dict[int, list[Json]] = {}
        self.messages: list[Json] = []
        self.calls: list[Call] = []
        self.created: Counter[str] = Counter()
        """bookings ever created by API, by apiReference ("" without one); erasing does not lower it"""
        self.events: list[Event] = []
        self._next_booking = first_booking_id
        self._next_item = 148_343_001
        for place in seed:
            self._add_property(place)
        self.inventory = Inventory({room_id: room["qty"] for room_id, room in self.rooms.items()})

    # --- reading ---

    def now(self) -> str:
        return moment(self.clock())

    def today(self, property_id: int) -> date:
        """The property's own date: every date filter of the vendor means this one."""
        return self.clock().astimezone(self.zones[property_id]).date()

    def view(
        self,
        booking_id: int,
        *,
        invoice: bool = False,
        info: bool = False,
        group: bool = False,
        guests: bool = False,
        personal: bool = True,
        financial: bool = True,
    ) -> Json:
        """A booking as answers show it.

        Without the personal scope guest members are empty, as in webhooks; without the financial one prices are left
        out. What the vendor does there is unverified.
        """
        shown = copied(self.bookings[booking_id])
        if invoice:
            shown["invoiceItems"] = copied(self.invoice_items.get(booking_id, []))
        if info:
            shown["infoItems"] = copied(self.info_items.get(booking_id, []))
        if group:
            shown["bookingGroup"] = self._group(shown["masterId"])
        if guests and personal:
            shown["guests"] = []
        if not personal:
            shown = without_personal(shown)
        if not financial:
            shown = {name: value for name, value in shown.items() if name not in FINANCIAL}
        return shown

    def webhook_body(self, booking_id: int) -> Json:
        """The V2 webhook body, complete; the sender takes away what the property's settings withhold."""
        return {
            "timeStamp": self.now(),
            "booking": self.view(booking_id, group=True),
            "infoItems": copied(self.info_items.get(booking_id, [])),
            "invoiceItems": copied(self.invoice_items.get(booking_id, [])),
            "messages": [copied(m) for m in self.messages if m["bookingId"] == booking_id],
            "retries": 0,
        }

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def balance(self, booking_id: int) -> Decimal:
        """Charges less payments: what a client should compute from the invoice items."""
        total = Decimal(0)
        for item in self.invoice_items.get(booking_id, []):
            line = Decimal(str(item["lineTotal"]))
            total += line if item["type"] == "charge" else -line
        return total

    def effects(self, operation: str | None = None, idempotency_key: str | None = None) -> int:
        """How many things calls have created or changed, of one operation and key if given."""
        return sum(
            len(call.effects)
            for call in self.calls
            if operation in {None, call.operation} and idempotency_key in {None, call.idempotency_key}
        )

    # --- writing bookings ---

    def write_booking(self, item: object, author: Author, group: list[int] | None = None) -> Outcome:
        """Create (no `id`) or change (`id`) one booking.

        group   ids of the bookings of this request that asked for `makeGroup`; the first is the master
        """
        if not isinstance(item, dict):
            outcome = Outcome("new booking")
            outcome.refuse("", "invalid")
            return outcome
        creating = "id" not in item
        outcome = Outcome("new booking" if creating else "modify booking")
        values = checked(item, WRITABLE, outcome, ignore=NOT_MEMBERS)
        actions = item.get("actions", {})
        if not isinstance(actions, dict):
            outcome.refuse("actions", "invalid")
        if not author.financial and any(name in item for name in FINANCIAL):
            outcome.refuse("invoiceItems" if "invoiceItems" in item else "price", "scope required")
        if creating:
            self._create(values, actions, author, outcome)
        else:
            self._change(item["id"], values, author, outcome)
        if outcome.id is not None:
            self._finish(item, actions, author, outcome, creating=creating, group=group)
        return outcome

    def erase(self, booking_id: int) -> bool:
        """DELETE: the booking is gone, which no client should use to cancel."""
        booking = self.bookings.pop(booking_id, None)
        if booking is None:
            return False
        self.inventory.release(booking)
        self.invoice_items.pop(booking_id, None)
        self.info_items.pop(booking_id, None)
        return True

    def book(self, values: Json, *, channel: str = "booking") -> Outcome:
        """A guest books through a channel: always saved, always fires."""
        return self.write_booking(values, Author(api=False, channel=channel))

    def cancel(self, booking_id: int, *, by: str = "cancelledByGuest") -> Outcome:
        """A channel or person cancels. Unlike an API cancellation (measured) this sets `cancelTime`."""
        return self.write_booking({"id": booking_id, "status": "cancelled", "subStatus": by}, Author(api=False))

    def add_message(self, booking_id: int, text: str, source: str, *, attachment: Json | None = None) -> Json:
        booking = self.bookings[booking_id]
        message: Json = {
            "id": self._item_id(),
            "bookingId": booking_id,
            "roomId": booking["roomId"],
            "propertyId": booking["propertyId"],
            "time": self.now(),
            "read": source != "guest",
            "message": text,
            "source": source,
            "authorOwnerId": self.owner_id,
            **(attachment or {}),
        }
        self.messages.append(message)
        if source == "guest":  # guest messages of channels fire the booking webhook
            self._announce(booking)
        return message

    def _create(self, values: Json, actions: Json, author: Author, outcome: Outcome) -> None:
        for member in ("roomId", "arrival", "departure"):
            if member not in values and not any(error["field"] == member for error in outcome.errors):
                outcome.refuse(member, "required")
        self._judge_stay(values, outcome)
        if outcome.errors:
            return
        if actions.get("checkAvailability") is True and not self.inventory.has_room(
            values["roomId"], values["arrival"], values["departure"], values.get("roomQty", 1)
        ):
            outcome.refuse("checkAvailability", "no availability")
            return
        source_id, source = SOURCES.get(author.channel, (0, author.channel))
        now = self.now()
        booking = blank_booking() | {
            "id": self._next_booking,
            "propertyId": self.rooms[values["roomId"]]["propertyId"],
            "channel": author.channel,
            "apiSourceId": source_id,
            "apiSource": source,
            "referer": "API" if author.api else source,
            "unitId": self.inventory.free_unit(values["roomId"], values["arrival"], values["departure"]),
            **values,
            "bookingTime": now,
            "modifiedTime": now,
        }
        self._next_booking += 1
        self.bookings[booking["id"]] = booking
        self.inventory.hold(booking)
        if author.api:
            self.created[booking["apiReference"]] += 1
        outcome.id, outcome.changed = booking["id"], True
        outcome.new = {"id": booking["id"], **values}
        outcome.info.append({"action": "new booking", "id": booking["id"]})

    def _change(self, booking_id: object, values: Json, author: Author, outcome: Outcome) -> None:
        booking = self.bookings.get(booking_id) if isinstance(booking_id, int) else None
        if booking is None:
            outcome.refuse("id", "invalid")
            return
        modified = {name: value for name, value in values.items() if booking[name] != value}
        self._judge_stay(booking | modified, outcome)
        if outcome.errors:
            return
        outcome.id = booking["id"]
        if not modified:
            return
        self.inventory.release(booking)
        if modified.get("status") == "cancelled" and not author.api:
            booking["cancelTime"] = self.now()
        if "roomId" in modified:
            booking["propertyId"] = self.rooms[modified["roomId"]]["propertyId"]
            stay: Json = booking | modified
            booking["unitId"] = self.inventory.free_unit(stay["roomId"], stay["arrival"], stay["departure"])
        booking.update(modified)
        self.inventory.hold(booking)
        outcome.modified, outcome.changed = modified, True

    def _finish(
        self, item: Json, actions: Json, author: Author, outcome: Outcome, *, creating: bool, group: list[int] | None
    ) -> None:
        """Items, group, `modifiedTime`, webhook: after the booking's own members are saved."""
        booking = self.bookings[outcome.id or 0]
        self._write_invoice_items(booking, item.get("invoiceItems", []), outcome)
        self._write_info_items(booking, item.get("infoItems", []), outcome)
        if creating and actions.get("autoInvoiceItemCharge") is True:
            self._charge_price(booking)
        if not creating and actions.get("deleteInvoice") is True:
            outcome.changed |= bool(self.invoice_items.pop(booking["id"], []))
        if creating and actions.get("makeGroup") and group is not None:
            group.append(booking["id"])
            booking["masterId"] = group[0]
        if not outcome.changed:
            return
        booking["modifiedTime"] = self.now()
        affects = creating or bool(AFFECTS_AVAILABILITY & outcome.modified.keys())
        if not author.api or (actions.get("allowWebhooks") is True and affects):
            self._announce(booking, room=affects)

    def _judge_stay(self, stay: Json, outcome: Outcome) -> None:
        if "roomId" in stay and stay["roomId"] not in self.rooms:
            outcome.refuse("roomId", "invalid")
        if "arrival" not in stay or "departure" not in stay:
            return
        if stay["arrival"] >= stay["departure"]:
            outcome.refuse("arrival", "invalid")
        elif date.fromisoformat(stay["departure"]) - date.fromisoformat(stay["arrival"]) > timedelta(days=LONGEST_STAY):
            outcome.refuse("departure", "invalid")

    def _write_invoice_items(self, booking: Json, items: object, outcome: Outcome) -> None:
        def fresh(values: Json) -> Json:
            charge = values.get("type", "charge") == "charge"
            return {
                "id": self._item_id(),
                "bookingId": booking["id"],
                "invoiceId": None,
                "type": "charge",
                "subType": 7 if charge else 204,  # "added by api"
                "description": "",
                "status": "",
                "qty": 1,
                "amount": 0,
                "lineTotal": 0,
                "vatRate": 0,
                "invoiceeId": None,
                "createdBy": self.owner_id,
                "createTime": self.now(),
            }

        stored = self.invoice_items.setdefault(booking["id"], [])
        self._write_items("invoiceItems", items, stored=stored, checks=INVOICE_ITEM, fresh=fresh, outcome=outcome)
        for row in stored:
            row["lineTotal"] = amount(row["qty"] * Decimal(str(row["amount"])))

    def _write_info_items(self, booking: Json, items: object, outcome: Outcome) -> None:
        def fresh(_: Json) -> Json:
            head = {"id": self._item_id(), "bookingId": booking["id"]}
            return {**head, "code": "", "text": "", "createTime": self.now()}

        stored = self.info_items.setdefault(booking["id"], [])
        self._write_items("infoItems", items, stored=stored, checks=INFO_ITEM, fresh=fresh, outcome=outcome)

    def _write_items(
        self,
        member: str,
        items: object,
        *,
        stored: list[Json],
        checks: Mapping[str, Check],
        fresh: Callable[[Json], Json],
        outcome: Outcome,
    ) -> None:
        """Append items without `id`, change those with one, delete those with nothing else; judge each by itself."""
        if not isinstance(items, list):
            outcome.refuse(member, "invalid")
            return
        for item in items:
            judged = Outcome(outcome.action)
            values = checked(item, checks, judged, ignore=ITEM_SHOWN_ONLY)
            row = None
            if not judged.errors and "id" in item:
                row = next((known for known in stored if known["id"] == item["id"]), None)
                if row is None:
                    judged.refuse("id", "invalid")
            if judged.errors:
                outcome.errors.extend(e | {"field": f"{member}.{e['field']}".rstrip(".")} for e in judged.errors)
                continue
            outcome.changed = True
            if row is not None and set(item) == {"id"}:
                stored.remove(row)
                continue
            if row is None:
                row = fresh(values)
                stored.append(row)
                outcome.info.append({"action": f"new {ITEM_NAMES[member]}", "id": row["id"]})
            row.update(values)

    def _charge_price(self, booking: Json) -> None:
        items = self.invoice_items.setdefault(booking["id"], [])
        if booking["price"] and not any(item["type"] == "charge" for item in items):
            charge = {"type": "charge", "description": "Room", "qty": 1, "amount": booking["price"]}
            self._write_invoice_items(booking, [charge], Outcome("new booking"))

    def _announce(self, booking: Json, *, room: bool = False) -> None:
        self.events.append(BookingChanged(booking["id"], booking["propertyId"], self.webhook_body(booking["id"])))
        if room:
            self.events.append(RoomChanged(booking["roomId"], booking["propertyId"]))

    def _group(self, master: int | None) -> Json | None:
        if master is None:
            return None
        return {"master": master, "ids": [b["id"] for b in self.bookings.values() if b["masterId"] == master]}

    def _item_id(self) -> int:
        self._next_item += 1
        return self._next_item

    # --- properties ---

    def write_property(self, item: object) -> Outcome:
        """Name and webhook settings of a known property; creating one is not simulated."""
        outcome = Outcome("modify property")
        place = self.properties.get(item["id"]) if isinstance(item, dict) and isinstance(item.get("id"), int) else None
        if place is None or not isinstance(item, dict):
            outcome.refuse("id", "invalid")
            return outcome
        settings = checked(item.get("webhooks", {}), WEBHOOK_SETTINGS, outcome)
        for error in outcome.errors:
            error["field"] = f"webhooks.{error['field']}".rstrip(".")
        if outcome.errors:
            return outcome
        outcome.id = place["id"]
        if settings:
            place["webhooks"].update(settings)
            outcome.modified["webhooks"] = settings
        if isinstance(item.get("name"), str):
            place["name"] = outcome.modified["name"] = item["name"]
        for member in item.keys() - {"id", "name", "webhooks"}:
            outcome.warn(member, "not simulated")
        outcome.changed = bool(outcome.modified)
        return outcome

    def _add_property(self, seed: PropertySeed) -> None:
        self.zones[seed.id] = ZoneInfo(seed.zone)
        self.properties[seed.id] = {
            "id": seed.id,
            "name": seed.name,
            "propertyType": "apartment",
            "currency": seed.currency,
            "address": "1 Quay Street",
            "city": seed.city,
            "state": "",
            "country": seed.country,
            "postcode": "",
            "checkInStart": "15:00",
            "checkInEnd": "22:00",
            "checkOutEnd": "11:00",
            "offerType": "perRoom",
            "webhooks": {"version": "twoWithPersonalData", "url": "", "additionalData": "none", "customHeader": ""},
        }
        for room in seed.rooms:
            self.rooms[room.id] = {
                "id": room.id,
                "propertyId": seed.id,
                "name": room.name,
                "roomType": room.room_type,
                "qty": room.qty,
                "minPrice": room.min_price,
                "maxPeople": room.max_people,
                "maxAdult": None,
                "maxChildren": None,
                "minStay": 1,
                "maxStay": 365,
                "units": [{"id": unit, "name": f"{room.name} {unit}"} for unit in range(1, room.qty + 1)],
            }

    def occupancy(self) -> int:
        """Bookings that hold a unit: for summaries."""
        return sum(booking["status"] in OCCUPYING for booking in self.bookings.values())


D = TypeVar("D")


def copied(document: D) -> D:
    """Of JSON values only, which makes it ten times as quick as `copy.deepcopy`."""
    copy: D = orjson.loads(orjson.dumps(document))
    return copy


def checked(item: object, checks: Mapping[str, Check], outcome: Outcome, ignore: Iterable[str] = ()) -> Json:
    """The acceptable values of an item; what is wrong goes to the outcome. Unknown members only warn (unverified)."""
    if not isinstance(item, dict):
        outcome.refuse("", "invalid")
        return {}
    values: Json = {}
    for name, value in item.items():
        if name in ignore:
            continue
        if name not in checks:
            outcome.warn(str(name), "unknown field")
            continue
        try:
            values[name] = checks[name](value)
        except ValueError as error:
            outcome.refuse(name, str(error))
    return values


def without_personal(booking: Json) -> Json:
    """The booking with its guest members emptied, as `twoNoPersonalData` sends it."""
    return booking | dict.fromkeys(PERSONAL, "") | {"country2": None}
