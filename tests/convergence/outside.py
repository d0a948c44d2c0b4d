"""What happens around the gateway in a schedule: the vendor's users, webhooks under way, the core's commands.

Both forms play it. What becomes of a webhook that arrives and of a command that is given, each form says itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from .vendor import Form

if TYPE_CHECKING:
    from schemas.connection import Connection
    from store.results import CoreEventRow

    from .model import Tables
    from .vendor import Clock, Letter, Vendor

PROPERTY, ROOMS = "345754", ("713992", "713993")
FIRST_NIGHT = date(2027, 3, 1)
BOOKINGS, COMMANDS = 3, 7  # at most, so that the steps of a schedule meet each other

CREATE, UPDATE, CANCEL, AVAILABILITY = (
    "pms.booking.create",
    "pms.booking.update",
    "pms.booking.cancel",
    "pms.availability.update",
)


class Op(IntEnum):
    """What may happen next; a schedule is a list of these with two numbers each, which choose among what there is."""

    BOOK = 0
    CHANGE = 1
    TOGGLE = 2  # cancelled, or not cancelled after all
    MESSAGE = 3
    MOMENT = 4
    SECONDS = 5
    MINUTES = 6
    DELIVER = 7
    DOUBLE = 8
    LOSE = 9
    CREATE = 10
    UPDATE = 11
    CANCEL = 12
    AVAILABILITY = 13
    REPEAT = 14
    TAKE_IN = 15  # a worker takes an inbound event
    GO_ON_IN = 16
    SETTLE_IN = 17  # all that are ready, in one transaction
    DIE_IN = 18
    TAKE_OUT = 19
    GO_ON_OUT = 20
    DIE_OUT = 21
    DUE = 22
    REQUEUE = 23
    PULL = 24
    GO_ON_PULL = 25
    DIE_PULL = 26
    FATE = 27
    SLEEP_IN = 28  # a worker misses the end of its lease, and goes on
    SLEEP_OUT = 29  # … after its call
    QUICK = 30  # a change whose webhook is there, and settled, at once
    FLIP = 31  # there and back


@dataclass(frozen=True, slots=True)
class Traits:
    """What is the same all through a schedule. skew: of our clock, in seconds.

    webhooks_alone  none is lost, no booking returns to what it was before, and nothing is pulled: that must do, too
    """

    skew: float = 0.0
    echoes: bool = False
    restamps: bool = False
    always_fetch: bool = False
    lose_the_rest: bool = False  # the webhooks that are still under way in the end
    late: bool = False  # … come, but after the last pull
    webhooks_alone: bool = False
    workers_die: bool = False  # in the end, with what they have in hand
    batches: bool = False  # in the end, as many as there are in one transaction


@dataclass(frozen=True, slots=True)
class Said:
    """A command as the core gave it. number: its place in the core's order."""

    number: int
    key: str
    event_type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """A result, and the keys of the commands that the core had given by then."""

    row: CoreEventRow
    external_id: str
    said: frozenset[str]


class Outside(ABC):
    """tables: as they are, in the end at the latest; the oracle compares them with what is known here."""

    tables: Tables

    def __init__(self, traits: Traits, connection: Connection, vendor: Vendor) -> None:
        self.traits = traits
        self.connection = connection
        self.vendor = vendor
        self.clock: Clock = vendor.clock
        self.said: list[Said] = []
        self.told: list[Told] = []
        self.known_to_core: list[str] = []  # internal ids of reservations

    @abstractmethod
    def _receive(self, letter: Letter) -> None:
        """A webhook arrives."""

    @abstractmethod
    def _publish(self, said: Said) -> None:
        """A command is given, perhaps again."""

    # ------------------------------------------------------------------ the vendor's users, the network

    def _book(self, a: int, b: int) -> None:
        if len(self.vendor.account.bookings) < BOOKINGS:
            nights = {"arrival": _night(a % 20), "departure": _night(a % 20 + 1 + b % 4)}
            guest = {"firstName": "Ada", "lastName": f"Long{a % 7}", "email": f"a{b % 7}@example.invalid"}
            item = {"roomId": int(ROOMS[b % 2]), "status": ("confirmed", "request")[a % 2], "numAdult": 1 + b % 3}
            self.vendor.book({**item, **nights, **(guest if a % 3 else {}), "price": 100 + b % 50}, _form(a))

    def _change(self, a: int, b: int) -> None:
        booking = self._booking(a)
        if booking is not None:
            stay = {"departure": _after(booking["arrival"], 1 + b % 5)}
            changes = (
                {"numAdult": 1 + b % 4}, stay, {"lastName": f"Other{b % 5}"}, {"price": 100 + b % 50},
                {"notes": f"note {b % 5}"}, {"status": ("confirmed", "request", "new", "inquiry")[b % 4]},
                {"numAdult": 1 + b % 4, **stay}, {"roomId": int(ROOMS[b % 2])},
            )  # fmt: skip
            self.vendor.change(booking["id"], changes[(a // 8) % len(changes)], _form(b))

    def _toggle(self, a: int, b: int) -> None:
        booking = self._booking(a)
        if booking is not None:
            status = "confirmed" if booking["status"] == "cancelled" else "cancelled"
            self.vendor.change(booking["id"], {"status": status}, _form(b))

    def _flip(self, a: int, b: int) -> None:
        self._toggle(a, b)
        self._toggle(a, b)

    def _message(self, a: int, b: int) -> None:
        booking = self._booking(a)
        if booking is not None:
            self.vendor.message(booking["id"], f"text {b % 9}", _form(b))

    def _deliver(self, a: int, _b: int) -> None:
        if self.vendor.letters:
            self._receive(self.vendor.letters.pop(a % len(self.vendor.letters)))

    def _double(self, a: int, _b: int) -> None:
        if self.vendor.letters:
            self._receive(self.vendor.letters[a % len(self.vendor.letters)])

    def _lose(self, a: int, _b: int) -> None:
        if self.vendor.letters and not self.traits.webhooks_alone:
            del self.vendor.letters[a % len(self.vendor.letters)]

    def _booking(self, a: int) -> Any:
        bookings = list(self.vendor.account.bookings.values())
        return bookings[a % len(bookings)] if bookings else None

    # ------------------------------------------------------------------ the core

    def _create(self, a: int, b: int) -> None:
        number = len(self.said)
        data = {
            "reservationId": f"B{number}", "propertyId": "P1", "roomTypeId": ("RT1", "RT2")[a % 2],
            "checkIn": _night(a % 20), "checkOut": _night(a % 20 + 1 + b % 4), "adults": 1 + b % 3,
            "totalPrice": 10_000 + b, **({"guest": {"lastName": f"Ours{b % 5}"}} if a % 3 else {}),
        }  # fmt: skip
        if self._say(CREATE, data):
            self.known_to_core.append(f"B{number}")

    def _update(self, a: int, b: int) -> None:
        if self.known_to_core:
            changes = ({"adults": 1 + b % 4}, {"totalPrice": 20_000 + b}, {"status": ("confirmed", "pending")[b % 2]},
                       {"guest": {"lastName": f"Renamed{b % 5}"}}, {"notes": f"core note {b % 5}"},
                       {"adults": 1 + b % 4, "children": b % 3}, {"roomTypeId": ("RT1", "RT2")[b % 2]})  # fmt: skip
            self._say(UPDATE, {"reservationId": self._id(a), **changes[(a // 4) % len(changes)]})

    def _cancel(self, a: int, _b: int) -> None:
        if self.known_to_core:
            self._say(CANCEL, {"reservationId": self._id(a)})

    def _availability(self, a: int, b: int) -> None:
        first = 100 + a % 5
        said = ({"available": b % 4}, {"price": 9_000 + b}, {"minStay": 1 + b % 4}, {"available": b % 3, "minStay": 2})
        period = {"first": _night(first), "last": _night(first + b % 4), **said[(a // 5) % len(said)]}
        self._say(AVAILABILITY, {"propertyId": "P1", "roomTypeId": "RT1", "periods": [period]})

    def _repeat(self, a: int, _b: int) -> None:
        """A service sends a command again."""
        if self.said:
            self._publish(self.said[a % len(self.said)])

    def _id(self, a: int) -> str:
        return self.known_to_core[a % len(self.known_to_core)]

    def _say(self, event_type: str, data: dict[str, Any]) -> bool:
        number = len(self.said)
        if number >= COMMANDS:
            return False
        self.said.append(Said(number, f"c{number}", event_type, data))
        self._publish(self.said[-1])
        return True

    def _hear(self, subject: str) -> None:
        """The core is told of a reservation, by its internal id."""
        if subject not in self.known_to_core:
            self.known_to_core.append(subject)


def _night(offset: int) -> str:
    return (FIRST_NIGHT + timedelta(days=offset)).isoformat()


def _after(night: str, days: int) -> str:
    return (date.fromisoformat(night) + timedelta(days=days)).isoformat()


def _form(number: int) -> Form:
    """Mostly the whole booking."""
    return (Form.FULL, Form.FULL, Form.FULL, Form.FULL, *Form)[(number // 2) % 9]
