"""The levers under `/_sim`, the page for people, and the command line."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
import orjson
import pytest

from simulators.beds24 import Beds24, create_app
from simulators.server import SimServer
from tests.simulators.beds24_kit import STAY, Receiver, token


async def lever(control: httpx.AsyncClient, method: str, path: str, status: int = 200, **body: Any) -> Any:
    answer = await control.request(method, f"/_sim/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_guest_books_changes_writes_and_cancels(
    control: httpx.AsyncClient, beds24: Beds24, receiver: Receiver
) -> None:
    await lever(control, "POST", "webhook-target", url="https://g.example.com/h", secret="s", customHeader="X-Key: 1")
    booking = await lever(control, "POST", "bookings", **STAY, lastName="Holm")
    assert (booking["apiSource"], booking["lastName"]) == ("Booking.com", "Holm")
    changed = await lever(control, "PATCH", f"bookings/{booking['id']}", numAdult=3)
    assert changed["numAdult"] == 3
    await lever(control, "POST", f"bookings/{booking['id']}/messages", message="Hello")
    gone = await lever(control, "POST", f"bookings/{booking['id']}/cancel")
    assert (gone["status"], gone["subStatus"]) == ("cancelled", "cancelledByGuest")
    await beds24.sender.drain()
    assert len(receiver.requests) == 4
    assert "x-beds24-signature" in receiver.requests[0].headers
    assert beds24.account.created == {}, "channel bookings are not API creations"


async def test_an_empty_order_invents_a_booking(control: httpx.AsyncClient) -> None:
    booking = await lever(control, "POST", "bookings")
    assert booking["arrival"] < booking["departure"]
    assert booking["email"].endswith("@example.com")


async def test_faults_are_programmed_and_cleared(control: httpx.AsyncClient, beds24: Beds24) -> None:
    await lever(control, "POST", "faults", kind="server_error", operation="GET /bookings", count=2)
    answer = await control.get("/api/v2/bookings", headers={"token": token(beds24)})
    assert answer.status_code == 500
    assert [fault["count"] for fault in (await lever(control, "GET", "state"))["faults"]] == [1]
    await lever(control, "DELETE", "faults")
    assert beds24.faults.pending == []
    await lever(control, "POST", "faults", status=400, kind="earthquake")
    await lever(control, "POST", "faults", status=400, operation="GET /bookings")


async def test_calls_are_told_with_their_effects(control: httpx.AsyncClient, beds24: Beds24) -> None:
    headers = {"token": token(beds24), "X-Idempotency-Key": "k"}
    await control.post("/api/v2/bookings", json=[STAY], headers=headers)
    await control.get("/api/v2/bookings", headers=headers)
    told = await lever(control, "GET", "calls?operation=POST%20/bookings")
    assert (told["count"], told["effects"], told["calls"][0]["idempotency_key"]) == (1, 1, "k")
    assert told["calls"][0]["body"] == [STAY]
    assert headers["token"] not in orjson.dumps(told).decode()


async def test_an_invite_code_from_the_lever_works(control: httpx.AsyncClient) -> None:
    code = (await lever(control, "POST", "invite-code", scopes=["read:bookings"]))["code"]
    answer = await control.get("/api/v2/authentication/setup", headers={"code": code})
    assert answer.status_code == 200


async def test_tokens_expire_and_credits_end_on_demand(control: httpx.AsyncClient, beds24: Beds24) -> None:
    headers = {"token": token(beds24)}
    await lever(control, "POST", "exhaust-credits")
    assert (await control.get("/api/v2/bookings", headers=headers)).status_code == 429
    await lever(control, "POST", "expire-tokens")
    assert (await control.get("/api/v2/bookings", headers=headers)).status_code == 401


async def test_webhooks_are_held_released_and_replayed(control: httpx.AsyncClient, receiver: Receiver) -> None:
    await lever(control, "POST", "webhook-target", url="https://g.example.com/h", version="twoNoPersonalData")
    await lever(control, "POST", "hold-webhooks")
    for _ in range(3):
        await lever(control, "POST", "bookings")
    assert receiver.requests == []
    assert await lever(control, "POST", "release-webhooks", shuffle=True) == {"sent": 3}
    assert await lever(control, "POST", "replay-webhooks", duplicates=1.0, shuffle=True, seed=7) == {"sent": 6}
    assert len(receiver.requests) == 9


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "bookings", {"roomId": 1}),
        ("PATCH", "bookings/1", {"notes": "x"}),
        ("POST", "bookings/1/cancel", {}),
        ("POST", "bookings/1/messages", {"message": "x"}),
        ("POST", "webhook-target", {"version": "three"}),
        ("POST", "webhook-target", {"propertyId": 1}),
    ],
)
async def test_levers_refuse_what_cannot_be(control: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    assert "error" in await lever(control, method, path, status=400, **body)


async def test_the_page_shows_bookings_and_escapes_what_guests_write(control: httpx.AsyncClient) -> None:
    await lever(control, "POST", "bookings", lastName="<script>")
    page = (await control.get("/")).text
    assert "Harbour Lofts" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


async def test_webhooks_cross_a_real_wire(beds24: Beds24) -> None:
    """Simulator to simulator: one sends, the other (any HTTP server) answers."""
    other = Beds24()
    await beds24.sender.close()
    async with (
        SimServer(create_app(other)) as gateway,
        SimServer(create_app(beds24)) as vendor,
        httpx.AsyncClient() as you,
    ):
        await you.post(f"{vendor.url}/_sim/webhook-target", json={"url": f"{gateway.url}/_sim/expire-tokens"})
        await you.post(f"{vendor.url}/_sim/bookings")
        await beds24.sender.drain()
    assert [attempt.status for attempt in beds24.sender.attempts] == [200]


async def test_the_command_prints_where_it_is_and_what_it_has() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators.beds24", "--room", "5:Tent:3", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = orjson.loads(await asyncio.wait_for(process.stdout.readline(), 30))
    assert told["properties"][0]["rooms"] == {"5": "Tent x3"}
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{told['api']}/authentication/setup", headers={"code": told["inviteCode"]})
    assert answer.status_code == 200
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 30) == 0
    await process.communicate()
