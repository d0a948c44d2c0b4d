"""The vendor's specification, its examples and the captured samples, against our validator and our simulator."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from simulators.beds24 import Account, Beds24, PropertySeed, RoomSeed, create_app
from simulators.beds24.operations import OPERATIONS
from simulators.beds24.state import Author
from simulators.bookings import generate
from tests.simulators.beds24_kit import STAY, StoppedClock, token
from tests.simulators.beds24_spec import (
    CORRECTIONS,
    EXAMPLE_FAULTS,
    SAMPLES,
    SPEC,
    SpecError,
    needs_samples,
    needs_spec,
    request_examples,
    validate_request,
    validate_response,
)

SIMULATED = {operation.path for operation in OPERATIONS}


def sample(name: str) -> Any:
    return orjson.loads((SAMPLES / name).read_bytes())


def samples(kind: str) -> list[dict[str, Any]]:
    if not SAMPLES.exists():
        return []
    return [s for s in orjson.loads((SAMPLES / "index.json").read_bytes())["samples"] if s["kind"] == kind]


def examples() -> list[Any]:
    if not SPEC.exists():
        return []
    return [pytest.param(*e, id=e[2]) for e in request_examples() if e[1] in SIMULATED]


@needs_spec
@pytest.mark.parametrize(("method", "path", "name", "body"), examples())
def test_the_vendors_examples_are_valid_but_for_known_faults(method: str, path: str, name: str, body: object) -> None:
    if (path, name) in EXAMPLE_FAULTS:
        with pytest.raises(SpecError):
            validate_request(method, path, body)
    else:
        validate_request(method, path, body)


@needs_spec
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_every_simulated_operation_is_in_the_specification(operation: Any) -> None:
    refused = {"success": False, "type": "error", "code": 400, "error": "x"}
    validate_response(operation.method, operation.path, 400, refused)


@needs_spec
@needs_samples
@pytest.mark.parametrize("entry", samples("response"), ids=lambda e: e["file"])
def test_captured_answers_satisfy_the_corrected_specification(entry: Any) -> None:
    validate_response(entry["method"], entry["path"], entry["status"], sample(entry["file"]))


@needs_spec
@pytest.mark.parametrize(
    "query",
    ["includeCancelled=true", "status=new,cancelled", "status=pending", "id=a", "arrival=01.12.2026", "page=1&page=2"],
)
def test_a_query_the_vendor_does_not_describe_is_an_error(query: str) -> None:
    with pytest.raises(SpecError):
        validate_request("GET", f"/bookings?{query}")


@needs_spec
@pytest.mark.parametrize(
    "body",
    [
        STAY,
        [STAY | {"comment": "x"}],
        [STAY | {"status": "pending"}],
        [{"roomId": 1}],
        [STAY | {"invoiceItems": [{"type": "fee"}]}],
        [STAY | {"actions": {"allowWebhook": True}}],
    ],
)
def test_a_body_the_vendor_does_not_describe_is_an_error(body: object) -> None:
    with pytest.raises(SpecError):
        validate_request("POST", "/bookings", body)


@needs_spec
def test_unknown_members_and_statuses_of_answers_are_errors() -> None:
    with pytest.raises(SpecError, match="200"):
        validate_response("POST", "/bookings", 200, [])
    with pytest.raises(SpecError, match="bookings"):
        validate_response("GET", "/bookings", 200, {"success": True, "type": "booking", "bookings": []})
    with pytest.raises(SpecError, match="code"):
        validate_response("GET", "/bookings", 401, {"success": False, "type": "error", "code": 400, "error": "x"})


def test_every_correction_says_why() -> None:
    assert all(correction.where and correction.why for correction in CORRECTIONS)
    assert len({correction.where for correction in CORRECTIONS}) == len(CORRECTIONS)


# --- the samples, sent to the simulator ---

ROOMS = (RoomSeed(1234567, "A", 4), RoomSeed(322790, "B", 4))


@pytest.fixture
def beds24(clock: StoppedClock) -> Beds24:
    """An account that has what the samples name: rooms 1234567 and 322790, bookings 1234567 and 7777777."""
    account = Account((PropertySeed(345754, "Sampled", ROOMS),), clock=clock, first_booking_id=1234567)
    account.book({"roomId": 322790, "arrival": "2021-01-01", "departure": "2021-01-05"})
    account._next_booking = 7777777
    account.book({"roomId": 322790, "arrival": "2021-01-01", "departure": "2021-01-05"})
    account.take_events()
    return Beds24(account)


@needs_spec
@needs_samples
@pytest.mark.parametrize("entry", samples("request body"), ids=lambda e: e["file"])
async def test_sample_requests_are_accepted_where_their_ids_exist(api: httpx.AsyncClient, entry: Any) -> None:
    body = sample(entry["file"])
    validate_request(entry["method"], entry["path"], body)
    response = await api.request(entry["method"], entry["path"].removeprefix("/api/v2"), json=body)
    assert response.status_code == 201
    assert [item["success"] for item in response.json()] == [True] * len(body)


@needs_samples
@pytest.mark.parametrize(
    "name", [e["file"] for e in samples("request body") if e["file"] != "properties.post.webhook-config.json"]
)
async def test_sample_requests_are_refused_inside_201_where_their_ids_do_not_exist(name: str) -> None:
    entry = next(e for e in samples("request body") if e["file"] == name)
    other = Beds24(Account((PropertySeed(1, "Other", (RoomSeed(2, "C", 1),)),)))
    transport = httpx.ASGITransport(create_app(other))
    async with httpx.AsyncClient(transport=transport, base_url="http://beds24.test") as client:
        response = await client.post(entry["path"], json=sample(name), headers={"token": token(other)})
    assert response.status_code == 201
    assert not response.json()[0]["success"]
    assert response.json()[0]["errors"][0].keys() == {"action", "field", "message"}
    assert not other.account.calls[0].effects


@needs_samples
async def test_a_listed_booking_has_the_members_of_a_captured_one(api: httpx.AsyncClient) -> None:
    listed = await api.get("/bookings", params={"id": 1234567})
    captured = sample("bookings.get.one-confirmed.response.json")
    assert listed.json().keys() == captured.keys()
    assert list(listed.json()["data"][0]) == list(captured["data"][0])


@needs_samples
async def test_a_refusal_reads_like_the_measured_one(api: httpx.AsyncClient) -> None:
    backwards = {"roomId": 1234567, "arrival": "2026-12-04", "departure": "2026-12-01"}
    response = await api.post("/bookings", json=[backwards])
    assert response.json() == sample("bookings.post.item-refused.response.json")


@needs_samples
def test_webhook_bodies_have_the_members_of_the_real_one(beds24: Beds24) -> None:
    real = sample("webhook.booking.v2.real.json")[0]
    beds24.account.write_booking({"id": 1234567, "invoiceItems": [{"type": "charge", "amount": 5}]}, Author())
    for body in (beds24.account.webhook_body(1234567), generate(1, 1, 0)[0].body):
        assert body.keys() == real.keys()
        assert body["booking"].keys() == real["booking"].keys()
    shown = beds24.account.webhook_body(1234567)["invoiceItems"][0]
    assert shown.keys() - {"invoiceId"} == real["invoiceItems"][0].keys()
