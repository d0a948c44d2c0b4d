"""What tests of and against the Beds24 simulator share: a stopped clock, a webhook receiver, tokens, a spec check."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson

from simulators.beds24 import Beds24
from tests.simulators import beds24_spec

STAY = {"roomId": 713992, "arrival": "2026-12-01", "departure": "2026-12-04"}


START = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class StoppedClock:
    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **amount: float) -> None:
        self.at += timedelta(**amount)


class Receiver:
    """The gateway's side of webhooks: keeps what came, answers 200 or what `answers` says next."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.answers: list[int | Exception] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    @property
    def bodies(self) -> list[Any]:
        return [orjson.loads(request.content) for request in self.requests]


async def held_to_spec(response: httpx.Response) -> None:
    """Only answers: what tests send is wrong on purpose at times."""
    path = response.request.url.path
    if not beds24_spec.SPEC.exists() or not path.startswith("/api/v2"):
        return
    if not response.headers.get("content-type", "").startswith("application/json"):
        return
    await response.aread()
    try:
        body = response.json()
    except ValueError:
        return  # cut short by a fault
    beds24_spec.validate_response(response.request.method, path, response.status_code, body)


def token(sim: Beds24, *scopes: str) -> str:
    """A token as a connected gateway has it, with all scopes unless some are named."""
    code = sim.account.access.invite(scopes) if scopes else sim.account.access.invite()
    granted = sim.account.access.set_up(code, "tests")
    assert granted is not None
    return granted[1].text
