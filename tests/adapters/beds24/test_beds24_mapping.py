"""The vendor's oddities, one test each."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from adapters.beds24 import mapping
from adapters.beds24.webhook import parse
from adapters.errors import Malformed, Unmapped, Unsupported
from adapters.port import Command, Effects, Hint, WebhookRequest
from schemas.commands import parse_command
from schemas.entities import Guest, Sourced, Version
from schemas.vocabulary import EntityType, ReservationStatus
from store.seal import split
from tests.adapters.beds24.examples import (
    BOOKING,
    GUEST,
    PROPERTY,
    RECEIVED,
    ROOM,
    body,
    booking,
    connection,
    post,
    recorded,
)

SAMPLES = Path(__file__).resolve().parents[3].parent / "shared" / "vendors" / "samples" / "beds24"
HERE = connection()


def interpret(document: Any, **config: Any) -> Effects | Hint:
    (fact,) = parse(post(document), connection(**config))
    return mapping.interpret(recorded(fact), connection(**config))


def sourced(changes: dict[str, Any] | None = None, **members: Any) -> Sourced[Any]:
    effects = interpret(body(changes, **members))
    assert isinstance(effects, Effects)
    return effects.reservations[0]


def test_a_booking_becomes_a_reservation() -> None:
    entity = sourced().entity
    assert entity.model_dump(exclude_none=True) == {
        "external_id": str(BOOKING),
        "external_property_id": str(PROPERTY),
        "external_room_type_id": str(ROOM),
        "external_unit_id": "2",
        "status": ReservationStatus.CONFIRMED,
        "check_in": date(2026, 6, 10),
        "check_out": date(2026, 6, 13),
        "adults": 2,
        "children": 1,
        "total_price": 31350,
        "currency": "EUR",
        "source": "airbnb",
        "source_reference": "HMABC",
        "booked_at": datetime(2026, 4, 30, 8, tzinfo=UTC),
        "guest": {
            "first_name": GUEST["firstName"],
            "last_name": GUEST["lastName"],
            "email": GUEST["email"],
            "phone": GUEST["phone"],
            "language": "cs",
            "country": "CZ",
        },
    }


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("confirmed", "confirmed"),
        ("new", "pending"),
        ("request", "pending"),
        ("inquiry", "pending"),
        ("cancelled", "cancelled"),
        ("black", "blocked"),
        ("somethingNew", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_status_words(word: str | None, status: str) -> None:
    assert sourced({"status": word}).entity.status == status


def test_version_is_modified_time_then_time_stamp_then_status() -> None:
    assert sourced().version == Version(
        datetime(2026, 5, 1, 11, 58, 30, tzinfo=UTC), datetime(2026, 5, 1, 11, 58, 31, tzinfo=UTC), 50
    )


def test_without_a_time_stamp_the_time_of_receipt_counts() -> None:
    assert sourced(timeStamp=None).version.observed_at == RECEIVED


def test_of_two_states_in_one_second_the_cancellation_wins() -> None:
    words = ["confirmed", "new", "request", "inquiry", "black", "unheard-of"]
    cancelled = sourced({"status": "cancelled"}).version
    assert all(sourced({"status": word}).version < cancelled for word in words)


def test_a_booking_without_modified_time_must_be_fetched() -> None:
    assert interpret(body({"modifiedTime": ""})) == Hint(EntityType.RESERVATION, str(BOOKING))
    assert interpret(body({"modifiedTime": "0000-00-00 00:00:00"})) == Hint(EntityType.RESERVATION, str(BOOKING))


def test_fetch_always_makes_every_booking_webhook_a_hint() -> None:
    assert interpret(body(), fetch="always") == Hint(EntityType.RESERVATION, str(BOOKING))
    assert isinstance(interpret(body(), fetch="hint"), Effects)


def test_hints_and_inventory_webhooks_are_fetched() -> None:
    assert interpret({"booking": {"id": 3}}) == Hint(EntityType.RESERVATION, "3")
    room = {"roomId": "12", "propId": "1", "action": "SYNC_ROOM"}
    assert interpret(room) == Hint(EntityType.AVAILABILITY, "12")


def test_empty_strings_mean_unknown() -> None:
    nobody = dict.fromkeys((*GUEST, "country", "lang", "reference", "channel", "bookingTime", "cancelTime"), "")
    entity = sourced({**nobody, "country2": None, "unitId": 0, "numChild": "", "price": ""}).entity
    assert entity.guest is None
    assert (entity.source, entity.source_reference, entity.booked_at, entity.cancelled_at) == (None,) * 4
    assert (entity.external_unit_id, entity.children, entity.total_price) == (None, 0, None)


def test_without_personal_data_there_is_no_guest_but_for_language_and_country_alone() -> None:
    """`twoNoPersonalData`: an empty guest must not overwrite one that is known."""
    assert sourced(dict.fromkeys(GUEST, "")).entity.guest is None


def test_a_mobile_number_serves_where_there_is_no_phone_also_as_a_json_number() -> None:
    guest = sourced({"phone": "", "mobile": 420777000222}).entity.guest
    assert isinstance(guest, Guest)
    assert guest.phone == "420777000222"


def test_ids_and_counts_may_come_as_text() -> None:
    texts = {"id": str(BOOKING), "propertyId": str(PROPERTY), "roomId": str(ROOM), "numAdult": "2", "price": "313.50"}
    assert sourced(texts).entity == sourced().entity


def test_an_object_where_text_belongs_is_unknown_not_an_error() -> None:
    """PHP writes an empty object as []."""
    assert sourced({"lang": [], "reference": {}}).entity.source_reference is None


@pytest.mark.parametrize(
    ("currency", "price", "minor"),
    [("EUR", 713, 71300), ("EUR", 10.1, 1010), ("EUR", "0.005", 0), ("JPY", 9000, 9000), ("KWD", 1.234, 1234)],
)
def test_prices_become_minor_units_of_the_propertys_currency(currency: str, price: object, minor: int) -> None:
    here = replace(HERE, currencies={str(PROPERTY): currency})
    result = mapping.reservation(body({"price": price}), here, RECEIVED)
    assert result is not None
    assert (result.entity.total_price, result.entity.currency) == (minor, currency)


def test_a_price_without_a_known_currency_is_not_told() -> None:
    result = mapping.reservation(body(), replace(HERE, currencies={}), RECEIVED)
    assert result is not None
    assert (result.entity.total_price, result.entity.currency) == (None, None)


def test_our_marker_is_recognised_and_is_no_reference() -> None:
    entity = sourced({"apiReference": "staybus:abc", "reference": ""}).entity
    assert (entity.marker, entity.source_reference) == ("staybus:abc", None)
    other = sourced({"apiReference": "BK-9"}).entity
    assert (other.marker, other.source_reference) == (None, "BK-9")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"departure": "2026-06-09"}, "booking.departure: must be after arrival"),
        ({"departure": "2026-06-10"}, "booking.departure: must be after arrival"),
        ({"arrival": ""}, "booking.arrival: must be a date, YYYY-MM-DD"),
        ({"arrival": "2026-02-30"}, "booking.arrival: must be a date, YYYY-MM-DD"),
        ({"arrival": 20260610}, "booking.arrival: must be a date, YYYY-MM-DD"),
        ({"arrival": "1780000000"}, "booking.arrival: must be a date, YYYY-MM-DD"),
        ({"modifiedTime": "yesterday"}, "booking.modifiedTime: must be a time in ISO 8601"),
        ({"roomId": None}, "booking.roomId: must be a positive whole number"),
    ],
)
def test_what_cannot_be_names_its_field(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Malformed) as caught:
        sourced(changes)
    assert str(caught.value) == text


def test_a_missing_arrival_is_named() -> None:
    document = body()
    del document["booking"]["arrival"]
    with pytest.raises(Malformed, match=r"^booking\.arrival: missing$"):
        interpret(document)


@pytest.mark.parametrize("price", ["three hundred", "Infinity", "NaN", 1e30, [], {}])
def test_a_price_in_words_is_malformed_and_not_quoted(price: object) -> None:
    with pytest.raises(Malformed) as caught:
        sourced({"price": price})
    assert caught.value.field == "booking.price"
    assert "three" not in str(caught.value)


@pytest.mark.parametrize("count", ["two", -1, 10**9, 1.5])
def test_a_count_that_is_none_is_malformed(count: object) -> None:
    with pytest.raises(Malformed, match=r"^booking\.numAdult: "):
        sourced({"numAdult": count})


def test_the_document_is_kept_whole_and_its_personal_members_are_named_by_the_manifest() -> None:
    result = sourced()
    raw, private = split(result.document, mapping.MANIFEST.personal)
    assert private == {
        **{f"booking.{name}": value for name, value in GUEST.items()},
        "infoItems": body()["infoItems"],
        "messages": body()["messages"],
    }
    assert raw["booking"]["memberOfTomorrow"] == {"kept": True}
    assert raw["invoiceItems"] == body()["invoiceItems"]
    readable = json.dumps(raw, ensure_ascii=False)
    assert not [value for value in GUEST.values() if value in readable]


def test_what_is_fetched_looks_as_if_a_webhook_had_brought_it() -> None:
    document = body()
    fetched = {**document["booking"], "infoItems": document["infoItems"], "invoiceItems": document["invoiceItems"]}
    result = mapping.reservation(mapping.as_webhook(fetched), HERE, RECEIVED)
    assert result is not None
    assert result.entity == sourced().entity
    assert result.document["booking"] == sourced().document["booking"]


def test_card_data_in_a_fetched_document_is_left_out() -> None:
    fetched = booking(cvc="123", stripeToken="tok", infoItems=[{"code": "CVV", "text": "123", "cardNumber": "4111"}])
    text = json.dumps(mapping.as_webhook(fetched))
    assert '"123"' not in text
    assert "4111" not in text
    assert "tok" not in text.replace("stripeToken", "").replace("pcibookingToken", "")


# ------------------------------------------------------------------------------------------------ calendar


def nights(entries: list[dict[str, Any]], here: Any = HERE) -> list[Any]:
    document = {"roomId": ROOM, "propertyId": PROPERTY, "calendar": entries}
    _, found = mapping.availability(document, here, RECEIVED, date(2026, 5, 1), date(2026, 5, 31))
    return [night.entity for night in found]


def test_calendar_ranges_include_their_last_night() -> None:
    found = nights([{"from": "2026-05-02", "to": "2026-05-04", "numAvail": 3, "minStay": 2, "price1": 99.5}])
    assert [night.day.day for night in found] == [2, 3, 4]
    assert (found[0].available, found[0].min_stay, found[0].price, found[0].currency) == (3, 2, 9950, "EUR")


def test_overbooked_nights_have_none_left() -> None:
    assert nights([{"from": "2026-05-02", "to": "2026-05-02", "numAvail": -2}])[0].available == 0


def test_a_range_beyond_what_was_asked_is_cut() -> None:
    found = nights([{"from": "2020-01-01", "to": "2099-12-31", "numAvail": 1}])
    assert (found[0].day, found[-1].day, len(found)) == (date(2026, 5, 1), date(2026, 5, 31), 31)


@pytest.mark.parametrize(
    ("override", "closed"), [("blackout", True), ("none", False), ("noCheckIn", False), (None, None), ("", None)]
)
def test_blackout_is_closed(override: str | None, closed: bool | None) -> None:
    entry = {"from": "2026-05-02", "to": "2026-05-02", "numAvail": 1, "override": override}
    assert nights([entry])[0].closed is closed


# ------------------------------------------------------------------------------------------------ ours → theirs


def said(event_type: str, data: dict[str, Any], here: Any = HERE) -> dict[str, Any]:
    command = Command(
        id=UUID(int=1),
        event_type=event_type,
        idempotency_key="key",
        marker="staybus:mark",
        data=parse_command(event_type, data),
        external={
            (EntityType.PROPERTY, "p1"): str(PROPERTY),
            (EntityType.ROOM_TYPE, "rt1"): str(ROOM),
            (EntityType.RESERVATION, "r1"): str(BOOKING),
            (EntityType.RESERVATION, "odd"): "not-a-number",
        },
    )
    (item,) = mapping.body_of(command, here)
    return item


STAY = {
    "reservationId": "r1",
    "propertyId": "p1",
    "roomTypeId": "rt1",
    "checkIn": "2026-06-10",
    "checkOut": "2026-06-13",
}


def test_create_says_the_whole_booking_and_leaves_the_marker() -> None:
    guest = {
        "firstName": "A",
        "lastName": "B",
        "email": "a@b.invalid",
        "phone": "1",
        "language": "en-GB",
        "country": "de",
    }
    data = STAY | {"adults": 2, "children": 1, "guest": guest, "totalPrice": 31350, "currency": "EUR", "notes": "late"}
    assert said("pms.booking.create", data) == {
        "roomId": ROOM,
        "status": "confirmed",
        "arrival": "2026-06-10",
        "departure": "2026-06-13",
        "numAdult": 2,
        "numChild": 1,
        "apiReference": "staybus:mark",
        "firstName": "A",
        "lastName": "B",
        "email": "a@b.invalid",
        "phone": "1",
        "lang": "en",
        "country2": "DE",
        "price": 313.5,
        "notes": "late",
    }


def test_update_says_only_what_changes() -> None:
    data = {"reservationId": "r1", "checkOut": "2026-06-14"}
    assert said("pms.booking.update", data) == {"id": BOOKING, "departure": "2026-06-14"}


def test_cancel_is_a_status() -> None:
    """DELETE would erase the booking."""
    assert said("pms.booking.cancel", {"reservationId": "r1", "reason": "x"}) == {"id": BOOKING, "status": "cancelled"}


def test_availability_keeps_inclusive_days() -> None:
    period = {"first": "2026-06-01", "last": "2026-06-30", "available": 0, "price": 9900, "minStay": 2}
    assert said("pms.availability.update", {"propertyId": "p1", "roomTypeId": "rt1", "periods": [period]}) == {
        "roomId": ROOM,
        "calendar": [{"from": "2026-06-01", "to": "2026-06-30", "numAvail": 0, "minStay": 2, "price1": 99}],
    }


def test_a_block_is_black_and_pending_is_a_request() -> None:
    assert said("pms.booking.create", STAY | {"status": "blocked"})["status"] == "black"
    assert said("pms.booking.create", STAY | {"status": "pending"})["status"] == "request"
    with pytest.raises(Unsupported):
        said("pms.booking.create", STAY | {"status": "unknown"})


def test_a_price_in_another_currency_cannot_be_said() -> None:
    with pytest.raises(Unsupported, match="USD"):
        said("pms.booking.create", STAY | {"totalPrice": 100, "currency": "USD"})
    with pytest.raises(Unsupported, match="USD"):
        said("pms.booking.update", {"reservationId": "r1", "totalPrice": 100, "currency": "USD"})


def test_a_price_needs_a_currency() -> None:
    nowhere = replace(HERE, currencies={})
    with pytest.raises(Unsupported, match="currency"):
        said("pms.booking.create", STAY | {"totalPrice": 100}, nowhere)
    with pytest.raises(Unsupported, match="currency"):
        said("pms.booking.update", {"reservationId": "r1", "totalPrice": 100}, nowhere)


def test_an_update_takes_the_only_currency_there_is() -> None:
    assert said("pms.booking.update", {"reservationId": "r1", "totalPrice": 12345})["price"] == 123.45


def test_ids_that_are_not_mapped_or_not_beds24s_are_unmapped() -> None:
    with pytest.raises(Unmapped, match="room_type nope"):
        said("pms.booking.create", STAY | {"roomTypeId": "nope"})
    with pytest.raises(Unmapped, match="odd"):
        said("pms.booking.cancel", {"reservationId": "odd"})


def test_an_update_of_nothing_is_refused() -> None:
    with pytest.raises(Unsupported, match="changes nothing"):
        said("pms.booking.update", {"reservationId": "r1", "guest": {}})


# ------------------------------------------------------------------------------------------------ captured payloads


def sample(name: str) -> Any:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"the captured payloads are not part of this repository: no {path}")
    return json.loads(path.read_bytes())


def test_the_captured_webhook_is_understood() -> None:
    raw = json.dumps(sample("webhook.booking.v2.real.json")).encode()
    (fact,) = parse(WebhookRequest("POST", {}, {}, raw), HERE)
    effects = mapping.interpret(recorded(fact), HERE)
    assert isinstance(effects, Effects)
    (found,) = effects.reservations
    assert found.entity.status is ReservationStatus.CONFIRMED
    assert (found.entity.check_out - found.entity.check_in).days == 1
    assert found.entity.guest is None


def test_the_captured_answer_is_understood() -> None:
    for fetched in sample("bookings.get.one-confirmed.response.json")["data"]:
        result = mapping.reservation(mapping.as_webhook(fetched), connection(currency="EUR"), RECEIVED)
        assert result is not None
        assert result.entity.guest is not None
        assert result.entity.total_price == 0


def test_the_captured_requests_are_like_ours() -> None:
    """What we send has no member that the vendor's own examples and specification do not know."""
    theirs = sample("bookings.post.new.json")[0].keys() | {
        "apiReference",
        "phone",
        "lang",
        "country2",
        "price",
        "notes",
    }
    guest = {"firstName": "A", "lastName": "B", "email": "a@b.invalid", "phone": "1", "language": "en", "country": "DE"}
    assert said("pms.booking.create", STAY | {"guest": guest, "totalPrice": 1, "notes": "n"}).keys() <= theirs
    assert (
        said("pms.booking.update", {"reservationId": "r1", "checkOut": "2026-06-14"}).keys()
        == sample("bookings.post.modify-departure.json")[0].keys()
    )
    period = {"first": "2026-06-01", "last": "2026-06-30", "available": 1, "price": 9900, "minStay": 2}
    ours = said("pms.availability.update", {"propertyId": "p1", "roomTypeId": "rt1", "periods": [period]})
    example = sample("calendar.post.change-values.json")[0]
    assert ours.keys() == example.keys()
    assert ours["calendar"][0].keys() == example["calendar"][0].keys()
