"""What Beds24 sends, when, how often, and how it is told to be unruly."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from simulators.beds24 import Beds24
from simulators.beds24.state import Author
from simulators.beds24.webhooks import Chaos, custom_headers
from tests.simulators.beds24_kit import STAY, Receiver, StoppedClock

Save = Callable[..., Awaitable[Any]]


def connect(beds24: Beds24, **settings: str) -> None:
    webhooks = {"url": "https://gateway.example.com/hooks?c=1", "version": "twoWithPersonalData"} | settings
    assert not beds24.account.write_property({"id": 345754, "webhooks": webhooks}).errors


def book(beds24: Beds24, **values: Any) -> int:
    booking_id = beds24.account.book(STAY | {"lastName": "Berg", "comments": "Late arrival"} | values).id
    beds24.fire_events()
    assert booking_id is not None
    return booking_id


async def test_a_channel_booking_fires_with_the_custom_header(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24, customHeader="X-Key: s3cret\nX-Other: 2")
    booking_id = book(beds24)
    await beds24.sender.drain()
    request, body = receiver.requests[0], receiver.bodies[0]
    assert (request.method, request.headers["x-key"], request.headers["x-other"]) == ("POST", "s3cret", "2")
    assert "x-beds24-signature" not in request.headers, "the vendor does not sign"
    assert (body["booking"]["id"], body["booking"]["lastName"], body["retries"]) == (booking_id, "Berg", 0)
    assert body["timeStamp"] == "2026-11-20T12:00:00Z"


async def test_without_personal_data_guest_members_are_empty(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24, version="twoNoPersonalData")
    book(beds24)
    await beds24.sender.drain()
    booking = receiver.bodies[0]["booking"]
    assert {booking[name] for name in ("lastName", "firstName", "email", "comments", "message")} == {""}
    assert booking["arrival"] == STAY["arrival"]


async def test_version_one_is_a_get_with_two_parameters(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24, version="one", customHeader="X-Key: 1")
    booking_id = book(beds24)
    await beds24.sender.drain()
    request = receiver.requests[0]
    assert (request.method, request.content, request.headers["x-key"]) == ("GET", b"", "1")
    assert dict(request.url.params) == {"c": "1", "bookid": str(booking_id), "status": "confirmed"}


async def test_the_body_can_come_inside_an_array(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24)
    beds24.sender.target.wrap_in_array = True
    book(beds24)
    await beds24.sender.drain()
    assert isinstance(receiver.bodies[0], list)


async def test_a_secret_adds_an_hmac_over_the_bytes_sent(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24)
    beds24.sender.target.secret = "s3cret"
    book(beds24)
    await beds24.sender.drain()
    request = receiver.requests[0]
    digest = hmac.new(b"s3cret", request.content, hashlib.sha256).hexdigest()
    assert request.headers["X-Beds24-Signature"] == f"sha256={digest}"


async def test_api_writes_fire_only_if_allowed_and_only_for_availability(
    beds24: Beds24, save: Save, receiver: Receiver
) -> None:
    connect(beds24)
    allow = {"allowWebhooks": True}
    booking_id = (await save())["new"]["id"]
    await save(id=booking_id, departure="2026-12-05")
    await save(id=booking_id, lastName="Holm", actions=allow)
    await beds24.sender.drain()
    assert receiver.requests == []
    await save(id=booking_id, departure="2026-12-06", actions=allow)
    await save(actions=allow)
    await beds24.sender.drain()
    assert len(receiver.requests) == 2


async def test_a_refused_webhook_comes_again_with_its_count(
    beds24: Beds24, receiver: Receiver, waits: list[float]
) -> None:
    connect(beds24)
    beds24.sender.delays = (1, 5, 25)
    receiver.answers = [500, httpx.ReadTimeout("late"), 200]
    book(beds24)
    await beds24.sender.drain()
    assert [body["retries"] for body in receiver.bodies] == [0, 1, 2]
    assert waits == [1, 5]
    assert [attempt.status for attempt in beds24.sender.attempts] == [500, None, 200]


async def test_a_webhook_is_given_up_when_its_delays_are_used_up(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24)
    beds24.sender.delays = (1, 5)
    receiver.answers = [503] * 9
    book(beds24)
    await beds24.sender.drain()
    assert len(receiver.requests) == 3


async def test_the_inventory_webhook_names_the_room_in_text(beds24: Beds24, receiver: Receiver) -> None:
    beds24.sender.target.inventory_url = "https://gateway.example.com/inventory"
    booking_id = book(beds24)
    beds24.account.write_booking({"id": booking_id, "notes": "x"}, Author(api=False))
    beds24.fire_events()
    await beds24.sender.drain()
    assert receiver.bodies == [
        {"roomId": "713992", "propId": "345754", "ownerId": str(beds24.account.owner_id), "action": "SYNC_ROOM"}
    ]


async def test_a_guest_message_fires(beds24: Beds24, receiver: Receiver) -> None:
    connect(beds24)
    booking_id = book(beds24)
    beds24.account.add_message(booking_id, "Hello", "guest")
    beds24.fire_events()
    await beds24.sender.drain()
    assert sorted(len(body["messages"]) for body in receiver.bodies) == [0, 1]


async def test_duplicates_and_late_ones_come_as_often_as_asked(
    beds24: Beds24, receiver: Receiver, waits: list[float]
) -> None:
    connect(beds24)
    beds24.sender.chaos = Chaos(duplicates=1.0, late=1.0, late_by=3)
    book(beds24)
    await beds24.sender.drain()
    assert (len(receiver.requests), waits) == (2, [3, 3])


async def test_held_webhooks_are_released_in_another_order(
    beds24: Beds24, receiver: Receiver, clock: StoppedClock
) -> None:
    connect(beds24)
    beds24.sender.hold()
    made = []
    for _ in range(8):
        clock.advance(seconds=1)
        made.append(book(beds24))
    await beds24.sender.drain()
    assert receiver.requests == []
    assert await beds24.sender.release(shuffle=True) == 8
    came = [body["booking"]["id"] for body in receiver.bodies]
    assert came != made
    assert sorted(came) == made


async def test_replay_sends_the_past_as_it_was(beds24: Beds24, receiver: Receiver, clock: StoppedClock) -> None:
    connect(beds24)
    booking_id = book(beds24)
    clock.advance(minutes=1)
    beds24.account.cancel(booking_id)
    beds24.fire_events()
    await beds24.sender.drain()
    assert await beds24.sender.replay(duplicates=1.0) == 4
    assert [body["booking"]["status"] for body in receiver.bodies[2:]] == ["confirmed"] * 2 + ["cancelled"] * 2
    assert await beds24.sender.replay(last=1) == 1


async def test_nothing_is_sent_while_no_url_is_set(beds24: Beds24, receiver: Receiver) -> None:
    book(beds24)
    await beds24.sender.drain()
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("setting", "headers"),
    [("", {}), ("X-Key: a:b", {"X-Key": "a:b"}), ("A: 1\r\nB: 2", {"A": "1", "B": "2"}), ("nonsense", {})],
)
def test_the_custom_header_setting_is_read_line_by_line(setting: str, headers: dict[str, str]) -> None:
    assert custom_headers(setting) == headers
