"""Lanes that a failed command holds: found, shown, and released past it or with it again."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import yaml

from simulators.beds24.faults import Fault, FaultKind
from simulators.core_pms import CorePms
from store import dead_letters, relay
from store.connections import add_api_key
from store.ingest import mark_published
from store.relay import Look
from store.settle import FinishRow, finish
from telemetry import metrics
from tests.cli.conftest import Cli
from tests.fleet import COMPANY, CONNECTION, PROPERTY, ROOM, World
from tests.integration.test_jobs import LETTERS, seed

STAY = {"propertyId": "P1", "roomTypeId": "RT1", "checkIn": "2027-03-01", "checkOut": "2027-03-04"}
ROOT = Path(__file__).parents[2]


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


def lane(booking: str) -> str:
    return f"reservation:{booking}@{CONNECTION}"


async def hold(world: World, core: CorePms, booking: str) -> UUID:
    """A create and an update that came through, one that was refused, and two behind it. returns the refused delivery"""
    await core.publish("pms.booking.create", booking, COMPANY, {"reservationId": booking, **STAY}, f"c-{booking}")
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.subject == booking, timeout=20)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /bookings"))
    for adults in (5, 3, 4):
        data = {"reservationId": booking, "adults": adults}
        await core.publish("pms.booking.update", booking, COMPANY, data, f"u-{booking}-{adults}")
    await core.wait_for(lambda e: e.type == "core.command.failed" and e.subject == booking, timeout=20)
    await world.until("SELECT count(*) FROM channel_events WHERE lane = $1", lane(booking), equals=4)
    id_: UUID = await world.db.fetchval(
        "SELECT id FROM channel_events WHERE lane = $1 AND status = 'failed'", lane(booking)
    )
    return id_


async def test_a_held_lane_is_listed_with_what_holds_it_and_what_waits(world: World, cli: Cli, core: CorePms) -> None:
    head = await hold(world, core, "B-1")
    (row,) = (await cli("lanes", "list", "--json")).document
    expected = {
        "lane": lane("B-1"), "company_id": COMPANY, "connection_id": CONNECTION, "vendor": "beds24", "policy": "hold",
        "head_id": str(head), "head_type": "pms.booking.update", "head_status": "failed", "error_class": "rejected", "waiting": 2,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["dead_letter_id"] == str(await world.db.fetchval("SELECT id FROM dead_letters"))
    for words, found in (
        (("--vendor", "beds24", "--company", COMPANY, "--connection", CONNECTION, "--error", "rejected"), 1),
        (("--error", "unmapped"), 0),
        (("--older-than", "1h"), 0),
    ):
        assert len((await cli("lanes", "list", *words, "--json")).document) == found, words
    assert "known: beds24" in (await cli("lanes", "list", "--vendor", "mews", code=2)).err
    shown = (await cli("lanes", "show", lane("B-1"), "--json")).document
    assert [one["status"] for one in shown] == ["failed", "received", "received"]
    assert f"held by {head}" in (await cli("lanes", "show", lane("B-1"))).err


async def test_past_its_abandoned_head_a_lane_goes_on_in_order(world: World, cli: Cli, core: CorePms) -> None:
    head = await hold(world, core, "B-2")
    release = ("lanes", "release", lane("B-2"), "--reason", "5 adults do not fit")
    dry = (await cli(*release, "--dry-run", "--json")).document
    following = await world.db.fetchval(
        "SELECT id FROM channel_events WHERE lane = $1 AND status = 'received' ORDER BY seq", lane("B-2")
    )
    assert [(one["next_id"], one["next"]) for one in dry] == [(str(following), "runs at once")]
    assert "--yes" in (await cli(*release, typed="", code=1)).err
    assert await world.db.fetchval("SELECT status FROM channel_events WHERE id = $1", head) == "failed"
    assert "released 1" in (await cli(*release, "--yes")).out
    await core.wait_for(lambda _: len(core.of("core.command.succeeded", "B-2")) == 3, timeout=20)
    (booking,) = world.sim.account.bookings.values()
    assert booking["numAdult"] == 4
    assert await world.db.fetchval("SELECT status FROM channel_events WHERE id = $1", head) == "abandoned"
    letter = await world.db.fetchrow("SELECT status, notes, resolved_by FROM dead_letters")
    assert tuple(letter)[:2] == ("abandoned", "5 adults do not fit")
    assert letter["resolved_by"].startswith("cli:")
    audited = await world.db.fetchrow(
        "SELECT target, details::text AS details FROM audit_log WHERE action = 'lane.release'"
    )
    assert audited["target"] == lane("B-2")
    assert "5 adults do not fit" in audited["details"]
    assert (await cli("lanes", "list", "--json")).document == []


async def test_what_the_lane_went_past_is_not_sent_again_behind_it(world: World, cli: Cli, core: CorePms) -> None:
    head = await hold(world, core, "B-8")
    letter = str(await world.db.fetchval("SELECT id FROM dead_letters"))
    await world.db.execute(
        "UPDATE channel_events SET status = 'abandoned' WHERE id = $1", head
    )  # and the next one is being sent just now
    await world.db.execute(
        "UPDATE channel_events SET status = 'processing', lease_until = now() + interval '1 minute', worker = 'nobody'"
        " WHERE lane = $1 AND seq = (SELECT min(seq) FROM channel_events WHERE lane = $1 AND status = 'received')",
        lane("B-8"),
    )
    assert "left as" in (await cli("dlq", "requeue", letter, code=1)).err
    await world.db.execute("UPDATE channel_events SET status = 'done' WHERE lane = $1 AND id <> $2", lane("B-8"), head)
    assert "left as" in (await cli("dlq", "requeue", letter, code=1)).err
    assert await world.db.fetchval("SELECT status FROM channel_events WHERE id = $1", head) == "abandoned"


CALENDAR = "POST /inventory/rooms/calendar"


async def push(core: CorePms, key: str, day: int, **says: Any) -> None:
    night = f"2027-05-{day:02d}"
    period = {"first": night, "last": night, "available": says.pop("available")} | says
    data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": [period], "currency": "EUR" if says else None}
    await core.publish("pms.availability.update", "RT1", COMPANY, data, key)


async def sent(world: World, count: int) -> None:
    done = "SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'"
    await world.until(done, equals=count)


def available(world: World, day: int) -> int:
    return int(world.sim.account.inventory.num_avail(int(ROOM), f"2027-05-{day:02d}"))


async def letters(world: World, count: int) -> list[str]:
    """The events of so many dead letters, the first that failed first."""
    await world.until("SELECT count(*) FROM dead_letters", equals=count)
    return [str(row["event_id"]) for row in await world.db.fetch("SELECT event_id FROM dead_letters ORDER BY id")]


async def requeued(world: World, cli: Cli, *ids: str) -> list[str]:
    """Of these, those that went again."""
    done = await cli("dlq", "requeue", *ids, "--json", code=None)
    await world.two_seconds_pass()
    await world.all_settled()
    found: list[str] = done.document["requeued"]
    assert done.code == (0 if set(found) == set(ids) else 1)
    return found


async def test_what_went_out_merged_is_not_undone_by_a_requeue(world: World, cli: Cli, core: CorePms) -> None:
    """The close went out in its own part, because the newest, with which it waited, was refused."""
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "open", 2, available=3)
    (opening,) = await letters(world, 1)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))
    await push(core, "close", 2, available=0)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    later = (
        "UPDATE channel_events SET next_attempt_at = next_attempt_at + interval '1 minute' WHERE status = 'retrying'"
    )
    await world.db.execute(later)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, skip=1))
    await push(core, "newest", 3, available=1)
    await letters(world, 2)
    states = await world.db.fetch("SELECT status FROM channel_events WHERE parent_id IS NOT NULL ORDER BY seq")
    assert [row["status"] for row in states] == ["failed", "superseded", "failed"]
    assert available(world, 2) == 0
    assert await requeued(world, cli, opening) == []
    assert available(world, 2) == 0


async def doubted(world: World, core: CorePms) -> tuple[str, UUID]:
    """An opening that was refused, and a close that was done without an answer and waits for its next attempt."""
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "open", 2, available=3)
    (opening,) = await letters(world, 1)
    world.sim.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT, operation=CALENDAR, close=True))
    await push(core, "close", 2, available=0)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying' AND starts = 1", equals=1)
    closing = await world.db.fetchval(
        "UPDATE channel_events SET next_attempt_at = now() + interval '1 hour' WHERE status = 'retrying' RETURNING id"
    )
    return opening, closing


async def test_behind_what_may_have_been_done_nothing_older_is_requeued(world: World, cli: Cli, core: CorePms) -> None:
    """Said together they are refused, so the older goes first, and the newer is refused by itself: the older would stay."""
    opening, closing = await doubted(world, core)
    assert "0 would be requeued, 1 would be left" in (await cli("dlq", "requeue", opening, "--dry-run")).err
    assert (await cli("dlq", "requeue", opening, "--json", code=1)).document["requeued"] == []
    for skip in (0, 1):
        world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, skip=skip))
    await world.db.execute("UPDATE channel_events SET next_attempt_at = now() WHERE id = $1", closing)
    await world.all_settled()
    assert available(world, 2) == 0


async def test_what_failed_without_a_doubt_is_in_the_way_of_nothing_older(
    world: World, cli: Cli, core: CorePms
) -> None:
    opening, closing = await doubted(world, core)
    world.sim.account.inventory.set_days(int(ROOM), date(2027, 5, 2), date(2027, 5, 2), {"numAvail": 1})
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await world.db.execute("UPDATE channel_events SET next_attempt_at = now() WHERE id = $1", closing)
    await letters(world, 2)
    assert await requeued(world, cli, opening) == [opening]
    assert available(world, 2) == 3


async def test_what_waits_behind_the_failed_head_of_its_lane_is_not_in_its_way(
    world: World, cli: Cli, core: CorePms
) -> None:
    """However it began: it would wait for ever. Once the lane may go past its head, it counts."""
    head = await hold(world, core, "B-7")
    letter = str(await world.db.fetchval("SELECT id FROM dead_letters"))
    begun = "UPDATE channel_events SET starts = 1, next_attempt_at = now() + interval '1 hour' WHERE lane = $1 AND status = 'received'"
    await world.db.execute(begun, lane("B-7"))
    assert "1 would be requeued" in (await cli("dlq", "requeue", letter, "--dry-run")).err
    await world.db.execute("UPDATE channel_events SET status = 'abandoned' WHERE id = $1", head)
    assert "left as" in (await cli("dlq", "requeue", letter, code=1)).err


async def test_a_parked_command_is_not_sent_behind_newer_availability(world: World, cli: Cli, core: CorePms) -> None:
    await cli("mapping", "remove", CONNECTION, "property", PROPERTY)
    await push(core, "a-1", 2, available=3)
    (parked,) = await letters(world, 1)
    await world.map("property", PROPERTY, "P1")
    await push(core, "a-2", 2, available=0)
    await sent(world, 1)
    assert await requeued(world, cli, parked) == []
    assert available(world, 2) == 0


async def test_a_parked_command_is_not_sent_behind_newer_ones_of_its_booking(
    world: World, cli: Cli, core: CorePms
) -> None:
    await core.publish("pms.booking.update", "B-9", COMPANY, {"reservationId": "B-9", "adults": 4}, "u-1")
    (parked,) = await letters(world, 1)
    await core.publish("pms.booking.create", "B-9", COMPANY, {"reservationId": "B-9", **STAY}, "c-1")
    await core.publish("pms.booking.update", "B-9", COMPANY, {"reservationId": "B-9", "adults": 1}, "u-2")
    await sent(world, 2)
    assert await requeued(world, cli, parked) == []
    (booking,) = world.sim.account.bookings.values()
    assert booking["numAdult"] == 1


async def test_a_parked_command_goes_while_nothing_newer_about_the_same_went_out(
    world: World, cli: Cli, core: CorePms
) -> None:
    """One after the other, each routed before the next: the delivery of the older one is recorded after the newer command."""
    await cli("mapping", "remove", CONNECTION, "property", PROPERTY)
    for key, count in (("a-1", 3), ("a-2", 0)):
        await push(core, key, 2, available=count)
    first, second = await letters(world, 2)
    await core.publish("pms.booking.create", "RT1", COMPANY, {"reservationId": "RT1", **STAY}, "another thing")
    await letters(world, 3)
    await world.map("property", PROPERTY, "P1")
    assert await requeued(world, cli, first) == [first]
    assert available(world, 2) == 3
    assert await requeued(world, cli, second) == [second]
    assert available(world, 2) == 0
    assert await requeued(world, cli, (await letters(world, 3))[2])


async def test_a_parked_command_waits_for_what_is_to_become_of_a_newer_one_that_failed(
    world: World, cli: Cli, core: CorePms
) -> None:
    """That could be requeued, too, and would go out first, being in the lane already."""
    await cli("mapping", "remove", CONNECTION, "property", PROPERTY)
    await push(core, "a-1", 2, available=3)
    (parked,) = await letters(world, 1)
    await world.map("property", PROPERTY, "P1")
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "a-2", 2, available=0)
    _, failed = await letters(world, 2)
    assert await requeued(world, cli, parked, failed) == [failed]
    assert available(world, 2) == 0


async def test_a_parked_command_goes_past_an_abandoned_newer_one(world: World, cli: Cli, core: CorePms) -> None:
    await cli("mapping", "remove", CONNECTION, "property", PROPERTY)
    await push(core, "a-1", 2, available=3)
    (parked,) = await letters(world, 1)
    await world.map("property", PROPERTY, "P1")
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "a-2", 2, available=0)
    _, failed = await letters(world, 2)
    await cli("dlq", "abandon", failed, "--reason", "never mind", "--yes")
    assert await requeued(world, cli, parked) == [parked]
    assert available(world, 2) == 3


async def test_what_a_requeue_would_leave_is_known_before(world: World, cli: Cli, core: CorePms) -> None:
    """Dry run, question, job and what is done say one number."""
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=2))
    await push(core, "a", 2, available=3)
    (overtaken,) = await letters(world, 1)
    await push(core, "b", 3, available=3)
    _, other = await letters(world, 2)
    await world.db.execute(  # as of another room
        "UPDATE channel_events SET lane = 'availability:RT2@' || connection_id WHERE id = $1::uuid", other
    )
    await push(core, "c", 4, available=3)
    await sent(world, 1)
    why = "1 would be left: something newer about the same thing went out since, or is to"
    for words in (("--vendor", "beds24"), (overtaken, other)):
        assert f"1 would be requeued, {why}" in (await cli("dlq", "requeue", *words, "--dry-run")).err
    assert f"0 would be requeued, {why}" in (await cli("dlq", "requeue", overtaken, "--dry-run")).err
    asked = (await cli("dlq", "requeue", "--vendor", "beds24", typed="n\n", code=1)).err
    assert f"Requeue 1 dead letter (1 beds24 pms.availability.update; {why}" in asked
    job = (await cli("dlq", "requeue", "--vendor", "beds24", "--job", "--yes", "--json")).document
    assert (job["status"], job["total"], job["done"], job["left"]) == ("done", 1, 1, 1)
    assert f"overtaken by something newer: {overtaken}" in (await cli("dlq", "requeue", overtaken, code=1)).err


async def test_with_its_head_again_a_lane_keeps_all_of_its_order(world: World, cli: Cli, core: CorePms) -> None:
    await hold(world, core, "B-3")
    told = await cli("lanes", "release", "--vendor", "beds24", "--requeue", "--yes", "--json")
    assert [one["lane"] for one in told.document["released"]] == [lane("B-3")]
    await world.two_seconds_pass()
    await core.wait_for(lambda _: len(core.of("core.command.succeeded", "B-3")) == 4, timeout=20)
    bodies = [call.body[0] for call in world.sim.account.calls if call.operation == "POST /bookings" and call.effects]
    assert [body["numAdult"] for body in bodies[-3:]] == [5, 3, 4]


async def test_only_a_held_lane_is_released(world: World, cli: Cli, core: CorePms) -> None:
    await hold(world, core, "B-4")
    for name, says in ((lane("nobody"), "no such lane"), ("availability:RT1@x", "no such lane")):
        told = await cli("lanes", "release", lane("B-4"), name, "--requeue", "--yes", code=1)
        assert says in told.err
        assert "nothing was changed" in told.err
    assert len((await cli("lanes", "list", "--json")).document) == 1
    for words in ((), ("--requeue", "--reason", "x"), ("--requeue",), (lane("B-4"), "--vendor", "beds24", "--requeue")):
        await cli("lanes", "release", *words, code=2)


async def test_a_failed_price_holds_no_lane_and_a_command_on_its_way_is_shown_when_asked(
    world: World, cli: Cli, core: CorePms
) -> None:
    async def push(key: str) -> None:
        periods = [{"first": "2027-05-01", "last": "2027-05-02", "available": 4}]
        data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": periods}
        await core.publish("pms.availability.update", "RT1", COMPANY, data, key)

    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation="POST /inventory/rooms/calendar"))
    await push("a-1")
    await core.wait_for(lambda e: e.type == "core.command.failed")
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /inventory/rooms/calendar", seconds=3))
    await push("a-2")
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing' AND lane IS NOT NULL", equals=1)
    assert (await cli("lanes", "list", "--json")).document == []
    (row,) = (await cli("lanes", "list", "--all", "--json")).document
    assert (row["policy"], row["head_status"], row["waiting"]) == ("supersede", "processing", 1)


async def test_a_mark_that_comes_late_does_not_cover_the_wake_up(database_url: str) -> None:
    """What waits behind an abandoned head was published before; the mark of that publish may be written after the wake-up."""
    db: Any = await asyncpg.connect(database_url)
    await seed(db)
    await db.execute(LETTERS, 1, "f")
    waiting = await db.fetchval(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
               lane, lane_policy)
           SELECT gen_random_uuid(), company_id, connection_id, gen_random_uuid(), direction, event_type, 'next', '{}', lane, 'hold'
           FROM channel_events RETURNING id"""
    )
    letter = await db.fetchval("SELECT id FROM dead_letters")
    async with db.transaction():
        assert await dead_letters.abandon(db, [letter], "test", "no")
    await mark_published(db, [waiting])
    async with db.transaction():
        assert [row.id for row in await relay.take(db, Look("due", 0.0), 10)] == [waiting]
    await db.close()


async def test_an_abandoned_event_is_not_done_by_whoever_had_it(world: World, core: CorePms) -> None:
    """Requeued and given up again before a worker came to it."""
    head = await hold(world, core, "B-5")
    await world.stop_all()
    await dead_letters.requeue(world.db, [head], "test")
    letter = await world.db.fetchval("SELECT id FROM dead_letters")
    assert [row["id"] for row in await dead_letters.abandon(world.db, [letter], "test", "no")] == [letter]
    await world.start("outbound", "scheduler")
    await core.wait_for(lambda _: len(core.of("core.command.succeeded", "B-5")) == 3, timeout=20)
    assert await world.db.fetchval("SELECT status FROM channel_events WHERE id = $1", head) == "abandoned"
    assert [b["numAdult"] for b in world.sim.account.bookings.values()] == [4]


async def test_what_is_being_sent_is_not_abandoned(database_url: str) -> None:
    db: Any = await asyncpg.connect(database_url)
    await seed(db)
    await db.execute(LETTERS, 1, "f")
    await db.execute("UPDATE channel_events SET status = 'processing'")
    await db.execute("UPDATE dead_letters SET status = 'retrying'")
    letter = await db.fetchval("SELECT id FROM dead_letters")
    assert await dead_letters.abandon(db, [letter], "test", "no") == []
    assert await db.fetchval("SELECT status FROM dead_letters") == "retrying"
    await db.close()


async def test_what_is_being_settled_is_not_waited_for_by_who_abandons(database_url: str) -> None:
    """Whoever settles it ends what is older in its lane, too, which is locked by then: the two would wait for each other."""
    db: Any = await asyncpg.connect(database_url)
    settles: Any = await asyncpg.connect(database_url)
    await seed(db)
    await db.execute(LETTERS, 2, "f")
    await db.execute(
        "UPDATE channel_events SET lane = 'room_type:RT1@beds24-acme', lane_policy = 'supersede', status = 'received'"
    )
    older, newest = [row["id"] for row in await db.fetch("SELECT id FROM channel_events ORDER BY seq")]
    await db.execute("UPDATE channel_events SET status = 'processing' WHERE id = $1", newest)
    letters = [row["id"] for row in await db.fetch("SELECT id FROM dead_letters")]
    async with settles.transaction():
        await settles.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", newest)
        async with db.transaction():
            await db.execute("SET LOCAL lock_timeout = '2s'")
            assert await dead_letters.abandon(db, letters, "test", "no") == []
        await settles.execute("UPDATE channel_events SET status = 'superseded' WHERE id = $1", older)
    assert await db.fetch("SELECT DISTINCT status FROM dead_letters") == [("pending",)]
    await settles.close()
    await db.close()


async def test_rows_are_ended_in_the_order_in_which_all_lock_them(database_url: str) -> None:
    """Whoever has the first of them does not wait for one who has the second."""
    db: Any = await asyncpg.connect(database_url)
    settles: Any = await asyncpg.connect(database_url)
    await seed(db)
    await db.execute(LETTERS, 2, "f")
    await db.execute("UPDATE channel_events SET status = 'received'")
    first, second = [row["id"] for row in await db.fetch("SELECT id FROM channel_events ORDER BY id")]
    rows = [
        FinishRow(id_, "failed", 1, 0, None, "rejected", "no", None, False, "park", datetime.now(UTC))
        for id_ in (second, first)
    ]
    async with db.transaction():
        await db.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", first)
        ending = asyncio.create_task(finish(settles, rows))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1"
        while not await db.fetchval(waits, settles.get_server_pid()):
            await asyncio.sleep(0.02)
        await db.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE NOWAIT", second)
    assert await ending == 2
    await settles.close()
    await db.close()


async def test_what_has_no_event_any_more_is_abandoned(database_url: str) -> None:
    db: Any = await asyncpg.connect(database_url)
    await seed(db)
    await db.execute(LETTERS, 1, "f")
    await db.execute("DELETE FROM channel_events")
    letter = await db.fetchval("SELECT id FROM dead_letters")
    assert [row["id"] for row in await dead_letters.abandon(db, [letter], "test", "no")] == [letter]
    await db.close()


async def test_over_http_a_letter_is_abandoned_with_a_reason(world: World) -> None:
    await seed(world.db)
    await world.db.execute(LETTERS.replace("beds24-acme", CONNECTION), 3, "f")
    await world.start("ingress")
    key = await add_api_key(world.db, COMPANY, "test", ["admin"])
    headers = {"authorization": f"Bearer {key}"}
    listed = await world.http.get(world.url("ingress", "/admin/dead-letters?owner=tenant"), headers=headers)
    one, other, third = (letter["id"] for letter in listed.json()["dead_letters"])
    pipeline = await world.http.get(world.url("ingress", "/admin/dead-letters?owner=pipeline"), headers=headers)
    assert pipeline.json()["dead_letters"] == []
    odd = await world.http.get(world.url("ingress", "/admin/dead-letters?error=foo"), headers=headers)
    assert (odd.status_code, odd.json()["field"]) == (400, "error")

    async def abandon(id_: str, reason: str = "booked by phone") -> int:
        url = world.url("ingress", f"/admin/dead-letters/{id_}/abandon")
        return (await world.http.post(url, headers=headers, json={"reason": reason})).status_code

    await world.db.execute(
        "UPDATE channel_events SET status = 'processing' WHERE id = (SELECT event_id FROM dead_letters WHERE id = $1)",
        other,
    )
    assert [await abandon(one, " "), await abandon(one), await abandon(one), await abandon(other)] == [
        400,
        200,
        404,
        409,
    ]
    letter = await world.db.fetchrow("SELECT status, notes, resolved_by FROM dead_letters WHERE id = $1", one)
    assert tuple(letter)[:2] == ("abandoned", "booked by phone")
    assert letter["resolved_by"].startswith("key:")
    event = await world.db.fetchval("SELECT event_id FROM dead_letters WHERE id = $1", third)
    assert await abandon(str(event)) == 200
    audited = await world.db.fetch("SELECT target FROM audit_log WHERE action = 'dead_letter.abandon' ORDER BY id")
    assert [row["target"] for row in audited] == [one, third]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"reason": "a\\u0000b"}', 400, "reason-missing"),
        (b"no", 400, "reason-missing"),
        (b"x" * 100_000, 413, "body-too-large"),
        (b'{"reason": "' + b"\\ud83d\\ude00" * 500 + b'"}', 404, "no-open-dead-letter"),
    ],
)
async def test_over_http_a_reason_is_a_short_text(world: World, body: bytes, status: int, code: str) -> None:
    await world.start("ingress")
    key = await add_api_key(world.db, COMPANY, "test", ["admin"])
    url = world.url("ingress", f"/admin/dead-letters/{UUID(int=1)}/abandon")
    answer = await world.http.post(url, content=body, headers={"authorization": f"Bearer {key}"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_alert_rules_name_metrics_that_there_are() -> None:
    document = yaml.safe_load((ROOT / "ops/prometheus/alerts.yml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    assert {"StaybusLaneStuck", "StaybusLaneStuckLong"} <= {rule["alert"] for rule in rules}
    exposed = {one._name for one in vars(metrics).values() if hasattr(one, "_name")}
    for rule in rules:
        assert set(re.findall(r"staybus_\w+", rule["expr"])) <= exposed
        assert {"summary", "description"} <= rule["annotations"].keys()
    assert "alerts.yml" in yaml.safe_load((ROOT / "ops/prometheus/prometheus.yml").read_text())["rule_files"]
