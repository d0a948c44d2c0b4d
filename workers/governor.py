"""Whether a call to a vendor may go out now: rate budgets and circuits, shared by all processes through the database.

A call that may not is deferred, which is no attempt. Budget: what calls will cost is taken before they go out, so that many
workers cannot spend the same units; what the vendor says of itself then corrects the number, less what it cannot know of
yet: the calls that are under way. Circuit: after some calls in a row without an answer nothing is tried for a while, then
one call of each process as a probe; a probe that fails is no attempt either, or an outage of an hour would use up the
attempts of whatever came first. A connection has one for reads and one for writes: an answer to the one kind says nothing of
the other. A command that looks up first needs both.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from adapters.port import Repeat
from adapters.transport import NOT_SENT
from schemas.vocabulary import CallKind, Fault
from store import limits

from .decide import SOONEST
from .outcome import Defer, Done, Outcome, Park, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from adapters.port import Budget, RateLimit
    from schemas.connection import Connection
    from store.pool import Pool

UNANSWERED = frozenset({Fault.TRANSIENT, Fault.UNKNOWN})
MANY = 3  # two calls for many events each open a circuit, before those events have used their attempts up
WINDOWS = 2  # so many of its periods a rate limit lasts at most, whatever the vendor says
SPREAD = 0.5  # what waits for a circuit comes back over this share of its pause, not all at once


@dataclass(slots=True)
class Call:
    """One call, or one piece of work of a few calls.

    urgent    it may use the reserve
    looks_up  it asks first whether it was done
    probes    the open circuits that it tries
    """

    connection: Connection
    kind: CallKind
    limit: RateLimit
    urgent: bool
    looks_up: bool = False
    probes: frozenset[limits.Key] = frozenset()

    @property
    def scope(self) -> str:
        """Connections of one account share its budget."""
        account = self.connection.external_account_id
        return (
            f"{self.connection.vendor}:{account}" if account and self.limit.scope == "account" else self.connection.id
        )

    @property
    def circuits(self) -> set[limits.Key]:
        """All of them must let it through."""
        kinds = {self.kind, CallKind.READ} if self.looks_up else {self.kind}
        return {(self.connection.id, kind) for kind in kinds}


@dataclass(frozen=True, slots=True)
class Ended:
    """
    answered   whether the vendor gave a sign of life when it was asked last; None: nothing was asked of it
    events     that shared the call
    last       what was asked last, where that is not what the call is for: a look-up
    looked_up  a look-up was answered
    """

    call: Call
    answered: bool | None
    budget: Budget | None
    events: int = 1
    last: CallKind | None = None
    looked_up: bool = False

    @property
    def circuit(self) -> limits.Key:
        """Of which `answered` tells."""
        return self.call.connection.id, self.last or self.call.kind

    @property
    def heard(self) -> set[limits.Key]:
        """Circuits that have no reason to be open."""
        looked_up = {(self.call.connection.id, CallKind.READ)} if self.looked_up else set()
        return looked_up | {self.circuit} if self.answered else looked_up


class Governor:
    def __init__(self, pool: Pool, *, random: Callable[[], float], now: Callable[[], datetime]) -> None:
        """now: as the database has it, whose times it is compared with"""
        self._pool = pool
        self._random = random
        self._now = now
        self._probing: set[limits.Key] = set()
        self._troubled: set[limits.Key] = set()  # circuits that count failures

    async def admit(self, calls: Sequence[Call]) -> list[Defer | None]:
        """For each: None, it may go and must be given to `ended`, then to `note`; or until when not."""
        asked = {key for call in calls for key in call.circuits}
        if not calls or (asked.isdisjoint(self._troubled) and await self._take_at_once(calls)):
            return [None] * len(calls)
        try:
            async with self._pool.acquire() as database, database.transaction():
                circuits = await limits.circuits(database, asked)
                verdicts = [self._through_circuits(call, circuits) for call in calls]
                free = [n for n, verdict in enumerate(verdicts) if verdict is None]
                scopes = {calls[n].scope: calls[n].connection.company_id for n in free}
                balances = await limits.budgets(database, scopes) if scopes else {}
                taken: dict[str, limits.Balance] = {}
                for n in sorted(free, key=lambda n: not calls[n].urgent):
                    verdicts[n] = self._out_of_budget(calls[n], balances, taken)
                await limits.take(database, taken)
        except BaseException:
            for call in calls:
                self._not_a_probe(call)
            raise
        self._troubled = (self._troubled - asked) | circuits.keys()
        for call, verdict in zip(calls, verdicts, strict=True):
            if verdict is not None:
                self._not_a_probe(call)
        return verdicts

    async def held_back(self, connection_id: str, kinds: Collection[CallKind]) -> Defer | None:
        """Until when its circuits let no call of these kinds through. Nothing is taken, and nothing tried."""
        async with self._pool.acquire() as database:
            return self._while_open(await limits.circuits(database, {(connection_id, kind) for kind in kinds}))

    async def _take_at_once(self, calls: Sequence[Call]) -> bool:
        """Whether nothing stands against any of them, which is nearly always; then it is one statement. Else nothing is taken."""
        costs: defaultdict[str, float] = defaultdict(float)
        needed: defaultdict[str, float] = defaultdict(float)  # by all of a scope together
        for call in sorted(calls, key=lambda call: not call.urgent):
            needed[call.scope] = max(needed[call.scope], costs[call.scope] + _least(call))
            costs[call.scope] += call.limit.cost
        circuits = {key for call in calls for key in call.circuits}
        async with self._pool.acquire() as database:
            return await limits.take_at_once(database, circuits, costs, needed)

    def ended(self, call: Call) -> None:
        """The call is over, whatever came of it."""
        self._probing -= call.probes

    async def note(self, endings: Sequence[Ended]) -> set[limits.Key]:
        """Writes what calls told of their vendors, all of it or nothing. returns the circuits that are open now"""
        now = self._now()
        spent: dict[str, limits.Spent] = {}
        for ending in endings:
            call, budget = ending.call, ending.budget
            of = spent.setdefault(call.scope, limits.Spent())
            if budget is not None or ending.answered is None:
                of.units += call.limit.cost
            if budget is not None and (of.left is None or budget.remaining < of.left[0]):
                of.left = budget.remaining, now + _believed(budget, call.limit)
        heard = {key for e in endings for key in e.heard}
        failed: dict[limits.Key, tuple[str, int]] = {}
        for ending in endings:
            key = ending.circuit
            if ending.answered is False and key not in heard:
                before = failed.get(key, ("", 0))[1]
                failed[key] = ending.call.connection.company_id, before + min(ending.events, MANY)
        probes = {key for e in endings for key in e.call.probes}
        healed = heard & self._troubled
        async with self._pool.acquire() as database:
            if not failed and not healed:
                await limits.spent(database, spent)
                return set()
            async with database.transaction():
                await limits.spent(database, spent)
                opened = await limits.silent(database, failed, probes)
                # Not forgotten here: this may be rolled back, and is then tried again. The next `admit` sees the rows.
                await limits.heard(database, healed)
        self._troubled |= failed.keys()
        return opened

    def _not_a_probe(self, call: Call) -> None:
        self._probing -= call.probes
        call.probes = frozenset()

    def _through_circuits(self, call: Call, circuits: Mapping[limits.Key, limits.Circuit]) -> Defer | None:
        against = {key: circuit for key, circuit in circuits.items() if key in call.circuits}
        verdict = self._while_open(against)
        if verdict is None:
            call.probes = frozenset(_open(against))
            self._probing |= call.probes
        return verdict

    def _while_open(self, circuits: Mapping[limits.Key, limits.Circuit]) -> Defer | None:
        against = _open(circuits)
        if not against:
            return None
        now = self._now()
        (_, kind), last = max(against.items(), key=lambda item: item[1].retry_at)
        if last.retry_at > now:
            pause = (last.retry_at - now) * (1 + SPREAD * self._random())
            return Defer(now + pause, f"circuit open: {last.failures} {kind}s in a row were not answered")
        if against.keys() & self._probing:
            # A probe of a silent vendor takes as long as a call may: who comes back sooner comes back for nothing.
            pause = timedelta(seconds=limits.FIRST_PAUSE) * (1 + SPREAD * self._random())
            return Defer(now + pause, "circuit open: waits for the probe")
        return None

    def _out_of_budget(
        self, call: Call, balances: dict[str, limits.Balance], taken: dict[str, limits.Balance]
    ) -> Defer | None:
        limit = call.limit
        known = balances.get(call.scope) or limits.Balance(limit.units, 0, self._now() + limit.per)
        needed = _least(call)
        if known.free < needed:
            return Defer(known.resets_at, f"rate limit: {known.free:g} units left, {needed:g} needed")
        balances[call.scope] = taken[call.scope] = replace(known, under_way=known.under_way + limit.cost)
        return None


def _open(circuits: Mapping[limits.Key, limits.Circuit]) -> dict[limits.Key, limits.Circuit]:
    return {key: circuit for key, circuit in circuits.items() if circuit.failures >= limits.OPENS}


def _believed(budget: Budget, limit: RateLimit) -> timedelta:
    """Until it is full again: one wrong word must not put a connection off for days, nor let it call again at once."""
    return min(timedelta(seconds=max(budget.resets_in, SOONEST)), WINDOWS * limit.per)


def _least(call: Call) -> float:
    """Units that must be left for it to go out: bookings may use the last, the others leave the reserve to them."""
    return call.limit.least if call.urgent else call.limit.reserve


def answered(outcome: Outcome | None) -> bool | None:
    """What an outcome of a call says about the vendor's life."""
    match outcome:
        case Retry(fault=fault) | Park(fault=fault):
            if fault in UNANSWERED:
                return False
            return True if fault in {Fault.REJECTED, Fault.RATE_LIMITED} else None
        case Done():
            return True
        case _:
            return None


def uncounted(call: Call, outcome: Outcome, now: datetime, repeat: Repeat = Repeat.SAFE) -> Outcome:
    """A probe that failed is no attempt, nor is a call that the vendor refused for its rate limit: it did nothing, and others
    may have used the units. What waits for the circuit is told its time when it comes back.

    repeat   of the command: one of which only a person can tell whether it was done is not done again for being a probe,
             unless it was surely not sent
    """
    match outcome:
        case Retry(fault=Fault.RATE_LIMITED, message=message, after=after):
            return Defer(now + timedelta(seconds=after), message)
        case Retry(code=code) | Park(code=code) if repeat is Repeat.ASK and code != NOT_SENT:
            return outcome
        case Retry(fault=fault, message=message) | Park(fault=fault, message=message) if (
            call.probes and fault in UNANSWERED
        ):
            return Defer(now + timedelta(seconds=limits.FIRST_PAUSE), f"circuit open, its probe failed: {message}")
        case _:
            return outcome
