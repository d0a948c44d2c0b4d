"""Each fault on demand: what the caller sees, and whether the work was done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from simulators.beds24 import Beds24, Fault, FaultKind, create_app
from simulators.server import SimServer
from tests.simulators.beds24_kit import STAY, token

POST = "POST /bookings"


async def attempt(api: httpx.AsyncClient, beds24: Beds24, fault: Fault) -> httpx.Response:
    beds24.faults.add(fault)
    return await api.post("/bookings", json=[STAY])


@pytest.mark.parametrize(
    ("kind", "status", "content_type"),
    [
        (FaultKind.RATE_LIMITED, 429, "application/json"),
        (FaultKind.SERVER_ERROR, 500, "application/json"),
        (FaultKind.UNAVAILABLE, 503, "text/plain"),
        (FaultKind.HTML_404, 404, "text/html"),
        (FaultKind.HTML_502, 502, "text/html"),
        (FaultKind.RATE_LIMITED_BARE, 429, "text/plain"),
        (FaultKind.EXPIRED_TOKEN, 401, "application/json"),
    ],
)
async def test_failures_before_the_work_leave_nothing(
    api: httpx.AsyncClient, beds24: Beds24, kind: FaultKind, status: int, content_type: str
) -> None:
    answer = await attempt(api, beds24, Fault(kind, POST))
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (status, content_type)
    assert not beds24.account.bookings
    assert (beds24.account.calls[0].fault, beds24.account.calls[0].effects) == (kind, [])


async def test_a_failure_can_be_told_to_come_after_the_work(api: httpx.AsyncClient, beds24: Beds24) -> None:
    answer = await attempt(api, beds24, Fault(FaultKind.SERVER_ERROR, POST, commit=True))
    assert (answer.status_code, len(beds24.account.bookings)) == (500, 1)


async def test_html_for_json_comes_with_status_200_and_after_the_work(api: httpx.AsyncClient, beds24: Beds24) -> None:
    answer = await attempt(api, beds24, Fault(FaultKind.HTML_200, POST))
    assert answer.status_code == 200
    assert answer.text.startswith("<!DOCTYPE html>")
    assert len(beds24.account.bookings) == 1


async def test_cut_json_cannot_be_parsed_though_the_work_is_done(api: httpx.AsyncClient, beds24: Beds24) -> None:
    answer = await attempt(api, beds24, Fault(FaultKind.CUT_JSON, POST))
    assert answer.status_code == 201
    with pytest.raises(ValueError, match=r"."):
        answer.json()
    assert len(beds24.account.bookings) == 1


async def test_rate_limit_says_when_it_ends(api: httpx.AsyncClient, beds24: Beds24) -> None:
    answer = await attempt(api, beds24, Fault(FaultKind.RATE_LIMITED, seconds=7))
    assert answer.headers["x-five-min-limit-remaining"] == "0"
    assert answer.headers["x-five-min-limit-resets-in"] == "7"


async def test_an_expired_token_stays_expired_until_a_refresh(api: httpx.AsyncClient, beds24: Beds24) -> None:
    assert (await attempt(api, beds24, Fault(FaultKind.EXPIRED_TOKEN))).status_code == 401
    assert (await api.post("/bookings", json=[STAY])).status_code == 401
    answer = await api.post("/bookings", json=[STAY], headers={"token": token(beds24)})
    assert answer.status_code == 201


async def test_a_refused_item_does_not_hold_up_its_neighbours(api: httpx.AsyncClient, beds24: Beds24) -> None:
    beds24.faults.add(Fault(FaultKind.REFUSE_ITEM, POST, field="arrival", message="closed"))
    answer = await api.post("/bookings", json=[STAY, STAY])
    assert answer.status_code == 201
    assert [item["success"] for item in answer.json()] == [False, True]
    assert answer.json()[0]["errors"] == [{"action": "new booking", "field": "arrival", "message": "closed"}]


async def test_slow_answers_are_late_by_as_much_as_asked(
    api: httpx.AsyncClient, beds24: Beds24, waits: list[float]
) -> None:
    answer = await attempt(api, beds24, Fault(FaultKind.SLOW, POST, seconds=12))
    assert (answer.status_code, waits) == (201, [12])


async def test_faults_hit_the_operation_and_the_calls_they_are_meant_for(
    api: httpx.AsyncClient, beds24: Beds24
) -> None:
    beds24.faults.add(Fault(FaultKind.SERVER_ERROR, POST, count=2, skip=1))
    assert (await api.get("/bookings")).status_code == 200
    assert [(await api.post("/bookings", json=[STAY])).status_code for _ in range(4)] == [201, 500, 500, 201]
    beds24.faults.add(Fault(FaultKind.UNAVAILABLE, count=None))
    assert [(await api.get("/bookings")).status_code for _ in range(3)] == [503, 503, 503]
    beds24.faults.clear()
    assert (await api.get("/bookings")).status_code == 200


# --- withheld answers need a real connection ---


@pytest.fixture
async def wire(beds24: Beds24) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        SimServer(create_app(beds24)) as server,
        httpx.AsyncClient(base_url=f"{server.url}/api/v2", headers={"token": token(beds24)}) as client,
    ):
        yield client


@pytest.mark.parametrize(("kind", "saved"), [(FaultKind.TIMEOUT_AFTER_COMMIT, 1), (FaultKind.TIMEOUT_BEFORE_COMMIT, 0)])
async def test_a_withheld_answer_runs_into_the_callers_timeout(
    wire: httpx.AsyncClient, beds24: Beds24, kind: FaultKind, saved: int
) -> None:
    beds24.faults.add(Fault(kind, POST))
    with pytest.raises(httpx.ReadTimeout):
        await wire.post("/bookings", json=[STAY], timeout=0.2)
    assert len(beds24.account.bookings) == saved
    assert beds24.account.calls[0].status is None
    assert (await wire.post("/bookings", json=[STAY])).status_code == 201


@pytest.mark.parametrize(("kind", "saved"), [(FaultKind.TIMEOUT_AFTER_COMMIT, 1), (FaultKind.TIMEOUT_BEFORE_COMMIT, 0)])
async def test_a_cut_connection_tells_the_caller_nothing(
    wire: httpx.AsyncClient, beds24: Beds24, kind: FaultKind, saved: int
) -> None:
    beds24.faults.add(Fault(kind, POST, close=True))
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await wire.post("/bookings", json=[STAY])
    assert len(beds24.account.bookings) == saved
    assert (await wire.post("/bookings", json=[STAY])).status_code == 201


async def test_the_server_stops_though_a_caller_still_waits(beds24: Beds24) -> None:
    arrived, app = asyncio.Event(), create_app(beds24)

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            arrived.set()
        await app(scope, receive, send)

    beds24.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT))
    async with httpx.AsyncClient(timeout=30, headers={"token": token(beds24)}) as client:
        async with SimServer(watched) as server:
            waiting = asyncio.create_task(client.get(f"{server.url}/api/v2/bookings"))
            await arrived.wait()
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await waiting
