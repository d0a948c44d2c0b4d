"""Sample webhooks: what a vendor would send of a booking."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Booking:
    """status in the vendor's own word"""

    id: int
    status: str
    arrival: date
    departure: date
    property_id: int
    room_id: int
    price: float


def beds24(booking: Booking) -> dict[str, Any]:
    """The booking webhook, version two."""
    from simulators.beds24.members import blank_booking, moment

    now = moment(datetime.now(UTC))
    members = {
        "id": booking.id,
        "propertyId": booking.property_id,
        "roomId": booking.room_id,
        "unitId": 1,
        "status": booking.status,
        "arrival": booking.arrival.isoformat(),
        "departure": booking.departure.isoformat(),
        "firstName": "Sample",
        "lastName": "Guest",
        "email": "sample.guest@example.com",
        "price": booking.price,
        "bookingTime": now,
        "modifiedTime": now,
        "cancelTime": now if booking.status == "cancelled" else None,
    }
    return {
        "timeStamp": now,
        "booking": blank_booking() | members | {"bookingGroup": None},
        "infoItems": [],
        "invoiceItems": [],
        "messages": [],
        "retries": 0,
    }


SAMPLES: Mapping[str, Callable[[Booking], dict[str, Any]]] = {"beds24": beds24}
