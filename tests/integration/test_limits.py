"""Budgets and circuits, shared through the database by governors that know nothing of one another."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from adapters.port import Budget, RateLimit
from schemas.connection import Connection
from schemas.vocabulary import CallKind
from store import connections, limits
from store.pool import open_pool
from telemetry import metrics
from workers.decide import SOONEST
from workers.governor import SPREAD, Call, Ended, Governor
from workers.outcome import Defer
from workers.sessions import Sessions
from workers.upkeep import Upkeep

if TYPE_CHECKING:
    from store.pool import Pool

LIMIT = RateLimit(units=10, per=timedelta(minutes=5), scope="account", reserve=3)
ROOMY = RateLimit(units=1000, per=timedelta(minutes=5), scope="account", reserve=0)
READ, WRITE = CallKind.READ, CallKind.WRITE


@dataclass
class Clock:
    """The machine's clock, some time ahead."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Ground:
    pool: Pool
    db: asyncpg.Connection[asyncpg.Record]
    clock: Clock = field(default_factory=Clock)

    def governor(self, share: float = 0.0) -> Governor:
        """One process's; share: the random number."""
        return Governor(self.pool, random=lambda: share, now=self.clock)

    async def note(self, governor: Governor, *endings: Ended) -> set[limits.Key]:
        for ending in endings:
            governor.ended(ending.call)
        return await governor.note(endings)

    @asynccontextmanager
    async def without(self, table: str) -> AsyncIterator[None]:
        """What is written to it meanwhile fails."""
        await self.db.execute(f"ALTER TABLE {table} RENAME TO gone")
        try:
            yield
        finally:
            await self.db.execute(f"ALTER TABLE gone RENAME TO {table}")

    async def one(self, governor: Governor, call: Call) -> Defer | None:
        (verdict,) = await governor.admit([call])
        return verdict

    async def fail(
        self, governor: Governor, times: int = 1, id_: str = "c1", kind: CallKind = WRITE
    ) -> set[limits.Key]:
        opened: set[limits.Key] = set()
        for _ in range(times):
            call = of(id_, kind=kind, limit=ROOMY)
            assert await self.one(governor, call) is None
            opened = await self.note(governor, Ended(call, False, None))
        return opened

    async def failures(self, id_: str = "c1", kind: CallKind = WRITE) -> int | None:
        return await self.db.fetchval(
            "SELECT failures FROM call_circuits WHERE connection_id = $1 AND kind = $2", id_, kind.value
        )

    async def pause(self, id_: str = "c1") -> float:
        """Seconds for which the circuit is open from its last failure on."""
        return float(
            await self.db.fetchval(
                "SELECT extract(epoch FROM retry_at - updated_at)::float8 FROM call_circuits WHERE connection_id = $1",
                id_,
            )
        )

    async def over(self, id_: str = "c1") -> None:
        """The pause is over."""
        await self.db.execute(
            "UPDATE call_circuits SET retry_at = clock_timestamp() - interval '1 s' WHERE connection_id = $1", id_
        )


def of(
    id_: str = "c1",
    *,
    kind: CallKind = WRITE,
    urgent: bool = True,
    account: str | None = None,
    limit: RateLimit = LIMIT,
    looks_up: bool = False,
) -> Call:
    at = Connection(id_, "acme", "beds24", id_, external_account_id=account)
    return Call(at, kind, limit, urgent, looks_up)


@pytest.fixture
async def ground(database_url: str) -> AsyncIterator[Ground]:
    db = await asyncpg.connect(database_url)
    pool = await open_pool(database_url, name="test", size=4)
    await connections.add_company(db, "acme", "Acme", b"key")
    for id_ in ("c1", "c2"):
        await connections.add_connection(db, id_, "acme", "beds24", id_, None, {})
    yield Ground(pool, db)
    await pool.close()
    await db.close()


# ------------------------------------------------------------------------------------------------ budgets


async def test_two_processes_share_a_budget_and_none_of_them_overspends(ground: Ground) -> None:
    first, second = ground.governor(), ground.governor()
    verdicts = await asyncio.gather(*(g.admit([of(), of()]) for _ in range(5) for g in (first, second)))
    admitted = [verdict for pair in verdicts for verdict in pair].count(None)
    assert admitted == 10
    refused = next(verdict for pair in verdicts for verdict in pair if verdict is not None)
    assert "rate limit" in refused.message
    assert timedelta(minutes=4) < refused.until - ground.clock() <= LIMIT.per


async def test_after_a_refusal_nothing_goes_out_for_some_seconds_whatever_the_vendor_says(ground: Ground) -> None:
    governor, refused = ground.governor(), of()
    assert await ground.one(governor, refused) is None
    await ground.note(governor, Ended(refused, True, Budget(0, 0)))
    waits = await ground.one(ground.governor(), of())
    assert waits is not None
    assert timedelta(0) < waits.until - ground.clock() <= timedelta(seconds=SOONEST)


async def test_no_word_of_a_vendor_puts_a_connection_off_for_long(ground: Ground) -> None:
    governor, liar = ground.governor(), of()
    assert await ground.one(governor, liar) is None
    await ground.note(governor, Ended(liar, True, Budget(0, 999_999_999)))
    waits = await ground.one(ground.governor(), of())
    assert waits is not None
    assert waits.until - ground.clock() <= 2 * LIMIT.per


async def test_a_new_window_is_shared_as_well_however_many_come_at_its_beginning(ground: Ground) -> None:
    """Of a row that is over nothing is known, but it must be locked all the same."""
    governors = [ground.governor() for _ in range(4)]
    for _ in range(5):
        verdicts = await asyncio.gather(*(g.admit([of() for _ in range(4)]) for g in governors))
        assert [verdict for four in verdicts for verdict in four].count(None) == 10
        await ground.db.execute("UPDATE rate_budgets SET resets_at = clock_timestamp() - interval '1 ms'")


async def test_bookings_may_use_the_reserve_and_go_first_in_a_batch(ground: Ground) -> None:
    governor = ground.governor()
    rates, bookings = [of(urgent=False) for _ in range(9)], [of() for _ in range(3)]
    verdicts = await governor.admit([*rates, *bookings])
    assert verdicts[9:] == [None, None, None]
    assert verdicts[:9].count(None) == 5  # down to 3, less what the bookings took
    assert await ground.one(governor, of(urgent=False)) is not None
    assert [await ground.one(governor, of()) for _ in range(2)] == [None, None]
    assert await ground.one(governor, of()) is not None


async def test_connections_of_an_account_share_its_budget(ground: Ground) -> None:
    governor = ground.governor()
    assert (await governor.admit([of("c1", account="7") for _ in range(10)])).count(None) == 10
    assert await ground.one(governor, of("c2", account="7")) is not None
    assert await ground.one(governor, of("c2", account="8")) is None
    assert await ground.one(governor, of("c2")) is None


async def test_the_vendors_word_corrects_the_number_up_and_down(ground: Ground) -> None:
    governor = ground.governor()
    calls = [of() for _ in range(10)]
    await governor.admit(calls)
    await ground.note(governor, *(Ended(call, True, Budget(40.0, 200.0)) for call in calls))
    assert (await governor.admit([of() for _ in range(50)])).count(None) == 40
    call = of()
    await ground.db.execute("DELETE FROM rate_budgets")
    await governor.admit([call])
    await ground.note(governor, Ended(call, True, Budget(0.0, 200.0)))
    refused = await ground.one(governor, of())
    assert refused is not None
    assert timedelta(seconds=190) < refused.until - ground.clock() <= timedelta(seconds=200)


async def test_a_vendor_that_says_nothing_is_taken_at_the_manifests_word(ground: Ground) -> None:
    governor = ground.governor()
    for answered in (True, False) * 5:
        call = of(id_="c1" if answered else "c2", account="7")
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, answered, None))
    assert await ground.one(governor, of(account="7")) is not None


async def test_what_was_never_asked_gives_its_units_back(ground: Ground) -> None:
    governor = ground.governor()
    for _ in range(30):
        call = of()
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, None, None))


async def test_answers_that_are_written_late_or_out_of_order_do_not_make_units(ground: Ground) -> None:
    governor = ground.governor()
    first, second, third = (of() for _ in range(3))
    await governor.admit([first, second, third])
    await ground.note(governor, Ended(second, True, Budget(5.0, 200.0)))
    await ground.note(governor, Ended(first, True, Budget(6.0, 200.0)))  # was answered before the second
    assert (await governor.admit([of() for _ in range(10)])).count(None) == 4  # one is under way still


async def test_a_new_window_of_the_vendors_is_believed_at_once(ground: Ground) -> None:
    """And what an unanswered call may have cost was paid in the old one."""
    governor = ground.governor()
    silent, first, second = of(), of(), of()
    await governor.admit([silent, first, second])
    await ground.note(governor, Ended(silent, False, None))
    await ground.note(governor, Ended(first, True, Budget(1.0, 3.0)))
    await ground.note(governor, Ended(second, True, Budget(9.0, 300.0)))  # its window has turned a little before ours
    assert (await governor.admit([of() for _ in range(10)])).count(None) == 9


@pytest.mark.parametrize("seed", range(12))
async def test_no_schedule_of_two_processes_makes_the_vendor_refuse(ground: Ground, seed: int) -> None:
    """The vendor counts a call some time between its admission and its note, and tells what is left then."""
    rng = random.Random(seed)
    governors = [ground.governor(), ground.governor()]
    units = 30.0
    limit = RateLimit(units=units, per=timedelta(minutes=5), scope="account", reserve=0)
    admitted: list[tuple[Governor, Call]] = []
    counted: list[tuple[Governor, Call, float]] = []
    used = 0
    for _ in range(160):
        step = rng.random()
        if step < 0.5:
            governor, calls = rng.choice(governors), [of(limit=limit) for _ in range(rng.randint(1, 3))]
            verdicts = await governor.admit(calls)
            admitted += [(governor, call) for call, verdict in zip(calls, verdicts, strict=True) if verdict is None]
        elif step < 0.75 and admitted:
            governor, call = admitted.pop(rng.randrange(len(admitted)))
            used += 1
            counted.append((governor, call, units - used))
            assert used <= units
        elif counted:
            governor, call, left = counted.pop(rng.randrange(len(counted)))
            said = Budget(left, 250.0) if rng.random() < 0.9 else None  # the answer is lost now and then
            await ground.note(governor, Ended(call, said is not None, said))
    assert used > units / 2


# ------------------------------------------------------------------------------------------------ circuits


async def test_five_calls_in_a_row_without_an_answer_open_it_whoever_made_them(ground: Ground) -> None:
    one, other = ground.governor(), ground.governor()
    assert await ground.fail(one, 2) == set()
    assert await ground.fail(other, 2) == set()
    assert await ground.one(one, of()) is None
    assert await ground.fail(one) == {("c1", WRITE)}
    for governor in (one, other):
        refused = await ground.one(governor, of())
        assert refused is not None
        assert "circuit open" in refused.message
    assert await ground.one(one, of("c2")) is None  # nobody else's
    assert await ground.pause() == pytest.approx(limits.FIRST_PAUSE, abs=0.5)


async def test_an_answer_in_between_begins_the_count_anew(ground: Ground) -> None:
    governor = ground.governor()
    for _ in range(3):
        await ground.fail(governor, 4)
        call = of()
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, True, None))
        assert await ground.failures() is None


async def test_one_answer_in_a_batch_says_that_the_vendor_lives(ground: Ground) -> None:
    governor = ground.governor()
    calls = [of() for _ in range(8)]
    await governor.admit(calls)
    opened = await ground.note(governor, *(Ended(call, n == 3, None) for n, call in enumerate(calls)))
    assert opened == set()
    assert await ground.failures() is None


async def test_two_calls_for_many_events_open_it_before_those_have_no_attempt_left(ground: Ground) -> None:
    governor = ground.governor()
    for expected in (set[limits.Key](), {("c1", WRITE)}):
        call = of()
        assert await ground.one(governor, call) is None
        assert await ground.note(governor, Ended(call, False, None, events=50)) == expected


async def test_what_nobody_asked_says_nothing(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, 4)
    for _ in range(3):
        call = of()
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, None, None))
    assert await ground.failures() == 4


async def test_what_waits_for_it_comes_back_spread_out_and_never_early(ground: Ground) -> None:
    await ground.fail(ground.governor(), 5)
    retry_at = await ground.db.fetchval("SELECT retry_at FROM call_circuits")
    early, late = await ground.one(ground.governor(0.0), of()), await ground.one(ground.governor(1.0), of())
    assert early is not None
    assert late is not None
    assert retry_at <= early.until < late.until
    assert late.until - retry_at <= SPREAD * timedelta(seconds=limits.FIRST_PAUSE)


async def test_after_its_pause_one_call_of_each_process_tries(ground: Ground) -> None:
    one, other = ground.governor(), ground.governor()
    await ground.fail(one, 5)
    await ground.over()
    calls = [of() for _ in range(3)]
    verdicts = await one.admit(calls)
    assert [verdict is None for verdict in verdicts] == [True, False, False]
    assert [bool(call.probes) for call in calls] == [True, False, False]
    assert await ground.one(one, of()) is not None
    assert await ground.one(other, of()) is None
    one.ended(calls[0])
    assert await ground.one(one, of()) is None


async def test_who_only_asks_whether_a_circuit_holds_back_tries_nothing(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, limits.OPENS)
    assert isinstance(await governor.held_back("c1", set(CallKind)), Defer)
    assert await governor.held_back("c1", {READ}) is None
    assert await governor.held_back("c2", set(CallKind)) is None
    await ground.over()
    assert [await governor.held_back("c1", set(CallKind)) for _ in range(2)] == [None, None]
    assert await ground.one(governor, of()) is None  # the probe
    assert isinstance(await governor.held_back("c1", set(CallKind)), Defer)


async def test_a_probe_that_fails_doubles_the_pause_up_to_a_cap(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, 5)
    for pause in (20, 40, 80, 160, 300, 300):
        await ground.over()
        assert await ground.fail(governor) == {("c1", WRITE)}
        assert await ground.pause() == pytest.approx(pause, abs=0.5)


async def test_probes_of_many_processes_at_once_are_one(ground: Ground) -> None:
    """Or five processes would be at the cap after the first of them."""
    governors = [ground.governor() for _ in range(5)]
    await ground.fail(governors[0], 5)
    await ground.over()
    probes = [of() for _ in governors]
    for governor, probe in zip(governors, probes, strict=True):
        assert await ground.one(governor, probe) is None
    for governor, probe in zip(governors, probes, strict=True):
        await ground.note(governor, Ended(probe, False, None))
    assert await ground.pause() == pytest.approx(2 * limits.FIRST_PAUSE, abs=0.5)
    assert await ground.failures() == 6


async def test_what_was_sent_before_it_opened_and_fails_later_changes_nothing(ground: Ground) -> None:
    governor = ground.governor()
    early = [of() for _ in range(4)]
    await governor.admit(early)
    await ground.fail(governor, 5)
    before = await ground.db.fetchval("SELECT retry_at FROM call_circuits")
    await ground.note(governor, *(Ended(call, False, None) for call in early))
    assert await ground.db.fetchval("SELECT retry_at FROM call_circuits") == before
    assert await ground.failures() == 5


async def test_an_answered_probe_closes_it_for_all(ground: Ground) -> None:
    one, other = ground.governor(), ground.governor()
    await ground.fail(one, 5)
    await ground.over()
    probe = of()
    assert await ground.one(other, probe) is None
    await ground.note(other, Ended(probe, True, None))
    assert await ground.failures() is None
    assert (await one.admit([of() for _ in range(4)])) == [None] * 4


async def test_a_probe_that_has_no_budget_is_none(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, 5)
    await ground.over()
    await ground.db.execute("UPDATE rate_budgets SET remaining = 0, under_way = 0")
    refused = await ground.one(governor, of())
    assert refused is not None
    assert "rate limit" in refused.message
    await ground.db.execute("UPDATE rate_budgets SET remaining = 5")
    assert await ground.one(governor, of()) is None  # it did not take the probe's place with it


async def test_a_circuit_closes_though_what_was_heard_could_not_be_written_at_first(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, 4)
    call = of()
    assert await ground.one(governor, call) is None
    governor.ended(call)
    ending = Ended(call, True, Budget(7.0, 200.0))
    async with ground.without("call_circuits"):
        with pytest.raises(asyncpg.UndefinedTableError):
            await governor.note([ending])
    assert await ground.failures() == 4
    await ground.note(governor, ending)
    assert await ground.failures() is None
    assert (await governor.admit([of() for _ in range(9)])).count(None) == 3  # four cost we know not what


async def test_what_was_written_by_half_is_not_written_and_counts_once(ground: Ground) -> None:
    governor = ground.governor()
    calls = [of() for _ in range(4)]
    await governor.admit(calls)
    silent = [Ended(call, False, None) for call in calls[:3]]
    never_made = Ended(calls[3], None, None)
    async with ground.without("call_circuits"):
        with pytest.raises(asyncpg.UndefinedTableError):
            await governor.note([*silent, never_made])
    assert tuple(await ground.db.fetchrow("SELECT remaining, under_way FROM rate_budgets")) == (10, 4)
    await ground.note(governor, *silent, never_made)
    assert await ground.failures() == 3
    assert tuple(await ground.db.fetchrow("SELECT remaining, under_way FROM rate_budgets")) == (10, 3)


async def test_a_process_whose_admission_failed_may_still_try(ground: Ground, database_url: str) -> None:
    """The database was away in the middle: the place of the probe is free again."""
    governor = ground.governor()
    await ground.fail(governor, 5)
    await ground.over()
    call = of()
    async with ground.without("rate_budgets"):
        with pytest.raises(asyncpg.UndefinedTableError):
            await governor.admit([call])
    assert not call.probes
    assert await ground.one(governor, call) is None
    assert call.probes


async def test_the_usual_case_is_one_statement_and_takes_all_or_nothing(ground: Ground) -> None:
    """Looked at where the two ways could differ: some of the calls may go, and others not."""
    await ground.one(ground.governor(), of(account="1"))  # both budgets are known then: 9 of 10 are left
    await ground.one(ground.governor(), of("c2"))
    costs, circuits = {"beds24:1": 2.0, "c2": 3.0}, [("c1", WRITE), ("c2", WRITE)]

    async def take(needed: dict[str, float]) -> bool:
        async with ground.pool.acquire() as database:
            return await limits.take_at_once(database, circuits, costs, needed)

    async def taken() -> dict[str, float]:
        return dict(await ground.db.fetch("SELECT scope, under_way FROM rate_budgets"))

    assert not await take({"beds24:1": 9.0, "c2": 10.0})
    assert await taken() == {"beds24:1": 1.0, "c2": 1.0}
    assert await take({"beds24:1": 9.0, "c2": 9.0})
    assert await taken() == {"beds24:1": 3.0, "c2": 4.0}
    await ground.fail(ground.governor(), 1, "c2", READ)
    assert await take({"beds24:1": 1.0, "c2": 1.0})  # a circuit of the other kind stops none of them
    await ground.db.execute("UPDATE rate_budgets SET under_way = 3 WHERE scope = 'beds24:1'")
    await ground.db.execute("UPDATE rate_budgets SET under_way = 4 WHERE scope = 'c2'")
    await ground.fail(ground.governor(), 1, "c2")
    assert not await take({"beds24:1": 1.0, "c2": 1.0})
    await ground.db.execute("DELETE FROM call_circuits")
    await ground.db.execute("UPDATE rate_budgets SET resets_at = clock_timestamp() WHERE scope = 'c2'")
    assert not await take({"beds24:1": 1.0, "c2": 1.0})
    assert (await taken())["beds24:1"] == 3.0


@pytest.mark.parametrize("urgent", [[True] * 8, [False] * 7, [True, False] * 4])
async def test_both_ways_of_admission_agree(
    ground: Ground, urgent: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls for the whole of a budget: what the one statement lets through, the transaction would, too, and the next is none."""
    calls = [of(urgent=each) for each in urgent]
    governor = ground.governor()
    assert await ground.one(governor, calls[0]) is None  # from now on the budget is known
    more = calls[1:]
    room = 9 - len(more) >= (0 if all(urgent) else 2)
    at_once = await governor._take_at_once(more)
    await ground.db.execute("UPDATE rate_budgets SET under_way = 1")
    monkeypatch.setattr(governor, "_take_at_once", lambda _: asyncio.sleep(0, result=False))
    verdicts = await governor.admit(more)
    assert at_once == room == (verdicts == [None] * len(more))


async def test_open_circuits_are_listed_with_their_vendor(ground: Ground) -> None:
    await ground.fail(ground.governor(), 5)
    await ground.fail(ground.governor(), 4, "c2")
    async with ground.pool.acquire() as database:
        (row,) = await limits.open_circuits(database)
        assert (row["connection_id"], row["kind"], row["vendor"], row["failures"]) == ("c1", "write", "beds24", 5)
        await ground.over()
        assert len(await limits.open_circuits(database)) == 1
        await ground.db.execute(
            "UPDATE call_circuits SET retry_at = retry_at - make_interval(secs => $1)", 2 * limits.LONGEST_PAUSE
        )
        assert await limits.open_circuits(database) == []  # nobody waits for it: it holds nothing back


async def test_the_gauge_tells_which_kind_is_held_back_and_that_it_no_longer_is(ground: Ground) -> None:
    sessions = Sessions({}, http=lambda _: None, tokens=lambda _: None, now=ground.clock)  # type: ignore[arg-type,return-value]
    upkeep = Upkeep(ground.pool, None, sessions, None)  # type: ignore[arg-type] - it asks nothing but the database here

    async def gauged(kind: CallKind) -> float:
        await upkeep.gauge()
        return metrics.CIRCUIT.labels("beds24", "c1", kind.value)._value.get()

    await ground.fail(ground.governor(), 5)
    assert [await gauged(WRITE), await gauged(READ)] == [1, 0]
    await ground.db.execute("DELETE FROM call_circuits")
    assert await gauged(WRITE) == 0


# ------------------------------------------------------------------------------------------------ reads and writes


@pytest.mark.parametrize(("silent", "answers"), [(WRITE, READ), (READ, WRITE)])
async def test_answers_of_one_kind_keep_no_circuit_of_the_other_closed(
    ground: Ground, silent: CallKind, answers: CallKind
) -> None:
    governor = ground.governor()

    async def one_is_answered() -> None:
        call = of(kind=answers, limit=ROOMY)
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, True, None))

    for _ in range(4):
        await ground.fail(governor, kind=silent)
        await one_is_answered()
    assert await ground.fail(governor, kind=silent) == {("c1", silent)}
    for _ in range(3):  # answers do not heal it, neither while it is open nor while it is being tried
        await one_is_answered()
        refused = await ground.one(governor, of(kind=silent))
        assert refused is not None
        assert f"5 {silent}s in a row were not answered" in refused.message
    await ground.over()
    probe = of(kind=silent)
    assert await ground.one(governor, probe) is None
    await one_is_answered()
    await ground.note(governor, Ended(probe, True, None))
    assert await ground.failures(kind=silent) is None


async def test_a_vendor_that_is_away_is_left_alone_by_both_kinds_each_at_its_own_pace(ground: Ground) -> None:
    governor = ground.governor()
    for _ in range(5):
        await ground.fail(governor, kind=READ)
        await ground.fail(governor, kind=WRITE)
    assert [await ground.one(governor, of(kind=kind)) is None for kind in CallKind] == [False, False]
    await ground.over()
    probes = [of(kind=kind) for kind in CallKind]
    assert await governor.admit(probes) == [None, None]  # neither waits for the other's
    await ground.note(governor, *(Ended(probe, False, None) for probe in probes))
    assert [await ground.failures(kind=kind) for kind in CallKind] == [6, 6]


@pytest.mark.parametrize("against", [READ, WRITE])
async def test_what_looks_up_first_waits_for_either_circuit(ground: Ground, against: CallKind) -> None:
    governor = ground.governor()
    await ground.fail(governor, 5, kind=against)
    assert await ground.one(governor, of(looks_up=True)) is not None
    await ground.over()
    probe = of(looks_up=True)
    assert await ground.one(governor, probe) is None
    assert probe.probes == {("c1", against)}
    waits = await ground.one(governor, of(kind=against))
    assert waits is not None
    assert "probe" in waits.message
    governor.ended(probe)
    assert await ground.one(governor, of(kind=against)) is None


async def test_what_looks_up_first_waits_for_the_longer_pause_and_tries_both(ground: Ground) -> None:
    governor = ground.governor()
    for kind in CallKind:
        await ground.fail(governor, 5, kind=kind)
    await ground.db.execute("UPDATE call_circuits SET retry_at = clock_timestamp() WHERE kind = 'read'")
    waits = await ground.one(governor, of(looks_up=True))
    assert waits is not None
    assert "5 writes" in waits.message
    await ground.over()
    probe = of(looks_up=True)
    assert await ground.one(governor, probe) is None
    assert probe.probes == {("c1", READ), ("c1", WRITE)}


async def test_a_look_up_speaks_for_reads_and_what_came_after_it_for_writes(ground: Ground) -> None:
    governor = ground.governor()

    async def failures() -> list[int | None]:
        return [await ground.failures(kind=kind) for kind in (READ, WRITE)]

    async def ends(answered: bool, last: CallKind, *, looked_up: bool) -> None:
        call = of(looks_up=True, limit=ROOMY)
        assert await ground.one(governor, call) is None
        await ground.note(governor, Ended(call, answered, None, last=last, looked_up=looked_up))

    await ends(False, READ, looked_up=False)
    assert await failures() == [1, None]
    await ends(False, WRITE, looked_up=True)
    assert await failures() == [None, 1]
    await ends(False, READ, looked_up=False)
    assert await failures() == [1, 1]
    await ends(True, WRITE, looked_up=True)  # it was done before, or is now
    assert await failures() == [None, None]


async def test_a_look_up_that_fails_keeps_no_circuit_of_writes_open_for_longer(ground: Ground) -> None:
    governor = ground.governor()
    await ground.fail(governor, 5)
    await ground.over()
    probe = of(looks_up=True)
    assert await ground.one(governor, probe) is None
    assert await ground.note(governor, Ended(probe, False, None, last=READ)) == set()
    assert await ground.failures() == 5
    assert await ground.one(governor, of()) is None  # the next one tries
