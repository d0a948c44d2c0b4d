"""Vendors' facts into the integration buffer.

load (one query) → interpret (pure) → fetch where the fact is only a hint → settle: one transaction for the batch.
Effects and status commit together, so an event that is handled again after a crash is applied once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from adapters.errors import AdapterError
from adapters.port import Effects, Hint, Recorded
from schemas.event import SOURCE
from schemas.ids import uuid7
from schemas.vocabulary import OPEN_STATUSES, EntityType, Fault, Owner
from store import inbound as store
from store.seal import join
from store.settle import CoreEventRow, DeadLetterRow, FinishRow, bury, finish, resolve
from telemetry import metrics
from telemetry.logs import about

from . import results
from .decide import MAX_STARTS, decide, poison
from .echo import is_echo
from .letters import stranger
from .outcome import Defer, Done, Outcome, Park, Retry, Skip, ending
from .persist import commit, outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from schemas.entities import Reservation, Sourced
    from schemas.event import Event
    from store.directory import Directory, Known
    from store.inbound import Applied, InboundRow
    from store.pool import Connection, Pool
    from topology.retry import RetryPolicy

    from .sessions import Sessions
    from .tell import Teller

_log = logging.getLogger(__name__)

ECHO = "echo of our own write"
_OPEN = frozenset(status.value for status in OPEN_STATUSES)


@dataclass(slots=True)
class Work:
    """One event on its way through the stage. known is None when its connection is gone."""

    row: InboundRow
    known: Known | None
    vendor: str
    started_at: datetime
    outcome: Outcome | Hint | None = None
    fetched: bool = False  # its state came from the vendor's API, not from the fact


@dataclass(frozen=True, slots=True)
class _Settled:
    """told: results to publish; unsure: works that were left open, because only the vendor knows its present state."""

    told: list[CoreEventRow]
    unsure: list[Work]


class InboundStage:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        teller: Teller,
        policies: Mapping[str, RetryPolicy],
        *,
        random: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._teller = teller
        self._policies = policies
        self._random = random
        self._now = now

    async def process(self, events: Sequence[Event]) -> None:
        works = await outlast(lambda: self._begin(events))
        for work in works:
            if work.outcome is None:
                work.outcome = self._interpret(work)
        await self._mark_echoes(works)
        await self._fetch([work for work in works if isinstance(work.outcome, Hint)])
        unsure = await self._settle(works)
        if unsure:
            await self._ask_about(unsure)

    async def _ask_about(self, works: Sequence[Work]) -> None:
        """Two changes in one second of the vendor's clock: its present state is the only judge."""
        for work in works:
            work.outcome = Hint(EntityType(work.row.entity_type), work.row.entity_external_id)
        await self._fetch(works)
        for work in works:
            if isinstance(work.outcome, Park) and work.outcome.fault is Fault.MISCONFIGURED:
                work.outcome = Skip("as new as the stored state, and no credentials to ask the vendor with")
        await self._settle(works)

    async def process_alone(self, event: Event) -> None:
        async def start() -> int | None:
            async with self._pool.acquire() as connection:
                return await store.start_alone(connection, event.row_id)

        starts = await outlast(start)
        if starts is None:
            return
        if starts <= MAX_STARTS:
            await self.process([event])
            return
        for work in await outlast(lambda: self._begin([event])):
            work.outcome = poison(starts)
            await self._settle([work])

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
            payload = join(orjson.loads(row.payload), known.cipher.open(row.sealed))
            fact = Recorded(
                row.id, row.event_type, EntityType(row.entity_type), row.entity_external_id, payload, row.received_at
            )
            found = adapter.interpret(fact, known.connection)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes an outcome
            return self._failed(work, error)
        return found if isinstance(found, Hint) else Done(found)

    def _failed(self, work: Work, error: Exception) -> Outcome:
        if not isinstance(error, AdapterError):
            _log.exception("handler failed", extra=_about(work))
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
                    writes = _writes(work.row.own_writes)
                    if is_echo(reservation, writes):
                        work.outcome = Skip(ECHO, effects)
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
                work.outcome = Skip(ECHO, effects)

    async def _fetch(self, works: Sequence[Work]) -> None:
        """Hints of one connection share as few calls as the vendor allows."""
        by_connection: defaultdict[str, list[Work]] = defaultdict(list)
        for work in works:
            by_connection[work.row.connection_id].append(work)
        await asyncio.gather(*(self._fetch_for(group) for group in by_connection.values()))

    async def _fetch_for(self, works: Sequence[Work]) -> None:
        known = works[0].known
        if known is None:
            return
        if known.connection.status != "active":
            for work in works:
                work.outcome = Defer(self._now() + timedelta(seconds=30), f"connection is {known.connection.status}")
            return
        hints = list({work.outcome for work in works if isinstance(work.outcome, Hint)})
        session = self._sessions.open(known)
        try:
            found = await session.adapter.fetch(session, hints)
        except Exception as error:  # noqa: BLE001 - as above
            for work in works:
                work.outcome = self._failed(work, error)
            return
        for work in works:
            hint = work.outcome
            effects = found.get(hint) if isinstance(hint, Hint) else None
            work.outcome = Done(effects) if effects is not None else Skip("gone at the vendor")
            work.fetched = True

    # ------------------------------------------------------------------ settle

    async def _settle(self, works: Sequence[Work]) -> list[Work]:
        """returns the works that could not be settled without asking the vendor"""
        if not works:
            return []
        batches = await commit(works, self._commit, self._park_alone)
        await self._teller.tell([row for batch in batches for row in batch.told])
        return [work for batch in batches for work in batch.unsure]

    async def _commit(self, works: Sequence[Work]) -> _Settled:
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._write(connection, works)

    async def _park_alone(self, work: Work, error: Exception) -> _Settled:
        """The row that the database refuses."""
        work.outcome = Park(
            Fault.INVALID, f"the database refuses it: {type(error).__name__}", Owner.PIPELINE, type(error).__name__
        )
        return await self._commit([work])

    async def _write(self, connection: Connection, works: Sequence[Work]) -> _Settled:
        open_ids = await store.lock_open(connection, [work.row.id for work in works])
        works = [work for work in works if work.row.id in open_ids]
        if not works:
            return _Settled([], [])
        states = [row for work in works for row in _reservation_rows(work)]
        applied = await store.upsert_reservations(connection, states, uuid7)
        fetched = {work.row.id for work in works if work.fetched}
        behind = [row for row in states if (row.event_id, row.key[1]) not in applied and row.event_id not in fetched]
        doubtful = await store.same_moment(connection, behind)
        unsure = [work for work in works if work.row.id in doubtful]
        works = [work for work in works if work.row.id not in doubtful]
        if not works:
            return _Settled([], unsure)
        nights = await store.upsert_availability(
            connection,
            [
                (work.row.company_id, work.row.connection_id, sourced)
                for work in works
                for sourced in _effects(work).availability
            ],
        )
        for work in works:
            effects = _effects(work)
            if effects.properties or effects.room_types:
                row = work.row
                await store.upsert_properties(connection, row.company_id, row.connection_id, effects.properties, uuid7)
                await store.upsert_room_types(connection, row.company_id, row.connection_id, effects.room_types, uuid7)
        finals = [_final(work, applied, nights) for work in works]
        rows = [_finish_row(work, outcome, self._now()) for work, outcome in zip(works, finals, strict=True)]
        told = [
            result
            for work, outcome in zip(works, finals, strict=True)
            if isinstance(outcome, Done)
            for result in _results(work, applied)
        ]
        await finish(connection, rows, told)
        parked = [(work, outcome) for work, outcome in zip(works, finals, strict=True) if isinstance(outcome, Park)]
        await bury(connection, [_dead_letter(work, outcome) for work, outcome in parked])
        await resolve(
            connection,
            [
                work.row.id
                for work, outcome in zip(works, finals, strict=True)
                if work.row.error_class is not None and isinstance(outcome, Done | Skip)
            ],
        )
        _observe(works, finals, self._now())
        return _Settled(told, unsure)


def _reservation_rows(work: Work) -> list[store.ReservationRow]:
    if work.known is None:
        return []
    row, cipher = work.row, work.known.cipher
    return [
        store.ReservationRow(row.company_id, row.connection_id, row.id, cipher, sourced)
        for sourced in _effects(work).reservations
    ]


def _effects(work: Work) -> Effects:
    match work.outcome:
        case Done(result=Effects() as effects) | Skip(effects=Effects() as effects):
            return effects
        case _:
            return Effects()


def _final(
    work: Work, applied: Mapping[tuple[UUID, str], Applied], nights: set[tuple[str, str]]
) -> Done | Retry | Defer | Park | Skip:
    """What was stored decides whether a Done really changed something."""
    outcome = work.outcome
    if outcome is None or isinstance(outcome, Hint):
        raise AssertionError("an event reached settle without an outcome")
    if isinstance(outcome, Done):
        effects = _effects(work)
        row = work.row
        touched = any((row.id, s.entity.external_id) in applied for s in effects.reservations) or any(
            (row.connection_id, s.entity.external_room_type_id) in nights for s in effects.availability
        )
        if (effects.reservations or effects.availability) and not touched:
            return Skip("stale: a newer or the same state is stored")
    return outcome


def _finish_row(work: Work, outcome: Outcome, now: datetime) -> FinishRow:
    row, end = work.row, ending(outcome, now)
    attempts = row.attempts + end.counted
    return FinishRow(
        id=row.id,
        status=end.status.value,
        attempts=attempts,
        starts=0,
        next_attempt_at=end.next_attempt_at,
        error_class=end.fault,
        last_error=end.message,
        error_code=end.code,
        action=row.event_type.rpartition(".")[2],
        # A first attempt that went well is told by its row already; history is kept of everything else.
        keep_attempt=end.counted == 1 and (attempts > 1 or isinstance(outcome, Retry | Park)),
        outcome=end.word,
        request=None,
        response=None,
        started_at=work.started_at,
    )


def _results(work: Work, applied: Mapping[tuple[UUID, str], Applied]) -> list[CoreEventRow]:
    row = work.row
    found = []
    for sourced in _effects(work).reservations:
        stored = applied.get((row.id, sourced.entity.external_id))
        if stored is not None:
            found.append(
                results.reservation_upserted(
                    sourced.entity,
                    company_id=row.company_id,
                    connection_id=row.connection_id,
                    vendor=work.vendor,
                    internal_id=stored.internal_id,
                    guest_id=stored.guest_id,
                    created=stored.created,
                    cause_id=row.id,
                    trace=row.trace,
                )
            )
    return found


def _dead_letter(work: Work, outcome: Park) -> DeadLetterRow:
    row = work.row
    return DeadLetterRow(
        event_id=row.id,
        company_id=row.company_id,
        connection_id=row.connection_id,
        vendor=work.vendor,
        queue=None,
        operation=row.event_type,
        entity_type=row.entity_type,
        entity_external_id=row.entity_external_id,
        entity_internal_id=None,
        error_class=outcome.fault.value,
        error_code=outcome.code,
        error_message=outcome.message,
        attempts=row.attempts + 1,
        first_attempt_at=work.started_at,
        owner=outcome.owner.value,
    )


def _observe(works: Sequence[Work], finals: Sequence[Outcome], now: datetime) -> None:
    told = []
    for work, outcome in zip(works, finals, strict=True):
        word = type(outcome).__name__.lower()
        metrics.EVENTS.labels(work.vendor, "inbound", word).inc()
        if isinstance(outcome, Done | Skip):
            metrics.EVENT_LATENCY.labels(work.vendor, "inbound").observe((now - work.row.received_at).total_seconds())
        elif isinstance(outcome, Retry | Park):
            metrics.ATTEMPTS.labels(work.vendor, outcome.fault.value).inc()
        told.append({**_ids(work), "outcome": word, **_reason(outcome)})
    # One line a batch: a line an event costs more than all the rest of the settling does in Python.
    _log.info("settled", extra=about(count=len(told), events=told))


def _reason(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Retry(fault=fault, message=message) | Park(fault=fault, message=message):
            return {"fault": fault.value, "error": message}
        case Skip(reason=reason):
            return {"reason": reason}
        case _:
            return {}


def _ids(work: Work) -> dict[str, Any]:
    row = work.row
    return {
        "event_id": str(row.id),
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "vendor": work.vendor,
        "type": row.event_type,
        "trace": row.trace,
    }


def _about(work: Work) -> dict[str, Any]:
    return about(**_ids(work))


def _writes(text: str | None) -> list[tuple[dict[str, Any], datetime]]:
    found = orjson.loads(text) if text else []
    return [(write["expected"], datetime.fromisoformat(write["written_at"])) for write in found]
