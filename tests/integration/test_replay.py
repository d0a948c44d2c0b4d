"""Ended events run again: as new rows with keys of their own, through the fence, and never to a second effect unasked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from adapters.registry import adapters
from ops.cli import events as command
from schemas.ids import uuid7
from simulators.beds24.faults import Fault, FaultKind
from simulators.bookings import generate, truth
from simulators.core_pms import CorePms
from store.events import Selection
from tests.cli.conftest import Cli
from tests.fleet import COMPANY, CONNECTION, PROPERTY, ROOM, World
from workers import bulk
from workers.bulk import Order, Replay

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

REPLAYS = "SELECT status, count(*) AS n FROM channel_events WHERE replay_of IS NOT NULL GROUP BY 1"


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
async def core(world: World) -> AsyncIterator[CorePms]:
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    async with CorePms(world.amqp_url) as core:
        await world.start("ingress", "inbound", "outbound", "scheduler")
        yield core


async def replayed(world: World) -> dict[str, int]:
    await world.two_seconds_pass()
    await world.all_settled()
    return {row["status"]: row["n"] for row in await world.db.fetch(REPLAYS)}


async def test_lost_reservations_come_back_from_their_facts(world: World, cli: Cli, core: CorePms) -> None:
    """Of each booking's facts the newest wins, as it did the first time; and the core is told."""
    history = generate(11, 12, 2)
    for change in history:
        assert (await world.webhook(change.body)).status_code == 202
    await world.all_settled()
    told = len(core.of("core.reservation.upserted"))
    await world.db.execute("DELETE FROM int_reservations")
    answer = await cli("events", "replay", "--from", "1h", "--status", "done,skipped", "--yes", "--json")
    assert len(answer.document["replayed"]) == len(history)
    found = await replayed(world)
    assert found.keys() <= {"done", "skipped"}
    assert sum(found.values()) == len(history)
    stored = {row["external_id"]: row for row in await world.db.fetch("SELECT * FROM int_reservations")}
    for booking_id, booking in truth(history).items():
        assert stored[str(booking_id)]["check_out"].isoformat() == booking["departure"]
        assert (stored[str(booking_id)]["status"] == "cancelled") == (booking["status"] == "cancelled")
    await core.wait_for(lambda _: len(core.of("core.reservation.upserted")) >= told + found["done"])
    actions = await world.db.fetch("SELECT target FROM audit_log WHERE action = 'event.replay'")
    assert len({row["target"] for row in actions}) == len(history)


async def test_what_is_newer_is_not_undone(world: World, cli: Cli, core: CorePms) -> None:
    older, newer = generate(12, 1, 1)
    first = (await world.webhook(older.body)).json()["events"][0]
    assert (await world.webhook(newer.body)).status_code == 202
    await world.all_settled()
    before = await world.db.fetchrow("SELECT * FROM int_reservations")
    await cli("events", "replay", first)
    assert await replayed(world) == {"skipped": 1}
    assert await world.db.fetchrow("SELECT * FROM int_reservations") == before
    row = await world.db.fetchrow(
        "SELECT replay_of, received_at, last_error FROM channel_events WHERE replay_of IS NOT NULL"
    )
    original = await world.db.fetchrow("SELECT id, received_at FROM channel_events WHERE id = $1::uuid", first)
    assert (row["replay_of"], row["received_at"]) == tuple(original)
    assert "stale" in row["last_error"]


async def test_a_replay_is_no_duplicate_of_another_and_replays_are_not_replayed(
    world: World, cli: Cli, core: CorePms
) -> None:
    assert (await world.webhook(generate(13, 1, 0)[0].body)).status_code == 202
    await world.all_settled()
    for round_ in range(1, 4):
        told = await cli("events", "replay", "--vendor", "beds24", "--status", "done,skipped", "--yes", "--json")
        assert len(told.document["replayed"]) == 1
        assert sum((await replayed(world)).values()) == round_
    keys = await world.db.fetch("SELECT idempotency_key FROM channel_events")
    assert len({row["idempotency_key"] for row in keys}) == 4
    assert sum("#replay:" in row["idempotency_key"] for row in keys) == 3


async def test_an_update_is_sent_again_and_told_again(world: World, cli: Cli, core: CorePms) -> None:
    await create(core, "B-1")
    await core.publish("pms.booking.update", "B-1", COMPANY, {"reservationId": "B-1", "adults": 3}, "u-1")
    await ended(core, "pms.booking.update")
    (booking,) = world.sim.account.bookings.values()
    booking["numAdult"] = 1  # the vendor lost it
    command = await world.db.fetchval(
        "SELECT id FROM channel_events WHERE event_type = 'pms.booking.update' AND parent_id IS NULL"
    )
    await cli("events", "replay", str(command))  # of a command: its deliveries
    await world.two_seconds_pass()
    await core.wait_for(lambda _: len(core.of("core.command.succeeded")) == 3, timeout=20)
    assert booking["numAdult"] == 3
    assert len(world.sim.account.bookings) == 1


async def test_a_second_effect_must_be_asked_for(world: World, cli: Cli, core: CorePms) -> None:
    await create(core, "B-2")
    await ended(core, "pms.booking.create")
    (first,) = world.sim.account.bookings
    again = ("events", "replay", "--from", "1h", "--again", "--yes")
    made = await world.db.fetchval("SELECT id FROM channel_events WHERE parent_id IS NOT NULL")
    for words in (("--again",), ()):  # its id would have no place, and --again is not offered for it
        told = await cli("events", "replay", str(made), *words, code=1)
        assert "replayed 0" in told.out
        assert "left as they are: 1; has an id at the vendor" in told.err
        assert "--again" not in told.err
    await cli("mapping", "remove", CONNECTION, "reservation", str(first))
    for words in (("--from", "1h", "--yes"), ("--from", "1h", "--type", "pms.booking.create", "--yes", "--job")):
        refused = await cli("events", "replay", *words, code=1)
        assert "pms.booking.create at beds24: the vendor would make another one" in refused.err
        assert "--again" in refused.err
    assert await replayed(world) == {}
    dry = await cli("events", "replay", "--from", "1h", "--dry-run", "--json")
    assert [(row["type"], row["replayed"]) for row in dry.document] == [("pms.booking.create", False)]
    assert "replayed 1" in (await cli(*again)).out
    assert await replayed(world) == {"done": 1}
    assert len(world.sim.account.bookings) == 2
    assert await world.db.fetchval(
        "SELECT external_entity_id FROM int_mappings WHERE internal_entity_id = 'B-2'"
    ) == str(max(world.sim.account.bookings))


async def test_an_older_state_is_not_put_back_unasked(world: World, cli: Cli, core: CorePms) -> None:
    """Two updates: the first alone would undo the second; both, in their order, undo nothing."""
    await create(core, "B-3")
    for adults in (2, 4):
        data = {"reservationId": "B-3", "adults": adults}
        await core.publish("pms.booking.update", "B-3", COMPANY, data, f"u-{adults}")
    await core.wait_for(lambda _: len(core.of("core.command.succeeded")) == 3, timeout=20)
    deliveries = [
        str(row["id"])
        for row in await world.db.fetch(
            "SELECT id FROM channel_events WHERE event_type = 'pms.booking.update' AND parent_id IS NOT NULL ORDER BY seq"
        )
    ]
    left = await cli("events", "replay", deliveries[0], "--json", code=1)
    assert left.document["left"] == [deliveries[0]]
    dry = await cli("events", "replay", deliveries[0], "--dry-run")
    assert "went out since" in dry.out
    assert await replayed(world) == {}
    await cli("events", "replay", *deliveries)
    assert await replayed(world) == {"done": 2}
    (booking,) = world.sim.account.bookings.values()
    assert booking["numAdult"] == 4
    await cli("events", "replay", deliveries[0], "--again")
    assert await replayed(world) == {"done": 3}
    assert booking["numAdult"] == 2


async def updates(world: World, core: CorePms, booking: str, *adults: int) -> list[UUID]:
    """A booking, and updates of it that came through. returns their deliveries"""
    await create(core, booking)
    for count in adults:
        data = {"reservationId": booking, "adults": count}
        await core.publish("pms.booking.update", booking, COMPANY, data, f"u-{booking}-{count}")
    await core.wait_for(lambda _: len(core.of("core.command.succeeded", booking)) == 1 + len(adults), timeout=20)
    rows = await world.db.fetch(
        "SELECT id FROM channel_events WHERE event_type = 'pms.booking.update' AND parent_id IS NOT NULL ORDER BY seq"
    )
    return [row["id"] for row in rows]


async def test_a_limit_leaves_what_it_would_not_repeat_the_newer_state_behind(
    world: World, cli: Cli, core: CorePms
) -> None:
    older, newer = map(str, await updates(world, core, "B-6", 3, 4))
    for words in ((older, newer), ("--type", "pms.booking.update", "--yes")):
        dry = await cli("events", "replay", *words, "--limit", "1", "--dry-run", "--json")
        assert [(row["replayed"], row["events"]) for row in dry.document] == [(False, 1)]
        await cli("events", "replay", *words, "--limit", "1", "--json", code=None)
        assert await replayed(world) == {}
    assert (await cli("events", "replay", newer, "--limit", "1", "--json")).document["replayed"] == [newer]


async def test_whoever_stops_a_replay_leaves_no_lane_at_an_older_state(world: World, cli: Cli, core: CorePms) -> None:
    """A batch is where a cancel, a Ctrl-C or a kill takes effect."""
    older, newer = await updates(world, core, "B-7", 3, 4)
    selection = Selection(("done",), last=10_000, event_type="pms.booking.update")
    task = Replay(selection, adapters(), False, uuid7(), whole=True)
    async with world.db.transaction():
        first = await task.batch(world.db, None, 1, Order("test"))
    assert (first.done, first.left, first.more) == ([older, newer], [], True)
    async with world.db.transaction():
        second = await task.batch(world.db, first.cursor, 1, Order("test"))
    assert (second.done, second.left) == ([], [])
    assert await replayed(world) == {"done": 2}
    assert [booking["numAdult"] for booking in world.sim.account.bookings.values()] == [4]


CALENDAR = "POST /inventory/rooms/calendar"
NIGHTS = "2027-05-01", "2027-05-02", "2027-05-03"


async def push(core: CorePms, night: str, count: int) -> None:
    data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": [{"first": night, "last": night, "available": count}]}
    await core.publish("pms.availability.update", "RT1", COMPANY, data, f"{night}={count}")


async def pushed(world: World, core: CorePms, *said: tuple[str, int]) -> None:
    """One after the other, each by itself."""
    before = await world.db.fetchval(SENT)
    for number, (night, count) in enumerate(said, 1):
        await push(core, night, count)
        await world.until(SENT, equals=before + number)


SENT = "SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done' AND replay_of IS NULL"


def available(world: World) -> list[int]:
    return [world.sim.account.inventory.num_avail(int(ROOM), night) for night in NIGHTS]


def lost(world: World) -> int:
    """The vendor forgets what it was told. returns how many calls that took"""
    world.sim.account.inventory._set.clear()
    return calls(world)


def calls(world: World) -> int:
    return sum(call.operation == CALENDAR for call in world.sim.account.calls)


async def test_all_nights_that_a_filter_names_are_said_again(world: World, cli: Cli, core: CorePms) -> None:
    """In one call, in which the newest word of a night counts."""
    first, second, third = NIGHTS
    await pushed(world, core, (first, 1), (second, 8), (third, 9), (first, 7))
    before = lost(world)
    filter_ = ("events", "replay", "--vendor", "beds24", "--from", "1h")
    assert "4 would be replayed" in (await cli(*filter_, "--dry-run")).err
    assert "replayed 4" in (await cli(*filter_, "--yes")).out
    assert await replayed(world) == {"done": 1, "superseded": 3}
    assert available(world) == [7, 8, 9]
    assert calls(world) == before + 1


async def test_what_went_out_merged_is_replayed_with_what_carried_it(world: World, cli: Cli, core: CorePms) -> None:
    first, second, third = NIGHTS
    world.sim.faults.add(Fault(FaultKind.SLOW, operation=CALENDAR, seconds=1.5))
    await push(core, first, 7)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await push(core, second, 8)
    await push(core, third, 9)
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=3)
    await world.all_settled()
    merged = str(await world.db.fetchval("SELECT id FROM channel_events WHERE status = 'superseded'"))
    lost(world)
    for words in ((merged,), ("--type", "pms.availability.update", "--limit", "2", "--yes")):
        told = await cli("events", "replay", *words, code=None)
        assert "replayed 0" in told.out
        assert "went out since" in told.err
    filter_ = ("events", "replay", "--vendor", "beds24", "--from", "1h")
    job = (await cli(*filter_, "--job", "--yes", "--json")).document
    assert (job["status"], job["total"], job["done"], job["left"]) == ("done", 3, 3, 0)
    assert await replayed(world) == {"done": 1, "superseded": 2}
    assert available(world) == [7, 8, 9]
    assert (await cli("jobs", "show", job["id"], "--json")).document["came_through"] == 3


async def test_availability_is_not_put_back_behind_what_the_filter_leaves_out(
    world: World, cli: Cli, core: CorePms
) -> None:
    first, second, _ = NIGHTS
    await pushed(world, core, (first, 3), (second, 8))
    await world.db.execute("UPDATE channel_events SET received_at = received_at - interval '1 hour'")
    await pushed(world, core, (first, 0))
    earlier = ("events", "replay", "--vendor", "beds24", "--to", "30m")
    assert "0 would be replayed" in (await cli(*earlier, "--dry-run")).err
    told = await cli(*earlier, "--yes")
    assert "left as they are: 2; something newer about the same thing went out since" in told.err
    assert available(world)[0] == 0
    await cli(*earlier, "--again", "--yes")
    assert await replayed(world) == {"done": 1, "superseded": 1}
    assert available(world)[0] == 3


async def test_many_lanes_go_in_several_transactions_and_each_of_them_whole(
    world: World, cli: Cli, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few of their commands a transaction should hold; and they are counted as it is done."""
    monkeypatch.setattr(bulk, "TOGETHER", 1)
    monkeypatch.setattr(command, "PAGE", 2)
    first, second, third = NIGHTS
    await pushed(world, core, (first, 1), (second, 8), (third, 9), (first, 7))
    for booking in ("B-8", "B-9"):
        await create(core, booking)
    for adults in (3, 4):
        for booking in ("B-8", "B-9"):
            data = {"reservationId": booking, "adults": adults}
            await core.publish("pms.booking.update", booking, COMPANY, data, f"{booking}={adults}")
    await world.until(SENT, equals=10)
    for event_type, sizes in (("pms.availability.update", [4]), ("pms.booking.update", [2, 2])):
        wanted = Selection(last=10_000, event_type=event_type)
        task, cursor, more = Replay(wanted, adapters(), False, uuid7(), whole=True), None, True
        done = []
        while more:
            async with world.db.transaction():
                batch = await task.batch(world.db, cursor, 2, Order("test"))
            assert batch.left == []
            done.append(len(batch.done))
            cursor, more = batch.cursor, batch.more
        assert [count for count in done if count] == sizes
    updates = (
        "SELECT id FROM channel_events WHERE parent_id IS NOT NULL AND replay_of IS NULL AND event_type LIKE '%update'"
    )
    ids = [str(row["id"]) for row in await world.db.fetch(updates)]
    for words in (("--from", "1h", "--type", "pms.availability.update", "--yes"), ids):
        dry = (await cli("events", "replay", *words, "--dry-run", "--json")).document
        told = (await cli("events", "replay", *words, "--json")).document
        assert sum(row["events"] for row in dry if row["replayed"]) == len(told["replayed"])
        assert told["left"] == []
    await replayed(world)
    assert available(world) == [7, 8, 9]
    assert {booking["numAdult"] for booking in world.sim.account.bookings.values()} == {4}


async def test_what_was_edited_is_replayed_as_edited(world: World, cli: Cli, core: CorePms) -> None:
    await create(core, "B-4")
    await ended(core, "pms.booking.create")
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings"))
    await core.publish("pms.booking.update", "B-4", COMPANY, {"reservationId": "B-4", "adults": 3}, "u-4")
    await core.wait_for(lambda e: e.type == "core.command.failed")
    letter = str(await world.db.fetchval("SELECT id FROM dead_letters"))
    refused = await world.db.fetchval("SELECT event_id FROM dead_letters")
    told = await cli("events", "replay", str(refused), "--again", code=1)
    assert "is a dead letter: `staybus dlq requeue`" in told.err
    await cli("dlq", "edit", letter, "--set", "adults=4")
    await cli("dlq", "requeue", letter)
    await world.two_seconds_pass()
    await ended(core, "pms.booking.update")
    (booking,) = world.sim.account.bookings.values()
    booking["numAdult"] = 1
    await cli("events", "replay", "--type", "pms.booking.update", "--yes")
    assert await replayed(world) == {"done": 1}
    assert booking["numAdult"] == 4


async def test_a_job_replays_by_its_rate_and_once(world: World, cli: Cli, core: CorePms) -> None:
    history = generate(14, 25, 0)
    for change in history:
        assert (await world.webhook(change.body)).status_code == 202
    await world.all_settled()
    told = await cli(
        *("events", "replay", "--type", "beds24.booking.created", "--company", COMPANY, "--rate", "200"),
        *("--limit", "20", "--job", "--yes", "--json"),
    )
    job = told.document
    assert (job["status"], job["done"], job["left"], job["total"]) == ("done", 20, 0, 20)
    assert sum((await replayed(world)).values()) == 20
    shown = (await cli("jobs", "show", job["id"], "--json")).document
    assert (shown["came_through"], shown["under_way"]) == (20, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "say which"),
        (("--from", "yesterday"), "90m, 24h, 7d"),
        (("--from", "1h", "--status", "failed"), "staybus dlq requeue"),
        (("0192f0c1-7a3e-7c00-8000-000000000001", "--vendor", "beds24"), "not both"),
    ],
)
async def test_words_that_do_not_fit(world: World, cli: Cli, words: tuple[str, ...], says: str) -> None:
    assert says in " ".join((await cli("events", "replay", *words, code=2)).err.split())


async def test_an_unknown_id_replays_nothing(world: World, cli: Cli) -> None:
    told = await cli("events", "replay", "0192f0c1-7a3e-7c00-8000-000000000001", code=1)
    assert "not known; nothing was done" in told.err


async def create(core: CorePms, booking: str) -> None:
    stay = {"propertyId": "P1", "roomTypeId": "RT1", "checkIn": "2027-03-01", "checkOut": "2027-03-04"}
    await core.publish("pms.booking.create", booking, COMPANY, {"reservationId": booking, **stay}, f"create-{booking}")


async def ended(core: CorePms, command: str) -> Any:
    return await core.wait_for(
        lambda e: e.type == "core.command.succeeded" and e.data["command"] == command, timeout=20
    )
