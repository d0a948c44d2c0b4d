"""A Beds24 with a stopped clock, and a client that holds every exchange to the vendor's specification."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from simulators.beds24 import Account, Beds24, create_app
from tests.simulators.beds24_kit import STAY, Receiver, StoppedClock, held_to_spec, token


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the simulator meant to wait."""
    return []


@pytest.fixture
def sleep(waits: list[float]) -> Callable[[float], Awaitable[None]]:
    async def note(seconds: float) -> None:
        waits.append(seconds)

    return note


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def beds24(
    clock: StoppedClock, sleep: Callable[[float], Awaitable[None]], receiver: Receiver
) -> AsyncIterator[Beds24]:
    sim = Beds24(Account(clock=clock), sleep=sleep)
    sim.sender.sleep = sleep
    sim.sender.client = httpx.AsyncClient(transport=httpx.MockTransport(receiver))
    yield sim
    await sim.sender.close()


@pytest.fixture
async def api(beds24: Beds24) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token; every JSON answer is checked against the specification where it is at hand."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(beds24)),
        base_url="http://beds24.test/api/v2",
        headers={"token": token(beds24)},
        event_hooks={"response": [held_to_spec]},
    ) as client:
        yield client


@pytest.fixture
async def control(beds24: Beds24) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(beds24))
    async with httpx.AsyncClient(transport=transport, base_url="http://beds24.test") as client:
        yield client


@pytest.fixture
def save(api: httpx.AsyncClient) -> Callable[..., Awaitable[Any]]:
    """POST one booking item and give back its part of the answer."""

    async def post(**item: object) -> Any:
        response = await api.post("/bookings", json=[item if "id" in item else STAY | item])
        assert response.status_code == 201
        return response.json()[0]

    return post
