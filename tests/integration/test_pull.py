"""What webhooks did not bring is asked for: nothing twice, nothing skipped, whatever happens in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from adapters.beds24 import mapping
from adapters.errors import Malformed, Misconfigured, RateLimited, Transient
from adapters.port import Recorded
from ops.parts import inbound_attempts, open_parts
from schemas.connection import Connection
from simulators.beds24 import operations
from simulators.beds24.app import Beds24, create_app
from simulators.beds24.faults import Fault, FaultKind
from simulators.server import SimServer
from store import connections, pulls
from store.connections import set_config
from store.pulls import Lease
from telemetry import metrics
from tests.fleet import COMPANY, CONNECTION, World
from topology.announce import WakeUp, announce
from workers.pull import LEASE, SHARE, LeaseLostError, Pulled, Puller, Pulls, Waiting

STORED = "SELECT count(*) FROM int_reservations"
EVENTS = "SELECT count(*) FROM channel_events"


@pytest.fixture
async def whole(world: World) -> World:
    await world.start("ingress", "inbound", "scheduler")
    return world


def book(world: World, **values: Any) -> dict[str, Any]:
    """A booking that nobody tells us about."""
    stay = {
        "roomId": 713992,
        "arrival": "2027-03-01",
        "departure": "2027-03-04",
        "firstName": "Ada",
        "lastName": "Long",
    }
    outcome = world.sim.account.book(stay | values)
    assert not outcome.errors
    return list(world.sim.account.bookings.values())[-1]


def asked(world: World) -> int:
    return sum(call.operation == "GET /bookings" for call in world.sim.account.calls)


async def until_asked(world: World) -> None:
    async with asyncio.timeout(20):
        while asked(world) == 0:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def pulling(
    world: World,
    sleep: Callable[[float], Any] = asyncio.sleep,
    tell: Callable[[Any], None] = lambda _: None,
    wake: Callable[[Sequence[WakeUp]], Any] | None = None,
) -> AsyncIterator[Puller]:
    """A puller as the scheduler has it."""
    async with open_parts("pull", world.settings()) as parts:

        async def publish(wakes: Sequence[WakeUp]) -> None:
            parts.marks.add(await announce(parts.publisher, wakes))

        yield Puller(
            parts.pool, parts.directory, parts.sessions,
            parts.governor, inbound_attempts(parts.adapters), wake or publish,
            overlap=timedelta(minutes=10), random=lambda: 0.5, now=parts.now, sleep=sleep, tell=tell,
        )  # fmt: skip


async def lease(world: World, worker: str = "w", seconds: float = LEASE) -> Lease:
    (taken,) = await pulls.claim(world.db, [CONNECTION], worker, seconds)
    return taken


async def due(world: World) -> list[str]:
    return await pulls.due(world.db, ["beds24"], 0.001, "somebody", [], most=10, share=10)


async def add(world: World, id_: str, sim: Beds24, url: str, company: str = COMPANY) -> None:
    """One more connection, which has waited for a pull longer than the world's own."""
    cipher = world.keys.cipher(
        company, await world.db.fetchval("SELECT data_key FROM companies WHERE id = $1", company)
    )
    config = {"base_url": f"{url}/api/v2", "currency": "EUR"}
    await connections.add_connection(world.db, id_, company, "beds24", id_, None, config)
    await world.db.execute("UPDATE connections SET created_at = created_at - interval '1 day' WHERE id = $1", id_)
    invite = cipher.seal_bytes(sim.account.access.invite().encode())
    await connections.put_secret(world.db, Connection(id_, company, "beds24", id_), "invite_code", invite)


@asynccontextmanager
async def silent(world: World, count: int) -> AsyncIterator[None]:
    """Connections of another company, whose vendor takes requests and never answers them."""
    await connections.add_company(world.db, "other", "Other", world.keys.new_data_key())
    sim = Beds24()
    sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, operation="GET /bookings", count=None))
    async with SimServer(create_app(sim)) as server:
        for n in range(count):
            await add(world, f"silent-{n}", sim, server.url, "other")
        yield


async def pull(world: World, **kwargs: Any) -> Pulled | Waiting:
    async with pulling(world) as puller:
        return await puller.run(await lease(world), **kwargs)


async def row(world: World) -> Any:
    return await world.db.fetchrow("SELECT * FROM pulls")


async def test_lost_webhooks_are_healed_and_cancellations_are_among_them(whole: World) -> None:
    kept, cancelled = book(whole), book(whole, arrival="2027-04-01", departure="2027-04-03")
    whole.sim.account.cancel(cancelled["id"])
    assert await pull(whole) == Pulled(pages=1, listed=2, recorded=2)
    await whole.all_settled()
    rows = await whole.db.fetch("SELECT external_id, status, guest_id FROM int_reservations ORDER BY external_id")
    assert [(r["external_id"], r["status"]) for r in rows] == [
        (str(kept["id"]), "confirmed"),
        (str(cancelled["id"]), "cancelled"),
    ]
    assert all(r["guest_id"] for r in rows)
    assert await whole.db.fetchval("SELECT count(*) FROM core_events") == 2
    assert await whole.db.fetchval("SELECT count(*) FROM webhook_log") == 0
    assert await whole.db.fetchval("SELECT last_sync_at IS NOT NULL FROM connections")


async def test_what_a_webhook_brought_is_a_duplicate_and_so_is_a_webhook_after_its_pull(whole: World) -> None:
    first = book(whole, price=100, flagText="late arrival")
    assert (await whole.webhook(whole.sim.account.webhook_body(first["id"]))).status_code == 202
    await whole.all_settled()
    second = book(whole, arrival="2027-04-01", departure="2027-04-03")
    assert await pull(whole) == Pulled(pages=1, listed=2, recorded=1)
    assert (await whole.webhook(whole.sim.account.webhook_body(second["id"]))).status_code == 200
    await whole.all_settled()
    assert await pull(whole) == Pulled(pages=1, listed=2, recorded=0)
    assert await whole.db.fetchval(EVENTS) == 2


async def test_it_asks_from_the_begin_of_the_last_one_less_the_overlap(whole: World) -> None:
    await pull(whole)
    before = (await row(whole))["covered_until"]
    await pull(whole)
    query = next(c for c in reversed(whole.sim.account.calls) if c.operation == "GET /bookings").query
    start = (before - timedelta(minutes=10)).astimezone(UTC)
    assert f"modifiedFrom={start:%Y-%m-%dT%H}%3A{start:%M}%3A{start:%S}Z" in query
    assert (await row(whole))["covered_until"] > before


async def test_all_pages_come(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    for _ in range(5):
        book(whole)
    assert await pull(whole) == Pulled(pages=6, listed=5, recorded=5)
    await whole.all_settled()
    assert await whole.db.fetchval(STORED) == 5


async def test_a_booking_that_moves_forward_in_the_list_is_not_left_out(
    whole: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor deletes one of the first page before the second is read."""
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    deleted, *others = [book(whole)["id"] for _ in range(5)]

    def delete(_: Any) -> None:
        whole.sim.account.erase(deleted)

    async with pulling(whole, tell=delete) as puller:
        assert await puller.run(await lease(whole)) == Pulled(pages=6, listed=5, recorded=5)
    await whole.all_settled()
    stored = {int(row["external_id"]) for row in await whole.db.fetch("SELECT external_id FROM int_reservations")}
    assert stored == {deleted, *others}


async def test_a_list_that_loses_something_whenever_it_is_read_is_covered_by_none(
    whole: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    ids = [book(whole)["id"] for _ in range(20)]

    def delete(_: Any) -> None:
        whole.sim.account.erase(ids.pop(0))

    async with pulling(whole, tell=delete) as puller:
        with pytest.raises(Transient, match="the list lost something"):
            await puller.run(await lease(whole))
    kept = await row(whole)
    assert (kept["error_class"], kept["covered_until"]) == ("transient", None)


async def test_a_vendor_that_is_away_is_asked_later_from_the_same_time(whole: World) -> None:
    booking = book(whole)
    covered = (await lease(whole)).covered_until
    await whole.db.execute("UPDATE pulls SET lease_until = NULL")
    whole.sim.faults.add(Fault(FaultKind.UNAVAILABLE, operation="GET /bookings"))
    with pytest.raises(Transient):
        await pull(whole)
    kept = await row(whole)
    assert (kept["error_class"], kept["failures"], kept["covered_until"]) == ("transient", 1, None)
    assert "bookings.pull" in kept["last_error"]
    assert kept["not_before"] > datetime.now(UTC)
    assert await due(whole) == []
    assert (await lease(whole)).covered_until == covered
    await whole.db.execute("UPDATE pulls SET lease_until = NULL")
    await pull(whole)
    kept = await row(whole)
    assert (kept["error_class"], kept["failures"], kept["last_error"], kept["not_before"]) == (None, 0, None, None)
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT external_id FROM int_reservations") == str(booking["id"])


async def test_what_cannot_be_opened_is_told_as_what_it_is(world: World) -> None:
    await world.db.execute("UPDATE secrets SET sealed = '?' WHERE name = 'webhook_secret'")
    with pytest.raises(Misconfigured, match=f"connection {CONNECTION}: its webhook_secret"):
        await pull(world)
    assert (await row(world))["error_class"] == "misconfigured"


async def test_a_page_that_fails_in_the_middle_leaves_the_rest_to_the_next(
    whole: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    for _ in range(5):
        book(whole)
    whole.sim.faults.add(Fault(FaultKind.RATE_LIMITED, operation="GET /bookings", skip=1, seconds=33))
    with pytest.raises(RateLimited):
        await pull(whole)
    kept = await row(whole)
    assert kept["covered_until"] is None
    assert kept["not_before"] - datetime.now(UTC) > timedelta(seconds=30)
    assert await whole.db.fetchval(EVENTS) == 2
    whole.sim.account.credits.used *= 0
    await whole.db.execute("DELETE FROM rate_budgets")
    assert await pull(whole) == Pulled(pages=6, listed=5, recorded=3)


async def test_what_cannot_be_read_does_not_stop_the_others_and_is_told(whole: World) -> None:
    broken, sound = book(whole), book(whole)
    broken["propertyId"] = "none"
    with pytest.raises(Malformed, match=r"booking\.propertyId"):
        await pull(whole)
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT external_id FROM int_reservations") == str(sound["id"])
    kept = await row(whole)
    assert (kept["error_class"], kept["covered_until"]) == ("invalid", None)


async def test_a_little_of_the_rate_limit_is_left_to_commands(whole: World) -> None:
    await whole.db.execute(
        "INSERT INTO rate_budgets (scope, company_id, remaining, resets_at)"
        " VALUES ($1, 'acme', 19, now() + interval '1 hour')",
        CONNECTION,
    )
    found = await pull(whole)
    assert isinstance(found, Waiting)
    assert asked(whole) == 0
    kept = await row(whole)
    assert (kept["lease_until"], kept["last_error"]) == (None, None)
    assert kept["not_before"] - datetime.now(UTC) > timedelta(minutes=59)


async def test_a_long_list_waits_in_the_middle_and_goes_on(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first page on again it would never come to its end."""
    monkeypatch.setattr(operations, "PAGE_SIZE", 1)
    for _ in range(4):
        book(whole)
    budget = whole.sim.account.credits
    budget.spend(budget.remaining() - 22)
    waits: list[float] = []
    told: list[Any] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        left = await whole.db.fetchval("SELECT EXTRACT(epoch FROM lease_until - now()) FROM pulls")
        assert left > seconds
        budget.used *= 0
        await whole.db.execute("DELETE FROM rate_budgets")

    async with pulling(whole, sleep, told.append) as puller:
        assert await puller.run(await lease(whole)) == Pulled(pages=8, listed=4, recorded=4)
    assert len(waits) == 1
    assert [type(step) for step in told] == [Pulled, Pulled, Waiting, *[Pulled] * 6]
    assert await whole.db.fetchval("SELECT remaining FROM rate_budgets") > 90


async def test_two_schedulers_never_pull_the_same_connection_at_once(world: World) -> None:
    first, second = await asyncio.gather(pulls.claim(world.db, [CONNECTION], "a", LEASE), _claim_elsewhere(world, "b"))
    assert len([*first, *second]) == 1
    assert await pulls.claim(world.db, [CONNECTION], "c", LEASE) == []
    assert await due(world) == []


async def test_a_pull_covers_what_was_before_its_begin_and_ends_no_lease_but_its_own(world: World) -> None:
    ran_out = await lease(world, seconds=-1.0)
    taken = await lease(world)
    held = CONNECTION, taken.worker, taken.started_at
    said: dict[str, Any] = {"listed": 0, "recorded": 0, "spread": 1.0, "covers": True}
    assert not await pulls.hold(world.db, ran_out, LEASE)
    await pulls.finish(world.db, ran_out, **said)
    await pulls.fail(world.db, ran_out, "transient", "away", 60.0)
    await pulls.put_off(world.db, ran_out, 60.0)
    assert (CONNECTION, *(await pulls.holder(world.db, CONNECTION) or ())) == held
    assert (await row(world))["failures"] == 0
    await pulls.finish(world.db, taken, **said)
    assert await pulls.holder(world.db, CONNECTION) is None
    assert (await row(world))["covered_until"] == taken.started_at


async def _claim_elsewhere(world: World, worker: str) -> Sequence[Lease]:
    async with open_parts("other", world.settings()) as parts, parts.pool.acquire() as connection:
        return await pulls.claim(connection, [CONNECTION], worker, LEASE)


async def test_after_a_kill_the_next_covers_the_same_time(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dead one has recorded is a duplicate; its own word does not count any more."""
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    for _ in range(4):
        book(whole)
    dead = await lease(whole, "dead", seconds=0.0)
    pages: list[Any] = []

    class Killed(BaseException):
        pass

    def die(step: Any) -> None:
        pages.append(step)
        raise Killed

    async with pulling(whole, tell=die) as puller:
        with pytest.raises(Killed):
            await puller.run(dead)
    assert pages == [Pulled(1, 2, 2)]
    await whole.db.execute("UPDATE pulls SET lease_until = now()")
    heir = await lease(whole, "heir")
    assert heir.covered_until == dead.covered_until
    async with pulling(whole) as puller:
        with pytest.raises(LeaseLostError):
            await puller.run(dead)
        assert await puller.run(heir) == Pulled(pages=4, listed=4, recorded=2)
    await whole.all_settled()
    assert await whole.db.fetchval(STORED) == 4


async def test_a_stop_in_the_middle_gives_the_connection_back(whole: World) -> None:
    book(whole)
    whole.sim.faults.add(Fault(FaultKind.SLOW, operation="GET /bookings", seconds=60))
    async with pulling(whole) as puller:
        task = asyncio.create_task(puller.run(await lease(whole)))
        await until_asked(whole)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    kept = await row(whole)
    assert (kept["lease_until"], kept["failures"], kept["covered_until"]) == (None, 0, None)
    assert len(await due(whole)) == 1


async def test_a_stop_does_not_wait_for_a_database_that_is_away(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    book(whole)
    whole.sim.faults.add(Fault(FaultKind.SLOW, operation="GET /bookings", seconds=60))
    monkeypatch.setattr("workers.pull.LAST_WORD", 0.2)
    async with pulling(whole) as puller:
        task = asyncio.create_task(puller.run(await lease(whole)))
        await until_asked(whole)

        async def away(*_: Any, **__: Any) -> None:
            raise ConnectionRefusedError

        monkeypatch.setattr("store.pulls.put_off", away)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(10):
                await task


async def test_a_stop_while_its_end_is_written_gives_the_connection_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pulling(world) as puller:
        ending = asyncio.Event()

        async def slow(*_: Any, **__: Any) -> None:
            ending.set()
            await asyncio.Event().wait()

        monkeypatch.setattr("store.pulls.finish", slow)
        task = asyncio.create_task(puller.run(await lease(world)))
        await ending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await due(world) == [CONNECTION]


async def test_what_is_claimed_is_pulled_whatever_the_database_says_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*_: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr("store.pulls.overview", cut)
    async with open_parts("pull", world.settings()) as parts, pulling(world) as puller:
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.001)
        with pytest.raises(ConnectionResetError):
            await loop.look()
        await loop.settled()
    assert (await row(world))["covered_until"] is not None


async def test_a_claim_whose_answer_was_lost_is_made_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = pulls.claim

    async def cut(*args: Any) -> None:
        await claim(*args)
        raise ConnectionResetError

    async with open_parts("pull", world.settings()) as parts, pulling(world) as puller:
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.001)
        with monkeypatch.context() as patch:
            patch.setattr("store.pulls.claim", cut)
            with pytest.raises(ConnectionResetError):
                await loop.look()
        assert await due(world) == []
        assert await loop.look() == 1
        await loop.settled()
    assert (await row(world))["covered_until"] is not None


async def test_the_loop_pulls_whose_time_has_come(whole: World) -> None:
    book(whole)
    lag = metrics.SYNC_LAG.labels("beds24")
    async with open_parts("pull", whole.settings()) as parts, pulling(whole) as puller:
        never = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.0)
        assert await never.look() == 0
        often = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.001)
        runs = metrics.SYNC_RUNS.labels("beds24", "done")
        before = runs._value.get()
        assert await often.look() == 1
        assert lag._value.get() > 0
        await often.settled()
        assert runs._value.get() == before + 1
        rarely = Pulls(parts.pool, puller, ["beds24"], worker="w", every=3600.0)
        assert await rarely.look() == 0
        await whole.db.execute("UPDATE pulls SET finished_at = finished_at - interval '66 minutes'")
        await whole.db.execute('UPDATE connections SET config = config || \'{"pull": "0"}\'')
        assert await rarely.look() == 0
        await whole.db.execute('UPDATE connections SET config = config || \'{"pull": "86400"}\'')
        assert await often.look() == 0
        await whole.db.execute("UPDATE connections SET config = config - 'pull', status = 'paused'")
        assert await rarely.look() == 0
        await whole.db.execute("UPDATE connections SET status = 'active'")
        assert await rarely.look() == 1
        await rarely.settled()
    assert asked(whole) == 2


async def test_one_connection_that_fails_leaves_the_loop_alive(whole: World) -> None:
    whole.sim.faults.add(Fault(FaultKind.HTML_502, operation="GET /bookings", count=None))
    async with open_parts("pull", whole.settings()) as parts, pulling(whole) as puller:
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.001, pause=0.01)
        stop = asyncio.Event()
        running = asyncio.create_task(loop.run(stop))
        await whole.until("SELECT failures FROM pulls", equals=1)
        whole.sim.faults.clear()
        book(whole)
        await whole.db.execute("UPDATE pulls SET not_before = NULL")
        await whole.until(STORED, equals=1)
        stop.set()
        await running


async def test_silent_accounts_of_a_company_hold_nobody_elses_pulls(world: World) -> None:
    held = "SELECT count(*) FROM pulls WHERE connection_id LIKE 'silent-%' AND lease_until IS NOT NULL"
    async with silent(world, 40), open_parts("pull", world.settings()) as parts, pulling(world) as puller:
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=0.001, pause=0.01)
        stop = asyncio.Event()
        running = asyncio.create_task(loop.run(stop))
        await world.until(
            "SELECT covered_until IS NOT NULL FROM pulls WHERE connection_id = $1", CONNECTION, timeout=15
        )
        assert await world.db.fetchval(held) == SHARE
        stop.set()
        await running
        assert await world.db.fetchval(held) == 0


async def test_a_pull_under_way_is_not_begun_once_more_though_its_lease_ran_out(world: World) -> None:
    async with silent(world, 1), open_parts("pull", world.settings()) as parts, pulling(world) as puller:
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=3600.0)
        assert await loop.look() == 1
        await world.db.execute("UPDATE pulls SET lease_until = now()")
        assert await loop.look() == 0
        stopped = asyncio.Event()
        stopped.set()
        await loop.run(stopped)


async def test_a_vendor_has_room_of_its_own_and_a_company_no_more_than_its_share_of_it(world: World) -> None:
    for name, company, vendor, age in (
        ("a1", "a", "x", 9), ("a2", "a", "x", 8), ("a3", "a", "x", 7), ("a4", "a", "y", 1),
        ("b1", "b", "x", 6), ("b2", "b", "x", 5), ("c1", "c", "x", 4),
    ):  # fmt: skip
        await connections.add_company(world.db, company, company, world.keys.new_data_key())
        await connections.add_connection(world.db, name, company, vendor, name, None, {})
        await world.db.execute(
            "UPDATE connections SET created_at = now() - $2::interval WHERE id = $1", name, timedelta(days=age)
        )

    async def room(*under_way: str, most: int = 4, share: int = 2) -> list[str]:
        return await pulls.due(world.db, ["x", "y"], 1.0, "w", under_way, most=most, share=share)

    assert await room() == ["a1", "b1", "c1", "a4", "a2"]
    assert await room(most=10) == ["a1", "b1", "c1", "a4", "a2", "b2"]
    assert await room("a2", "a3") == ["b1", "c1", "a4"]
    assert await room("a1", "b1", "b2", "c1") == ["a4"]


async def test_a_company_with_more_connections_than_its_share_is_pulled_without_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.pull.SHARE", 1)
    monkeypatch.setattr("workers.pull.BRISK", 0.01)
    for name in ("second", "third"):
        await add(world, name, world.sim, world.sim_url)
    await world.db.execute("UPDATE connections SET created_at = created_at - interval '1 day'")
    async with open_parts("pull", world.settings()) as parts, pulling(world) as puller:
        stop = asyncio.Event()
        loop = Pulls(parts.pool, puller, ["beds24"], worker="w", every=3600.0, pause=600.0)
        running = asyncio.create_task(loop.run(stop))
        await world.until("SELECT count(covered_until) FROM pulls", equals=3)
        stop.set()
        await running


async def test_what_waited_for_its_turn_to_be_recorded_has_its_lease_anew(world: World) -> None:
    """Few pages are recorded at once; that of a slow vendor comes near the end of its lease."""
    await add(world, "second", world.sim, world.sim_url)
    book(world)
    arrivals: asyncio.Queue[None] = asyncio.Queue()
    recording: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    class Room(asyncio.Semaphore):
        async def acquire(self) -> Literal[True]:
            arrivals.put_nowait(None)
            return await super().acquire()

    async def wake(_: Sequence[WakeUp]) -> None:
        go_on = asyncio.Event()
        recording.put_nowait(go_on)
        await go_on.wait()

    async with pulling(world, wake=wake) as puller, asyncio.timeout(20):
        puller._room = Room(1)
        first = asyncio.create_task(puller.run(await lease(world)))
        go_on = await recording.get()
        (taken,) = await pulls.claim(world.db, ["second"], "w", LEASE)
        second = asyncio.create_task(puller.run(taken))
        for _ in (first, second):
            await arrivals.get()
        await world.db.execute("UPDATE pulls SET lease_until = now() + interval '1 second'")
        go_on.set()
        go_on = await recording.get()
        left = "SELECT EXTRACT(epoch FROM lease_until - now()) FROM pulls WHERE connection_id = 'second'"
        assert await world.db.fetchval(left) > LEASE - 30
        go_on.set()
        assert await first == await second == Pulled(pages=1, listed=1, recorded=1)


async def test_a_booking_that_returned_to_an_earlier_state_within_a_second_is_set_right(whole: World) -> None:
    """Its last webhook has the key of the first: only a look at what is stored tells that it is no duplicate."""
    confirmed = whole.sim.account.webhook_body(book(whole)["id"])
    cancelled = {**confirmed, "booking": {**confirmed["booking"], "status": "cancelled"}}
    sent = datetime.fromisoformat(confirmed["timeStamp"])
    # Each was sent a second after the one before: with one time stamp for two states the vendor would be asked at once.
    for seconds, (body, answer) in enumerate(((confirmed, 202), (cancelled, 202), (confirmed, 200))):
        stamp = (sent + timedelta(seconds=seconds)).isoformat()
        assert (await whole.webhook(body | {"timeStamp": stamp})).status_code == answer
        await whole.all_settled()
    assert await whole.db.fetchval("SELECT status FROM int_reservations") == "cancelled"
    assert await pull(whole) == Pulled(pages=1, listed=1, recorded=1)
    await whole.all_settled()
    assert await whole.db.fetchval("SELECT status FROM int_reservations") == "confirmed"
    assert await pull(whole) == Pulled(pages=1, listed=1, recorded=0)


async def test_a_booking_that_the_vendor_shows_later_than_its_webhook_is_not_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for at once, it was not there (a replica that lags): its key alone would call it a duplicate for ever."""
    monkeypatch.setattr("workers.hints.LAG", timedelta())
    await set_config(world.db, CONNECTION, {"fetch": "always"})
    await world.start("ingress", "inbound", "scheduler")
    booking = book(world)
    body = world.sim.account.webhook_body(booking["id"])
    del world.sim.account.bookings[booking["id"]]
    assert (await world.webhook(body)).status_code == 202
    await world.all_settled()
    assert await world.db.fetchval("SELECT last_error FROM channel_events") == "gone at the vendor"
    world.sim.account.bookings[booking["id"]] = booking
    assert await pull(world) == Pulled(pages=1, listed=1, recorded=1)
    await world.all_settled()
    assert await world.db.fetchval("SELECT external_id FROM int_reservations") == str(booking["id"])
    assert await world.db.fetchval("SELECT count(*) FROM core_events") == 1
    assert await pull(world) == Pulled(pages=1, listed=1, recorded=0)


async def test_a_guest_that_cannot_be_opened_is_replaced_and_stops_no_other(
    whole: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PAGE_SIZE", 1)
    book(whole)
    await pull(whole)
    await whole.all_settled()
    await whole.db.execute("UPDATE int_guests SET sealed = 'cut off'")
    book(whole)
    assert await pull(whole) == Pulled(pages=4, listed=2, recorded=2)
    await whole.all_settled()
    cipher = await whole.cipher()
    for sealed in await whole.db.fetch("SELECT sealed FROM int_guests"):
        assert cipher.open(sealed["sealed"])["first_name"] == "Ada"
    assert await pull(whole) == Pulled(pages=4, listed=2, recorded=0)


async def test_what_an_adapter_chokes_on_stops_no_other(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may be after an upgrade, with what the adapter of before has understood."""
    known = book(whole)
    await pull(whole)
    await whole.all_settled()
    interpret = mapping.interpret

    def choke(fact: Recorded, connection: Connection) -> Any:
        if fact.external_id == str(known["id"]):
            raise ZeroDivisionError
        return interpret(fact, connection)

    monkeypatch.setattr(mapping, "interpret", choke)
    book(whole)
    assert await pull(whole) == Pulled(pages=1, listed=2, recorded=1)
    await whole.all_settled()
    assert await whole.db.fetchval(STORED) == 2


async def test_a_begin_within_the_overlap_leaves_the_gap_open(whole: World) -> None:
    """What the vendor shows late may have changed before it: only a begin at the overlap's covers that."""
    await pull(whole)
    covered = (await row(whole))["covered_until"]
    await pull(whole, since=covered - timedelta(minutes=9))
    assert (await row(whole))["covered_until"] == covered
    await pull(whole, since=covered - timedelta(minutes=10))
    assert (await row(whole))["covered_until"] > covered


async def test_an_earlier_begin_than_ever_covers_all_and_a_later_one_leaves_the_gap_open(whole: World) -> None:
    covered = (await lease(whole)).covered_until
    await whole.db.execute("UPDATE pulls SET lease_until = NULL")
    await pull(whole, since=covered + timedelta(hours=1))
    assert (await row(whole))["covered_until"] is None
    await pull(whole, since=covered - timedelta(days=365))
    assert (await row(whole))["covered_until"] > covered
