"""Reading and writing bookings, with every trap that the vendor sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Any

import httpx
import pytest

from simulators.beds24 import Account, Beds24, PropertySeed, RoomSeed
from tests.simulators.beds24_kit import STAY, StoppedClock, token

Save = Callable[..., Awaitable[Any]]
ALL = ["new", "request", "confirmed", "cancelled", "inquiry", "black"]


async def ids(api: httpx.AsyncClient, **params: Any) -> list[int]:
    answer = await api.get("/bookings", params=params)
    assert answer.status_code == 200
    return [booking["id"] for booking in answer.json()["data"]]


# --- reading ---


async def test_without_filters_only_upcoming_bookings_are_listed(api: httpx.AsyncClient, save: Save) -> None:
    past = (await save(arrival="2026-11-01", departure="2026-11-05"))["new"]["id"]
    coming = (await save())["new"]["id"]
    assert await ids(api) == [coming]
    assert await ids(api, propertyId=345754) == [coming]
    assert await ids(api, arrivalFrom="2026-10-01") == [past, coming]
    assert await ids(api, id=past) == [past]


async def test_cancelled_bookings_are_left_out_unless_asked_for(
    api: httpx.AsyncClient, save: Save, clock: StoppedClock
) -> None:
    """Not by id, not by modifiedFrom, not by includeCancelled: only by status."""
    gone = (await save())["new"]["id"]
    await save(id=gone, status="cancelled")
    assert await ids(api, id=gone) == []
    assert await ids(api, modifiedFrom="2026-11-20T00:00:00Z") == []
    assert await ids(api, modifiedFrom="2026-11-20", includeCancelled="true") == []
    assert await ids(api, modifiedFrom="2026-11-20", status=ALL) == [gone]


async def test_status_in_comma_form_or_unknown_is_400(api: httpx.AsyncClient) -> None:
    for status in ("new,cancelled", "pending"):
        assert (await api.get("/bookings", params={"status": status})).status_code == 400


@pytest.mark.parametrize(
    "params",
    [{"id": "a"}, {"arrivalFrom": "1.12.2026"}, {"modifiedFrom": "x"}, {"page": "0"}, {"includeGuests": "yes"}],
)
async def test_malformed_parameters_are_400(api: httpx.AsyncClient, params: dict[str, str]) -> None:
    assert (await api.get("/bookings", params=params)).status_code == 400


async def test_filters_narrow_the_list(api: httpx.AsyncClient, save: Save, clock: StoppedClock) -> None:
    one = (await save(apiReference="key-1", lastName="Almeida", email="a@example.com"))["new"]["id"]
    clock.advance(hours=1)
    two = (await save(roomId=713993, arrival="2026-12-10", departure="2026-12-12", reference="R-9"))["new"]["id"]
    assert await ids(api, apiReference="key-1") == [one]
    assert await ids(api, apiReference=["key-1", "other"]) == [one]
    assert await ids(api, **{"id[]": [one, two]}) == [one, two]
    assert await ids(api, roomId=713993) == [two]
    assert await ids(api, arrival="2026-12-10") == [two]
    assert await ids(api, arrivalTo="2026-12-01") == [one]
    assert await ids(api, departureFrom="2026-12-05") == [two]
    assert await ids(api, modifiedFrom="2026-11-20T12:30:00Z") == [two]
    assert await ids(api, modifiedTo="2026-11-20T12:30:00") == [one]
    assert await ids(api, bookingTimeFrom="2026-11-20T12:30:00Z") == [two]
    for text, found in (("almei", one), ("a@example", one), ("key-1", one), (str(two), two), ("r-9", two)):
        assert await ids(api, searchString=text) == [found]


async def test_relative_filters_tell_who_comes_goes_and_stays(
    api: httpx.AsyncClient, save: Save, beds24: Beds24, clock: StoppedClock
) -> None:
    """In house holds today's departures too."""
    leaving = (await save(arrival="2026-11-18", departure="2026-11-20"))["new"]["id"]
    arriving = (await save(arrival="2026-11-20", departure="2026-11-22"))["new"]["id"]
    inquiry = (await save(arrival="2026-11-20", departure="2026-11-22", status="inquiry"))["new"]["id"]
    assert await ids(api, filter="departures") == [leaving]
    assert await ids(api, filter="arrivals") == [arriving]
    assert await ids(api, filter="current") == [leaving, arriving]
    assert await ids(api, filter="arrivals", status="inquiry") == [inquiry]
    assert await ids(api, filter="new") == [leaving, arriving]
    clock.advance(days=2)
    api.headers["token"] = token(beds24)
    assert await ids(api, filter="new") == []


def test_today_is_the_propertys_own_date() -> None:
    """Half past eight in the evening in London is the next morning in Tokyo."""
    seed = (PropertySeed(1, "Far", (RoomSeed(2, "A", 1),), zone="Asia/Tokyo"),)
    account = Account(seed, clock=lambda: datetime(2026, 11, 20, 20, 30, tzinfo=UTC))
    assert account.today(1) == date(2026, 11, 21)


async def test_a_hundred_bookings_make_a_page(api: httpx.AsyncClient, beds24: Beds24) -> None:
    for _ in range(101):
        beds24.account.book(dict(STAY))
    first = await api.get("/bookings", params={"status": ["confirmed", "new"]})
    assert (first.json()["count"], first.json()["pages"]["nextPageExists"]) == (100, True)
    second = await api.get(first.json()["pages"]["nextPageLink"])
    assert (second.json()["count"], second.json()["pages"]["nextPageExists"]) == (1, False)
    assert second.json()["pages"]["nextPageLink"] is None


# --- writing ---


async def test_create_answers_201_with_the_id_and_fills_the_rest_with_blanks(
    api: httpx.AsyncClient, save: Save
) -> None:
    made = await save(lastName="Berg", mobile=351900, price=240.5)
    assert made["success"]
    assert made["info"] == [{"action": "new booking", "id": made["new"]["id"]}]
    booking = (await api.get("/bookings", params={"id": made["new"]["id"]})).json()["data"][0]
    assert (booking["lastName"], booking["mobile"], booking["price"]) == ("Berg", "351900", 240.5)
    assert (booking["email"], booking["country2"], booking["cancelTime"]) == ("", None, None)
    assert booking["bookingTime"] == booking["modifiedTime"] == "2026-11-20T12:00:00Z"
    assert (booking["propertyId"], booking["unitId"], booking["referer"]) == (345754, 1, "API")


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"roomId": None}, "roomId"),
        ({"roomId": 1}, "roomId"),
        ({"arrival": "2026-12-04"}, "arrival"),
        ({"arrival": "2026-12-05"}, "arrival"),
        ({"arrival": "soon"}, "arrival"),
        ({"status": "pending"}, "status"),
        ({"numAdult": 100}, "numAdult"),
        ({"notes": "x" * 2001}, "notes"),
        ({"price": -1}, "price"),
        ({"price": True}, "price"),
    ],
)
async def test_a_bad_item_is_refused_inside_a_201(save: Save, beds24: Beds24, item: Any, field: str) -> None:
    refused = await save(**item)
    assert not refused["success"]
    assert field in {error["field"] for error in refused["errors"]}
    assert not beds24.account.bookings


@pytest.mark.parametrize("missing", ["roomId", "arrival", "departure"])
async def test_room_arrival_and_departure_are_required(api: httpx.AsyncClient, missing: str) -> None:
    item = {name: value for name, value in STAY.items() if name != missing}
    answer = (await api.post("/bookings", json=[item])).json()[0]
    assert [error["field"] for error in answer["errors"]] == [missing]


async def test_good_and_bad_items_are_answered_in_their_order(api: httpx.AsyncClient, beds24: Beds24) -> None:
    answer = await api.post("/bookings", json=[STAY, STAY | {"roomId": 1}, "text", {"id": 5, "notes": "x"}, STAY])
    assert [item["success"] for item in answer.json()] == [True, False, False, False, True]
    assert beds24.account.effects("POST /bookings") == 2


@pytest.mark.parametrize("body", ['{"roomId": 713992}', "", "[", '"text"'])
async def test_a_body_that_is_no_array_is_400(api: httpx.AsyncClient, body: str) -> None:
    answer = await api.post("/bookings", content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "Request body must be an array")


async def test_update_changes_only_what_it_names_and_sets_the_modified_time(
    api: httpx.AsyncClient, save: Save, clock: StoppedClock
) -> None:
    booking_id = (await save(notes="first", lastName="Berg"))["new"]["id"]
    clock.advance(minutes=1)
    changed = await save(id=booking_id, notes="second")
    assert changed["modified"] == {"notes": "second"}
    booking = (await api.get("/bookings", params={"id": booking_id})).json()["data"][0]
    assert (booking["notes"], booking["lastName"]) == ("second", "Berg"), "notes are replaced as a whole"
    assert booking["modifiedTime"] == "2026-11-20T12:01:00Z"
    clock.advance(minutes=1)
    await save(id=booking_id, notes="second")
    booking = (await api.get("/bookings", params={"id": booking_id})).json()["data"][0]
    assert booking["modifiedTime"] == "2026-11-20T12:01:00Z", "writing what is there already changes nothing"


async def test_an_api_cancellation_leaves_cancel_time_null_a_channels_does_not(save: Save, beds24: Beds24) -> None:
    by_api, by_guest = (await save())["new"]["id"], (await save())["new"]["id"]
    await save(id=by_api, status="cancelled")
    beds24.account.cancel(by_guest)
    assert beds24.account.bookings[by_api]["cancelTime"] is None
    assert beds24.account.bookings[by_guest]["cancelTime"] == "2026-11-20T12:00:00Z"


async def test_info_items_append_change_and_delete(api: httpx.AsyncClient, save: Save) -> None:
    booking_id = (await save(infoItems=[{"code": "A", "text": "one"}]))["new"]["id"]
    await save(id=booking_id, infoItems=[{"code": "B", "text": "two"}])

    async def items() -> list[Any]:
        answer = await api.get("/bookings", params={"id": booking_id, "includeInfoItems": "true"})
        shown: list[Any] = answer.json()["data"][0]["infoItems"]
        return shown

    one, two = await items()
    await save(id=booking_id, infoItems=[{"id": one["id"]}, {"id": two["id"], "text": "changed"}])
    assert [(item["code"], item["text"]) for item in await items()] == [("B", "changed")]


async def test_charges_and_payments_make_the_balance(api: httpx.AsyncClient, save: Save, beds24: Beds24) -> None:
    booking_id = (await save(price=100))["new"]["id"]
    charge = {"type": "charge", "description": "Minibar", "qty": 2, "amount": 7.25, "vatRate": 6}
    await save(id=booking_id, invoiceItems=[charge, {"type": "payment", "amount": 10}])
    answer = await api.get("/bookings", params={"id": booking_id, "includeInvoiceItems": "true"})
    booking = answer.json()["data"][0]
    assert [item["lineTotal"] for item in booking["invoiceItems"]] == [14.5, 10]
    assert booking["price"] == 100, "the booking's price is not recomputed"
    assert str(beds24.account.balance(booking_id)) == "4.5"
    await save(id=booking_id, invoiceItems=[{"id": booking["invoiceItems"][0]["id"]}])
    assert str(beds24.account.balance(booking_id)) == "-10"


async def test_an_unknown_sub_item_fails_its_item_though_the_rest_is_saved(save: Save, beds24: Beds24) -> None:
    booking_id = (await save())["new"]["id"]
    answer = await save(id=booking_id, notes="kept", invoiceItems=[{"id": 1, "amount": 3}])
    assert not answer["success"]
    assert answer["errors"][0]["field"] == "invoiceItems.id"
    assert beds24.account.bookings[booking_id]["notes"] == "kept"


async def test_items_are_listed_only_on_request(api: httpx.AsyncClient, save: Save) -> None:
    await save(infoItems=[{"code": "A", "text": "one"}])
    assert {"infoItems", "invoiceItems", "guests", "bookingGroup"}.isdisjoint(
        (await api.get("/bookings")).json()["data"][0]
    )
    full = await api.get(
        "/bookings", params=dict.fromkeys(("includeGuests", "includeBookingGroup", "includeInfoItems"), "true")
    )
    assert {"infoItems", "guests", "bookingGroup"} <= full.json()["data"][0].keys()


async def test_a_full_room_is_overbooked_unless_availability_is_checked(save: Save, beds24: Beds24) -> None:
    loft = {"roomId": 713993, "roomQty": 2}
    assert (await save(**loft))["success"]
    refused = await save(**loft, actions={"checkAvailability": True})
    assert [error["field"] for error in refused["errors"]] == ["checkAvailability"]
    assert (await save(**loft))["success"]
    assert beds24.account.inventory.num_avail(713993, "2026-12-01") == -2


async def test_group_and_automatic_charge_actions(api: httpx.AsyncClient) -> None:
    make = STAY | {"actions": {"makeGroup": True, "autoInvoiceItemCharge": True}, "price": 50}
    first, second = (item["new"]["id"] for item in (await api.post("/bookings", json=[make, make])).json())
    answer = await api.get(
        "/bookings", params={"masterId": first, "includeBookingGroup": "true", "includeInvoiceItems": "1"}
    )
    assert [booking["bookingGroup"] for booking in answer.json()["data"]] == [
        {"master": first, "ids": [first, second]}
    ] * 2
    assert answer.json()["data"][1]["invoiceItems"][0]["lineTotal"] == 50


async def test_the_idempotency_header_is_ignored_but_recorded(api: httpx.AsyncClient, beds24: Beds24) -> None:
    """Two equal creates make two bookings; only a look at apiReference beforehand helps."""
    for _ in range(2):
        headers = {"X-Idempotency-Key": "k1"}
        await api.post("/bookings", json=[STAY | {"apiReference": "ref-1"}], headers=headers)
    assert beds24.account.created == {"ref-1": 2}
    assert beds24.account.effects("POST /bookings", "k1") == 2
    assert "token" not in str(beds24.account.calls[0]).replace("EXPIRED_TOKEN", "")


async def test_delete_erases(api: httpx.AsyncClient, save: Save, beds24: Beds24) -> None:
    booking_id = (await save())["new"]["id"]
    answer = await api.delete("/bookings", params={"id": [booking_id, 1]})
    assert answer.status_code == 201
    assert sorted(item["success"] for item in answer.json()) == [False, True]
    assert await ids(api, id=booking_id, status=ALL) == []
    assert (await api.delete("/bookings")).status_code == 400


async def test_messages_are_sent_listed_and_marked_read(api: httpx.AsyncClient, save: Save, beds24: Beds24) -> None:
    booking_id = (await save())["new"]["id"]
    beds24.account.add_message(booking_id, "When is breakfast?", "guest")
    note = {"bookingId": booking_id, "message": "vip", "source": "internalNote"}
    sent = await api.post(
        "/bookings/messages", json=[{"bookingId": booking_id, "message": "At eight"}, note, {"bookingId": 1}]
    )
    assert [item["success"] for item in sent.json()] == [True, True, False]
    unread = await api.get("/bookings/messages", params={"bookingId": booking_id, "filter": "unread"})
    assert [message["source"] for message in unread.json()["data"]] == ["guest"]
    await api.post("/bookings/messages", json=[{"id": unread.json()["data"][0]["id"], "read": True}])
    assert (await api.get("/bookings/messages", params={"filter": "unread"})).json()["count"] == 0
    hosts = await api.get("/bookings/messages", params={"source": ["host", "internalNote"], "maxAge": 3})
    assert hosts.json()["count"] == 2
