"""Whatever is sent to the edge: a clear problem+json and a line in webhook_log; never a 500, never a lost event."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulators.bookings import generate
from store import connections
from tests.fleet import COMPANY, CONNECTION, SECRET, World


@pytest.fixture
async def edge(world: World) -> World:
    await world.start("ingress")
    return world


@pytest.fixture
async def whole(world: World) -> World:
    await world.start("ingress", "inbound", "scheduler")
    return world


def body(**changes: Any) -> dict[str, Any]:
    whole = copy.deepcopy(generate(11, 1, 0)[0].body)
    whole["booking"].update(changes)
    return whole


async def refused(edge: World, answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]
    logged = await edge.db.fetchrow("SELECT status, error FROM webhook_log ORDER BY id DESC LIMIT 1")
    assert logged is not None
    assert logged["status"] == status
    assert logged["error"]
    assert await edge.db.fetchval("SELECT count(*) FROM channel_events") == 0
    return problem


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"{", b'{"booking":', b"[]", b"42", b"null", b'"text"', b"\xff\xfe", b"[" * 5000]
)
async def test_what_is_not_a_booking_is_malformed(edge: World, raw: bytes) -> None:
    await refused(edge, await edge.webhook(raw), 400, "malformed")


async def test_ten_megabytes_are_too_much_declared_or_streamed(edge: World) -> None:
    big = b'{"booking":"' + b"x" * 10_000_000 + b'"}'
    await refused(edge, await edge.webhook(big), 413, "body-too-large")

    async def drip() -> Any:
        for _ in range(200):
            yield b"x" * 50_000

    url = edge.url("ingress", f"/webhooks/beds24/{CONNECTION}")
    answer = await edge.http.post(url, content=drip(), headers={"content-type": "application/json"})
    await refused(edge, answer, 413, "body-too-large")


async def sent(edge: World, *parts: bytes) -> bytes:
    """What is answered to a request as no library of ours writes it."""

    def talk() -> bytes:
        with socket.create_connection(("127.0.0.1", edge.ports["ingress"]), timeout=10) as connection:
            with contextlib.suppress(ConnectionError):  # it may be refused before all of it was sent
                for part in parts:
                    connection.sendall(part)
            return connection.recv(65536)

    return await asyncio.to_thread(talk)


def head(*lines: bytes) -> bytes:
    url = f"POST /webhooks/beds24/{CONNECTION} HTTP/1.1".encode()
    return b"\r\n".join((url, b"Host: x", b"Content-Type: application/json", *lines, b"\r\n"))


async def test_a_length_with_any_number_of_zeros_is_that_length(edge: World) -> None:
    assert (await sent(edge, head(b"Content-Length: " + b"0" * 5000 + b"2"), b"{}")).startswith(b"HTTP/1.1 403 ")
    answer = await sent(edge, head(b"Content-Length: " + b"0" * 5000 + b"2000000"))
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "begun",
    [head()[:-2], head()[:-2] + b"X-Long: ", head(b"Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n", b"POST /"],
    ids=["many headers", "a long header", "many trailers", "a long path"],
)
async def test_a_head_that_does_not_end_is_refused(edge: World, begun: bytes) -> None:
    more = b"X-Some: more of it\r\n" if begun.endswith(b"\n") else b"more"
    answer = await sent(edge, begun, *[more * 1000] * 100)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert (await edge.webhook(body())).status_code == 202


async def test_wrong_and_missing_signatures(edge: World) -> None:
    await refused(
        edge, await edge.webhook(body(), **{"x-beds24-signature": "sha256=" + "0" * 64}), 403, "signature-refused"
    )
    url = edge.url("ingress", f"/webhooks/beds24/{CONNECTION}")
    problem = await refused(edge, await edge.http.post(url, json=body()), 403, "signature-refused")
    assert "X-Beds24-Signature: missing" in problem["detail"]
    signatures = [row["signature"] for row in await edge.db.fetch("SELECT signature FROM webhook_log ORDER BY id")]
    assert signatures == ["invalid", "missing"]


async def test_wrong_content_type(edge: World) -> None:
    await refused(edge, await edge.webhook(body(), **{"content-type": "text/xml"}), 415, "not-json")


@pytest.mark.parametrize(
    "path", ["/webhooks/beds24/nobody", "/webhooks/unknown/x", "/webhooks/beds24/%00", "/webhooks/%F0%9F%92%A3/x"]
)
async def test_unknown_connections_and_vendors(edge: World, path: str) -> None:
    await refused(edge, await edge.http.post(edge.url("ingress", path), json=body()), 404, "no-such-connection")


async def test_other_methods_and_paths_are_problems_too(edge: World) -> None:
    answer = await edge.http.delete(edge.url("ingress", f"/webhooks/beds24/{CONNECTION}"))
    await refused(edge, answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET, POST"
    nowhere = await edge.http.get(edge.url("ingress", "/nowhere"))
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "no-such-route")


async def test_card_data_is_refused_never_stored_and_the_booking_is_still_fetched(whole: World) -> None:
    outcome = whole.sim.account.book(_stay(), channel="booking")
    booking = next(iter(whole.sim.account.bookings.values()))
    assert not outcome.errors
    with_card = whole.sim.account.webhook_body(booking["id"])
    with_card["booking"]["cvc"] = "737"
    with_card["booking"]["cardNumber"] = "4111111111111111"
    answer = await whole.webhook(with_card)
    assert (answer.status_code, answer.json()["code"]) == (400, "card-data-refused")
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT count(*) FROM int_reservations") == 1
    for table in ("channel_events", "webhook_log", "int_reservations", "dead_letters"):
        dump = str([dict(row) for row in await whole.db.fetch(f"SELECT * FROM {table}")])  # noqa: S608 - our own names
        assert "4111111111111111" not in dump


def _stay() -> dict[str, Any]:
    first = datetime.now(UTC).date() + timedelta(days=20)
    return {
        "roomId": 713992,
        "arrival": first.isoformat(),
        "departure": (first + timedelta(days=2)).isoformat(),
        "firstName": "Ada",
        "lastName": "Long",
        "numAdult": 1,
    }


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"departure": "2026-01-01"}, "departure"),
        ({"price": "a lot"}, "price"),
        ({"arrival": "soon"}, "arrival"),
        ({"arrival": None}, "arrival"),
        ({"numAdult": -3}, "numAdult"),
        ({"roomId": {}}, "roomId"),
    ],
)
async def test_bad_values_become_dead_letters_that_name_the_field(
    whole: World, changes: dict[str, Any], field: str
) -> None:
    answer = await whole.webhook(body(**changes))
    assert answer.status_code in {202, 400}, answer.text
    if answer.status_code == 400:
        assert field in answer.json()["field"]
        return
    await whole.all_settled()
    letter = await whole.db.fetchrow("SELECT * FROM dead_letters")
    assert field in letter["error_message"]
    assert letter["owner"] == "tenant"
    assert letter["error_class"] == "invalid"


async def test_emoji_and_nul_in_names_arrive(whole: World) -> None:
    answer = await whole.webhook(body(firstName="Zoë 🛎👩‍👩‍👧", lastName="Nul\x00l", comments="\x00"))
    assert answer.status_code == 202
    await whole.all_settled()
    row = await whole.db.fetchrow("SELECT g.sealed FROM int_guests g JOIN int_reservations r ON r.guest_id = g.id")
    guest = (await whole.cipher()).open(row["sealed"])
    assert guest["first_name"] == "Zoë 🛎👩‍👩‍👧"
    assert guest["last_name"] == "Nul\ufffdl"


async def test_no_personal_value_is_readable_in_the_database(whole: World) -> None:
    await whole.webhook(body(firstName="Hildegard", lastName="Unmistakable", email="hildegard@example.invalid"))
    await whole.all_settled()
    tables = [
        row["tablename"] for row in await whole.db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    ]
    for table in tables:
        dump = str([dict(row) for row in await whole.db.fetch(f"SELECT * FROM {table}")])  # noqa: S608 - the catalogue's names
        for word in ("Hildegard", "Unmistakable", "hildegard@"):
            assert word not in dump, table


async def test_a_rotated_secret_is_accepted_at_once_and_the_earlier_one_until_its_time(edge: World) -> None:
    assert (await edge.webhook(body())).status_code == 202
    cipher = await edge.cipher()
    later = datetime.now(UTC) + timedelta(days=7)
    await connections.put_secret(
        edge.db, edge.connection, "webhook_secret", cipher.seal_bytes(b"a new secret"), previous_until=later
    )
    import hashlib
    import hmac

    raw = orjson.dumps(body(id=5))
    new = hmac.new(b"a new secret", raw, hashlib.sha256).hexdigest()
    assert (await edge.webhook(raw, **{"x-beds24-signature": new})).status_code == 202
    old = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
    assert (await edge.webhook(raw, **{"x-beds24-signature": old})).status_code == 200
    await edge.db.execute("UPDATE secrets SET previous_until = now() - interval '1 second'")
    await edge.until("SELECT previous_until < now() FROM secrets WHERE name = 'webhook_secret'")
    assert (await edge.webhook(raw, **{"x-beds24-signature": old})).status_code in {200, 403}  # known for 2 s


@pytest.mark.parametrize(
    ("locked", "unlocked"),
    [
        ("UPDATE secrets SET sealed = $1 || sealed", "UPDATE secrets SET sealed = substr(sealed, 2)"),
        ("UPDATE companies SET data_key = $1 || data_key", "UPDATE companies SET data_key = substr(data_key, 2)"),
    ],
)
async def test_what_cannot_be_opened_has_the_vendor_send_again(
    edge: World, locked: str, unlocked: str, caplog: pytest.LogCaptureFixture
) -> None:
    await edge.db.execute(locked, b"?")
    answer = await edge.webhook(body())
    problem = await refused(edge, answer, 503, "connection-locked")
    assert answer.headers["retry-after"]
    assert "secret" not in str(problem)
    (told,) = [record for record in caplog.records if record.message == "connection cannot be opened"]
    assert CONNECTION in str(vars(told))
    text = (await edge.http.get(edge.url("ingress", "/metrics"))).text
    assert 'staybus_webhooks_total{result="connection-locked",vendor="beds24"}' in text
    await edge.db.execute(unlocked)
    assert (await edge.webhook(body())).status_code == 202


async def test_a_new_secret_that_cannot_be_opened_has_the_vendor_send_again(edge: World) -> None:
    assert (await edge.webhook(body())).status_code == 202
    await connections.put_secret(edge.db, edge.connection, "webhook_secret", b"sealed with another key")
    answer = await edge.webhook(body(id=5), **{"x-beds24-signature": "sha256=" + "0" * 64})
    assert (answer.status_code, answer.json()["code"]) == (503, "connection-locked")


async def test_the_static_header_that_real_beds24_sends(edge: World) -> None:
    await connections.set_config(edge.db, CONNECTION, {"webhook_auth": "header", "webhook_header": "X-Our-Key"})
    url = edge.url("ingress", f"/webhooks/beds24/{CONNECTION}")
    assert (await edge.http.post(url, json=body(), headers={"X-Our-Key": SECRET})).status_code == 202
    assert (await edge.http.post(url, json=body(), headers={"X-Our-Key": "guess"})).status_code == 403


async def test_admin_refuses_who_may_not(edge: World) -> None:
    url = edge.url("ingress", "/admin/events")
    assert (await edge.http.get(url)).status_code == 401
    assert (await edge.http.get(url, headers={"authorization": "Bearer sbk_wrong"})).status_code == 401
    key = await connections.add_api_key(edge.db, None, "reader", ["pms:read"])
    assert (await edge.http.get(url, headers={"authorization": f"Bearer {key}"})).status_code == 403
    admin = await connections.add_api_key(edge.db, None, "admin", ["admin"])
    headers = {"authorization": f"Bearer {admin}"}
    for query in (
        "?limit=0",
        "?limit=x",
        "?status=odd",
        "?before=1",
        "?nonsense=1",
        "?vendor=%00",
        "?status=done&status=failed",
    ):
        answer = await edge.http.get(url + query, headers=headers)
        assert answer.status_code == 400, query
    assert (await edge.http.get(url + "/not-a-uuid", headers=headers)).status_code == 400


async def test_a_companys_key_sees_its_own_events_only(edge: World) -> None:
    await edge.webhook(body())
    await connections.add_company(edge.db, "other", "Other", edge.keys.new_data_key())
    key = await connections.add_api_key(edge.db, "other", "admin", ["admin"])
    headers = {"authorization": f"Bearer {key}"}
    assert (await edge.http.get(edge.url("ingress", "/admin/events"), headers=headers)).json()["events"] == []
    event_id = await edge.db.fetchval("SELECT id FROM channel_events")
    assert (await edge.http.get(edge.url("ingress", f"/admin/events/{event_id}"), headers=headers)).status_code == 404
    page = await edge.http.get(edge.url("ingress", f"/admin/events?before={event_id}"), headers=headers)
    assert (page.status_code, page.json()["code"]) == (400, "unknown-cursor")
    own = {"authorization": f"Bearer {await connections.add_api_key(edge.db, COMPANY, 'admin', ['admin'])}"}
    page = await edge.http.get(edge.url("ingress", f"/admin/events?before={event_id}"), headers=own)
    assert (page.status_code, page.json()["events"]) == (200, [])  # it was the oldest
    assert (
        await edge.http.post(edge.url("ingress", f"/admin/events/{event_id}/retry"), headers=headers)
    ).status_code == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


async def test_any_value_at_any_place_is_answered_below_500(edge: World) -> None:
    """A hundred mutations of a real body, every time the same ones."""
    cases: list[bytes] = []
    members = sorted(body()["booking"])

    @settings(max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(members), JSON)
    def collect(member: str, value: Any) -> None:
        try:
            cases.append(orjson.dumps(body(**{member: value})))
        except (TypeError, orjson.JSONEncodeError):
            return

    collect()
    for raw in cases:
        answer = await edge.webhook(raw)
        assert answer.status_code in {200, 202, 400}, (answer.status_code, raw[:500])


async def test_readiness_and_metrics(edge: World) -> None:
    await edge.webhook(body())
    ready = await edge.http.get(edge.url("ingress", "/readyz"))
    assert ready.json() == {"status": "ready", "database": True, "broker": True}
    text = (await edge.http.get(edge.url("ingress", "/metrics"))).text
    assert 'staybus_webhooks_total{result="recorded",vendor="beds24"}' in text
    assert "staybus_webhook_ack_seconds_bucket" in text
