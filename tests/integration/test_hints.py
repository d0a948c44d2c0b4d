"""Webhooks that only say that something changed: the present state is fetched from the vendor."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from adapters.beds24 import client
from simulators.beds24.faults import Fault, FaultKind
from store import connections
from store.directory import Known
from tests.fleet import CONNECTION, SECRET, World
from workers.sessions import Sessions, VendorSession

NOT_THERE = (
    "SELECT count(*) FROM channel_events WHERE status = 'retrying' AND last_error = 'not at the vendor, or not yet'"
)
LONG_AGO = "UPDATE channel_events SET received_at = received_at - interval '2 minutes', next_attempt_at = now()"


@pytest.fixture
async def whole(world: World) -> World:
    await world.start("ingress", "inbound", "scheduler")
    return world


def book(world: World, **values: Any) -> dict[str, Any]:
    first = datetime.now(UTC).date() + timedelta(days=30)
    outcome = world.sim.account.book(
        {"roomId": 713992, "arrival": first.isoformat(), "departure": (first + timedelta(days=3)).isoformat(),
         "firstName": "Ada", "lastName": "Long", "numAdult": 2, **values}
    )  # fmt: skip
    assert not outcome.errors
    return list(world.sim.account.bookings.values())[-1]


def fetches(world: World) -> int:
    return sum(call.operation == "GET /bookings" for call in world.sim.account.calls)


@pytest.mark.parametrize("shape", ["version two", "bare id"])
async def test_an_id_is_enough(whole: World, shape: str) -> None:
    booking = book(whole)
    body = {"booking": {"id": booking["id"]}} if shape == "version two" else {"bookId": booking["id"]}
    assert (await whole.webhook(body)).status_code == 202
    await whole.all_settled()
    row = await whole.db.fetchrow("SELECT * FROM int_reservations")
    assert (row["external_id"], row["check_in"].isoformat()) == (str(booking["id"]), booking["arrival"])
    assert fetches(whole) == 1


async def test_version_one_is_a_get(whole: World) -> None:
    await connections.set_config(whole.db, CONNECTION, {"webhook_auth": "header", "webhook_header": "X-Our-Key"})
    booking = book(whole)
    url = whole.url("ingress", f"/webhooks/beds24/{CONNECTION}?bookid={booking['id']}&status=new")
    assert (await whole.http.get(url, headers={"X-Our-Key": SECRET})).status_code == 202
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT external_id FROM int_reservations") == str(booking["id"])


async def test_hints_that_come_together_share_a_fetch(whole: World) -> None:
    bookings = [book(whole, arrival=f"2027-0{n}-01", departure=f"2027-0{n}-05") for n in range(1, 9)]
    for booking in bookings:
        assert (await whole.webhook({"booking": {"id": booking["id"]}})).status_code == 202
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT count(*) FROM int_reservations") == 8
    assert fetches(whole) <= 8


async def test_a_cancelled_booking_is_found_too_and_a_gone_one_is_skipped(whole: World) -> None:
    booking = book(whole)
    whole.sim.account.cancel(booking["id"])
    await whole.webhook({"booking": {"id": booking["id"]}})
    await whole.webhook({"booking": {"id": 999_999_999}})
    await whole.until(NOT_THERE, equals=1)
    await whole.db.execute(f"{LONG_AGO} WHERE status = 'retrying'")
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT status FROM int_reservations") == "cancelled"
    gone = await whole.db.fetchrow(
        "SELECT status, last_error FROM channel_events WHERE entity_external_id = '999999999'"
    )
    assert tuple(gone) == ("skipped", "gone at the vendor")


async def test_what_the_vendor_does_not_show_yet_is_asked_for_again(whole: World) -> None:
    booking = book(whole)
    del whole.sim.account.bookings[booking["id"]]
    await whole.webhook({"booking": {"id": booking["id"]}})
    await whole.until(NOT_THERE, equals=1)
    whole.sim.account.bookings[booking["id"]] = booking
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT external_id FROM int_reservations") == str(booking["id"])
    assert tuple(await whole.db.fetchrow("SELECT status, attempts FROM channel_events")) == ("done", 1)


async def test_a_fetch_that_fails_is_tried_again(whole: World) -> None:
    booking = book(whole)
    whole.sim.faults.add(Fault(FaultKind.UNAVAILABLE, operation="GET /bookings", count=2))
    await whole.webhook({"booking": {"id": booking["id"]}})
    await whole.until("SELECT count(*) FROM int_reservations", equals=1)
    outcomes = [r["outcome"] for r in await whole.db.fetch("SELECT outcome FROM event_attempts ORDER BY id")]
    assert outcomes == ["retry", "retry", "done"]


async def test_who_slept_through_its_lease_ends_nothing_with_an_old_answer(whole: World) -> None:
    first, second = book(whole), book(whole, arrival="2027-04-01", departure="2027-04-03")
    whole.sim.faults.add(Fault(FaultKind.SLOW, operation="GET /bookings", seconds=3.0))
    await whole.webhook({"booking": {"id": first["id"]}})
    await whole.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await whole.db.execute("UPDATE channel_events SET lease_token = gen_random_uuid()")  # somebody else asks anew
    await whole.webhook({"booking": {"id": second["id"]}})  # asked for when the answer about the first is dealt with
    await whole.until("SELECT count(*) FROM channel_events WHERE status = 'done'", equals=1)
    assert await whole.db.fetchval("SELECT external_id FROM int_reservations") == str(second["id"])
    await whole.db.execute("UPDATE channel_events SET lease_until = now() - interval '1 s' WHERE status = 'processing'")
    await whole.all_settled()
    stored = await whole.db.fetch("SELECT external_id FROM int_reservations ORDER BY id")
    assert {row["external_id"] for row in stored} == {str(first["id"]), str(second["id"])}


async def test_an_expired_token_is_renewed_on_the_way(whole: World) -> None:
    first, second = book(whole), book(whole, arrival="2027-04-01", departure="2027-04-03")
    await whole.webhook({"booking": {"id": first["id"]}})
    await whole.all_settled()
    whole.sim.account.access.expire_all()
    await whole.webhook({"booking": {"id": second["id"]}})
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT count(*) FROM int_reservations") == 2
    stored = {row["name"] for row in await whole.db.fetch("SELECT name FROM secrets")}
    assert {"access_token", "refresh_token"} <= stored


async def test_a_hint_outlasts_a_token_that_the_vendor_does_not_know_everywhere_yet(whole: World) -> None:
    booking, access = book(whole), whole.sim.account.access
    access.settling = timedelta(hours=1)
    await whole.webhook({"booking": {"id": booking["id"]}})
    await whole.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    access.settling = timedelta(0)
    await whole.db.execute("UPDATE channel_events SET next_attempt_at = now()")
    await whole.until("SELECT count(*) FROM int_reservations", equals=1)
    assert await whole.db.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_without_personal_data_a_known_guest_is_kept(whole: World) -> None:
    booking = book(whole)
    await whole.webhook(whole.sim.account.webhook_body(booking["id"]))
    await whole.all_settled()
    guest_id = await whole.db.fetchval("SELECT guest_id FROM int_reservations")
    assert guest_id is not None
    bare = whole.sim.account.webhook_body(booking["id"])
    for member in ("firstName", "lastName", "email", "phone", "mobile", "address", "city", "comments", "notes"):
        bare["booking"][member] = ""
    bare["booking"]["numAdult"] = 4
    later = datetime.now(UTC) + timedelta(minutes=5)
    bare["booking"]["modifiedTime"] = later.strftime("%Y-%m-%dT%H:%M:%SZ")
    await whole.webhook(bare)
    await whole.until("SELECT adults FROM int_reservations", equals=4)
    row = await whole.db.fetchrow(
        "SELECT r.guest_id, g.sealed FROM int_reservations r JOIN int_guests g ON g.id = r.guest_id"
    )
    assert row["guest_id"] == guest_id
    assert (await whole.cipher()).open(row["sealed"])["last_name"] == "Long"


async def test_an_inventory_webhook_brings_the_calendar(whole: World) -> None:
    body = {"roomId": "713992", "propId": "345754", "ownerId": "1", "action": "SYNC_ROOM"}
    assert (await whole.webhook(body)).status_code == 202
    await whole.all_settled()
    nights = await whole.db.fetchval("SELECT count(*) FROM int_availability WHERE external_room_type_id = '713992'")
    assert nights >= 300


async def test_two_changes_in_one_second_end_at_the_vendors_present_state(whole: World) -> None:
    """Beds24's clock has whole seconds: what it cannot tell apart, only its API can."""
    booking = book(whole)
    first = whole.sim.account.webhook_body(booking["id"])
    second = whole.sim.account.webhook_body(booking["id"])
    second["booking"]["numAdult"] = 5
    booking["numAdult"] = 5  # the vendor's present state, within the same second
    for body in (second, first):
        assert (await whole.webhook(body)).status_code == 202
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT adults FROM int_reservations") == 5
    assert fetches(whole) == 1
    assert await whole.db.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_two_changes_in_one_second_without_credentials_are_no_dead_letter(whole: World) -> None:
    await whole.db.execute("DELETE FROM secrets WHERE name <> 'webhook_secret'")
    booking = book(whole)
    first = whole.sim.account.webhook_body(booking["id"])
    second = whole.sim.account.webhook_body(booking["id"])
    second["booking"]["numAdult"] = 5
    for body in (first, second):
        assert (await whole.webhook(body)).status_code == 202
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await whole.db.fetchval("SELECT count(*) FROM channel_events WHERE last_error LIKE 'as new as%'") == 1


async def test_two_changes_in_one_second_whose_vendor_refuses_our_credentials_are_a_dead_letter(whole: World) -> None:
    """Which of the two is newer is then not known: left out in silence, the older one would stand for good."""
    await whole.put_secret("invite_code", "used-up")
    booking = book(whole)
    first = whole.sim.account.webhook_body(booking["id"])
    second = whole.sim.account.webhook_body(booking["id"])
    second["booking"]["numAdult"] = 5
    for body in (first, second):
        assert (await whole.webhook(body)).status_code == 202
    await whole.all_settled()
    assert await whole.db.fetch("SELECT error_class, owner FROM dead_letters") == [("misconfigured", "tenant")]


class _Behind(datetime):
    """A machine whose clock is behind the database's."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) - timedelta(seconds=10)


async def two_in_one_second(world: World) -> None:
    booking = book(world)
    first = world.sim.account.webhook_body(booking["id"])
    second = world.sim.account.webhook_body(booking["id"])
    second["booking"]["numAdult"] = 5
    booking["numAdult"] = 5
    for body in (first, second):
        assert (await world.webhook(body)).status_code == 202


async def test_a_worker_whose_clock_is_behind_asks_once(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "datetime", _Behind)
    await two_in_one_second(whole)
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT adults FROM int_reservations") == 5
    assert fetches(whole) == 1


async def test_what_always_seems_overtaken_is_asked_for_later_and_not_again_and_again(
    whole: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to an adapter with a clock of its own that is behind."""
    opened = Sessions.open

    def open_behind(sessions: Sessions, known: Known) -> VendorSession:
        session = opened(sessions, known)
        session.now = lambda: sessions.now() - timedelta(seconds=2)
        return session

    monkeypatch.setattr(Sessions, "open", open_behind)
    await two_in_one_second(whole)
    await whole.until("SELECT count(*) FROM channel_events WHERE last_error LIKE 'overtaken%'", equals=1)
    assert fetches(whole) == 2
    await whole.all_settled()
    assert fetches(whole) <= 2 * 3
    assert await whole.db.fetchval("SELECT adults FROM int_reservations") == 5
    assert await whole.db.fetchval("SELECT count(*) FROM dead_letters") == 0
