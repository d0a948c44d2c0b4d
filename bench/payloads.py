"""Beds24 booking webhooks for load: about 1 KB, or as large as the vendor's real ones (about 2 KB)."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from simulators.beds24.members import blank_booking

START = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)
KEPT = (  # what a body of about 1 KB says of a booking
    *("id", "propertyId", "roomId", "unitId", "status", "subStatus", "arrival", "departure", "numAdult", "numChild"),
    *("firstName", "lastName", "email", "phone", "mobile", "address", "city", "state", "postcode", "country"),
    *("arrivalTime", "comments", "lang", "channel", "apiReference", "reference", "bookingTime", "modifiedTime"),
    *("cancelTime", "price", "deposit", "tax", "commission", "rateDescription"),
)


def booking(number: int) -> dict[str, Any]:
    """One event in ten changes an earlier reservation, the rest are new ones."""
    changed = number % 10 == 0 and number >= 500
    reservation = number - 500 if changed else number
    arrival = START.date() + timedelta(days=30 + reservation % 300)
    booked = START + timedelta(seconds=reservation)
    return blank_booking() | {
        "id": 10_000_000 + reservation,
        "propertyId": 345754 + reservation % 50,
        "roomId": 713992,
        "unitId": 1,
        "status": "confirmed",
        "arrival": arrival.isoformat(),
        "departure": (arrival + timedelta(days=5)).isoformat(),
        "numAdult": 2,
        "numChild": 1,
        "firstName": "Ana-Sofía",
        "lastName": f"Pérez {reservation}",
        "email": f"guest{reservation}@mail.example",
        "phone": "+34 600 000 000",
        "mobile": "+34 600 000 001",
        "address": "Calle Mayor 1, 4º izq.",
        "city": "Madrid",
        "state": "Comunidad de Madrid",
        "postcode": "28013",
        "country": "ES",
        "arrivalTime": "23:30",
        "comments": "Late arrival, about 23:30. One baby cot in the room if possible, please. Quiet floor.",
        "lang": "es",
        "channel": "booking",
        "bookingTime": _moment(booked),
        "modifiedTime": _moment(booked + timedelta(hours=1 if changed else 0)),
        "price": 1234.5,
        "commission": 185.17,
        "rateDescription": "Best available rate with breakfast, free cancellation until seven days before arrival.",
    }


def key(fact: dict[str, Any]) -> str:
    """What tells one fact from another: the booking and when it was changed."""
    return f"{fact['id']}-{fact['modifiedTime']}"


def signed(number: int, secret: bytes, *, full: bool = False) -> tuple[dict[str, str], bytes]:
    """Headers and body, the same for all that is measured: staybus finds the key in the body, others may take the header."""
    fact = booking(number)
    raw = _body(fact, full=full)
    signature = hmac.new(secret, raw, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-Idempotency-Key": key(fact),
        "X-Beds24-Signature": f"sha256={signature}",
    }
    return headers, raw


def request(number: int, path: str, secret: bytes, *, full: bool = False) -> bytes:
    """The HTTP request, byte for byte."""
    headers, raw = signed(number, secret, full=full)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n{lines}\r\n".encode() + raw


def _body(fact: dict[str, Any], *, full: bool) -> bytes:
    shown = fact if full else {name: fact[name] for name in KEPT}
    return orjson.dumps(
        {
            "timeStamp": shown["modifiedTime"],
            "booking": shown,
            "infoItems": [],
            "invoiceItems": [_item(fact, n) for n in range(3)] if full else [],
            "messages": [],
            "retries": 0,
        }
    )


def _item(whole: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": whole["id"] * 10 + number,
        "bookingId": whole["id"],
        "type": "charge",
        "subType": 1,
        "description": "Room",
        "status": "",
        "qty": 1,
        "amount": 411.5,
        "lineTotal": 411.5,
        "vatRate": 10,
        "invoiceeId": None,
        "createdBy": 1,
        "createTime": whole["bookingTime"],
    }


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
