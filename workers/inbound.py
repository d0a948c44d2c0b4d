"""Vendors' facts into the integration buffer.

load (one query) → interpret (pure) → settle: one transaction for the batch. Effects and status commit together, so an event
that is handled again after a crash is applied once.

A fact that is only a hint is leased in its row, and its message is done with: the vendor is asked for all the hints of one
connection that came since the last call, one call at a time, and a slow connection holds nobody else's facts. While they
wait their leases are kept: who waits for a slow vendor has not died.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from adapters.errors import AdapterError, NoCredentials, Transient
from adapters.port import Effects, Hint, Recorded
from schemas.event import SOURCE
from schemas.vocabulary import OPEN_STATUSES, EntityType, Fault, Owner
from store import inbound as store
from store.overlay import document
from store.settle import SettledElsewhereError, bury, finish, resolve
from telemetry.logs import about

from .decide import MAX_STARTS, decide, poison
from .echo import is_echo, said_near, tells_more
from .governor import Call, Ended, answered, uncounted
from .inbound_rows import (
    Work,
    about_of,
    dead_letter,
    effects_of,
    final,
    finish_row,
    is_plain,
    observe,
    own_writes_of,
    state_rows,
)
from .letters import stranger
from .outcome import Defer, Done, Outcome, Park, Skip
from .persist import commit, outlast
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from schemas.entities import Reservation, Sourced
    from schemas.event import Event
    from store.directory import Directory
    from store.pool import Connection, Pool
    from store.results import Batch
    from topology.retry import RetryPolicy

    from .governor import Governor
    from .sessions import Sessions
    from .tell import Teller

_log = logging.getLogger(__name__)

ECHO = "echo of our own write"
LEASE = 120.0  # seconds; prolonged while its holder lives, and the relay takes over one that ran out
FETCH = 90.0  # seconds that one fetch may take, all its calls and a new token included
FETCHES = 64  # at once, of one vendor: fewer than its client has sockets
HINTS = 100  # of one connection that share a fetch
LAST_WORD = 5.0  # seconds at a stop for the database to take back what was not begun
WAITING = 1_000  # hints of one connection in hand; what is beyond comes again later
_OPEN = frozenset(status.value for status in OPEN_STATUSES)


@dataclass(frozen=True, slots=True)
class _Settled:
    """told: results to publish; left: works that are open still."""

    told: Batch | None
    left: Sequence[Work]


class InboundStage:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        governor: Governor,
        teller: Teller,
        policies: Mapping[str, RetryPolicy],
        *,
        worker: str,
        random: Callable[[], float],
        now: Callable[[], datetime],
        lease: float = LEASE,
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._governor = governor
        self._teller = teller
        self._policies = policies
        self._worker = worker
        self._random = random
        self._now = now
        self._lease = lease
        self._hints: dict[str, list[Work]] = {}  # by connection; while an entry is there, a task works through it
        self._fetching: dict[str, list[Work]] = {}
        self._room: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(FETCHES))  # by vendor
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._turns = Turns()  # of all queues that the process consumes
        self._calls = Turns()  # apart: a vendor that does not answer is nothing that facts may wait for
        self._suspect: Work | None = None  # a hint at its last start: it is asked for alone

    async def process(self, events: Sequence[Event]) -> None:
        """Each is settled when this returns, or leased for as long as its vendor is asked."""
        async with self._turns.together():
            await self._process(events, starts=1)

    async def process_alone(self, event: Event) -> None:
        async with self._turns.alone():
            await self._process_alone(event)

    async def _process_alone(self, event: Event) -> None:
        async def start() -> int | None:
            async with self._pool.acquire() as connection:
                return await store.start_alone(connection, event.row_id)

        starts = await outlast(start)
        if starts is None:
            return
        if starts <= MAX_STARTS:
            await self._process([event], starts=0)
            return
        for work in await outlast(lambda: self._begin([event])):
            work.outcome = poison(starts)
            await self._settle([work])

    async def drain(self, grace: float) -> None:
        """Calls that are under way end within `grace` seconds; what has none yet is given back, uncounted."""
        unbegun = [work.row.id for waiting in self._hints.values() for work in waiting]
        for waiting in self._hints.values():
            waiting.clear()

        async def release() -> None:
            async with self._pool.acquire() as connection:
                await store.release(connection, unbegun, self._worker)

        if unbegun:
            with suppress(TimeoutError):  # the database is away: then they are taken over
                async with asyncio.timeout(LAST_WORD):
                    await outlast(release)
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._keeper is not None and not self._hints:
            self._keeper.cancel()

    async def _process(self, events: Sequence[Event], starts: int) -> None:
        works = await outlast(lambda: self._begin(events))
        for work in works:
            if work.outcome is None:
                work.outcome = self._interpret(work)
        told = [work for work in works if not isinstance(work.outcome, Hint)]
        # First, because a vendor takes longest, and from here on it is asked beside all else.
        await self._ask([work for work in works if isinstance(work.outcome, Hint)], starts)
        await self._mark_echoes(told)
        await self._ask([_in_doubt(work) for work in await self._settle(told)], starts)

    # ------------------------------------------------------------------ begin

    async def _begin(self, events: Sequence[Event]) -> list[Work]:
        """The rows that the message names and that are still open."""
        ids = list(dict.fromkeys(event.row_id for event in events))
        async with self._pool.acquire() as connection:
            rows = await store.load(connection, ids)
        if len(rows) < len(ids):
            await self._bury_strangers([event for event in events if event.row_id not in rows])
        now = self._now()
        found = [rows[id_] for id_ in ids if id_ in rows and rows[id_].status in _OPEN]
        known = {id_: await self._directory.get(id_) for id_ in {row.connection_id for row in found}}
        return [Work(row, known[row.connection_id], row.event_type.partition(".")[0], now) for row in found]

    async def _bury_strangers(self, events: Sequence[Event]) -> None:
        """Facts come by webhook. One that somebody published is kept whole, for whoever sent it the wrong way."""
        _log.warning("events without a row", extra=about(count=len(events)))
        problem = "type: vendors' facts are recorded from their webhooks, not from the exchange"
        letters = [stranger(event, problem, self._directory.installation) for event in events if event.source != SOURCE]
        if letters:
            async with self._pool.acquire() as connection:
                await bury(connection, letters)

    # ------------------------------------------------------------------ perform

    def _interpret(self, work: Work) -> Outcome | Hint:
        row, known = work.row, work.known
        if known is None:
            return Park(Fault.MISCONFIGURED, f"connection: {row.connection_id} is gone", Owner.TENANT, "no_connection")
        try:
            adapter = self._sessions.adapter(known.connection.vendor)
            work.personal = adapter.manifest.personal
            work.document = document(row.payload, row.sealed, row.overlay, known.cipher)
            fact = Recorded(
                row.id,
                row.event_type,
                EntityType(row.entity_type),
                row.entity_external_id,
                work.document,
                row.received_at,
            )
            found = adapter.interpret(fact, known.connection)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes an outcome
            return self._failed(work, error)
        return found if isinstance(found, Hint) else Done(found)

    def _failed(self, work: Work, error: Exception) -> Outcome:
        if not isinstance(error, AdapterError):
            _log.exception("handler failed", extra=about_of(work))
        policy = self._policy(work)
        return decide(
            error, policy, attempt=work.row.attempts + 1, max_attempts=work.row.max_attempts, random=self._random
        )

    def _policy(self, work: Work) -> RetryPolicy:
        adapter = self._sessions.adapters.get(work.vendor)
        return self._policies[adapter.manifest.retry_policy if adapter else "channel_event"]

    async def _mark_echoes(self, works: Sequence[Work]) -> None:
        """What a webhook tells of our own write is stored and not told to the core again."""
        marked: list[tuple[Work, Effects, Sourced[Reservation], str]] = []
        for work in works:
            match work.outcome:
                case Done(result=Effects(reservations=(reservation,)) as effects):
                    writes = own_writes_of(work.row.own_writes)
                    if is_echo(reservation, writes):
                        work.outcome, work.said = Skip(ECHO, effects), said_near(reservation, writes)
                    elif reservation.entity.marker and not writes:
                        marked.append((work, effects, reservation, reservation.entity.marker))
                case _:
                    pass
        if not marked:
            return
        connection_ids = list({work.row.connection_id for work, *_ in marked})
        markers = [marker for *_, marker in marked]

        async def look() -> dict[str, tuple[dict[str, Any], datetime]]:
            async with self._pool.acquire() as connection:
                return await store.own_writes_by_marker(connection, connection_ids, markers)

        written = await outlast(look)
        for work, effects, reservation, marker in marked:
            if marker in written and is_echo(reservation, [written[marker]]):
                work.outcome, work.said = Skip(ECHO, effects), said_near(reservation, [written[marker]])

    # ------------------------------------------------------------------ ask the vendor

    async def _ask(self, works: Sequence[Work], starts: int) -> None:
        """Leases the works and hands them to the tasks of their connections. starts: how many this counts as"""
        if not works:
            return
        if self._suspect is not None:  # leased beside it they would be counted, and in the end parked with it
            for work in works:
                work.starts, work.outcome = work.row.starts + 1, self._after_the_suspect()
            await self._settle(works)
            return

        async def lease() -> dict[UUID, int]:
            async with self._pool.acquire() as connection:
                return await store.lease(connection, [work.row.id for work in works], self._worker, self._lease, starts)

        leased = await outlast(lease)
        refused, begun = [], []
        for work in works:
            if work.row.id not in leased:
                continue  # another worker has it
            work.starts = leased[work.row.id]
            refusal = self._refusal(work)
            if refusal is not None:
                work.outcome = refusal
                refused.append(work)
                continue
            if work.starts == MAX_STARTS:
                self._suspect = work
            begun.append(work)
        await self._settle(refused)
        for work in begun:
            self._hand_over(work)

    def _refusal(self, work: Work) -> Park | Defer | None:
        """What stands against asking for one that is leased."""
        if work.starts > MAX_STARTS:
            return poison(work.starts)
        if work.starts == MAX_STARTS and self._suspect is not None:
            return self._after_the_suspect()
        if len(self._hints.get(work.row.connection_id, [])) >= WAITING:
            until = self._now() + timedelta(seconds=30 * (1 + self._random()))
            return Defer(until, f"{WAITING} hints of this connection wait already")
        return None

    def _after_the_suspect(self) -> Defer:
        until = self._now() + timedelta(seconds=1 + self._random())
        return Defer(until, "waits for another one, which is asked for alone")

    def _hand_over(self, work: Work) -> None:
        connection_id = work.row.connection_id
        if connection_id in self._hints:
            self._hints[connection_id].append(work)
            return
        self._hints[connection_id] = [work]
        task = asyncio.create_task(self._work_through(connection_id))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep_leases(), name="leases of hints")
            self._keeper.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A hole in the stage. The rows' leases run out, their starts are counted, in the end they are parked as poison.
            _log.error("fetch failed", exc_info=error)

    async def _keep_leases(self) -> None:
        """Until nothing is in hand."""
        while self._hints:
            await asyncio.sleep(self._lease / 4)
            in_hand = [
                work.row.id
                for by_connection in (self._hints, self._fetching)
                for works in by_connection.values()
                for work in works
            ]
            await outlast(lambda ids=in_hand: self._prolong(ids))  # type: ignore[misc]

    async def _prolong(self, ids: Sequence[UUID]) -> None:
        async with self._pool.acquire() as connection:
            await store.prolong(connection, ids, self._worker, self._lease)

    async def _work_through(self, connection_id: str) -> None:
        """The hints of one connection, as few calls as the vendor allows, until there are none."""
        waiting = self._hints[connection_id]
        try:
            while waiting:
                turn = self._calls.alone if waiting[0] is self._suspect else self._calls.together
                async with self._room[waiting[0].vendor], turn():
                    works = self._fetching[connection_id] = self._sharing(waiting)  # none, if a stop has come meanwhile
                    del waiting[: len(works)]
                    await self._fetch({work: work.outcome for work in works if isinstance(work.outcome, Hint)})
                waiting += map(_in_doubt, await self._settle(works))
        finally:
            del self._hints[connection_id]
            self._fetching.pop(connection_id, None)
            if self._suspect is not None and self._suspect.row.connection_id == connection_id:
                self._suspect = None

    def _sharing(self, waiting: Sequence[Work]) -> list[Work]:
        """Those at the front that share a call."""
        if waiting and waiting[0] is self._suspect:
            return [waiting[0]]
        return list(itertools.takewhile(lambda work: work is not self._suspect, waiting[:HINTS]))

    async def _fetch(self, hints: Mapping[Work, Hint]) -> None:
        """Gives each work its outcome. One that spoils the answer for the others is found by halving, and fails alone."""
        known = next((work.known for work in hints), None)
        if known is None:
            return
        session = self._sessions.open(known)
        call = Call(known.connection, session.adapter.manifest.rate_limit, urgent=True)
        refused = await self._refused(call)
        if refused is not None:
            for work in hints:
                work.outcome = refused
            return
        wanted = list(dict.fromkeys(hints.values()))
        spoiled = False
        try:
            async with asyncio.timeout(FETCH):
                found = await session.adapter.fetch(session, wanted)
        except TimeoutError:
            life = self._not_fetched(hints, call, Transient(f"no answer within {FETCH:.0f} s"))
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises becomes an outcome
            spoiled = len(wanted) > 1 and _may_be_of_one(error)
            life = None if spoiled else self._not_fetched(hints, call, error)
        else:
            life = True
            for work, hint in hints.items():
                effects = found.get(hint)
                work.outcome = Done(effects) if effects is not None else Skip("gone at the vendor")
                work.fetched = True
        finally:
            self._governor.ended(call)
        await outlast(lambda: self._note(Ended(call, life, session.budget, events=len(wanted))))
        if spoiled:
            for half in (wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :]):
                await self._fetch({work: hint for work, hint in hints.items() if hint in half})

    async def _refused(self, call: Call) -> Defer | None:
        status = call.connection.status
        if status != "active":
            return Defer(self._now() + timedelta(seconds=30), f"connection is {status}")
        (verdict,) = await outlast(lambda: self._governor.admit([call]))
        return verdict

    def _not_fetched(self, works: Iterable[Work], call: Call, error: Exception) -> bool | None:
        """returns what the error says about the vendor's life"""
        life: bool | None = None
        for work in works:
            outcome = self._failed(work, error)
            life = answered(outcome)
            work.outcome = uncounted(call, outcome, self._now())
            if work.unsure and isinstance(error, NoCredentials):
                work.outcome = Skip("as new as the stored state, and no credentials to ask the vendor with")
        return life

    async def _note(self, ending: Ended) -> None:
        if await self._governor.note([ending]):
            _log.warning(
                "circuit open: the vendor does not answer", extra=about(connection_id=ending.call.connection.id)
            )

    # ------------------------------------------------------------------ settle

    async def _settle(self, works: Sequence[Work]) -> list[Work]:
        """Most by one statement, what is left by a transaction. returns the works that only the vendor can decide"""
        plain: list[Work] = []
        rest: list[Work] = []
        for work in works:
            (plain if is_plain(work) else rest).append(work)
        rest += await self._settle_by(self._apply, plain)
        return await self._settle_by(self._commit, rest)

    async def _settle_by(
        self, act: Callable[[Sequence[Work]], Awaitable[_Settled]], works: Sequence[Work]
    ) -> list[Work]:
        """returns the works that it left open"""
        if not works:
            return []
        parts = await commit(works, act, self._park_alone)
        await self._teller.tell(part.told for part in parts)
        return [work for part in parts for work in part.left]

    async def _apply(self, works: Sequence[Work]) -> _Settled:
        """Plain ones. Left are those whose state the fence did not let pass."""
        states = [row for work in works for row in state_rows(work)]
        try:
            async with self._pool.acquire() as connection:
                stored = await store.apply_states(connection, states, settled_from=works[0].started_at)
        except SettledElsewhereError:
            return _Settled(None, works)
        ids = {event_id for event_id, _ in stored.applied}
        done = {work: work.outcome for work in works if work.row.id in ids and isinstance(work.outcome, Done)}
        observe([*done], [*done.values()], self._now())
        return _Settled(stored.told, [work for work in works if work not in done])

    async def _commit(self, works: Sequence[Work]) -> _Settled:
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await self._write(connection, works)
        except SettledElsewhereError:  # rolled back; now only those that are open, and they stay so
            async with self._pool.acquire() as connection, connection.transaction():
                open_ids = await store.lock_open(connection, [work.row.id for work in works])
                return await self._write(connection, [work for work in works if work.row.id in open_ids])

    async def _park_alone(self, work: Work, error: Exception) -> _Settled:
        """The row that the database refuses."""
        work.outcome = Park(
            Fault.INVALID, f"the database refuses it: {type(error).__name__}", Owner.PIPELINE, type(error).__name__
        )
        return await self._commit([work])

    async def _unmark(self, connection: Connection, works: Sequence[Work]) -> None:
        """An echo that also brings what somebody else changed is told like any other state."""
        echoes = [work for work in works if work.said is not None]
        keys = [row.key for work in echoes for row in state_rows(work)]
        stored = await store.stored_states(connection, keys)
        for work in echoes:
            match work.outcome:
                case Skip(effects=Effects(reservations=(sourced,)) as effects):
                    before = stored.get((work.row.connection_id, sourced.entity.external_id))
                    if tells_more(sourced, work.said or {}, before):
                        work.outcome = Done(effects)
                case _:
                    pass

    async def _write(self, connection: Connection, works: Sequence[Work]) -> _Settled:
        """raises SettledElsewhereError"""
        if not works:
            return _Settled(None, [])
        await self._unmark(connection, works)
        states = [row for work in works for row in state_rows(work)]
        overtaken = await store.overtaken(connection, [row for row in states if row.sourced.version.asked])
        states = [row for row in states if row.event_id not in overtaken]
        stored = await store.apply_states(connection, states)
        fetched = {work.row.id for work in works if work.fetched}
        behind = [
            row for row in states if (row.event_id, row.key[1]) not in stored.applied and row.event_id not in fetched
        ]
        doubtful = overtaken | await store.same_moment(connection, behind)
        unsure = [work for work in works if work.row.id in doubtful]
        works = [work for work in works if work.row.id not in doubtful]
        if not works:
            return _Settled(stored.told, unsure)
        nights = await store.upsert_availability(
            connection,
            [
                (work.row.company_id, work.row.connection_id, sourced)
                for work in works
                for sourced in effects_of(work).availability
            ],
        )
        for work in works:
            effects = effects_of(work)
            if effects.properties or effects.room_types:
                row = work.row
                await store.upsert_properties(connection, row.company_id, row.connection_id, effects.properties)
                await store.upsert_room_types(connection, row.company_id, row.connection_id, effects.room_types)
        finals = [final(work, stored.applied, nights) for work in works]
        rows = [finish_row(work, outcome, self._now()) for work, outcome in zip(works, finals, strict=True)]
        if await finish(connection, rows) < len(rows):
            raise SettledElsewhereError
        parked = [(work, outcome) for work, outcome in zip(works, finals, strict=True) if isinstance(outcome, Park)]
        await bury(connection, [dead_letter(work, outcome) for work, outcome in parked])
        await resolve(
            connection,
            [
                work.row.id
                for work, outcome in zip(works, finals, strict=True)
                if work.row.error_class is not None and isinstance(outcome, Done | Skip)
            ],
        )
        observe(works, finals, self._now())
        return _Settled(stored.told, unsure)


def _may_be_of_one(error: Exception) -> bool:
    """Whether one of many entities may be the reason why none could be read."""
    return not isinstance(error, AdapterError) or error.fault in {Fault.INVALID, Fault.REJECTED}


def _in_doubt(work: Work) -> Work:
    """Two changes in one second of the vendor's clock: its present state is the only judge."""
    work.unsure, work.fetched = True, False
    work.outcome = Hint(EntityType(work.row.entity_type), work.row.entity_external_id)
    return work
