"""What Beds24 sends us, as facts. Pure.

Three senders: the booking webhook version two (an object; seen in an array, too), version one (GET with `bookid` and
`status`), and the inventory webhook (`SYNC_ROOM`). A body that says no more than an id is taken as a hint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from adapters.documents import card_member, decode, names_card_data
from adapters.errors import CardDataRefused, Malformed
from adapters.port import Fact, WebhookRequest
from schemas.connection import Connection
from schemas.vocabulary import EntityType

from .wire import read_id

CREATED = "beds24.booking.created"
MODIFIED = "beds24.booking.modified"
CANCELLED = "beds24.booking.cancelled"
HINTED = "beds24.booking.hinted"
INVENTORY = "beds24.inventory.changed"

PULLED = "pulledAt"  # a member of ours in what the API listed: when its page was asked for

TOKENS = ("stripeToken", "pcibookingToken")  # they let their holder charge a card; nothing of ours needs them
MAX_FACTS = 500

_STATE = frozenset({"id", "modifiedTime", "status"})  # a booking with no more than these is a hint
_IDS = ("bookId", "bookid", "bookingId", "id")
_MAX_WORD = 64


def parse(request: WebhookRequest, connection: Connection) -> list[Fact]:
    """raises Malformed, CardDataRefused (with hint facts for every booking in the body)"""
    if request.method == "GET":
        return [_version_one(request.query)]
    items = _items(request.body)
    facts = []
    for index, item in enumerate(items):
        try:
            facts.append(_fact(item, connection))
        except Malformed as error:
            if len(items) == 1:
                raise
            raise Malformed(f"{index}.{error.field}", error.problem) from error
    return facts


def _items(body: bytes) -> list[dict[str, Any]]:
    """The webhooks in a body, which holds no card data."""
    try:
        document = decode(body)
    except Malformed as error:
        if names_card_data(body):
            raise CardDataRefused("body") from error
        raise
    items = document if isinstance(document, list) else [document]
    if (place := card_member(document)) is not None:
        raise CardDataRefused(place, tuple(_instead_of(item) for item in items if _booking_id(item)))
    if not 0 < len(items) <= MAX_FACTS:
        raise Malformed("body", f"an array of {len(items)}; 1 to {MAX_FACTS} webhooks are read")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise Malformed(str(index) if len(items) > 1 else "body", "not a JSON object")
    return items


def without_tokens(booking: dict[str, Any]) -> dict[str, Any]:
    """The same dictionary, card tokens set to null."""
    for token in TOKENS:
        if booking.get(token):
            booking[token] = None
    return booking


def _fact(item: dict[str, Any], connection: Connection) -> Fact:
    item.pop(PULLED, None)  # no webhook's to say
    booking = item.get("booking")
    if isinstance(booking, dict):
        if booking.keys() <= _STATE:
            return _hint(read_id(booking.get("id"), "booking.id"), item | booking)
        return booking_fact(item, booking, connection)
    if booking is not None:
        raise Malformed("booking", "not a JSON object")
    if "action" in item or "roomId" in item:
        return _inventory_fact(item, connection)
    for name in _IDS:
        if name in item:
            return _hint(read_id(item[name], name), item)
    raise Malformed("body", "neither a booking, nor a booking's id, nor an inventory webhook")


def booking_fact(item: dict[str, Any], booking: dict[str, Any], connection: Connection) -> Fact:
    """item: a webhook, or what the API lists in a webhook's shape (`mapping.as_webhook`): of one state one key."""
    id_ = read_id(booking.get("id"), "booking.id")
    without_tokens(booking)
    property_id = booking.get("propertyId")
    status, modified = booking.get("status"), booking.get("modifiedTime")
    if status == "cancelled":
        event_type = CANCELLED
    elif modified and booking.get("bookingTime") == modified:
        event_type = CREATED
    else:
        event_type = MODIFIED
    # Times are whole seconds, and a guest's message leaves modifiedTime alone: so the content counts, too. Left out is
    # what differs between a webhook and its resend (`timeStamp`, `retries`), and what says nothing: the API leaves out
    # some of the empty members that webhooks have.
    lists = [item.get(name) or None for name in ("messages", "infoItems", "invoiceItems")]
    content = [{name: value for name, value in booking.items() if value or value == 0}, *lists]
    return Fact(
        event_type=event_type,
        entity_type=EntityType.RESERVATION,
        external_id=id_,
        payload=item,
        idempotency_key=_key(connection, content, modified),
        property_external_id=None if property_id is None else read_id(property_id, "booking.propertyId"),
    )


def _inventory_fact(item: dict[str, Any], connection: Connection) -> Fact:
    if item.get("action") != "SYNC_ROOM":
        raise Malformed("action", "not SYNC_ROOM")
    room = read_id(item.get("roomId"), "roomId")
    property_id = item.get("propId")
    stamp = _word(item.get("timeStamp"))
    return Fact(
        event_type=INVENTORY,
        entity_type=EntityType.AVAILABILITY,
        external_id=room,
        payload=item,
        idempotency_key=_key(connection, [INVENTORY, room, stamp], stamp) if stamp else None,
        property_external_id=None if property_id is None else read_id(property_id, "propId"),
    )


def _version_one(query: Mapping[str, str]) -> Fact:
    id_ = read_id(query.get("bookid"), "query.bookid")
    status = _word(query.get("status"))
    return Fact(HINTED, EntityType.RESERVATION, id_, {"id": id_} | ({"status": status} if status else {}), None)


def _hint(id_: str, said: Mapping[str, Any]) -> Fact:
    """Without a key: what it says of time has whole seconds, and a second change within one must be fetched, too."""
    words = {name: word for name in ("modifiedTime", "status", "timeStamp") if (word := _word(said.get(name)))}
    return Fact(HINTED, EntityType.RESERVATION, id_, {"id": id_, **words}, None)


def _instead_of(item: dict[str, Any]) -> Fact:
    booking = item["booking"]
    return _hint(_booking_id(item) or "", {**booking, "timeStamp": item.get("timeStamp")})


def _booking_id(item: Any) -> str | None:
    booking = item.get("booking") if isinstance(item, dict) else None
    if not isinstance(booking, dict):
        return None
    try:
        return read_id(booking.get("id"), "booking.id")
    except Malformed:
        return None


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_WORD else None


def _key(connection: Connection, content: list[Any], moment: Any) -> str:
    """One account may be connected twice, and each connection wants its own fact: its id is part of the key.

    The vendor's time stands before the hash: what is new then has its place at the end of the index, not anywhere in it.
    """
    text = orjson.dumps([connection.id, content], option=orjson.OPT_SORT_KEYS)
    return f"beds24-{(_word(moment) or '')[:20]}-{hashlib.sha256(text).hexdigest()[:32]}"
