"""Deliveries to a vendor: claim (lease, lane, budget) → look up or execute → settle.

A row is leased before its vendor is called. Claims and settles of concurrent deliveries share statements. After a start
that was never answered the effect is looked up by our marker before the call is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from adapters.errors import AdapterError, Misconfigured, Unknown, Unmapped, Unsupported
from adapters.port import MARKER, Command, Repeat, Reply
from schemas.commands import CommandData, InvalidCommandError, parse_command
from schemas.vocabulary import EventStatus, Fault, LanePolicy, Owner
from store import outbound as store
from store.gather import Gather
from store.seal import SealError, join
from store.settle import CoreEventRow, DeadLetterRow, FinishRow, bury, finish, resolve
from telemetry import metrics
from telemetry.logs import about
from topology.announce import WakeUp, announce
from topology.declared import delivery_key

from . import results
from .decide import MAX_STARTS, decide, poison
from .echo import expected
from .outcome import Defer, Done, Outcome, Park, Retry, ending
from .persist import commit, outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from adapters.port import Adapter, Budget
    from schemas.event import Event
    from store.directory import Directory, Known
    from store.marks import Marks
    from store.outbound import Claimed
    from store.pool import Connection, Pool
    from topology.publisher import Publisher
    from topology.retry import RetryPolicy

    from .sessions import Sessions, VendorSession
    from .tell import Teller

_log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; the relay takes over a lease that ran out
CALL = 90.0  # all calls of one attempt end before the lease does, with time left to settle


@dataclass(slots=True)
class Work:
    row: Claimed
    started_at: datetime
    known: Known | None = None
    command: Command | None = None
    outcome: Outcome | None = None
    budget: Budget | None = None
    external_id: str | None = None
    # An earlier start was never answered, or its end is not known: until a look-up or an answer says otherwise, what was
    # meant may have happened. Carried over every outcome that does not say.
    doubt: bool = False
    absorbed: list[UUID] = field(default_factory=list)  # older commands of the lane that this one says too


@dataclass(frozen=True, slots=True)
class _Settled:
    wakes: list[WakeUp] = field(default_factory=list)
    told: list[CoreEventRow] = field(default_factory=list)


class DeliveryStage:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        publisher: Publisher,
        marks: Marks,
        teller: Teller,
        policies: Mapping[str, RetryPolicy],
        *,
        worker: str,
        random: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._publisher = publisher
        self._marks = marks
        self._teller = teller
        self._policies = policies
        self._worker = worker
        self._random = random
        self._now = now
        self._claims: Gather[UUID, Work | None] = Gather(self._claim)
        self._settles: Gather[Work, None] = Gather(self._settle)

    async def process(self, events: Sequence[Event]) -> None:
        await asyncio.gather(*(self._deliver(id_) for id_ in dict.fromkeys(event.row_id for event in events)))

    async def process_alone(self, event: Event) -> None:
        """The claim counts the start before the call anyway."""
        await self.process([event])

    async def _deliver(self, id_: UUID) -> None:
        work = await self._claims.submit(id_)
        if work is None:  # settled, not due, not its lane's head, or another worker has it: each is woken in its time
            return
        if work.outcome is None:
            work.outcome = await self._perform(work)
        await asyncio.shield(self._settles.submit(work))

    # ------------------------------------------------------------------ begin

    async def _claim(self, ids: Sequence[UUID]) -> list[Work | None]:
        async def lease() -> list[Claimed]:
            async with self._pool.acquire() as connection:
                return await store.claim(connection, list(dict.fromkeys(ids)), self._worker, LEASE)

        works = {row.id: Work(row, self._now(), doubt=row.starts > 1) for row in await outlast(lease)}
        for work in works.values():
            await self._prepare(work)
        await self._absorb([work for work in works.values() if work.row.lane_policy == LanePolicy.SUPERSEDE.value])
        runnable = [work for work in works.values() if work.outcome is None and work.command is not None]
        await outlast(lambda: self._resolve_and_note(runnable))
        return [works.pop(id_, None) for id_ in ids]

    async def _prepare(self, work: Work) -> None:
        """The command as data; whatever stands against running it becomes the outcome."""
        row = work.row
        work.known = await outlast(lambda: self._directory.get(row.connection_id))
        if row.starts > MAX_STARTS:
            work.outcome = poison(row.starts)
            return
        try:
            adapter, work.command = self._understand(row, work.known)
        except InvalidCommandError as error:
            work.outcome = Park(Fault.INVALID, str(error), Owner.TENANT, "invalid_command")
        except SealError as error:
            work.outcome = Park(Fault.MISCONFIGURED, f"key file: {error}", Owner.PIPELINE, "sealed")
        except Exception as error:  # noqa: BLE001 - one row that cannot be prepared must not fail the claims beside it
            work.outcome = self._failed(work, error)
        else:
            work.outcome = self._wait_for_budget(work, adapter)

    async def _absorb(self, works: Sequence[Work]) -> None:
        """Older commands that wait in the lane go out with the newest: one call says what all of them want."""
        if not works:
            return

        async def look() -> dict[UUID, list[tuple[UUID, str]]]:
            async with self._pool.acquire() as connection:
                return await store.older_in_lane(connection, [work.row.id for work in works])

        older = await outlast(look)
        for work in works:
            for id_, payload in older.get(work.row.id, []):
                command = work.command
                if command is None:
                    break
                try:
                    merged = command.data.over(parse_command(work.row.event_type, orjson.loads(payload)))
                except InvalidCommandError:
                    continue  # it waits for its own turn, and ends there with its reason
                work.command = replace(command, data=merged)
                work.absorbed.append(id_)

    def _understand(self, row: Claimed, known: Known | None) -> tuple[Adapter, Command]:
        """raises AdapterError, InvalidCommandError, SealError"""
        if known is None:
            raise Misconfigured(f"connection: {row.connection_id} is gone", code="no_connection")
        adapter = self._sessions.adapter(known.connection.vendor)
        if row.event_type not in adapter.manifest.commands:
            raise Unsupported(f"{adapter.manifest.title} does not take {row.event_type}")
        data = parse_command(row.event_type, join(orjson.loads(row.payload), known.cipher.open(row.sealed)))
        return adapter, Command(row.id, row.event_type, row.idempotency_key, f"{MARKER}{row.id}", data, {})

    def _wait_for_budget(self, work: Work, adapter: Adapter) -> Defer | None:
        """Bookings may use the last units, rates and availability leave the reserve to them."""
        row, limit = work.row, adapter.manifest.rate_limit
        if row.budget_remaining is None or row.budget_resets_at is None:
            return None
        replaceable = adapter.manifest.commands[row.event_type].lane is not LanePolicy.HOLD
        needed = limit.reserve if replaceable else limit.least
        if row.budget_remaining >= needed:
            return None
        return Defer(row.budget_resets_at, f"rate limit: {row.budget_remaining:g} units left, {needed:g} needed")

    async def _resolve_and_note(self, works: Sequence[Work]) -> None:
        """External ids for the references, and the note of what is about to be written, committed before any call."""
        if not works:
            return
        commands = [(work, work.command) for work in works if work.command is not None]
        wanted = list(
            {
                (work.row.connection_id, kind.value, internal)
                for work, command in commands
                for kind, internal in (*command.data.references(), command.data.lane_entity())
            }
        )
        async with self._pool.acquire() as connection, connection.transaction():
            found = await store.external_ids(connection, wanted)
            notes = []
            for work, bare in commands:
                work.command = _with_ids(bare, work.row.connection_id, found)
                note = _own_write(work.row, work.command)
                if note is not None:
                    notes.append(note)
            await store.note_own_writes(connection, notes)

    # ------------------------------------------------------------------ perform

    async def _perform(self, work: Work) -> Outcome:
        row, command, known = work.row, work.command, work.known
        if command is None or known is None:
            raise AssertionError("a claimed delivery without command or connection has its outcome already")
        session = self._sessions.open(known)
        repeat = session.adapter.manifest.commands[row.event_type].repeat
        began = time.monotonic()
        try:
            _all_mapped(command)
            async with asyncio.timeout(CALL):
                reply = await _ask_or_execute(session, work, command, repeat)
        except TimeoutError:
            seconds = time.monotonic() - began
            work.doubt = True
            return self._failed(work, Unknown(f"{row.event_type}: no answer within {seconds:.0f} s"))
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises becomes an outcome
            if isinstance(error, Unknown):
                work.doubt = True
            elif not isinstance(error, AdapterError):
                _log.exception("adapter failed", extra=about(**_ids(work)))
                work.doubt = True  # who knows how far it came
            return self._failed(work, error)
        finally:
            work.budget = session.budget
        work.external_id = reply.external_id
        return Done(reply)

    def _failed(self, work: Work, error: Exception) -> Outcome:
        row = work.row
        adapter = self._sessions.adapters.get(work.known.connection.vendor) if work.known else None
        support = adapter.manifest.commands.get(row.event_type) if adapter else None
        return decide(
            error,
            self._policies[adapter.manifest.retry_policy if adapter else "pms"],
            attempt=row.attempts,
            max_attempts=row.max_attempts,
            random=self._random,
            repeat=support.repeat if support else Repeat.ASK,
        )

    # ------------------------------------------------------------------ settle

    async def _settle(self, works: Sequence[Work]) -> list[None]:
        batches = await commit(works, self._commit, self._park_alone)
        await self._teller.tell([row for batch in batches for row in batch.told])
        wakes = [wake for batch in batches for wake in batch.wakes]
        if wakes:
            self._marks.add(await announce(self._publisher, wakes))
        return [None] * len(works)

    async def _commit(self, works: Sequence[Work]) -> _Settled:
        async with self._pool.acquire() as connection, connection.transaction():
            return await self._write(connection, works)

    async def _park_alone(self, work: Work, error: Exception) -> _Settled:
        """What the vendor did stays done; only our record of it is refused by the database."""
        kind = type(error).__name__
        work.outcome = Park(Fault.INVALID, f"the database refuses the answer: {kind}", Owner.PIPELINE, kind)
        work.external_id = None
        return await self._commit([work])

    async def _write(self, connection: Connection, works: Sequence[Work]) -> _Settled:
        held = await store.lock_leased(connection, [(work.row.id, work.row.attempts) for work in works], self._worker)
        for work in works:
            if work.row.id not in held:
                _log.warning("lease lost: another worker has it", extra=about(**_ids(work)))
        works = [work for work in works if work.row.id in held]
        budgets = {
            work.row.connection_id: (work.row.company_id, work.budget) for work in works if work.budget is not None
        }
        await store.note_budgets(
            connection, [(id_, company, b.remaining, b.resets_in) for id_, (company, b) in sorted(budgets.items())]
        )
        if not works:
            return _Settled()
        named = [
            (work, work.external_id, *work.command.data.lane_entity())
            for work in works
            if work.external_id is not None and work.command is not None
        ]
        await store.learn_external_ids(
            connection,
            [
                (w.row.company_id, w.row.connection_id, kind.value, external, internal)
                for w, external, kind, internal in named
            ],
        )
        await store.name_entities(connection, [(work.row.id, external) for work, external, *_ in named])
        await store.answer_own_writes(connection, [(work.row.id, external) for work, external, *_ in named])
        now = self._now()
        told = [result for work in works for result in _results(work)]
        await finish(connection, [_finish_row(work, now) for work in works], told)
        await bury(connection, [_dead_letter(work, work.outcome) for work in works if isinstance(work.outcome, Park)])
        await resolve(connection, [work.row.id for work in works if isinstance(work.outcome, Done)])
        sent_too = [(id_, w.row.id) for w in works if isinstance(w.outcome, Done) for id_ in w.absorbed]
        await store.supersede(connection, sent_too)
        ended = [work for work in works if not isinstance(work.outcome, Retry | Defer)]
        heads = await store.lane_heads(connection, list({work.row.lane for work in ended if work.row.lane}))
        _observe(works, now)
        return _Settled(
            [
                WakeUp(
                    head.id, head.company_id, head.event_type, delivery_key(head.vendor, head.event_type), head.trace
                )
                for head in heads
                if head.status == EventStatus.RECEIVED.value
            ],
            told,
        )


async def _ask_or_execute(session: VendorSession, work: Work, command: Command, repeat: Repeat) -> Reply:
    if work.doubt and repeat is Repeat.LOOK_UP:
        found = await session.adapter.find(session, command)
        if found is not None:
            return found
        work.doubt = False  # the vendor says that it has not happened
    # The first attempt of a budget after a doubt comes from a person's requeue: they have looked.
    if work.doubt and repeat is Repeat.ASK and work.row.attempts > 1:
        raise Unknown("the call before this one was not answered; only a person can tell whether it was done")
    return await session.adapter.execute(session, command)


def _with_ids(command: Command, connection_id: str, found: Mapping[tuple[str, str, str], str]) -> Command:
    wanted = (*command.data.references(), command.data.lane_entity())
    external = {
        (kind, internal): found[connection_id, kind.value, internal]
        for kind, internal in wanted
        if (connection_id, kind.value, internal) in found
    }
    return replace(command, external=external)


def _own_write(row: Claimed, command: Command) -> tuple[UUID, str, str, str | None, str, str] | None:
    own = expected(command)
    if own is None:
        return None
    external = command.external_id(*command.data.lane_entity())
    return row.id, row.company_id, row.connection_id, external, command.marker, orjson.dumps(own).decode()


def _all_mapped(command: Command) -> None:
    """raises Unmapped"""
    for kind, internal in command.data.references():
        if (kind, internal) not in command.external:
            raise Unmapped(
                f"{kind.value}: {internal} has no id at this connection; add it with `staybus mapping add`, then requeue",
                code="unmapped",
            )


def _finish_row(work: Work, now: datetime) -> FinishRow:
    row, outcome = work.row, work.outcome
    if outcome is None:
        raise AssertionError("a delivery reached settle without an outcome")
    end = ending(outcome, now)
    reply = outcome.result if isinstance(outcome, Done) and isinstance(outcome.result, Reply) else None
    return FinishRow(
        id=row.id,
        status=end.status.value,
        attempts=row.attempts if end.counted else row.attempts - 1,
        # A doubt is remembered, so that the next attempt asks before it repeats. Only starts that end without a settle add up
        # to a poison.
        starts=1 if work.doubt and not isinstance(outcome, Done) else 0,
        next_attempt_at=end.next_attempt_at,
        error_class=end.fault,
        last_error=end.message,
        error_code=end.code,
        action=row.event_type.rpartition(".")[2],
        keep_attempt=end.counted == 1,
        outcome=end.word,
        request=orjson.dumps(_told_vendor(work.command.data)).decode() if work.command else None,
        response=orjson.dumps({**reply.response, "found": reply.found}).decode() if reply else None,
        started_at=work.started_at,
    )


def _told_vendor(data: CommandData) -> dict[str, Any]:
    """The command without its personal part, for the sync log."""
    return data.model_dump(mode="json", by_alias=True, exclude={"guest", "notes", "reason"}, exclude_none=True)


def _results(work: Work) -> list[CoreEventRow]:
    row, outcome = work.row, work.outcome
    common: dict[str, Any] = {
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "subject": row.entity_internal_id,
        "command_type": row.event_type,
        "cause_id": row.id,
        "trace": row.trace,
    }
    match outcome:
        case Done():
            return [results.command_ended(results.COMMAND_SUCCEEDED, **common, externalId=work.external_id)]
        case Park(fault=fault, message=message):
            return [results.command_ended(results.COMMAND_FAILED, **common, fault=fault.value, error=message)]
        case _:
            return []


def _dead_letter(work: Work, park: Park) -> DeadLetterRow:
    row = work.row
    return DeadLetterRow(
        event_id=row.id,
        company_id=row.company_id,
        connection_id=row.connection_id,
        vendor=work.known.connection.vendor if work.known else None,
        queue=None,
        operation=row.event_type,
        entity_type=row.entity_type,
        entity_external_id=work.external_id,
        entity_internal_id=row.entity_internal_id,
        error_class=park.fault.value,
        error_code=park.code,
        error_message=park.message,
        attempts=row.attempts,
        first_attempt_at=work.started_at,
        owner=park.owner.value,
    )


def _ids(work: Work) -> dict[str, Any]:
    row = work.row
    return {
        "event_id": str(row.id),
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "vendor": work.known.connection.vendor if work.known else None,
        "type": row.event_type,
        "trace": row.trace,
    }


def _observe(works: Sequence[Work], now: datetime) -> None:
    for work in works:
        vendor = work.known.connection.vendor if work.known else "none"
        outcome = work.outcome
        word = type(outcome).__name__.lower()
        metrics.EVENTS.labels(vendor, "outbound", word).inc()
        if isinstance(outcome, Done):
            metrics.EVENT_LATENCY.labels(vendor, "outbound").observe((now - work.row.received_at).total_seconds())
        elif isinstance(outcome, Retry | Park):
            metrics.ATTEMPTS.labels(vendor, outcome.fault.value).inc()
        if work.budget is not None:
            metrics.RATE_BUDGET.labels(vendor, work.row.connection_id).set(work.budget.remaining)
        reason = {"fault": outcome.fault.value, "error": outcome.message} if isinstance(outcome, Retry | Park) else {}
        _log.info("delivery settled", extra=about(**_ids(work), outcome=word, attempt=work.row.attempts, **reason))
