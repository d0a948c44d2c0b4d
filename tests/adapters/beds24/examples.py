"""Beds24 documents made by us from the documented members; every value is invented."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from adapters.port import Fact, Recorded, WebhookRequest
from schemas.connection import Connection

RECEIVED = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
PROPERTY, ROOM, BOOKING = 4101, 5201, 61_000_001

GUEST = {
    "title": "Mme",
    "firstName": "Zuzana-Test",
    "lastName": "Křížová-Test",
    "email": "zuzana@example.invalid",
    "phone": "+420777000111",
    "mobile": "+420777000222",
    "fax": "+420777000333",
    "company": "Test Company 77",
    "address": "Example Street 9",
    "city": "Testville",
    "state": "Teststate",
    "postcode": "99901",
    "comments": "guest comment 🏖",
    "notes": "host note about the guest",
    "message": "free message",
    "groupNote": "note of a group",
    **{f"custom{number}": f"custom value {number}" for number in range(1, 11)},
}


def connection(**config: Any) -> Connection:
    return Connection(
        id="conn-1",
        company_id="company-1",
        vendor="beds24",
        name="Test account",
        config=config,
        currencies={str(PROPERTY): "EUR"},
    )


def booking(**changes: Any) -> dict[str, Any]:
    return {
        "id": BOOKING,
        "masterId": None,
        "propertyId": PROPERTY,
        "roomId": ROOM,
        "unitId": 2,
        "roomQty": 1,
        "status": "confirmed",
        "subStatus": "none",
        "arrival": "2026-06-10",
        "departure": "2026-06-13",
        "numAdult": 2,
        "numChild": 1,
        **GUEST,
        "country": "Czechia",
        "country2": "CZ",
        "lang": "cs",
        "arrivalTime": "17:00",
        "voucher": "",
        "reference": "HMABC",
        "channel": "airbnb",
        "apiReference": "",
        "bookingTime": "2026-04-30T08:00:00Z",
        "modifiedTime": "2026-05-01T11:58:30Z",
        "cancelTime": None,
        "price": 313.5,
        "stripeToken": None,
        "pcibookingToken": None,
        "memberOfTomorrow": {"kept": True},
    } | changes


def body(changes: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    return {
        "timeStamp": "2026-05-01T11:58:31Z",
        "booking": booking(**(changes or {})),
        "infoItems": [{"id": 1, "code": "ARRIVAL", "text": "comes with a dog"}],
        "invoiceItems": [{"id": 2, "type": "charge", "description": "Room", "qty": 1, "amount": 313.5}],
        "messages": [{"id": 3, "message": "is there parking?", "source": "guest"}],
        "retries": 0,
    } | members


def post(document: Any) -> WebhookRequest:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return WebhookRequest("POST", {"content-type": "application/json"}, {}, raw)


def recorded(fact: Fact) -> Recorded:
    return Recorded(UUID(int=7), fact.event_type, fact.entity_type, fact.external_id, fact.payload, RECEIVED)
