"""An operator's edit: kept beside the event, sealed where it is a guest's, applied when the event runs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.beds24.faults import Fault, FaultKind
from simulators.bookings import generate
from simulators.core_pms import CorePms
from store.dead_letters import requeue
from store.overlay import difference, merged, paths
from tests.cli.conftest import Cli
from tests.fleet import COMPANY, World

if TYPE_CHECKING:
    from pathlib import Path

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.just(1.0) | st.text("x", max_size=1),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(DOCUMENTS, DOCUMENTS)
def test_the_difference_of_two_documents_leads_from_one_to_the_other(before: Any, patch: Any) -> None:
    after = merged(before, patch)
    edit = difference(before, after)
    assert orjson.dumps(merged(before, edit), option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        after, option=orjson.OPT_SORT_KEYS
    )
    assert (edit == {}) == (list(paths(edit, str)) == [])


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # of RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_that_of_the_standard(target: Any, patch: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert merged(target, patch) == result
    assert target == before


@pytest.fixture
def cli(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(
        {
            "STAYBUS_DATABASE_URL": world.database_url,
            "STAYBUS_AMQP_URL": world.amqp_url,
            "STAYBUS_KEY_FILE": str(world.folder / "key"),
            "STAYBUS_DEBUG": None,
        }
    )


@pytest.fixture
def processes() -> tuple[str, ...]:
    return "outbound", "scheduler"


async def test_an_edited_fact_is_stored_as_edited_and_stays_as_it_came(world: World, cli: Cli, tmp_path: Path) -> None:
    await world.start("ingress", "inbound", "scheduler")
    body = generate(7, 1, 0)[0].body
    booking = body["booking"]
    right, booking["departure"] = booking["departure"], booking["arrival"]
    assert (await world.webhook(body)).status_code == 202
    await world.until("SELECT count(*) FROM dead_letters WHERE status = 'pending'", equals=1)
    event, letter = await world.db.fetchrow("SELECT event_id, id FROM dead_letters")
    came = await world.db.fetchrow("SELECT payload, sealed FROM channel_events")
    (tmp_path / "patch.json").write_text(
        orjson.dumps({"booking": {"departure": right, "phone": "+34 600 000 001", "notes": None}}).decode()
    )
    told = (await cli("dlq", "edit", str(event), "--file", "patch.json", "--json")).document
    assert (told["problem"], told["kept"]) == (None, True)
    assert "booking.phone" in told["paths"]
    assert told["edit"]["booking"]["departure"] == right
    await cli("dlq", "requeue", str(letter))
    await world.two_seconds_pass()
    await world.until("SELECT status FROM channel_events WHERE id = $1", event, equals="done")
    stored = await world.db.fetchrow("SELECT check_out, guest_id FROM int_reservations")
    assert stored["check_out"].isoformat() == right
    guest = (await world.cipher()).open(await world.db.fetchval("SELECT sealed FROM int_guests"))
    assert guest["phone"] == "+34 600 000 001"
    assert await world.db.fetchrow("SELECT payload, sealed FROM channel_events") == came
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"
    for table in ("channel_events", "dead_letters", "audit_log", "int_reservations", "event_attempts", "core_events"):
        rows = str([dict(row) for row in await world.db.fetch(f"SELECT * FROM {table}")])  # noqa: S608
        assert "600 000 001" not in rows, table


async def test_an_edited_command_is_routed_as_edited(world: World, cli: Cli, core: CorePms) -> None:
    """Its deliveries are made of the edit, the guest's part of it sealed."""
    data = {"reservationId": "B-1", "propertyId": "P1", "roomTypeId": "RT1", "checkIn": "2027-03-04"}
    await core.publish("pms.booking.create", "B-1", COMPANY, {**data, "checkOut": "2027-03-01"}, "c-1")
    await core.wait_for(lambda e: e.type == "core.command.failed")
    letter = str(await world.db.fetchval("SELECT id FROM dead_letters"))
    refused = await cli("dlq", "edit", letter, "--set", 'checkOut="2027-03-02"', code=1)
    assert "still cannot be read" in refused.err
    assert await world.db.fetchval("SELECT overlay FROM dead_letters") is None
    await cli("dlq", "edit", letter, "--set", 'checkOut="2027-03-08"')
    told = await cli("dlq", "edit", letter, "--set", 'guest.lastName="Ruiz"')
    assert "typed into a shell" in told.err
    await cli("dlq", "requeue", letter)
    await world.two_seconds_pass()
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    (booking,) = world.sim.account.bookings.values()
    assert (booking["departure"], booking["lastName"]) == ("2027-03-08", "Ruiz")
    rows = str([dict(row) for row in await world.db.fetch("SELECT * FROM channel_events")])
    assert "Ruiz" not in rows


async def test_an_edited_delivery_is_sent_as_edited_and_its_siblings_are_not(
    world: World, cli: Cli, core: CorePms
) -> None:
    stay = {"reservationId": "B-2", "propertyId": "P1", "roomTypeId": "RT1"}
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings", field="arrival"))
    await core.publish(
        "pms.booking.create", "B-2", COMPANY, {**stay, "checkIn": "2027-03-01", "checkOut": "2027-03-04"}, "c-2"
    )
    await core.wait_for(lambda e: e.type == "core.command.failed")
    event, letter = await world.db.fetchrow("SELECT event_id, id FROM dead_letters")
    other = await cli("dlq", "edit", str(letter), "--set", 'reservationId="B-3"', "--force", code=1)
    assert "stays in its lane" in other.err
    await cli("dlq", "edit", str(letter), "--set", "adults=3")
    await cli("dlq", "requeue", str(letter))
    await world.two_seconds_pass()
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    assert [booking["numAdult"] for booking in world.sim.account.bookings.values()] == [3]
    command = await world.db.fetchval("SELECT payload FROM channel_events WHERE parent_id IS NULL")
    assert "adults" not in orjson.loads(command)
    assert await world.db.fetchval("SELECT overlay_id FROM channel_events WHERE id = $1", event) == letter


async def test_a_newer_command_takes_an_edited_older_one_along_as_edited(world: World, cli: Cli, core: CorePms) -> None:
    async def push(first: str, key: str) -> None:
        periods = [{"first": first, "last": first, "available": 4}]
        data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": periods}
        await core.publish("pms.availability.update", "RT1", COMPANY, data, key)

    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /inventory/rooms/calendar"))
    await push("2027-05-01", "a-1")
    await world.until("SELECT count(*) FROM dead_letters WHERE status = 'pending'", equals=1)
    letter = str(await world.db.fetchval("SELECT id FROM dead_letters"))
    await cli("dlq", "edit", letter, "--set", "periods.0.available=1")
    await world.db.execute("UPDATE connections SET status = 'paused'")  # both wait, then go together
    await cli("dlq", "requeue", letter)
    await push("2027-05-02", "a-2")
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=2)
    await world.db.execute("UPDATE connections SET status = 'active'")
    await world.db.execute(
        "UPDATE channel_events SET published_at = now() - interval '1 hour' WHERE status = 'received'"
    )
    await world.all_settled()
    calls = [call for call in world.sim.account.calls if call.operation == "POST /inventory/rooms/calendar"]
    assert {day["from"]: day["numAvail"] for day in calls[-1].body[0]["calendar"]} == {"2027-05-01": 1, "2027-05-02": 4}
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"


async def test_a_letter_is_closed_although_its_event_was_put_off_on_its_second_way(world: World) -> None:
    async def restart(status: str) -> None:
        """A process that begins sees at once how the connection stands."""
        task, stop = world.tasks.pop("inbound")
        stop.set()
        await task
        await world.db.execute("UPDATE connections SET status = $1", status)
        await world.start("inbound")

    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="GET /bookings", count=None))
    await world.start("ingress", "inbound", "scheduler")
    assert (await world.webhook({"id": 91000001, "timeStamp": "2026-11-21T08:00:00Z"})).status_code == 202
    await world.until("SELECT status FROM channel_events", equals="failed")
    world.sim.faults.clear()
    await restart("paused")
    await requeue(world.db, [await world.db.fetchval("SELECT id FROM channel_events")], "test")
    await world.two_seconds_pass()
    await world.until("SELECT status FROM channel_events", equals="retrying")
    await restart("active")
    await world.db.execute("UPDATE channel_events SET next_attempt_at = now()")
    await world.until("SELECT status FROM channel_events", equals="skipped")  # gone at the vendor
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"
