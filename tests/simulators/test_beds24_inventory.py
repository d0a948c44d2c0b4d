"""Properties, rooms, availability and the calendar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from simulators.beds24 import Beds24

Save = Callable[..., Awaitable[Any]]
DAYS = {"startDate": "2026-12-01", "endDate": "2026-12-05", "roomId": 713992}


async def calendar(api: httpx.AsyncClient, *include: str) -> list[Any]:
    answer = await api.get("/inventory/rooms/calendar", params=DAYS | dict.fromkeys(include, "true"))
    shown: list[Any] = answer.json()["data"][0]["calendar"]
    return shown


async def put(api: httpx.AsyncClient, **values: Any) -> Any:
    entry = {"from": "2026-12-02", "to": "2026-12-03", **values}
    answer = await api.post("/inventory/rooms/calendar", json=[{"roomId": 713992, "calendar": [entry]}])
    assert answer.status_code == 201
    return answer.json()[0]


async def test_properties_show_rooms_only_on_request(api: httpx.AsyncClient) -> None:
    bare = (await api.get("/properties")).json()["data"][0]
    assert (bare["id"], bare["currency"], "roomTypes" in bare) == (345754, "EUR", False)
    full = (await api.get("/properties", params={"includeAllRooms": "true"})).json()["data"][0]
    assert [(room["id"], room["qty"], len(room["units"])) for room in full["roomTypes"]] == [
        (713992, 4, 4),
        (713993, 2, 2),
    ]
    rooms = await api.get("/properties/rooms", params={"propertyId": 345754})
    assert rooms.json()["data"] == full["roomTypes"]


async def test_webhook_settings_are_written_and_judged(api: httpx.AsyncClient) -> None:
    settings = {"version": "twoNoPersonalData", "url": "https://g.example.com/h", "customHeader": "X-Key: 1"}
    written = await api.post("/properties", json=[{"id": 345754, "webhooks": settings}])
    assert (written.status_code, written.json()[0]["success"]) == (201, True)
    shown = (await api.get("/properties")).json()["data"][0]["webhooks"]
    assert shown == {"additionalData": "none", **settings}
    refused = await api.post("/properties", json=[{"id": 345754, "webhooks": {"version": "two"}}, {"id": 1}])
    assert [item["errors"][0]["field"] for item in refused.json()] == ["webhooks.version", "id"]


async def test_availability_is_per_night_with_the_last_night_included(api: httpx.AsyncClient, save: Save) -> None:
    await save(roomQty=4, arrival="2026-12-02", departure="2026-12-04")
    answer = await api.get("/inventory/rooms/availability", params=DAYS)
    nights = answer.json()["data"][0]["availability"]
    assert [day for day, free in nights.items() if not free] == ["2026-12-02", "2026-12-03"]
    assert list(nights)[-1] == "2026-12-05"


async def test_calendar_shows_nothing_without_include_flags(api: httpx.AsyncClient) -> None:
    assert await calendar(api) == []
    missing = await api.get("/inventory/rooms/calendar", params={"startDate": "2026-12-01"})
    assert missing.status_code == 400


async def test_to_is_inclusive_and_equal_days_are_one_range(api: httpx.AsyncClient) -> None:
    await put(api, price1=120, minStay=3)
    assert await calendar(api, "includePrices", "includeMinStay") == [
        {"from": "2026-12-01", "to": "2026-12-01", "minStay": 1},
        {"from": "2026-12-02", "to": "2026-12-03", "minStay": 3, "price1": 120},
        {"from": "2026-12-04", "to": "2026-12-05", "minStay": 1},
    ]


async def test_null_deletes_a_price(api: httpx.AsyncClient) -> None:
    await put(api, price1=120, price2=90)
    await put(api, price1=None)
    shown = await calendar(api, "includePrices")
    assert shown[1] == {"from": "2026-12-02", "to": "2026-12-03", "price2": 90}


async def test_a_set_number_falls_with_the_next_booking(api: httpx.AsyncClient, save: Save) -> None:
    await save(arrival="2026-12-02", departure="2026-12-03")
    await put(api, numAvail=1)
    await save(arrival="2026-12-02", departure="2026-12-04")
    shown = await calendar(api, "includeNumAvail")
    assert [(r["from"], r["to"], r["numAvail"]) for r in shown] == [
        ("2026-12-01", "2026-12-01", 4),
        ("2026-12-02", "2026-12-03", 0),
        ("2026-12-04", "2026-12-05", 4),
    ]


async def test_cancelling_gives_the_nights_back(api: httpx.AsyncClient, save: Save) -> None:
    booking_id = (await save())["new"]["id"]
    await save(id=booking_id, status="cancelled")
    assert {r["numAvail"] for r in await calendar(api, "includeNumAvail")} == {4}


async def test_opening_a_blackout_resets_the_number_to_the_maximum(api: httpx.AsyncClient) -> None:
    await put(api, numAvail=1, override="blackout")
    closed = await api.get("/inventory/rooms/availability", params=DAYS)
    assert not closed.json()["data"][0]["availability"]["2026-12-02"]
    await put(api, override="none")
    assert {r["numAvail"] for r in await calendar(api, "includeNumAvail")} == {4}


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"roomId": 1, "calendar": []}, "roomId"),
        ({"roomId": 713992}, "calendar"),
        ({"roomId": 713992, "calendar": [{"from": "2026-12-02", "to": "2026-12-01"}]}, "to"),
        ({"roomId": 713992, "calendar": [{"from": "x"}]}, "from"),
        ({"roomId": 713992, "calendar": [{"from": "2026-12-02", "to": "2026-12-02", "minStay": 0}]}, "minStay"),
        ({"roomId": 713992, "calendar": [{"from": "2026-12-02", "to": "2026-12-02", "override": "shut"}]}, "override"),
    ],
)
async def test_bad_calendar_items_are_refused_inside_a_201(
    api: httpx.AsyncClient, beds24: Beds24, item: Any, field: str
) -> None:
    answer = await api.post("/inventory/rooms/calendar", json=[item])
    assert answer.status_code == 201
    assert [error["field"] for error in answer.json()[0]["errors"]] == [field]
    assert beds24.account.effects() == 0
