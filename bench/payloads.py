"""Beds24 booking webhooks for load: about 1 KB, or as large as the vendor's real ones (about 3 KB)."""

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
    *("firstName", "lastName", "email", "phone", "country", "address", "comments", "lang", "channel", "apiReference"),
    *("reference", "bookingTime", "modifiedTime", "cancelTime", "price", "deposit", "tax", "commission"),
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
        "country": "ES",
        "address": "Calle Mayor 1, 4º izq., 28013 Madrid",
        "comments": "Late arrival, about 23:30. One baby cot in the room if possible, please. Quiet floor.",
        "lang": "es",
        "channel": "booking",
        "bookingTime": _moment(booked),
        "modifiedTime": _moment(booked + timedelta(hours=1 if changed else 0)),
        "price": 1234.5,
        "commission": 185.17,
    }


def body(number: int, *, full: bool = False) -> bytes:
    whole = booking(number)
    shown = whole if full else {name: whole[name] for name in KEPT if name in whole}
    return orjson.dumps(
        {
            "timeStamp": shown["modifiedTime"],
            "booking": shown,
            "infoItems": [],
            "invoiceItems": [_item(whole, n) for n in range(3)] if full else [],
            "messages": [],
            "retries": 0,
        }
    )


def request(number: int, path: str, secret: bytes, *, full: bool = False) -> bytes:
    """The HTTP request, byte for byte."""
    raw = body(number, full=full)
    signature = hmac.new(secret, raw, hashlib.sha256).hexdigest()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\nX-Beds24-Signature: sha256={signature}\r\n\r\n"
    ).encode() + raw


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
