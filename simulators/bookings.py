"""Booking histories for load and convergence tests: the same seed gives the same histories and the same disorder.

A history is what the vendor would send if nothing went wrong. `deliveries` is what arrives: some of it twice, in any
order. Whoever applies deliveries rightly ends at `truth`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from simulators.beds24.members import Json, blank_booking, moment

START = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)
PROPERTY_ID = 345754
ROOM_IDS = (713992, 713993)
FIRST_ID = 91_000_000
CANCELLED_SHARE = 0.2

Verb = Literal["new", "modify", "cancel"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one booking. `body` is the whole V2 webhook body after it; treat it as read-only."""

    booking_id: int
    number: int
    """0 for the creation, then counting up per booking"""
    verb: Verb
    body: Json

    @property
    def modified_time(self) -> str:
        return str(self.body["booking"]["modifiedTime"])


def generate(
    seed: int,
    bookings: int,
    changes: int,
    *,
    property_id: int = PROPERTY_ID,
    room_ids: Sequence[int] = ROOM_IDS,
    first_id: int = FIRST_ID,
    start: datetime = START,
) -> list[Change]:
    """Histories of `bookings` bookings, each created and then changed `changes` times, in order of time.

    Exactly bookings x (1 + changes) entries. About a fifth end cancelled. Per booking `modifiedTime` is strictly
    increasing; between bookings it may coincide, as it does at the vendor.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible test data
    history: list[Change] = []
    for position in range(bookings):
        history.extend(_life(rng, first_id + position, changes, property_id, rng.choice(room_ids), start))
    history.sort(key=lambda change: (change.modified_time, change.booking_id, change.number))
    return history


def deliveries(history: Sequence[Change], seed: int, duplicates: float = 0.3, *, shuffle: bool = True) -> list[Change]:
    """The history as it arrives: each change at least once, a share of them again, in any order."""
    rng = random.Random(seed)  # noqa: S311 - reproducible disorder
    arriving = [change for change in history for _ in range(1 + (rng.random() < duplicates))]
    if shuffle:
        rng.shuffle(arriving)
    return arriving


def truth(history: Sequence[Change]) -> dict[int, Json]:
    """Booking id → its last state: where every receiver must end."""
    last: dict[int, Change] = {}
    for change in history:
        if change.booking_id not in last or change.number > last[change.booking_id].number:
            last[change.booking_id] = change
    return {booking_id: change.body["booking"] for booking_id, change in last.items()}


def _life(
    rng: random.Random, booking_id: int, changes: int, property_id: int, room_id: int, start: datetime
) -> list[Change]:
    at = start + timedelta(seconds=rng.randint(0, 3600))
    arrival = at.date() + timedelta(days=rng.randint(1, 120))
    booking = blank_booking() | {
        "id": booking_id,
        "propertyId": property_id,
        "roomId": room_id,
        "unitId": rng.randint(1, 4),
        "arrival": arrival.isoformat(),
        "departure": (arrival + timedelta(days=rng.randint(1, 7))).isoformat(),
        "numAdult": rng.randint(1, 4),
        "firstName": f"Guest{booking_id}",
        "lastName": f"Number{booking_id % 1000}",
        "email": f"guest{booking_id}@example.com",
        "channel": "booking",
        "apiSourceId": 19,
        "apiSource": "Booking.com",
        "referer": "Booking.com",
        "apiReference": f"{booking_id}77",
        "price": rng.randint(60, 900),
        "bookingTime": moment(at),
        "modifiedTime": moment(at),
    }
    life = [_change(booking, 0, "new")]
    cancelled = changes > 0 and rng.random() < CANCELLED_SHARE
    for number in range(1, changes + 1):
        at += timedelta(seconds=rng.randint(1, 900))
        booking["modifiedTime"] = moment(at)
        if cancelled and number == changes:
            booking |= {"status": "cancelled", "subStatus": "cancelledByGuest", "cancelTime": moment(at)}
            life.append(_change(booking, number, "cancel"))
        else:
            _modify(rng, booking, number)
            life.append(_change(booking, number, "modify"))
    return life


def _modify(rng: random.Random, booking: Json, number: int) -> None:
    kind = rng.choice(("stay", "guests", "price", "notes"))
    if kind == "stay":
        departure = date.fromisoformat(booking["departure"]) + timedelta(days=1)
        booking["departure"] = departure.isoformat()
    elif kind == "guests":
        booking["numAdult"] = booking["numAdult"] % 4 + 1
    elif kind == "price":
        booking["price"] += rng.randint(1, 50)
    else:
        booking["notes"] = f"change {number}"


def _change(booking: Json, number: int, verb: Verb) -> Change:
    body = {
        "timeStamp": booking["modifiedTime"],
        "booking": copy.deepcopy(booking) | {"bookingGroup": None},
        "infoItems": [],
        "invoiceItems": [],
        "messages": [],
        "retries": 0,
    }
    return Change(booking["id"], number, verb, body)
