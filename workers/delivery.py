"""Deliveries to a vendor: claim (lease, lane, circuit, budget) → look up or execute → settle.

A row is leased before its vendor is called, and its message is done with as soon as it is: what waits for a vendor waits in
its row, never in the queue, so that a slow connection holds nobody else's deliveries. One connection has a few calls under
way at most; what is beyond stays in the table until one of them has ended. Claims and settles of concurrent deliveries share
statements. After a start that was never answered the effect is looked up by our marker before the call is repeated.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from adapters.errors import AdapterError, Misconfigured, RateLimited, Transient, Unknown, Unsupported
from adapters.port import MARKER, Command, Repeat
from adapters.transport import NOT_SENT
from schemas.commands import InvalidCommandError, parse_command
from schemas.vocabulary import MAX_STARTS, CallKind, EventStatus, Fault, LanePolicy, Owner
from store import outbound as store
from store.dead_letters import behind_letters
from store.gather import Gather
from store.overlay import document
from store.seal import SealError
from store.settle import bury, resolve
from telemetry.logs import about
from topology.announce import WakeUp, announce
from topology.declared import delivery_key

from .decide import decide, poison
from .delivery_rows import (
    Work,
    absorbed_rows,
    all_mapped,
    delivery_row,
    ids,
    is_plain,
    made_before,
    observe,
    own_write,
    with_ids,
)
from .governor import Call, Ended, answered, uncounted
from .lane import Lane, LeftForLaterError, end, end_with
from .letters import stranger
from .outcome import Defer, Done, Outcome, Park, Retry
from .persist import commit, outlast
from .say import ask_or_execute, say
from .window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Coroutine, Mapping, Sequence

    from adapters.port import Adapter
    from schemas.event import Event
    from store.directory import Directory, Known
    from store.marks import Marks
    from store.outbound import Claimed
    from store.pool import Connection, Pool
    from store.results import Batch
    from topology.publisher import Publisher
    from topology.retry import RetryPolicy

    from .governor import Governor
    from .sessions import Sessions
    from .strays import Strays
    from .tell import Teller
    from .turns import Turns

_log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; the relay takes over a lease that ran out
CALL = 90.0  # all calls of one attempt end before the lease does, with time left to settle
LAST_WORD = 5.0  # seconds at a stop for the database to take what is left to others


@dataclass(frozen=True, slots=True)
class _Settled:
    """ended: those whose lease was held still, and what ended with them"""

    ended: list[Work]
    told: list[Batch | None]


class DeliveryStage:
    """The deliveries of one vendor; most: calls to it that are under way at once."""

    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        governor: Governor,
        publisher: Publisher,
        marks: Marks,
        teller: Teller,
        policies: Mapping[str, RetryPolicy],
        *,
        worker: str,
        random: Callable[[], float],
        turns: Turns,
        strays: Strays,
        calls_at_once: int,
        most: int = 256,
        now: Callable[[], datetime],
    ) -> None:
        """turns, strays: of all deliveries of the process"""
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._governor = governor
        self._publisher = publisher
        self._marks = marks
        self._teller = teller
        self._policies = policies
        self._worker = worker
        self._random = random
        self._now = now
        self._turns = turns
        self._strays = strays
        self._window = Window(calls_at_once)
        self._room = asyncio.Semaphore(most)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut_off: list[Work] = []  # by a stop
        self._stopping = False
        self._claims: Gather[UUID, Work | None] = Gather(self._claim)
        self._settles: Gather[Work, None] = Gather(self._settle)

    async def process(self, events: Sequence[Event]) -> None:
        """Each is leased and on its way when this returns, or waits in its row for somebody who will wake it."""
        strangers = [event for event in events if not event.is_wake_up]
        if strangers:
            await outlast(lambda: self._bury_those_without_a_row(strangers))
        named = {event.row_id: event.connectionid for event in events}
        await asyncio.gather(*(self._take(id_, at) for id_, at in named.items() if self._window.enter(at)))

    async def _bury_those_without_a_row(self, events: Sequence[Event]) -> None:
        """Deliveries are made of commands. One that somebody published is kept whole, for whoever sent it the wrong way."""
        problem = "type: deliveries are made of commands; publish the command, with its own type as the routing key"
        async with self._pool.acquire() as connection:
            rows = {row.id for row in await behind_letters(connection, [event.row_id for event in events])}
            without = [event for event in events if event.row_id not in rows]
            await bury(connection, [stranger(event, problem, self._directory.installation) for event in without])
        if without:
            _log.warning("events without a row", extra=about(count=len(without)))

    async def process_alone(self, event: Event) -> None:
        """The claim counts the start before the call anyway."""
        await self.process([event])

    async def drain(self, grace: float) -> None:
        """What is under way ends within `grace` seconds, or is left to its lease. What still waits is for the others."""
        self._stopping = True
        end = asyncio.get_running_loop().time() + grace
        while self._tasks and (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)
        late = set(self._tasks)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        await self._leave_to_others()

    async def _leave_to_others(self) -> None:
        """The messages of what was turned away are acked: without us nobody would look for it before it is stale."""
        behind = self._window.behind
        cut_off = [self._uncounted(work) for work in self._cut_off]
        if not behind and not cut_off:
            return

        async def leave() -> None:
            async with self._pool.acquire() as connection:
                await store.recount(connection, cut_off)
                await store.wake_waiting(connection, behind)

        with suppress(TimeoutError):  # the database is away: then it does become stale
            async with asyncio.timeout(LAST_WORD):
                await outlast(leave)

    def _uncounted(self, work: Work) -> tuple[UUID, UUID, int, int]:
        """As `store.recount` has it. In doubt, so that it is looked up, but what ended it was the stop. What nobody can look up
        stays counted: its first attempt would be taken for that of a person who has looked (`_perform`)."""
        row, may_be_repeated = work.row, self._repeat(work) is not Repeat.ASK
        return row.id, row.lease_token, row.attempts - may_be_repeated, max(1, row.starts - 1)

    async def _take(self, id_: UUID, connection_id: str | None) -> None:
        work: Work | None = None
        turn = AsyncExitStack()
        await self._room.acquire()
        self._strays.take(id_)
        try:
            # A claim is counted, so it has its turn before.
            await turn.enter_async_context(self._turns.together())
            work = await self._claims.submit(id_)
        finally:
            if work is None:  # settled, not due, not its lane's turn, or another's: each is woken in its time
                await turn.aclose()
                self._leave(id_, connection_id)
        if work is not None:
            self._spawn(self._carry_out(work, connection_id, turn))

    async def _carry_out(self, work: Work, connection_id: str | None, turn: AsyncExitStack) -> None:
        try:
            async with turn:
                if work.row.starts == MAX_STARTS:
                    await self._begin_alone(work, turn)
                if work.outcome is None:
                    work.outcome = await self._perform(work)
                await asyncio.shield(self._settles.submit(work))
        except asyncio.CancelledError:
            self._cut_off.append(work)
            raise
        finally:
            self._leave(work.row.id, connection_id)

    async def _begin_alone(self, work: Work, turn: AsyncExitStack) -> None:
        """Its last start is counted when nothing runs beside it: what is under way until then may kill the worker, too."""
        # All others wait with it: for a silent vendor they would each time that it comes back. What it may have done is looked up.
        at = work.row.connection_id
        with suppress(SealError):  # `_prepare` says so
            work.known = await outlast(lambda: self._directory.get(at))  # whose delivery is put off is counted
        work.outcome = await outlast(lambda: self._governor.held_back(at, set(CallKind)))
        if work.outcome is None and self._turns.wanted:
            until = self._now() + timedelta(seconds=1 + self._random())
            work.outcome = Defer(until, "begins alone, after another one that does")
        if work.outcome is not None:
            return
        await turn.aclose()
        await turn.enter_async_context(self._turns.alone())

        async def begin() -> bool:
            work.until = asyncio.get_running_loop().time() + CALL
            async with self._pool.acquire() as connection:
                return await store.begin_alone(connection, work.row.id, work.row.lease_token, LEASE)

        if await outlast(begin):
            await self._make_ready([work])
        else:
            work.outcome = Defer(self._now(), "its lease is another's")

    def _leave(self, id_: UUID, connection_id: str | None) -> None:
        self._strays.leave(id_)
        self._room.release()
        free = self._window.leave(connection_id)
        if free and connection_id is not None and not self._stopping:
            self._spawn(self._top_up(connection_id, free))

    async def _top_up(self, connection_id: str, free: int) -> None:
        """The next of a connection that had more to do than it may have under way."""

        async def look() -> list[UUID]:
            async with self._pool.acquire() as connection:
                return await store.waiting(connection, connection_id, free)

        try:
            found = await outlast(look)
        except Exception:  # noqa: BLE001 - a hole in the look must not close the connection's window for good
            _log.exception("what waits cannot be read", extra=about(connection_id=connection_id))
            found = []
        if self._stopping:
            return
        entered = [id_ for id_ in found if self._window.enter_found(connection_id)]
        more = self._window.topped_up(connection_id, exhausted=len(found) < free)
        if more:
            self._spawn(self._top_up(connection_id, more))
        await asyncio.gather(*(self._take(id_, connection_id) for id_ in entered))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A hole in the stage. The row's lease is a stray's, its starts are counted, in the end it is parked as poison.
            _log.error("delivery failed", exc_info=error)

    # ------------------------------------------------------------------ begin

    async def _claim(self, ids_: Sequence[UUID]) -> list[Work | None]:
        until, token = 0.0, uuid4()

        async def lease() -> list[Claimed]:
            nonlocal until
            until = asyncio.get_running_loop().time() + CALL  # of the transaction that went through
            async with self._pool.acquire() as connection:
                return await store.claim(connection, list(dict.fromkeys(ids_)), self._worker, LEASE, token)

        leased = await outlast(lease)
        works = {row.id: Work(row, self._now(), doubt=row.starts > 1, until=until) for row in leased}
        await self._make_ready([work for work in works.values() if work.row.starts != MAX_STARTS])
        return [works.pop(id_, None) for id_ in ids_]

    async def _make_ready(self, works: Sequence[Work]) -> None:
        try:
            for work in works:
                await self._prepare(work)
            await self._admit([work for work in works if work.outcome is None])
            runnable = [work for work in works if work.outcome is None]
            await outlast(lambda: self._resolve_and_note(runnable))
        except BaseException:
            for work in works:
                if work.call is not None:
                    self._governor.ended(work.call)
            raise

    async def _prepare(self, work: Work) -> None:
        """The command as data; whatever stands against running it becomes the outcome."""
        row = work.row
        try:
            work.known = await outlast(lambda: self._directory.get(row.connection_id))
            if row.starts > MAX_STARTS:
                work.outcome = poison(row.starts)
                return
            work.command = self._understand(row, work.known)
        except Exception as error:  # noqa: BLE001 - one row that cannot be prepared must not fail the claims beside it
            if not isinstance(error, AdapterError | InvalidCommandError | SealError):
                _log.exception("delivery cannot be prepared", extra=about(**ids(work)))
            work.outcome = self._failed(work, error)

    async def _admit(self, works: Sequence[Work]) -> None:
        """Bookings may use the last units of a budget, rates and availability leave the reserve to them."""
        asked = [(work, self._call(work)) for work in works]
        verdicts = await outlast(lambda: self._governor.admit([call for _, call in asked]))
        for (work, call), verdict in zip(asked, verdicts, strict=True):
            work.outcome = verdict
            work.call = call if verdict is None else None

    def _call(self, work: Work) -> Call:
        if work.known is None:
            raise AssertionError("a delivery without connection has its outcome already")
        manifest = self._sessions.adapter(work.known.connection.vendor).manifest
        urgent = manifest.commands[work.row.event_type].lane is LanePolicy.HOLD
        looks_up = work.doubt and self._repeat(work) is not Repeat.ASK
        return Call(work.known.connection, CallKind.WRITE, manifest.rate_limit, urgent, looks_up)

    def _understand(self, row: Claimed, known: Known | None) -> Command:
        """raises AdapterError, InvalidCommandError, SealError"""
        if known is None:
            raise Misconfigured(f"connection: {row.connection_id} is gone", code="no_connection")
        adapter = self._sessions.adapter(known.connection.vendor)
        if row.event_type not in adapter.manifest.commands:
            raise Unsupported(f"{adapter.manifest.title} does not take {row.event_type}")
        data = parse_command(row.event_type, document(row.payload, row.sealed, row.overlay, known.cipher))
        return Command(row.id, row.event_type, row.idempotency_key, f"{MARKER}{row.id}", data, {})

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
        async with self._pool.acquire() as connection:
            found = await store.external_ids(connection, wanted)
            notes = []
            for work, bare in commands:
                work.command = with_ids(bare, work.row.connection_id, found)
                note = own_write(work.row, work.command)
                if note is not None and made_before(work.command) is None:
                    notes.append(note)
            await store.note_own_writes(connection, notes)

    # ------------------------------------------------------------------ perform

    async def _perform(self, work: Work) -> Outcome:
        call = work.call
        if call is None:
            raise AssertionError("a delivery that was not admitted has its outcome already")
        try:
            if asyncio.get_running_loop().time() >= work.until:
                return Defer(self._now(), "its lease would end before the call: the database was away")
            # The first attempt of a budget after a doubt comes from a person's requeue: they have looked.
            if work.doubt and self._repeat(work) is Repeat.ASK and work.row.attempts > 1:
                return self._failed(
                    work, Unknown("a call was not answered; only a person can tell whether it was done")
                )
            outcome = await self._ask(work)
            work.answered = None if work.existed else answered(outcome)
            return uncounted(call, outcome, self._now(), self._repeat(work))
        finally:
            self._governor.ended(call)

    async def _ask(self, work: Work) -> Outcome:
        row, command, known = work.row, work.command, work.known
        if command is None or known is None:
            raise AssertionError("a claimed delivery without command or connection has its outcome already")
        session = self._sessions.open(known)
        began = time.monotonic()
        try:
            async with asyncio.timeout_at(work.until):
                if _replaced(work):
                    reply = await say(session, work, self._lane(work, known), self._repeat(work))
                else:
                    all_mapped(command)
                    reply = await ask_or_execute(session, work, command, self._repeat(work))
        except LeftForLaterError as error:
            return Defer(self._now(), str(error))
        except TimeoutError:
            seconds = time.monotonic() - began
            work.doubt = True
            return self._failed(work, Unknown(f"{row.event_type}: no answer within {seconds:.0f} s"))
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises becomes an outcome
            if isinstance(error, Unknown | Transient):
                work.doubt = work.doubt or not (error.code == NOT_SENT or isinstance(error, RateLimited))
            elif not isinstance(error, AdapterError):
                _log.exception("adapter failed", extra=about(**ids(work)))
                work.doubt = True  # who knows how far it came
            return self._failed(work, error)
        finally:
            work.budget = session.budget
        work.external_id = reply.external_id
        return Done(reply)

    def _lane(self, work: Work, known: Known) -> Lane:
        return Lane(
            self._pool,
            self._teller,
            work,
            read=lambda row: self._understand(row, known),
            failed=self._failed,
            now=self._now,
        )

    def _failed(self, work: Work, error: Exception) -> Outcome:
        row, adapter = work.row, self._adapter(work)
        if isinstance(error, InvalidCommandError):
            return Park(Fault.INVALID, str(error), Owner.TENANT, "invalid_command")
        if isinstance(error, SealError):
            of = "the command" if work.known else "the connection's webhook secret, or its company's key"
            return Park(Fault.MISCONFIGURED, f"key file: {of}: {error}", Owner.PIPELINE, "sealed")
        return decide(
            error,
            self._policies[adapter.manifest.retry_policy if adapter else "pms"],
            attempt=row.attempts,
            max_attempts=row.max_attempts,
            random=self._random,
            repeat=self._repeat(work),
        )

    def _adapter(self, work: Work) -> Adapter | None:
        return self._sessions.adapters.get(work.known.connection.vendor) if work.known else None

    def _repeat(self, work: Work) -> Repeat:
        adapter = self._adapter(work)
        support = adapter.manifest.commands.get(work.row.event_type) if adapter else None
        return support.repeat if support else Repeat.ASK

    # ------------------------------------------------------------------ settle

    async def _settle(self, works: Sequence[Work]) -> list[None]:
        """Most by one statement. What follows from it comes after its commit: lost with this process, it is made good by others
        (the relay tells and wakes, a budget's window ends)."""
        parts = await commit(works, self._commit, self._park_alone)
        await self._teller.tell(batch for part in parts for batch in part.told)
        observe([work for part in parts for work in part.ended], self._now())
        await self._note_calls(works)
        # Of all: one whose commit was not answered looks like one whose lease was lost. In a lane that replaces, a newer one
        # may have come and been turned away while this one was being sent: it need not wait for this one's next attempt.
        over = [work for work in works if _replaced(work) or not isinstance(work.outcome, Retry | Defer)]
        await self._wake_next({work.row.lane for work in over if work.row.lane})
        return [None] * len(works)

    async def _note_calls(self, works: Sequence[Work]) -> None:
        calls = [
            Ended(work.call, work.answered, work.budget, last=work.asked, looked_up=work.looked_up)
            for work in works
            if work.call is not None
        ]
        if calls:
            for connection_id, kind in sorted(await outlast(lambda: self._governor.note(calls))):
                told = about(connection_id=connection_id, kind=kind.value)
                _log.warning("circuit open: the vendor does not answer", extra=told)

    async def _wake_next(self, lanes: Collection[str]) -> None:
        async def look() -> list[store.LaneHead]:
            async with self._pool.acquire() as connection:
                return await store.lane_heads(connection, list(lanes))

        wakes = [
            WakeUp(
                head.id,
                head.company_id,
                head.event_type,
                delivery_key(head.vendor, head.event_type),
                head.trace,
                head.connection_id,
            )
            for head in (await outlast(look) if lanes else [])
            if head.status == EventStatus.RECEIVED.value
        ]
        if wakes:
            self._marks.add(await announce(self._publisher, wakes))

    async def _commit(self, works: Sequence[Work]) -> _Settled:
        async with self._pool.acquire() as connection:
            if all(is_plain(work) for work in works):
                held, told = await store.succeed(connection, [delivery_row(work) for work in works])
                return _Settled(_held(works, held), [told])
            async with connection.transaction():
                return await self._write(connection, works)

    async def _park_alone(self, work: Work, error: Exception) -> _Settled:
        """What the vendor did stays done; only our record of it is refused by the database."""
        kind = type(error).__name__
        message = f"the database refuses the answer: {kind}"
        if isinstance(work.outcome, Done):
            work.doubt = True  # a requeue looks it up, and does not do it once more
            # Escaped, and in the text only: it may be what the database refuses.
            message += f"; the vendor has done it, under the id {ascii(work.external_id)[:100]}"
        work.outcome = Park(Fault.INVALID, message, Owner.PIPELINE, kind)
        for one in (work, *work.absorbed):
            one.external_id = None
        return await self._commit([work])

    async def _write(self, connection: Connection, works: Sequence[Work]) -> _Settled:
        done = [work for work in works if isinstance(work.outcome, Done)]
        rest = [work for work in works if not isinstance(work.outcome, Done)]
        succeeded, succeeded_told = await store.succeed(connection, [delivery_row(work) for work in done])
        leased = await store.lock_leased(connection, [(work.row.id, work.row.lease_token) for work in rest])
        done, rest = _held(done, succeeded), _held(rest, leased)
        now = self._now()
        told = [succeeded_told]
        told.append(await store.supersede(connection, [row for work in (*done, *rest) for row in absorbed_rows(work)]))
        await resolve(connection, [work.row.id for work in done if work.row.error_class is not None])
        ended = [*done, *rest]
        # Dead letters are requeued in their order, a few at a time perhaps: behind the newest what is older would be left.
        for work in rest:
            if isinstance(work.outcome, Park) and work.doubt and work.itself and _replaced(work):
                with_it, heard = await end_with(connection, work.row.id, work.known, work.outcome, now)
                ended += with_it
                told += heard
        told.append(await end(connection, rest, now))
        return _Settled(ended, told)


def _held(works: Sequence[Work], ids_: Container[UUID]) -> list[Work]:
    for work in works:
        if work.row.id not in ids_:
            _log.warning("lease lost: another worker has it", extra=about(**ids(work)))
    return [work for work in works if work.row.id in ids_]


def _replaced(work: Work) -> bool:
    """Whether what is newer in its lane stands for it."""
    return work.row.lane_policy == LanePolicy.SUPERSEDE.value
