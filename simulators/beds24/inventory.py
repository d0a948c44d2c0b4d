"""Nights and what is set on them: who holds which unit, and the calendar's per-day values.

`numAvail` is not stored but derived: a day's limit (the room's quantity unless the calendar sets another) less what
bookings hold. Setting `numAvail` sets the limit so that the value reads as written now and falls with the next booking.
It may go below zero: the vendor saves overbookings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from simulators.beds24.members import OCCUPYING, PRICES, Json

DEFAULT_MIN_STAY = 1
DEFAULT_MAX_STAY = 364

INCLUDES: Mapping[str, tuple[str, ...]] = {
    "includeNumAvail": ("numAvail",),
    "includeMinStay": ("minStay",),
    "includeMaxStay": ("maxStay",),
    "includeMultiplier": ("multiplier",),
    "includeOverride": ("override",),
    "includePrices": PRICES,
    "includeChannels": ("channels",),
}
"""Query flag → calendar members shown. `includeLinkedPrices` is known and shows nothing: no rates are linked here."""


def nights(arrival: str, departure: str) -> Iterator[str]:
    """ISO dates from arrival up to, not including, departure."""
    at, end = date.fromisoformat(arrival), date.fromisoformat(departure)
    while at < end:
        yield at.isoformat()
        at += timedelta(days=1)


def days(first: date, last: date) -> Iterator[str]:
    """ISO dates from first to last, both included: the calendar's `to` is inclusive."""
    return nights(first.isoformat(), (last + timedelta(days=1)).isoformat())


@dataclass
class Inventory:
    quantity: dict[int, int]
    """room id → units of this type"""
    _held: dict[tuple[int, str], dict[int, tuple[int, int]]] = field(default_factory=dict)
    """(room, night) → booking → (rooms taken, unit)"""
    _set: dict[tuple[int, str], Json] = field(default_factory=dict)
    """(room, day) → calendar members as written, `numAvail` as the limit behind it"""

    def hold(self, booking: Json) -> None:
        if booking["status"] not in OCCUPYING:
            return
        for night in nights(booking["arrival"], booking["departure"]):
            holders = self._held.setdefault((booking["roomId"], night), {})
            holders[booking["id"]] = (booking["roomQty"], booking["unitId"])

    def release(self, booking: Json) -> None:
        for night in nights(booking["arrival"], booking["departure"]):
            self._held.get((booking["roomId"], night), {}).pop(booking["id"], None)

    def num_avail(self, room_id: int, day: str) -> int:
        limit = self._set.get((room_id, day), {}).get("numAvail", self.quantity[room_id])
        return int(limit) - self._taken(room_id, day)

    def open(self, room_id: int, day: str) -> bool:
        blackout = self._set.get((room_id, day), {}).get("override") == "blackout"
        return not blackout and self.num_avail(room_id, day) > 0

    def has_room(self, room_id: int, arrival: str, departure: str, quantity: int) -> bool:
        return all(
            self.open(room_id, night) and self.num_avail(room_id, night) >= quantity
            for night in nights(arrival, departure)
        )

    def free_unit(self, room_id: int, arrival: str, departure: str) -> int:
        """The lowest unit free on every night; 0 (unassigned) when there is none."""
        busy = {
            unit for night in nights(arrival, departure) for _, unit in self._held.get((room_id, night), {}).values()
        }
        return next((unit for unit in range(1, self.quantity[room_id] + 1) if unit not in busy), 0)

    def set_days(self, room_id: int, first: date, last: date, values: Json) -> None:
        """Write calendar members over a range; None removes one."""
        for day in days(first, last):
            stored = self._set.setdefault((room_id, day), {})
            opened = stored.get("override") == "blackout" and values.get("override", "blackout") in {"none", None}
            if opened and "numAvail" not in values:
                stored.pop("numAvail", None)  # the specification: numAvail then goes to the maximum possible
            for name, value in values.items():
                if value is None:
                    stored.pop(name, None)
                elif name == "numAvail":
                    stored[name] = value + self._taken(room_id, day)
                else:
                    stored[name] = value

    def day_values(self, room_id: int, day: str, names: set[str]) -> Json:
        stored = self._set.get((room_id, day), {})
        shown: Json = {
            "numAvail": self.num_avail(room_id, day),
            "minStay": DEFAULT_MIN_STAY,
            "maxStay": DEFAULT_MAX_STAY,
            "multiplier": 1,
            "override": "none",
            **{name: value for name, value in stored.items() if name != "numAvail"},
        }
        return {name: value for name, value in shown.items() if name in names}

    def ranges(self, room_id: int, first: date, last: date, names: set[str]) -> list[Json]:
        """The calendar as the vendor lists it: equal neighbouring days as one `from`-`to` entry."""
        if not names:
            return []
        listed: list[Json] = []
        previous: Json | None = None
        for day in days(first, last):
            values = self.day_values(room_id, day, names)
            if values == previous:
                listed[-1]["to"] = day
            else:
                listed.append({"from": day, "to": day, **values})
                previous = values
        return listed

    def _taken(self, room_id: int, day: str) -> int:
        return sum(rooms for rooms, _ in self._held.get((room_id, day), {}).values())
