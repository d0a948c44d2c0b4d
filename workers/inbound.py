"""Vendors' facts into the integration buffer.

load (one query) → interpret (pure) → settle: one transaction for the batch. Effects and status commit together, so an event
that is handled again after a crash is applied once.

A fact that is only a hint is another matter: workers/hints.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

from adapters.errors import AdapterError
from adapters.port import Effects, Hint, Recorded
from schemas.vocabulary import MAX_STARTS, OPEN_STATUSES, EntityType, Fault, Owner
from store import inbound as store
from store.overlay import document
from store.seal import SealError
from store.settle import SettledElsewhereError, bury, finish, resolve
from telemetry.logs import about

from .decide import decide, poison
from .echo import is_echo, own_writes_of, tells_more
from .hints import DOUBTS, Hints, in_doubt
from .inbound_rows import (
    Work,
    about_of,
    dead_letter,
    effects_of,
    final,
    finish_row,
    is_asked,
    is_plain,
    keys_of,
    observe,
    state_rows,
)
from .letters import stranger
from .outcome import Defer, Done, Outcome, Park, Skip
from .persist import commit, outlast
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from schemas.entities import Reservation, Sourced
    from schemas.event import Event
    from store.directory import Directory, Known
    from store.inbound import InboundRow, StoredState
    from store.pool import Connection, Pool
    from store.results import Batch
    from topology.retry import RetryPolicy

    from .governor import Governor
    from .sessions import Sessions
    from .tell import Teller

_log = logging.getLogger(__name__)

ECHO = "echo of our own write"
_OPEN = frozenset(status.value for status in OPEN_STATUSES)


@dataclass(frozen=True, slots=True)
class _Settled:
    """told: results to publish; left: works that are open still; ended: what became of the others."""

    told: Batch | None
    left: Sequence[Work]
    ended: Sequence[tuple[Work, Outcome]] = ()


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
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._teller = teller
        self._policies = policies
        self._random = random
        self._now = now
        self._hints = Hints(
            pool, sessions, governor, self._settle_asked, self._failed, worker=worker, random=random, now=now
        )
        self._turns = Turns()  # of all queues that the process consumes

    async def process(self, events: Sequence[Event]) -> None:
        """Each is settled when this returns, or leased for as long as its vendor is asked."""
        async with self._turns.together():
            await self._process(events, starts=1)

    async def process_alone(self, event: Event) -> None:
        async with self._turns.alone():
            await self._process_alone(event)

    async def _process_alone(self, event: Event) -> None:
        token = uuid4()

        async def start() -> int | None:
            async with self._pool.acquire() as connection:
                return await store.start_alone(connection, event.row_id, token)

        before = await outlast(start)
        if before is None:
            await outlast(lambda: self._begin([event]))  # not now, or without a row: then it is not to be lost either
            return
        if before <= MAX_STARTS:
            await self._process([event], starts=0)
            return
        for work in await outlast(lambda: self._begin([event])):
            work.outcome = poison(before)
            await self._settle([work])

    async def drain(self, grace: float) -> None:
        await self._hints.drain(grace)

    async def _process(self, events: Sequence[Event], starts: int) -> None:
        works = await outlast(lambda: self._begin(events))
        for work in works:
            if work.outcome is None:
                work.outcome = self._interpret(work)
        told = [work for work in works if not isinstance(work.outcome, Hint)]
        # First, because a vendor takes longest, and from here on it is asked beside all else.
        await self._hints.ask([work for work in works if isinstance(work.outcome, Hint)], starts)
        await self._mark_echoes(told)
        await self._hints.ask([in_doubt(work) for work in await self._settle(told)], starts)

    async def _settle_asked(self, works: Sequence[Work]) -> list[Work]:
        """What the vendor was asked for tells of our own writes, too."""
        await self._mark_echoes(works)
        return await self._settle(works)

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
        at = {row.connection_id for row in found}
        self._directory.ahead(at)
        known = {id_: await self._known(id_) for id_ in at}
        return [_work(row, known[row.connection_id], now) for row in found]

    async def _known(self, connection_id: str) -> Known | SealError | None:
        """An error that is this connection's own: its neighbours in the batch go on."""
        try:
            return await self._directory.get(connection_id)
        except SealError as error:
            return error

    async def _bury_strangers(self, events: Sequence[Event]) -> None:
        """Facts come by webhook. One that somebody published is kept whole, for whoever sent it the wrong way."""
        _log.warning("events without a row", extra=about(count=len(events)))
        problem = "type: vendors' facts are recorded from their webhooks, not from the exchange"
        letters = [stranger(event, problem, self._directory.installation) for event in events if not event.is_wake_up]
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
        if isinstance(error, SealError):
            return _locked(error)
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
        """What is told of our own write is stored and not told to the core again."""
        told: list[tuple[Work, Effects, Sourced[Reservation]]] = []
        asked: list[tuple[str, str, str | None]] = []
        for work in works:
            match work.outcome:
                case Done(result=Effects(reservations=(reservation,)) as effects):
                    told.append((work, effects, reservation))
                    marker = reservation.entity.marker
                    # A create may be unanswered yet; and while the vendor was asked, it may have refused what we wrote.
                    if work.fetched or (marker and not work.row.own_writes):
                        asked.append((work.row.connection_id, reservation.entity.external_id, marker))
                case _:
                    pass

        async def look() -> dict[tuple[str, str], str]:
            async with self._pool.acquire() as connection:
                return await store.own_writes(connection, asked)

        found = await outlast(look) if asked else {}
        for work, effects, reservation in told:
            noted = None if work.fetched else work.row.own_writes
            writes = own_writes_of(found.get((work.row.connection_id, reservation.entity.external_id), noted))
            if is_echo(reservation, writes):
                work.outcome, work.own_writes = Skip(ECHO, effects), writes

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
        if ended := [one for part in parts for one in part.ended]:
            observe(ended, self._now())
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
        return _Settled(stored.told, [work for work in works if work not in done], [*done.items()])

    async def _commit(self, works: Sequence[Work]) -> _Settled:
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await self._write(connection, works)
        except SettledElsewhereError:  # rolled back; now only those that are ours to end, and they stay so
            async with self._pool.acquire() as connection, connection.transaction():
                held = await store.lock_held(connection, [work.lease for work in works])
                return await self._write(connection, [work for work in works if work.lease in held])

    async def _park_alone(self, work: Work, error: Exception) -> _Settled:
        """The row that the database refuses."""
        work.outcome = Park(
            Fault.INVALID, f"the database refuses it: {type(error).__name__}", Owner.PIPELINE, type(error).__name__
        )
        return await self._commit([work])

    def _unmark(self, works: Sequence[Work], stored: Mapping[tuple[str, str], StoredState]) -> None:
        """An echo that also tells what the core does not know is told like any other state."""
        for work in works:
            match work.outcome:
                case Skip(effects=Effects(reservations=(sourced,)) as effects) if work.own_writes:
                    before = stored.get((work.row.connection_id, sourced.entity.external_id))
                    if tells_more(sourced, work.own_writes, before):
                        work.outcome = Done(effects)
                case _:
                    pass

    def _put_off(self, work: Work) -> bool:
        """One that was asked for again and again, and overtaken each time."""
        if work.fetched and work.doubts >= DOUBTS:
            until = self._now() + timedelta(seconds=1 + self._random())
            work.outcome = Defer(until, "overtaken by what was stored while the vendor was asked")
            return True
        return False

    async def _write(self, connection: Connection, works: Sequence[Work]) -> _Settled:
        """raises SettledElsewhereError"""
        if not works:
            return _Settled(None, [])
        if any(work.own_writes or is_asked(work) for work in works):
            # Of all of them, at once: two batches that took theirs one after the other might wait for each other.
            self._unmark(works, await store.stored_states(connection, [key for work in works for key in keys_of(work)]))
        states = [row for work in works for row in state_rows(work)]
        overtaken = await store.overtaken(connection, [row for row in states if row.sourced.version.asked])
        states = [row for row in states if row.event_id not in overtaken]
        stored = await store.apply_states(connection, states)
        fetched = {work.row.id for work in works if work.fetched}
        behind = [
            row for row in states if (row.event_id, row.key[1]) not in stored.applied and row.event_id not in fetched
        ]
        doubtful = overtaken | await store.same_moment(connection, behind)
        unsure = [work for work in works if work.row.id in doubtful and not self._put_off(work)]
        works = [work for work in works if work not in unsure]
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
        return _Settled(stored.told, unsure, [*zip(works, finals, strict=True)])


def _work(row: InboundRow, known: Known | SealError | None, now: datetime) -> Work:
    vendor = row.event_type.partition(".")[0]
    if isinstance(known, SealError):
        return Work(row, None, vendor, now, outcome=_locked(known))
    return Work(row, known, vendor, now)


def _locked(error: SealError) -> Park:
    return Park(Fault.MISCONFIGURED, f"key file: {error}", Owner.PIPELINE, "sealed")
