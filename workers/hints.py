"""Facts that are only hints: the vendor is asked for the present state of what they name.

A hint is leased in its row, and its message is done with: the vendor is asked for all the hints of one connection that came
since the last call, one call at a time, and a slow connection holds nobody else's facts. While they wait their leases are kept:
who waits for a slow vendor has not died.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from adapters.errors import AdapterError, NoCredentials, Transient
from adapters.port import Hint
from schemas.vocabulary import MAX_STARTS, CallKind, EntityType, EventStatus, Fault
from store import inbound as store
from telemetry.logs import about

from .decide import poison
from .governor import Call, Ended, answered, uncounted
from .outcome import Defer, Done, Outcome, Park, Skip
from .persist import outlast
from .turns import Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from store.pool import Pool

    from .governor import Governor
    from .inbound_rows import Work
    from .sessions import Sessions

_log = logging.getLogger(__name__)

LEASE = 120.0  # seconds; prolonged while its holder lives, and the relay takes over one that ran out
FETCH = 90.0  # seconds that one fetch may take, all its calls and a new token included
FETCHES = 64  # at once, of one vendor: fewer than its client has sockets
HINTS = 100  # of one connection that share a fetch
LAST_WORD = 5.0  # seconds at a stop for the database to take back what was not begun
LAG = timedelta(seconds=3)  # after a fact came, until "not there" is believed; what is shown later still, a pull brings
DOUBTS = 2  # after so many of an event it is asked for later: a webhook a second does not keep us asking all the time
WAITING = 1_000  # hints of one connection in hand; what is beyond comes again later


class Hints:
    """settle: of the stage; returns the works that only the vendor can decide. failed: what becomes of a work after an error"""

    def __init__(
        self,
        pool: Pool,
        sessions: Sessions,
        governor: Governor,
        settle: Callable[[Sequence[Work]], Awaitable[list[Work]]],
        failed: Callable[[Work, Exception], Outcome],
        *,
        worker: str,
        random: Callable[[], float],
        now: Callable[[], datetime],
        lease: float = LEASE,
    ) -> None:
        self._pool = pool
        self._sessions = sessions
        self._governor = governor
        self._settle = settle
        self._failed = failed
        self._worker = worker
        self._random = random
        self._now = now
        self._lease = lease
        self._waiting: dict[str, list[Work]] = {}  # by connection; while an entry is there, a task works through it
        self._fetching: dict[str, list[Work]] = {}
        self._room: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(FETCHES))  # by vendor
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        # Apart from those of facts: a vendor that does not answer is nothing that they may wait for.
        self._turns = Turns()
        self._suspect: Work | None = None  # one at its last start: it is asked for alone

    async def ask(self, works: Sequence[Work], starts: int) -> None:
        """Leases the works and hands them to the tasks of their connections. starts: 0 if this one is counted already, else 1"""
        if not works:
            return
        if self._suspect is not None:  # leased beside it they would be counted, and in the end parked with it
            # What is processed already, another worker has.
            free = [work for work in works if work.row.status != EventStatus.PROCESSING.value]
            for work in free:
                work.starts, work.outcome = work.row.starts + starts, self._after_the_suspect()
            await self._settle(free)
            return

        ids, token = [work.row.id for work in works], uuid4()

        async def lease() -> dict[UUID, int]:
            async with self._pool.acquire() as connection:
                return await store.lease(connection, ids, self._worker, self._lease, starts, token)

        leased = await outlast(lease)
        held_back = await self._held_back([work for work in works if leased.get(work.row.id) == MAX_STARTS])
        refused, begun = [], []
        for work in works:
            if work.row.id not in leased:
                continue  # another worker has it
            work.starts, work.lease_token = leased[work.row.id], token
            refusal = self._refusal(work) or held_back.get(work.row.id)
            if refusal is not None:
                work.outcome = refusal
                refused.append(work)
                continue
            if work.starts == MAX_STARTS:
                self._suspect = work
            begun.append(work)
        try:
            await self._settle(refused)  # first: what is put off must not be counted with the suspect
        finally:
            for work in begun:
                self._hand_over(work)

    async def drain(self, grace: float) -> None:
        """Calls that are under way end within `grace` seconds; what has none yet, or is cut off, is given back, uncounted."""
        unbegun = [work.row.id for waiting in self._waiting.values() for work in waiting]
        for waiting in self._waiting.values():
            waiting.clear()
        await self._give_back(unbegun)
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=grace)
            cut_off = [work.row.id for fetching in self._fetching.values() for work in fetching]
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
                await self._give_back(cut_off)
        if self._keeper is not None and not self._waiting:
            self._keeper.cancel()

    async def _give_back(self, ids: Sequence[UUID]) -> None:
        async def release() -> None:
            async with self._pool.acquire() as connection:
                await store.release(connection, ids, self._worker)

        if ids:
            with suppress(TimeoutError):  # the database is away: then they are taken over
                async with asyncio.timeout(LAST_WORD):
                    await outlast(release)

    def _refusal(self, work: Work) -> Park | Defer | None:
        """What stands against asking for one that is leased."""
        if work.starts > MAX_STARTS:
            return poison(work.starts)
        if work.starts == MAX_STARTS and self._suspect is not None:
            return self._after_the_suspect()
        if len(self._waiting.get(work.row.connection_id, [])) >= WAITING:
            until = self._now() + timedelta(seconds=30 * (1 + self._random()))
            return Defer(until, f"{WAITING} hints of this connection wait already")
        return None

    async def _held_back(self, works: Sequence[Work]) -> dict[UUID, Defer | None]:
        """Whoever is asked for alone has all others wait: for a silent vendor they would each time that it comes back."""

        async def look(work: Work) -> Defer | None:
            return await outlast(lambda: self._governor.held_back(work.row.connection_id, {CallKind.READ}))

        return {work.row.id: await look(work) for work in works}

    def _after_the_suspect(self) -> Defer:
        until = self._now() + timedelta(seconds=1 + self._random())
        return Defer(until, "waits for another one, which is asked for alone")

    def _hand_over(self, work: Work) -> None:
        connection_id = work.row.connection_id
        if connection_id in self._waiting:
            self._waiting[connection_id].append(work)
            return
        self._waiting[connection_id] = [work]
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
        while self._waiting:
            await asyncio.sleep(self._lease / 4)
            in_hand = [
                work.row.id
                for by_connection in (self._waiting, self._fetching)
                for works in by_connection.values()
                for work in works
            ]
            await outlast(lambda ids=in_hand: self._prolong(ids))  # type: ignore[misc]

    async def _prolong(self, ids: Sequence[UUID]) -> None:
        async with self._pool.acquire() as connection:
            await store.prolong(connection, ids, self._worker, self._lease)

    async def _work_through(self, connection_id: str) -> None:
        """The hints of one connection, as few calls as the vendor allows, until there are none."""
        waiting = self._waiting[connection_id]
        try:
            while waiting:
                turn = self._turns.alone if waiting[0] is self._suspect else self._turns.together
                async with self._room[waiting[0].vendor], turn():
                    works = self._fetching[connection_id] = self._sharing(waiting)  # none, if a stop has come meanwhile
                    del waiting[: len(works)]
                    if self._suspect in works:
                        await self._begin_alone(self._suspect)
                    await self._fetch({work: work.outcome for work in works if isinstance(work.outcome, Hint)})
                waiting += map(in_doubt, await self._settle(works))
                self._unsuspect(works)
        finally:
            self._unsuspect([*self._waiting.pop(connection_id), *self._fetching.pop(connection_id, [])])

    async def _begin_alone(self, suspect: Work) -> None:
        """Its last start is counted when nothing is asked for beside it: what is under way until then may kill the worker, too."""

        async def begin() -> None:
            async with self._pool.acquire() as connection:
                await store.begin_alone(connection, suspect.row.id, self._worker)

        await outlast(begin)

    def _unsuspect(self, works: Sequence[Work]) -> None:
        """These have ended, well or not."""
        if self._suspect in works:
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
        call = Call(known.connection, CallKind.READ, session.adapter.manifest.rate_limit, urgent=True)
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
                work.outcome = Done(effects) if effects is not None else _not_there(work, self._now())
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
            if work.doubts and isinstance(error, NoCredentials):
                work.outcome = Skip("as new as the stored state, and no credentials to ask the vendor with")
        return life

    async def _note(self, ending: Ended) -> None:
        if await self._governor.note([ending]):
            _log.warning(
                "circuit open: the vendor does not answer",
                extra=about(connection_id=ending.call.connection.id, kind=ending.call.kind.value),
            )


def _may_be_of_one(error: Exception) -> bool:
    """Whether one of many entities may be the reason why none could be read."""
    return not isinstance(error, AdapterError) or error.fault in {Fault.INVALID, Fault.REJECTED}


def _not_there(work: Work, now: datetime) -> Skip | Defer:
    """Not believed at once: a webhook may be faster than what the vendor reads from."""
    believed = work.row.received_at + LAG
    return Skip("gone at the vendor") if now >= believed else Defer(believed, "not at the vendor, or not yet")


def in_doubt(work: Work) -> Work:
    """Two changes in one second of the vendor's clock: its present state is the only judge."""
    work.doubts, work.fetched, work.own_writes = work.doubts + 1, False, ()
    work.outcome = Hint(EntityType(work.row.entity_type), work.row.entity_external_id)
    return work
