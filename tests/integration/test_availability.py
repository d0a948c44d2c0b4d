"""Availability that waits in a room's lane: what goes out with the newest, in which calls, and how each of them ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import orjson
import pytest

from adapters.beds24 import client
from adapters.transport import NOT_SENT
from schemas.commands import AvailabilityUpdate, Merging
from schemas.ids import uuid7
from simulators.beds24.access import WINDOW
from simulators.beds24.faults import Fault, FaultKind
from simulators.core_pms import CorePms
from store import connections, dead_letters, outbound
from tests.fleet import COMPANY, CONNECTION, ROOM, World
from workers import delivery, lane, say

CALENDAR = "POST /inventory/rooms/calendar"
LOOK_UP = "GET /inventory/rooms/calendar"
LANE = f"availability:RT1@{CONNECTION}"
STAY = {
    "reservationId": "B-1",
    "propertyId": "P1",
    "roomTypeId": "RT1",
    "checkIn": "2027-03-01",
    "checkOut": "2027-03-02",
}


async def push(core: CorePms, key: str, day: int, currency: str | None = None, at: str = "P1", **says: int) -> None:
    night = f"2027-05-{day:02d}"
    data = {"propertyId": at, "roomTypeId": "RT1", "periods": [{"first": night, "last": night, **says}]}
    await core.publish("pms.availability.update", "RT1", COMPANY, {**data, "currency": currency}, key)


async def begun(world: World) -> None:
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)


async def arrived(world: World, deliveries: int) -> None:
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=deliveries)


async def retrying(world: World) -> None:
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)


async def wait_behind_a_first(world: World, core: CorePms, seconds: float = 1.5) -> None:
    """What is pushed next waits while another one is under way."""
    world.sim.faults.add(Fault(FaultKind.SLOW, operation=CALENDAR, seconds=seconds))
    await push(core, "first", 1, available=4)
    await begun(world)


async def a_new_window(world: World) -> None:
    await world.until(
        "SELECT count(*) FROM rate_budgets WHERE remaining < 1", equals=1
    )  # noted behind the delivery's end
    budget = world.sim.account.credits
    if budget.opened is not None:
        budget.opened -= WINDOW
    await world.db.execute("UPDATE rate_budgets SET resets_at = clock_timestamp()")
    await world.db.execute("UPDATE channel_events SET next_attempt_at = clock_timestamp() WHERE status = 'retrying'")


def calls(world: World) -> list[Any]:
    return [call for call in world.sim.account.calls if call.operation == CALENDAR]


def told(world: World) -> list[list[tuple[str, Any]]]:
    return [
        [(entry["from"][-2:], entry.get("numAvail")) for entry in call.body[0]["calendar"]] for call in calls(world)
    ]


def available(world: World, day: int) -> int:
    return world.sim.account.inventory.num_avail(int(ROOM), f"2027-05-{day:02d}")


async def ends(world: World) -> list[str]:
    rows = await world.db.fetch("SELECT status FROM channel_events WHERE parent_id IS NOT NULL ORDER BY seq")
    return [row["status"] for row in rows]


async def ids(world: World) -> list[UUID]:
    rows = await world.db.fetch("SELECT id FROM channel_events WHERE parent_id IS NOT NULL ORDER BY seq")
    return [row["id"] for row in rows]


async def requeue(world: World, id_: UUID) -> None:
    async with world.db.transaction():
        assert await dead_letters.requeue(world.db, [id_], "test")


async def heard(core: CorePms, type_: str, id_: UUID) -> None:
    await core.wait_for(lambda e: e.type == type_ and e.data["deliveryId"] == str(id_))


# ------------------------------------------------------------------ refused, or unreadable, by itself


async def test_an_older_one_that_is_refused_does_not_go_out_behind_the_newer(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=2))  # the two together, and the older
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.all_settled()
    assert await ends(world) == ["done", "failed", "done"]
    assert available(world, 2) == 0
    _, refused, newest = await ids(world)
    letter = await world.db.fetchrow("SELECT event_id, error_class, owner, status FROM dead_letters")
    assert tuple(letter) == (refused, "rejected", "tenant", "pending")
    await heard(core, "core.command.failed", refused)
    await heard(core, "core.command.succeeded", newest)


async def test_an_older_one_at_another_property_id_is_told_with_that_id(world: World, core: CorePms) -> None:
    """Its references are its own: neither is it unmapped for the newest's, nor told under the newest's."""
    await world.map("property", "99", "P-OLD")
    await wait_behind_a_first(world, core)
    await push(core, "a-2", 2, at="P-OLD", available=3)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.all_settled()
    assert await ends(world) == ["done", "superseded", "done"]
    assert told(world)[1:] == [[("02", 3)], [("02", 0)]]


async def test_an_older_one_that_is_not_mapped_is_parked_with_its_own_reason(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    await world.map("property", "99", "P-OLD")
    await push(core, "a-2", 2, at="P-OLD", available=3)
    await push(core, "a-3", 3, available=2)
    await push(core, "a-4", 2, available=0)
    await arrived(world, 4)
    await world.db.execute("DELETE FROM int_mappings WHERE internal_entity_id = 'P-OLD'")
    await world.all_settled()
    assert await ends(world) == ["done", "failed", "superseded", "done"]
    assert available(world, 2) == 0
    assert "property: P-OLD has no id" in await world.db.fetchval("SELECT error_message FROM dead_letters")


async def test_an_older_price_that_no_currency_is_known_for_is_parked_with_its_own_reason(
    world: World, core: CorePms
) -> None:
    await connections.unset_config(world.db, CONNECTION, ["currency"])
    await wait_behind_a_first(world, core)
    await push(core, "a-2", 2, available=3, price=100)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.all_settled()
    assert await ends(world) == ["done", "failed", "done"]
    assert available(world, 2) == 0
    assert "no currency is known" in await world.db.fetchval("SELECT error_message FROM dead_letters")


async def test_a_refusal_whose_commit_was_not_answered_is_told_once(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def twice(act: Callable[[], Awaitable[Any]]) -> Any:
        await act()
        return await act()

    monkeypatch.setattr(lane, "outlast", twice)
    await wait_behind_a_first(world, core)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=2))
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.all_settled()
    assert await ends(world) == ["done", "failed", "done"]
    assert await world.db.fetchval("SELECT count(*) FROM core_events") == 3
    assert await world.db.fetchval("SELECT attempts FROM dead_letters") == 1


async def test_an_older_one_that_cannot_be_read_is_parked_with_its_own_reason(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.db.execute("UPDATE channel_events SET payload = '{}' WHERE id = $1", (await ids(world))[1])
    await world.all_settled()
    assert await ends(world) == ["done", "failed", "done"]
    assert "propertyId" in await world.db.fetchval("SELECT error_message FROM dead_letters")


async def test_many_that_are_refused_cost_two_calls_each_and_no_more(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core, seconds=4)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=None))
    for n in range(12):
        await push(core, f"a-{n}", 2 + n, available=1)
    await arrived(world, 13)
    await world.all_settled()
    assert await ends(world) == ["done", *["failed"] * 12]
    assert len(calls(world)) == 1 + 2 * 12 - 1


async def test_more_that_are_refused_than_a_window_has_calls_come_to_an_end(world: World, core: CorePms) -> None:
    """What was found out before the vendor's limit is not found out once more in the next window."""
    await wait_behind_a_first(world, core, seconds=6)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=None))
    for n in range(60):
        await push(core, f"a-{n}", 1 + n % 30, available=n)
    await arrived(world, 61)
    await retrying(world)
    failed = (await ends(world)).count("failed")
    assert failed > 30
    await a_new_window(world)
    await world.all_settled()
    assert Counter(await ends(world)) == {"done": 1, "failed": 60}


# ------------------------------------------------------------------ in parts


async def test_a_part_that_was_said_is_not_said_again_behind_the_next(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker slept through its lease when it had said all of the parts, and not settled the last."""
    await wait_behind_a_first(world, core)
    await push(core, "a", 2, "EUR", available=3, price=100)
    await push(core, "b", 2, available=0, price=200)  # without a currency: no one command says both
    await arrived(world, 3)
    succeed, asleep, awake = outbound.succeed, asyncio.Event(), asyncio.Event()

    async def sleeps(*given: Any) -> Any:
        if len(calls(world)) == 3 and not asleep.is_set():
            asleep.set()
            await awake.wait()
        return await succeed(*given)

    monkeypatch.setattr(outbound, "succeed", sleeps)
    await asyncio.wait_for(asleep.wait(), 20)
    assert await ends(world) == ["done", "superseded", "processing"]
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR, skip=1))
    await world.db.execute("UPDATE channel_events SET lease_until = now() - interval '1 s' WHERE status = 'processing'")
    await world.all_settled(20)
    awake.set()
    assert await ends(world) == ["done", "superseded", "done"]
    assert [nights for nights in told(world)[1:] if ("02", 3) in nights] == [[("02", 3)]]


async def test_each_part_is_in_the_log_of_what_it_said_under_a_key_of_its_own(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 3, "USD", available=3, price=100)  # is refused, and whatever it is merged with
    await push(core, "a-4", 4, available=2)
    await push(core, "a-5", 5, available=1)
    await arrived(world, 5)
    await world.all_settled()
    assert await ends(world) == ["done", "superseded", "failed", "superseded", "done"]
    _, a2, a3, a4, a5 = await ids(world)
    log = {
        row["event_id"]: (row["request"], row["error"])
        for row in await world.db.fetch("SELECT event_id, request::text AS request, error FROM sync_log")
    }
    said = {id_: [p["first"][-2:] for p in orjson.loads(log[id_][0])["periods"]] for id_ in (a2, a3, a5)}
    assert said == {a2: ["02"], a3: ["03"], a5: ["04", "05"]}
    assert (log[a2][1], log[a4]) == (f"sent ahead of the newer {a5}", (None, f"sent with the newer {a5}"))
    bodies = {call.idempotency_key: call.body for call in calls(world)}
    assert len(bodies) == len(calls(world))
    own = {row["idempotency_key"] for row in await world.db.fetch("SELECT idempotency_key FROM channel_events")}
    assert [key.partition("/")[0] in own for key in bodies] == [True] * len(bodies)


async def test_a_body_that_is_said_again_has_the_same_key(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 3, available=2)
    await arrived(world, 3)
    await world.all_settled()
    _, failed, again = calls(world)
    assert (failed.body, failed.idempotency_key) == (again.body, again.idempotency_key)


async def test_a_database_that_is_away_between_two_parts_counts_no_attempt(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "CALL", lane.LAST + 5)
    monkeypatch.setattr(lane, "ENOUGH", 1.0)
    await wait_behind_a_first(world, core)
    await push(core, "a", 2, "EUR", available=3, price=100)
    await push(core, "b", 2, available=0, price=200)
    await arrived(world, 3)
    outlast, away = lane.outlast, asyncio.Event()

    async def hangs(act: Callable[[], Awaitable[Any]]) -> Any:
        if len(calls(world)) == 2 and not away.is_set():
            away.set()
            await asyncio.Event().wait()
        return await outlast(act)

    monkeypatch.setattr(lane, "outlast", hangs)
    await world.all_settled(30)
    assert away.is_set()
    assert await ends(world) == ["done", "superseded", "done"]
    assert told(world)[1:] == [[("02", 3)], [("02", 0)]]  # what was said is found there
    assert await world.db.fetchval("SELECT max(attempts) FROM channel_events WHERE parent_id IS NOT NULL") == 1
    assert not await world.db.fetchval("SELECT count(*) FROM call_circuits")


async def test_who_lost_the_lease_between_two_parts_says_no_more(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wait_behind_a_first(world, core)
    await push(core, "a", 2, "EUR", available=3, price=100)
    await push(core, "b", 2, available=0, price=200)
    await arrived(world, 3)
    lock_leased, held, over = outbound.lock_leased, [], asyncio.Event()

    async def too_late(connection: Any, rows: Any) -> Any:
        if not held:
            await world.db.execute("UPDATE channel_events SET lease_token = $1 WHERE id = $2", uuid7(), rows[0][0])
        held.append(await lock_leased(connection, rows))
        if len(held) == 2:
            over.set()
        return held[-1]

    monkeypatch.setattr(outbound, "lock_leased", too_late)
    await asyncio.wait_for(over.wait(), 20)
    assert held == [set(), set()]  # of the part, and when the attempt was to be settled
    assert await ends(world) == ["done", "received", "processing"]
    assert told(world)[1:] == [[("02", 3)]]


# ------------------------------------------------------------------ what nobody knows


async def test_nothing_older_goes_out_behind_one_that_failed_and_may_have_been_done(
    world: World, core: CorePms
) -> None:
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))  # the opening: tried again later
    await push(core, "a-1", 2, available=3)
    await retrying(world)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR, commit=True))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=LOOK_UP, count=2))
    await push(core, "a-2", 2, available=0)
    await arrived(world, 2)
    await world.all_settled()
    assert await ends(world) == ["failed", "failed"]
    assert available(world, 2) == 0
    older, newest = await ids(world)
    letters = {
        row["event_id"]: row["error_message"]
        for row in await world.db.fetch("SELECT event_id, error_message FROM dead_letters WHERE status = 'pending'")
    }
    assert letters.keys() == {older, newest}
    assert str(newest) in letters[older]
    await heard(core, "core.command.failed", older)


async def test_nothing_older_goes_out_behind_one_that_was_looked_up_in_vain_and_not_sent_again(
    world: World, core: CorePms
) -> None:
    """Its first call may be under way still, and what was not sent says nothing of it."""
    await wait_behind_a_first(world, core)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))
    world.sim.faults.add(Fault(FaultKind.EXPIRED_TOKEN, operation=CALENDAR))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="GET /authentication/token", count=None))
    await push(core, "a-2", 2, available=3)
    await push(core, "a-3", 2, available=0)
    await arrived(world, 3)
    await world.until("SELECT count(*) FROM dead_letters", equals=2)
    _, older, newest = await ids(world)
    letters = "SELECT event_id, error_code, error_message FROM dead_letters ORDER BY id"
    with_it, itself = await world.db.fetch(letters)
    assert [(row["event_id"], row["error_code"]) for row in (with_it, itself)] == [
        (older, NOT_SENT),
        (newest, NOT_SENT),
    ]
    assert f"it waited with the newer {newest}" in with_it["error_message"]


async def test_what_failed_with_the_newest_goes_again_before_it_and_is_split_as_ever(
    world: World, core: CorePms
) -> None:
    await many_wait(world, 7, 1)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=LOOK_UP, count=2))
    await push(core, "newest", 2, available=0)
    await world.until("SELECT count(*) FROM dead_letters", equals=8)
    letters = "SELECT e.id FROM dead_letters d JOIN channel_events e ON e.id = d.event_id ORDER BY d.id"
    assert [row["id"] for row in await world.db.fetch(letters)] == await ids(world)
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR, count=4))  # all eight, four, two, the oldest
    async with world.db.transaction():
        assert len(await dead_letters.requeue(world.db, await ids(world), "test")) == 8
    await world.all_settled(20)
    assert await ends(world) == ["failed", *["superseded"] * 6, "done"]


async def test_what_was_not_said_keeps_nothing_older_from_its_turn(world: World, core: CorePms) -> None:
    """The newest fails with the part ahead of it, and nobody wonders whether it was done itself."""
    await wait_behind_a_first(world, core)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=CALENDAR))
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=LOOK_UP, count=2))
    await push(core, "a", 2, "EUR", available=3, price=100)
    await push(core, "b", 2, available=0, price=200)
    await arrived(world, 3)
    await world.all_settled()
    assert await ends(world) == ["done", "done", "failed"]
    assert available(world, 2) == 3


# ------------------------------------------------------------------ many


async def many_wait(world: World, count: int, nights: int) -> None:
    """As gather in a lane while its connection is paused."""
    first = date(2027, 1, 1)
    days = [(first + timedelta(days=n)).isoformat() for n in range(nights)]
    periods = [{"first": day, "last": day, "available": n % 5, "price": 10_000 + n} for n, day in enumerate(days)]
    data = {"propertyId": "P1", "roomTypeId": "RT1", "currency": "EUR", "periods": periods}
    await world.db.execute(
        "INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,"
        " entity_internal_id, idempotency_key, payload, lane, lane_policy, max_attempts, published_at)"
        " SELECT gen_random_uuid(), $1, $2, $3, 'outbound', 'pms.availability.update', 'availability', 'RT1', 'x-' || g,"
        " $4::json, $5, 'supersede', 3, now() FROM generate_series(1, $6) g",
        COMPANY, CONNECTION, uuid7(), orjson.dumps(data).decode(), LANE, count,
    )  # fmt: skip


async def test_many_that_wait_go_out_page_by_page_and_stop_nobody_meanwhile(world: World, core: CorePms) -> None:
    await many_wait(world, 5 * say.PAGE + 1, 365)
    await push(core, "newest", 1, available=1)
    await begun(world)
    # While they are read, merged and said, a booking of the same account is made.
    await core.publish("pms.booking.create", "B-1", COMPANY, STAY, "c-1")
    await world.all_settled(60)
    assert Counter(await ends(world)) == {"superseded": 5 * say.PAGE + 1, "done": 2}
    assert len(calls(world)) == 6
    assert calls(world)[-1].body[0]["calendar"][-1]["from"] == "2027-12-31"  # the newest, and what waited last
    operations = [call.operation for call in world.sim.account.calls]
    assert "POST /bookings" in operations[: operations.index(CALENDAR) + 6]
    assert not await world.db.fetchval("SELECT count(*) FROM dead_letters")


async def test_what_was_said_of_many_is_not_said_again_after_a_refusal_for_the_rate_limit(
    world: World, core: CorePms
) -> None:
    await many_wait(world, 2 * say.PAGE + 1, 2)
    world.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation=CALENDAR, skip=1))
    await push(core, "newest", 1, available=1)
    await retrying(world)
    assert Counter(await ends(world))["superseded"] == say.PAGE
    await a_new_window(world)
    await world.all_settled(20)
    assert Counter(await ends(world)) == {"superseded": 2 * say.PAGE + 1, "done": 1}
    # The first page, the refusal, and the rest: the second page says what the first did, and is found done.
    assert len(calls(world)) == 3


# ------------------------------------------------------------------ what others hear


async def test_each_command_that_went_out_with_a_newer_one_is_told(world: World, core: CorePms) -> None:
    await wait_behind_a_first(world, core)
    await push(core, "a-2", 2, "EUR", available=3, price=100)
    await push(core, "a-3", 3, "EUR", available=3, price=100)
    await push(core, "a-4", 4, available=0, price=200)
    await arrived(world, 4)
    await world.all_settled()
    assert await ends(world) == ["done", "superseded", "superseded", "done"]
    for id_ in await ids(world):
        await heard(core, "core.command.succeeded", id_)
    assert await world.db.fetchval("SELECT count(*) FROM core_events") == 4
    await world.until("SELECT count(*) FROM core_batches", equals=0)


async def test_a_requeued_command_that_went_out_with_a_newer_one_is_told(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "a", 2, available=3)
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    world.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation=CALENDAR, seconds=2))  # surely not done
    await push(core, "b", 3, available=0)
    await retrying(world)
    failed = (await ids(world))[0]
    await requeue(world, failed)
    await world.all_settled()
    await heard(core, "core.command.succeeded", failed)
    assert await ends(world) == ["superseded", "done"]
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"


async def test_what_is_being_said_with_a_newer_one_is_not_abandoned(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=CALENDAR))
    await push(core, "a", 2, available=3)
    await world.until("SELECT count(*) FROM dead_letters", equals=1)
    letter = await world.db.fetchval("SELECT id FROM dead_letters")
    world.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation=CALENDAR, seconds=2))  # surely not done
    await push(core, "b", 3, available=0)
    await retrying(world)
    world.sim.faults.add(Fault(FaultKind.SLOW, operation=CALENDAR, seconds=2))
    failed = (await ids(world))[0]
    await requeue(world, failed)
    await begun(world)
    async with world.db.transaction():
        assert await dead_letters.abandon(world.db, [letter], "test", "no") == []
    await world.all_settled()
    await heard(core, "core.command.succeeded", failed)
    assert await ends(world) == ["superseded", "done"]
    assert await world.db.fetchval("SELECT status FROM dead_letters") == "resolved"


# ------------------------------------------------------------------ as a whole


async def test_an_outbox_row_becomes_an_availability_update(world: World, core: CorePms) -> None:
    data = {
        "propertyId": "P1",
        "roomTypeId": "RT1",
        "periods": [{"first": "2027-05-01", "last": "2027-05-03", "available": 2, "price": 12000, "minStay": 2}],
        "currency": "EUR",
    }
    await world.db.execute(
        "INSERT INTO outbox (company_id, event_type, payload, idempotency_key) VALUES ($1, $2, $3::jsonb, 'o-1')",
        COMPANY,
        "pms.availability.update",
        orjson.dumps(data).decode(),
    )
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    (call,) = [call for call in world.sim.account.calls if call.operation == "POST /inventory/rooms/calendar"]
    assert call.body[0]["calendar"][0]["numAvail"] == 2
    row = await world.db.fetchrow("SELECT event_id, error FROM outbox")
    assert row["event_id"] is not None
    assert row["error"] is None


async def test_newer_availability_does_not_wait_for_the_next_attempt_of_an_older_one(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was announced, and turned away, while the older one was being sent."""
    called, answered = asyncio.Event(), asyncio.Event()
    call = client._call

    async def held(*args: Any, **given: Any) -> Any:
        called.set()
        await answered.wait()
        return await call(*args, **given)

    monkeypatch.setattr(client, "_call", held)
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="POST /inventory/rooms/calendar"))

    async def push(key: str, available: int) -> UUID:
        periods = [{"first": "2027-05-01", "last": "2027-05-02", "available": available}]
        data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": periods}
        await core.publish("pms.availability.update", "RT1", COMPANY, data, key)
        child = (
            "SELECT d.id FROM channel_events d JOIN channel_events c ON c.id = d.parent_id WHERE c.idempotency_key = $1"
        )
        await world.until(f"SELECT EXISTS ({child})", key)
        id_: UUID = await world.db.fetchval(child, key)
        return id_

    await push("a-1", 4)
    await called.wait()
    newer = await push("a-2", 3)
    # Announced, and so turned away within moments: the mark of the announcement is written half a second after it.
    await world.until("SELECT published_at IS NOT NULL FROM channel_events WHERE id = $1", newer)
    answered.set()
    await world.until("SELECT status = 'done' FROM channel_events WHERE id = $1", newer)


async def test_older_availability_that_cannot_be_merged_fails_nobodys_claim(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merging(_oldest: AvailabilityUpdate) -> Merging:
        raise OverflowError("date value out of range")

    monkeypatch.setattr(AvailabilityUpdate, "merging", merging)
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /inventory/rooms/calendar", seconds=1))
    for n in range(3):
        periods = [{"first": "2027-05-01", "last": "2027-05-01", "available": n}]
        data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": periods}
        await core.publish("pms.availability.update", "RT1", COMPANY, data, f"a-{n}")
        await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=n + 1)
    await core.publish("pms.booking.create", "B-1", COMPANY, STAY, "create-B-1")
    await world.all_settled(20)
    assert {row["status"] for row in await world.db.fetch("SELECT status FROM channel_events")} == {
        "done",
        "superseded",
    }
    told = [call.body[0]["calendar"][0]["numAvail"] for call in world.sim.account.calls if "calendar" in call.operation]
    assert told == [0, 1, 2]


async def test_newer_availability_takes_what_waits_along_in_one_call(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /inventory/rooms/calendar", seconds=1.5))

    async def push(first: str, last: str, key: str, **says: int) -> None:
        data = {"propertyId": "P1", "roomTypeId": "RT1", "periods": [{"first": first, "last": last, **says}]}
        await core.publish("pms.availability.update", "RT1", COMPANY, data, key)

    await push("2027-05-01", "2027-05-10", "a-1", available=4)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await push("2027-05-01", "2027-05-03", "a-2", available=3)
    await push("2027-05-02", "2027-05-04", "a-3", available=2, minStay=2)
    await push("2027-05-03", "2027-05-03", "a-4", available=1)
    await world.all_settled()
    statuses = await world.db.fetch("SELECT status FROM channel_events WHERE parent_id IS NOT NULL ORDER BY seq")
    assert [row["status"] for row in statuses] == ["done", "superseded", "superseded", "done"]
    calls = [call for call in world.sim.account.calls if call.operation == "POST /inventory/rooms/calendar"]
    assert len(calls) == 2
    told = {
        entry["from"]: (entry["to"], entry.get("numAvail"), entry.get("minStay"))
        for entry in calls[1].body[0]["calendar"]
    }
    assert told == {
        "2027-05-01": ("2027-05-01", 3, None),
        "2027-05-02": ("2027-05-02", 2, 2),
        "2027-05-03": ("2027-05-03", 1, 2),
        "2027-05-04": ("2027-05-04", 2, 2),
    }


def nights_told(world: World) -> list[list[tuple[str, Any, Any]]]:
    return [
        [(entry["from"][-2:], entry.get("numAvail"), entry.get("price1")) for entry in call.body[0]["calendar"]]
        for call in world.sim.account.calls
        if call.operation == "POST /inventory/rooms/calendar"
    ]


async def test_a_room_that_is_mapped_anew_is_told_under_its_new_id(world: World, core: CorePms) -> None:
    await push(core, "a-1", 1, available=1)
    await core.wait_for(lambda e: e.type == "core.command.succeeded")
    other = next(str(room) for room in world.sim.account.inventory.quantity if str(room) != ROOM)
    assert await connections.remove_mapping(world.db, CONNECTION, "room_type", ROOM)
    await world.map("room_type", other, "RT1")
    await push(core, "a-2", 2, available=1)
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    calls = [call for call in world.sim.account.calls if call.operation == "POST /inventory/rooms/calendar"]
    assert [str(call.body[0]["roomId"]) for call in calls] == [ROOM, other]
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_a_price_that_is_tried_again_does_not_reopen_a_room_that_was_closed(world: World, core: CorePms) -> None:
    """Whether a command names a currency or not: one room, one lane."""
    world.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation="POST /inventory/rooms/calendar"))
    await push(core, "a-1", 1, "EUR", available=2, price=12000)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    await push(core, "a-2", 1, available=0)
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=2)
    await world.all_settled()
    assert nights_told(world)[1:] == [[("01", 0, 120.0)]]


async def test_prices_in_two_currencies_go_out_one_after_the_other(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /inventory/rooms/calendar", seconds=1.5))
    await push(core, "a-1", 1, available=4)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await push(core, "a-2", 1, "EUR", available=3, price=12000)
    await push(core, "a-3", 2, price=13000)  # in the connection's own currency, which is EUR, too
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=3)
    await world.all_settled()
    assert nights_told(world)[1:] == [[("01", 3, 120.0)], [("02", None, 130.0)]]


async def test_what_the_vendor_refuses_keeps_nothing_back_that_waits_beside_it(world: World, core: CorePms) -> None:
    world.sim.faults.add(Fault(FaultKind.SLOW, operation="POST /inventory/rooms/calendar", seconds=1.5))
    await push(core, "a-1", 1, available=4)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await push(core, "a-2", 1, available=3)
    await push(core, "a-3", 2, "USD", available=3, price=12000)
    await push(core, "a-4", 1, available=2)
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL", equals=4)
    await world.all_settled()
    statuses = await world.db.fetch("SELECT status FROM channel_events WHERE parent_id IS NOT NULL ORDER BY seq")
    assert [row["status"] for row in statuses] == ["done", "superseded", "failed", "done"]
    assert nights_told(world)[1:] == [[("01", 3, None)], [("01", 2, None)]]
    assert "USD" in await world.db.fetchval("SELECT error_message FROM dead_letters")
