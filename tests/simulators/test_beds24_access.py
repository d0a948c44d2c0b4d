"""Tokens, scopes and credits as documented and measured."""

from __future__ import annotations

import httpx
import pytest

from simulators.beds24 import Beds24
from tests.simulators.beds24_kit import STAY, StoppedClock, token


async def test_an_invite_code_becomes_a_refresh_token_once(api: httpx.AsyncClient, beds24: Beds24) -> None:
    code = beds24.account.access.invite(["read:bookings"])
    first = await api.get("/authentication/setup", headers={"code": code, "deviceName": "gateway"})
    assert first.json()["expiresIn"] == 86_400
    assert first.json().keys() == {"token", "expiresIn", "refreshToken"}
    again = await api.get("/authentication/setup", headers={"code": code})
    assert (again.status_code, again.json()["success"]) == (400, False)


async def test_an_invite_code_dies_after_a_day(api: httpx.AsyncClient, beds24: Beds24, clock: StoppedClock) -> None:
    code = beds24.account.access.invite()
    clock.advance(hours=24)
    assert (await api.get("/authentication/setup", headers={"code": code})).status_code == 400


async def test_the_refresh_token_does_not_rotate(api: httpx.AsyncClient, beds24: Beds24, clock: StoppedClock) -> None:
    """It lives by use: 29 days idle are fine, 31 are not."""
    setup = await api.get("/authentication/setup", headers={"code": beds24.account.access.invite()})
    headers = {"refreshToken": setup.json()["refreshToken"]}
    for _ in range(3):
        clock.advance(days=29)
        renewed = await api.get("/authentication/token", headers=headers)
        assert renewed.json().keys() == {"token", "expiresIn"}
    clock.advance(days=31)
    assert (await api.get("/authentication/token", headers=headers)).status_code == 400


async def test_a_revoked_refresh_token_is_gone(api: httpx.AsyncClient, beds24: Beds24) -> None:
    setup = await api.get("/authentication/setup", headers={"code": beds24.account.access.invite()})
    headers = {"refreshToken": setup.json()["refreshToken"]}
    assert (await api.delete("/authentication/token", headers=headers)).status_code == 200
    assert (await api.get("/authentication/token", headers=headers)).status_code == 400


@pytest.mark.parametrize("given", ["", "nonsense"])
async def test_missing_and_wrong_tokens_are_401(api: httpx.AsyncClient, given: str) -> None:
    answer = await api.get("/bookings", headers={"token": given})
    assert answer.status_code == 401
    assert answer.json() | {"error": ""} == {"success": False, "type": "error", "code": 401, "error": ""}


async def test_a_token_expires_when_it_says(api: httpx.AsyncClient, clock: StoppedClock) -> None:
    clock.advance(seconds=86_399)
    assert (await api.get("/bookings")).status_code == 200
    clock.advance(seconds=1)
    assert (await api.get("/bookings")).status_code == 401


async def test_details_tell_whether_a_token_is_valid(api: httpx.AsyncClient) -> None:
    good = await api.get("/authentication/details")
    assert good.json()["validToken"]
    assert "all:bookings" in good.json()["token"]["scopes"]
    bad = await api.get("/authentication/details", headers={"token": "nonsense"})
    assert (bad.status_code, bad.json()["validToken"]) == (200, False)


async def test_a_missing_scope_is_403_and_does_nothing(api: httpx.AsyncClient, beds24: Beds24) -> None:
    headers = {"token": token(beds24, "read:bookings")}
    assert (await api.post("/bookings", json=[STAY], headers=headers)).status_code == 403
    assert (await api.get("/properties", headers=headers)).status_code == 403
    assert not beds24.account.bookings


async def test_a_long_life_token_only_reads(api: httpx.AsyncClient, beds24: Beds24) -> None:
    headers = {"token": beds24.account.access.long_life()}
    assert (await api.get("/bookings", headers=headers)).status_code == 200
    assert (await api.post("/bookings", json=[STAY], headers=headers)).status_code == 403


async def test_guest_and_money_members_need_their_scopes(api: httpx.AsyncClient, beds24: Beds24) -> None:
    await api.post("/bookings", json=[STAY | {"lastName": "Berg", "price": 99}])
    answer = await api.get("/bookings", headers={"token": token(beds24, "read:bookings")})
    shown = answer.json()["data"][0]
    assert shown["lastName"] == ""
    assert "price" not in shown


async def test_credits_fall_by_the_measured_costs_under_the_measured_names(api: httpx.AsyncClient) -> None:
    read = await api.get("/bookings")
    write = await api.post("/bookings", json=[STAY])
    assert (read.headers["x-request-cost"], read.headers["x-five-min-limit-remaining"]) == ("1", "99")
    assert (write.headers["x-request-cost"], write.headers["x-five-min-limit-remaining"]) == ("1.1", "97.9")
    assert read.headers["x-five-min-limit-resets-in"] == "300"


async def test_a_refused_400_costs_nothing(api: httpx.AsyncClient) -> None:
    answer = await api.get("/bookings", params={"status": "pending"})
    assert answer.status_code == 400
    assert (answer.headers["x-request-cost"], answer.headers["x-five-min-limit-remaining"]) == ("0", "100")


async def test_over_the_limit_is_429_until_the_window_ends(
    api: httpx.AsyncClient, beds24: Beds24, clock: StoppedClock
) -> None:
    """Credits are the account's: another token does not help; waiting `resets-in` seconds does."""
    await api.get("/bookings")
    clock.advance(seconds=60)
    beds24.account.credits.exhaust()
    refused = await api.post("/bookings", json=[STAY], headers={"token": token(beds24)})
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers
    assert refused.headers["x-five-min-limit-remaining"] == "0"
    assert refused.headers["x-five-min-limit-resets-in"] == "240"
    assert not beds24.account.bookings
    clock.advance(seconds=240)
    assert (await api.get("/bookings")).headers["x-five-min-limit-remaining"] == "99"
