"""Between Beds24's documents and ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from adapters.documents import without_card_data
from adapters.errors import Malformed, Unmapped, Unsupported
from adapters.port import MARKER, Command, Effects, Hint, Recorded
from schemas.commands import PERIOD_NIGHTS, AvailabilityUpdate, BookingCancel, BookingCreate, BookingUpdate, CommandData
from schemas.connection import Connection
from schemas.entities import Availability, Guest, Reservation, Sourced, Version
from schemas.money import to_decimal, to_minor
from schemas.vocabulary import EntityType, ReservationStatus

from .manifest import MANIFEST
from .webhook import HINTED, INVENTORY, PULLED, without_tokens
from .wire import Booking, read_booking, read_calendar, read_days, read_moment

STATUSES: Mapping[str, ReservationStatus] = {
    "confirmed": ReservationStatus.CONFIRMED,
    "new": ReservationStatus.PENDING,
    "request": ReservationStatus.PENDING,
    "inquiry": ReservationStatus.PENDING,
    "cancelled": ReservationStatus.CANCELLED,
    "black": ReservationStatus.BLOCKED,
}
STATUS_WORDS: Mapping[ReservationStatus, str] = {
    ReservationStatus.CONFIRMED: "confirmed",
    ReservationStatus.PENDING: "request",
    ReservationStatus.CANCELLED: "cancelled",
    ReservationStatus.BLOCKED: "black",
}
# Decides between two states of the same second: any fixed order does, if only a cancellation comes last.
TIES: Mapping[str, int] = {"inquiry": 10, "request": 20, "new": 30, "black": 40, "confirmed": 50, "cancelled": 99}

_LANGUAGE = re.compile(r"[A-Za-z]{2}(?:[-_].*)?")
_COUNTRY = re.compile(r"[A-Za-z]{2}")


# ------------------------------------------------------------------------------------------------ theirs → ours


def interpret(fact: Recorded, connection: Connection) -> Effects | Hint:
    """raises Malformed"""
    if fact.event_type == INVENTORY:
        return Hint(EntityType.AVAILABILITY, fact.external_id)
    hint = Hint(EntityType.RESERVATION, fact.external_id)
    payload = fact.payload
    pulled = read_moment(payload.get(PULLED), PULLED)
    if fact.event_type == HINTED or (connection.config.get("fetch") == "always" and pulled is None):
        return hint
    observed = pulled or read_moment(payload.get("timeStamp"), "timeStamp") or fact.received_at
    sourced = reservation(payload, connection, observed, asked=pulled is not None)
    return hint if sourced is None else Effects(reservations=(sourced,))


def reservation(
    payload: Mapping[str, Any], connection: Connection, observed_at: datetime, *, asked: bool = False
) -> Sourced[Reservation] | None:
    """asked: it is an answer of the API. None when the document does not tell the booking's version. raises Malformed"""
    booking = read_booking(payload.get("booking"))
    if booking.modifiedTime is None:
        return None
    if booking.departure <= booking.arrival:
        raise Malformed("booking.departure", "must be after arrival")
    currency = connection.currency_of(booking.propertyId)
    reference = booking.apiReference or None
    ours = reference is not None and reference.startswith(MARKER)
    status = booking.status or ""
    return Sourced(
        entity=Reservation(
            external_id=booking.id,
            external_property_id=booking.propertyId,
            external_room_type_id=booking.roomId,
            external_unit_id=str(booking.unitId) if booking.unitId else None,
            status=STATUSES.get(status, ReservationStatus.UNKNOWN),
            check_in=booking.arrival,
            check_out=booking.departure,
            adults=booking.numAdult or 0,
            children=booking.numChild or 0,
            total_price=None if currency is None or booking.price is None else to_minor(booking.price, currency),
            currency=currency,
            source=booking.channel or None,
            source_reference=(None if ours else reference) or booking.reference or None,
            booked_at=booking.bookingTime,
            cancelled_at=booking.cancelTime,
            guest=_guest(booking),
            marker=reference if ours else None,
        ),
        version=Version(booking.modifiedTime, observed_at, TIES.get(status, 0), asked),
        document=payload,
    )


def _guest(booking: Booking) -> Guest | None:
    if not (booking.firstName or booking.lastName or booking.email or booking.phone or booking.mobile):
        return None
    return Guest(
        first_name=booking.firstName or None,
        last_name=booking.lastName or None,
        email=booking.email or None,
        phone=booking.phone or booking.mobile or None,
        language=booking.lang or None,
        country=booking.country2 or booking.country or None,
    )


def as_webhook(fetched: Any) -> dict[str, Any]:
    """A booking of `GET /bookings` in the shape of a webhook, without card data.

    raises  Malformed: not an object
    """
    if not isinstance(fetched, dict):
        raise Malformed("booking", "not a JSON object")
    booking = without_tokens(without_card_data(fetched))
    lists: dict[str, Any] = {name: booking.pop(name) for name in ("infoItems", "invoiceItems") if name in booking}
    return {"booking": booking, **lists}


def availability(
    document: Any, connection: Connection, began: datetime, first: date, last: date
) -> tuple[str, list[Sourced[Availability]]]:
    """(room id, its nights between first and last, both included). raises Malformed"""
    room = read_calendar(document)
    currency = connection.currency_of(room.propertyId)
    nights = []
    for entry in room.calendar:
        days = read_days(entry)
        said = {"roomId": room.roomId, "propertyId": room.propertyId, **entry}
        price = None if currency is None or days.price1 is None else to_minor(days.price1, currency)
        night, end = max(days.first, first), min(days.last, last)
        while night <= end:
            entity = Availability(
                external_property_id=room.propertyId,
                external_room_type_id=room.roomId,
                day=night,
                available=None if days.numAvail is None else max(days.numAvail, 0),
                price=price,
                currency=currency,
                min_stay=days.minStay,
                closed=None if not days.override else days.override == "blackout",
            )
            nights.append(Sourced(entity, Version(began, began), said))
            night += timedelta(days=1)
    return room.roomId, nights


# ------------------------------------------------------------------------------------------------ ours → theirs


def body_of(command: Command, connection: Connection) -> list[dict[str, Any]]:
    """The body that says this command. raises Unsupported, Unmapped: before any request"""
    match command.data:
        case BookingCreate() as data:
            return [_create(data, command, connection)]
        case BookingUpdate() as data:
            return [_update(data, command, connection)]
        case BookingCancel() as data:
            booking = _external(command, EntityType.RESERVATION, data.reservation_id)
            return [{"id": booking, "status": "cancelled"}]
        case AvailabilityUpdate() as data:
            return [_calendar(data, command, connection)]
    raise Unsupported(f"beds24: {command.event_type} with {type(command.data).__name__} cannot be said")


def is_as_wanted(booking: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Whether a booking of the vendor's says already what an update or a cancellation would make it say."""
    return all(_same(booking.get(name), value) for name, value in body.items())


def nights_are_as_wanted(documents: Sequence[Any], calendar: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rooms' calendars of the vendor's say already what `calendar` would make them say. raises Malformed"""
    shown: dict[str, dict[str, Any]] = {}
    for document in documents:
        for entry in read_calendar(document).calendar:
            days = read_days(entry)
            for night in _nights(days.first, days.last):
                shown.setdefault(night, {}).update(entry)
    return all(
        _same(shown.get(night, {}).get(name), value)
        for entry in calendar
        for night in _nights(date.fromisoformat(entry["from"]), date.fromisoformat(entry["to"]))
        for name, value in entry.items()
        if name not in {"from", "to"}
    )


def spans(calendar: Sequence[Mapping[str, Any]]) -> list[tuple[date, date]]:
    """From, to: the nights of `calendar`, with few others between them, none longer than a period may be."""
    found: list[tuple[date, date]] = []
    for first, last in sorted((date.fromisoformat(e["from"]), date.fromisoformat(e["to"])) for e in calendar):
        begin, end = found[-1] if found else (first, last)
        end = max(end, last)
        if found and (end - begin).days < PERIOD_NIGHTS:
            found[-1] = begin, end
        else:
            found.append((first, last))
    return found


def _nights(first: date, last: date) -> list[str]:
    return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


def _same(theirs: Any, ours: Any) -> bool:
    """Numbers come as numbers or as text, and nothing as null or as an empty text."""
    if isinstance(ours, int | float | Decimal) and not isinstance(ours, bool):
        try:
            return Decimal(str(theirs)) == Decimal(str(ours))
        except InvalidOperation:
            return False
    return (theirs or "") == (ours or "")


def personal_texts(data: CommandData) -> tuple[str, ...]:
    """What of a command must not come back in an error text."""
    guest, notes = getattr(data, "guest", None), getattr(data, "notes", None)
    said = [*(guest.model_dump().values() if guest else ()), notes, getattr(data, "reason", None)]
    return tuple(text for text in said if text)


def _create(data: BookingCreate, command: Command, connection: Connection) -> dict[str, Any]:
    property_id = str(_external(command, EntityType.PROPERTY, data.property_id))
    return {
        "roomId": _external(command, EntityType.ROOM_TYPE, data.room_type_id),
        "status": _status(data.status),
        "arrival": data.check_in.isoformat(),
        "departure": data.check_out.isoformat(),
        "numAdult": data.adults,
        "numChild": data.children,
        "apiReference": command.marker,
        **_guest_members(data.guest),
        **_price(data.total_price, data.currency, connection.currency_of(property_id)),
        **({"notes": data.notes} if data.notes else {}),
    }


def _update(data: BookingUpdate, command: Command, connection: Connection) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if data.room_type_id is not None:
        changes["roomId"] = _external(command, EntityType.ROOM_TYPE, data.room_type_id)
    if data.status is not None:
        changes["status"] = _status(data.status)
    if data.check_in is not None:
        changes["arrival"] = data.check_in.isoformat()
    if data.check_out is not None:
        changes["departure"] = data.check_out.isoformat()
    if data.adults is not None:
        changes["numAdult"] = data.adults
    if data.children is not None:
        changes["numChild"] = data.children
    if data.notes is not None:
        changes["notes"] = data.notes
    changes |= _guest_members(data.guest)
    if data.total_price is not None:
        changes |= _price(data.total_price, data.currency, _update_currency(data, connection))
    if not changes:
        raise Unsupported(f"beds24: {command.event_type} changes nothing that Beds24 keeps")
    return {"id": _external(command, EntityType.RESERVATION, data.reservation_id), **changes}


def _calendar(data: AvailabilityUpdate, command: Command, connection: Connection) -> dict[str, Any]:
    currency = connection.currency_of(str(_external(command, EntityType.PROPERTY, data.property_id)))
    calendar = []
    for period in data.periods:
        entry: dict[str, Any] = {"from": period.first.isoformat(), "to": period.last.isoformat()}
        if period.available is not None:
            entry["numAvail"] = period.available
        if period.min_stay is not None:
            entry["minStay"] = period.min_stay
        if period.price is not None:
            entry["price1"] = _price(period.price, data.currency, currency)["price"]
        calendar.append(entry)
    return {"roomId": _external(command, EntityType.ROOM_TYPE, data.room_type_id), "calendar": calendar}


def _update_currency(data: BookingUpdate, connection: Connection) -> str | None:
    """An update does not name its property: the currency must be the only one of the connection, or one of them."""
    known = {*connection.currencies.values(), connection.config.get("currency")} - {None}
    if data.currency in known:
        return data.currency
    return str(known.pop()) if len(known) == 1 else None


def _external(command: Command, entity_type: EntityType, internal_id: str) -> int:
    external, place = command.external_id(entity_type, internal_id), f"{entity_type} {internal_id}"
    if external is None:
        raise Unmapped(
            f"beds24: {entity_type} {internal_id} has no Beds24 id; add a mapping", code="unmapped", place=place
        )
    if not re.fullmatch(MANIFEST.external_ids[entity_type], external):
        raise Unmapped(
            f"beds24: {entity_type} {internal_id} is mapped to what is no Beds24 id", code="unmapped", place=place
        )
    return int(external)


def _status(status: ReservationStatus) -> str:
    word = STATUS_WORDS.get(status)
    if word is None:
        raise Unsupported(f"beds24: a booking cannot be given the status {status}")
    return word


def _guest_members(guest: Guest | None) -> dict[str, str]:
    if guest is None:
        return {}
    said = {"firstName": guest.first_name, "lastName": guest.last_name, "email": guest.email, "phone": guest.phone}
    if guest.language and _LANGUAGE.fullmatch(guest.language):
        said["lang"] = guest.language[:2].lower()
    if guest.country:
        code = _COUNTRY.fullmatch(guest.country) is not None
        said |= {"country2": guest.country.upper()} if code else {"country": guest.country}
    return {name: text for name, text in said.items() if text}


def _price(minor: int | None, currency: str | None, vendors: str | None) -> dict[str, int | float]:
    """Beds24 takes a bare number in the property's own currency: another one cannot be said."""
    if minor is None:
        return {}
    if currency and vendors and currency != vendors:
        raise Unsupported(f"beds24: a price in {currency} cannot be said: the property's currency is {vendors}")
    known = currency or vendors
    if known is None:
        raise Unsupported(
            "beds24: a price cannot be said: no currency is known for it; set the connection's `currency`"
        )
    amount = to_decimal(minor, known)
    # A float prints the same up to 15 digits; the vendor's largest price has 10.
    return {"price": int(amount) if amount == amount.to_integral_value() else float(amount)}
