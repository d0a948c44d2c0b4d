"""Asking vendors for what their webhooks did not bring.

Every so often, for each connection whose vendor can list its changes: what changed since the last pull began, less an
overlap, page by page, into the same rows as webhooks. The key of a fact makes what a webhook has brought a duplicate. How far
a connection was pulled is remembered after all its pages are recorded: who dies in the middle leaves work to do again, never
a gap. A lease keeps two schedulers from pulling the same connection at once.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from adapters.errors import AdapterError, Misconfigured, Transient, Unsupported
from adapters.port import Effects, Recorded
from schemas.ids import uuid7
from schemas.vocabulary import CallKind, EntityType, Fault, Owner
from store import pulls as store
from store.inbound import SEALED_GUEST
from store.ingest import fact_row, record_facts
from store.pool import is_outage
from store.seal import SealError
from telemetry import metrics
from telemetry.logs import about
from telemetry.trace import begin
from topology.announce import WakeUp

from .governor import Call, Ended, answered
from .outcome import Park
from .persist import commit, outlast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta
    from uuid import UUID

    from adapters.port import Adapter, Fact, Page
    from schemas.entities import Reservation, Sourced
    from store.directory import Directory, Known
    from store.ingest import FactOutcome, FactRow
    from store.pool import Pool
    from store.pulls import Lease, Stored

    from .governor import Governor
    from .sessions import Sessions, VendorSession

_log = logging.getLogger(__name__)

CALL = 90.0  # seconds that one page may take, a new token included
LEASE = 180.0  # seconds; renewed for every page, and longer than one takes
LAST_WORD = 5.0  # seconds at a stop for the database to have the lease back
MOST = 32  # pulls of a vendor under way at once; most wait for its answer, or for their rate limit
SHARE = 8  # of them, of one company: all of its accounts may be silent
BUSY = 4  # pages being recorded at once
BRISK = 1.0  # seconds between two looks while there are pulls: others may have found no room


class LeaseLostError(Exception):
    """Another process has taken the pull over; this one has nothing to say any more."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull has found so far. listed: by the vendor; recorded: of these, what nobody had told us."""

    pages: int = 0
    listed: int = 0
    recorded: int = 0

    @property
    def duplicates(self) -> int:
        return self.listed - self.recorded

    def and_page(self, listed: int, recorded: int) -> Pulled:
        return Pulled(self.pages + 1, self.listed + listed, self.recorded + recorded)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The vendor may not be asked for so long: an empty rate budget, an open circuit."""

    seconds: float
    reason: str


Progress = Pulled | Waiting


def is_astray(
    state: Sourced[Reservation], version: datetime, fields: Mapping[str, Any], guest: Mapping[str, Any] | None
) -> bool:
    """Whether what is stored (its modification time, fields, guest) is not this state of the vendor's, nor a newer one."""
    modified_at, entity = state.version.modified_at, state.entity
    if version != modified_at:
        return version < modified_at
    if any(getattr(entity, name) != value for name, value in fields.items()):
        return True
    if entity.guest is None or not entity.guest.is_known():
        return False
    return guest != entity.guest.model_dump(include=SEALED_GUEST, exclude_none=True)


def _is_wrong(known: Known, state: Sourced[Reservation], stored: Stored) -> bool:
    try:
        guest = known.cipher.open(stored.guest) if stored.guest else None
    except SealError:
        guest = None  # nobody can read it any more: as if it was not there, the vendor's takes its place
    return is_astray(state, stored.source_version, stored.fields, guest)


def pulled_vendors(adapters: Mapping[str, Adapter]) -> list[str]:
    return sorted(name for name, adapter in adapters.items() if adapter.manifest.pulls)


class Puller:
    """wake: publishes wake-ups for new events; without one the relay wakes them, within seconds.

    attempts  vendor → attempts in all that its inbound events get
    overlap   how much before the begin of the last pull the next one asks from: covers a vendor that shows a change late,
              and clocks that differ
    tell      what a pull has found, page by page
    """

    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        sessions: Sessions,
        governor: Governor,
        attempts: Mapping[str, int],
        wake: Callable[[Sequence[WakeUp]], Awaitable[None]] | None,
        *,
        overlap: timedelta,
        random: Callable[[], float],
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tell: Callable[[Progress], None] = lambda _progress: None,
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._sessions = sessions
        self._governor = governor
        self._attempts = attempts
        self._wake = wake
        self._overlap = overlap
        self._random = random
        self._now = now
        self._sleep = sleep
        self._tell = tell
        self._room = asyncio.Semaphore(BUSY)

    async def run(self, lease: Lease, since: datetime | None = None) -> Pulled | Waiting:
        """Pulls one connection and ends its lease, whatever happens. since: another begin than the last pull's.

        returns  Waiting: nothing was asked, what is left of the rate limit is for commands
        raises   AdapterError, which is kept with the connection; LeaseLostError
        """
        try:
            return await self._run(lease, since)
        except asyncio.CancelledError:
            with suppress(TimeoutError):  # the database is away: then the lease ends by itself
                async with asyncio.timeout(LAST_WORD):
                    await self._put_off(lease, 0.0)
            raise

    async def look(self, connection_id: str, since: datetime) -> Pulled | Waiting:
        """Asks the vendor and records nothing. raises AdapterError"""
        known = await self._known(connection_id)
        found = Pulled()
        async with aclosing(self._pages(self._sessions.open(known), since, self._sleep)) as pages:
            async for page in pages:
                if isinstance(page, Waiting):
                    return page
                keys = [row.idempotency_key for row in self._rows(known, page.facts, trace="")]
                async with self._pool.acquire() as connection:
                    recorded = await store.known(connection, known.connection.company_id, keys)
                found = found.and_page(len(keys), sum(key not in recorded for key in keys))
                self._tell(found)
        return found

    # ------------------------------------------------------------------ the pull

    async def _run(self, lease: Lease, since: datetime | None) -> Pulled | Waiting:
        usual = lease.covered_until - self._overlap
        vendor = "none"
        try:
            known = await self._known(lease.connection_id)
            vendor = known.connection.vendor
            found = await self._pull(lease, known, usual if since is None else since)
        except LeaseLostError:
            raise
        except Exception as error:
            await self._failed(lease, error)
            metrics.SYNC_RUNS.labels(vendor, "failed").inc()
            raise
        if isinstance(found, Waiting):
            await self._put_off(lease, found.seconds)
            metrics.SYNC_RUNS.labels(vendor, "put_off").inc()
            return found
        await self._finished(lease, found, covers=since is None or since <= usual)
        metrics.SYNC_RUNS.labels(vendor, "done").inc()
        return found

    async def _known(self, connection_id: str) -> Known:
        """raises Misconfigured, Unsupported"""
        try:
            known = await outlast(lambda: self._directory.get(connection_id))
        except SealError as error:
            raise Misconfigured(f"key file: {error}", code="sealed") from error
        if known is None:
            raise Misconfigured(f"connection: {connection_id} is gone", code="no_connection")
        manifest = self._sessions.adapter(known.connection.vendor).manifest
        if not manifest.pulls:
            raise Unsupported(f"{manifest.title} cannot list what changed")
        return known

    async def _pull(self, lease: Lease, known: Known, since: datetime) -> Pulled | Waiting:
        async def wait(seconds: float) -> None:
            await self._hold(lease, seconds + LEASE)
            await self._sleep(seconds)

        trace = begin()
        found = Pulled()
        refused: list[Exception] = []
        async with aclosing(self._pages(self._sessions.open(known), since, wait)) as pages:
            async for page in pages:
                if isinstance(page, Waiting):
                    return page
                async with self._room:
                    await self._hold(lease, LEASE)
                    recorded = await self._record(known, page.facts, trace, refused)
                found = found.and_page(len(page.facts), recorded)
                self._tell(found)
        if refused:  # the others are recorded; what the database does not take is asked for again, in case it is mended
            raise refused[0]
        return found

    async def _pages(
        self, session: VendorSession, since: datetime, wait: Callable[[float], Awaitable[None]]
    ) -> AsyncGenerator[Page | Waiting]:
        """Nothing but Waiting when it may not even begin; in the middle it waits, because from the first page on again a
        long list would never come to its end."""
        async with aclosing(session.adapter.changes(session, since)) as pages:
            begun = False
            more = True
            while more:
                call = Call(session.connection, CallKind.READ, session.adapter.manifest.rate_limit, urgent=False)
                while (waiting := await self._admit(call)) is not None:
                    self._tell(waiting)
                    if not begun:
                        yield waiting
                        return
                    await wait(waiting.seconds)
                page = await self._ask(session, call, pages)
                if page is None:
                    return
                begun, more = True, page.more
                yield page
            await anext(pages, None)  # the list is over: what of it could not be read is told now

    async def _admit(self, call: Call) -> Waiting | None:
        (verdict,) = await outlast(lambda: self._governor.admit([call]))
        if verdict is None:
            return None
        return Waiting(max(0.0, (verdict.until - self._now()).total_seconds()), verdict.message)

    async def _ask(self, session: VendorSession, call: Call, pages: AsyncGenerator[Page]) -> Page | None:
        session.budget = None
        alive: bool | None = None
        try:
            async with asyncio.timeout(CALL):
                page = await anext(pages, None)
            alive = True
        except TimeoutError as error:
            alive = False
            raise Transient(f"pull: no page within {CALL:.0f} s") from error
        except AdapterError as error:
            alive = answered(Park(error.fault, "", Owner.PIPELINE))
            raise
        finally:
            self._governor.ended(call)
            if alive is not None:
                await self._heard(Ended(call, alive, session.budget))
        return page

    async def _heard(self, ended: Ended) -> None:
        """What the vendor said of its limit and of its life is for whoever calls it next."""
        await outlast(lambda: self._governor.note([ended]))

    def _rows(self, known: Known, facts: Sequence[Fact], trace: str) -> list[FactRow]:
        vendor = known.connection.vendor
        manifest = self._sessions.adapter(vendor).manifest
        return [
            fact_row(fact, known, manifest.personal, trace=trace, max_attempts=self._attempts[vendor]) for fact in facts
        ]

    async def _record(self, known: Known, facts: Sequence[Fact], trace: str, refused: list[Exception]) -> int:
        """returns how many are new"""
        rows = self._rows(known, facts, trace)
        outcomes = await self._insert(rows, refused)
        fresh = [row for row in rows if (outcome := outcomes.get(row.id)) is not None and outcome.recorded]
        lost = await self._astray(known, facts, rows, outcomes)
        found_again = await self._insert(lost, refused)
        fresh += [row for row in lost if (outcome := found_again.get(row.id)) is not None and outcome.recorded]
        if fresh and self._wake is not None:
            await self._wake([WakeUp(r.id, r.company_id, r.event_type, r.event_type, r.trace) for r in fresh])
        return len(fresh)

    async def _insert(self, rows: Sequence[FactRow], refused: list[Exception]) -> dict[UUID, FactOutcome]:
        """What became of each row, by the id that it was given here."""

        async def insert(batch: Sequence[FactRow]) -> list[tuple[FactRow, FactOutcome]]:
            async with self._pool.acquire() as connection:
                return list(zip(batch, await record_facts(connection, batch), strict=True))

        async def leave(row: FactRow, error: Exception) -> list[tuple[FactRow, FactOutcome]]:
            _log.warning(
                "a fact that the database refuses",
                extra=about(connection_id=row.connection_id, entity=row.entity_external_id, type=row.event_type),
            )
            refused.append(error)
            return []

        batches = await commit(rows, insert, leave) if rows else []
        return {row.id: outcome for batch in batches for row, outcome in batch}

    async def _astray(
        self, known: Known, facts: Sequence[Fact], rows: Sequence[FactRow], outcomes: Mapping[UUID, FactOutcome]
    ) -> list[FactRow]:
        """What the vendor is at, and we have left for a state that is not the vendor's any more, or never had.

        Its event is done, so its key alone would call it a duplicate for ever: it gets one of its own, made of what is stored
        wrongly, so that it is tried once. So a booking comes right that returned to an earlier state within one second, and
        one comes in that the vendor did not show yet when its webhook had us ask for it.
        """
        told = [
            (fact, row, outcome.id)
            for fact, row in zip(facts, rows, strict=True)
            if (outcome := outcomes.get(row.id)) is not None and not outcome.recorded
        ]

        async def look() -> dict[int, Stored | None]:
            async with self._pool.acquire() as connection:
                named = [(fact.external_id, event_id) for fact, _, event_id in told]
                return await store.stored(connection, known.connection.id, named)

        found = []
        for n, stored in (await outlast(look)).items():
            fact, row, event_id = told[n]
            state = self._state(known, fact, event_id)
            if state is not None and (stored is None or _is_wrong(known, state, stored)):
                wrong = event_id if stored is None else stored.source_event
                found.append(replace(row, id=uuid7(), idempotency_key=f"{row.idempotency_key}~{wrong}"))
        return found

    def _state(self, known: Known, fact: Fact, event_id: UUID) -> Sourced[Reservation] | None:
        if fact.entity_type is not EntityType.RESERVATION:
            return None
        recorded = Recorded(event_id, fact.event_type, fact.entity_type, fact.external_id, fact.payload, self._now())
        try:
            meant = self._sessions.adapter(known.connection.vendor).interpret(recorded, known.connection)
        except Exception as error:  # noqa: BLE001 - it was edited, or the adapter is another: then it is not compared
            if not isinstance(error, AdapterError):
                _log.exception("a fact cannot be compared", extra=about(event_id=event_id, type=fact.event_type))
            return None
        return meant.reservations[0] if isinstance(meant, Effects) and meant.reservations else None

    # ------------------------------------------------------------------ the lease

    async def _hold(self, lease: Lease, seconds: float) -> None:
        """raises LeaseLostError"""

        async def hold() -> bool:
            async with self._pool.acquire() as connection:
                return await store.hold(connection, lease, seconds)

        if not await outlast(hold):
            raise LeaseLostError(f"connection {lease.connection_id}: another process pulls it now")

    async def _finished(self, lease: Lease, found: Pulled, *, covers: bool) -> None:
        spread = 0.9 + 0.2 * self._random()

        async def finish() -> None:
            async with self._pool.acquire() as connection:
                await store.finish(
                    connection, lease, listed=found.listed, recorded=found.recorded, spread=spread, covers=covers
                )

        await outlast(finish)

    async def _failed(self, lease: Lease, error: Exception) -> None:
        """Kept for whoever looks; the next try comes later and later, up to a quarter of an hour."""
        if isinstance(error, AdapterError):
            fault, text, after = error.fault, str(error), error.retry_after or 0.0
        else:  # the text of a foreign exception may quote a guest; its type and place are in the log
            _log.exception("pull failed", extra=about(connection_id=lease.connection_id))
            fault, text, after = Fault.BUG, f"{type(error).__name__} in staybus; the log has the place", 0.0
        wait = max(after, min(900.0, 30.0 * 2 ** min(lease.failures, 10)))

        async def fail() -> None:
            async with self._pool.acquire() as connection:
                await store.fail(connection, lease, fault.value, text, wait)

        await outlast(fail)

    async def _put_off(self, lease: Lease, wait: float) -> None:
        async def put_off() -> None:
            async with self._pool.acquire() as connection:
                await store.put_off(connection, lease, wait)

        await outlast(put_off)


class Pulls:
    """The scheduler's loop: whose time has come is pulled, several connections at once.

    Each vendor has room of its own, of which a company gets no more than a share: who never answers has a pull under way for as
    long as a call may take.

    every  seconds between two pulls of a connection that says nothing else; 0: only those that do
    """

    def __init__(
        self, pool: Pool, puller: Puller, vendors: Sequence[str], *, worker: str, every: float, pause: float = 5.0
    ) -> None:
        self._pool = pool
        self._puller = puller
        self._vendors = vendors
        self._worker = worker
        self._every = every
        self._pause = pause
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by connection

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; several schedulers may run it at once."""
        try:
            while not stop.is_set():
                pause = BRISK if self._under_way else self._pause
                try:
                    if await self.look():
                        pause = BRISK
                except Exception as error:
                    if not is_outage(error):
                        raise
                    metrics.DATABASE_FAULTS.inc()
                    _log.warning("database away, pulling later", extra=about(error_type=type(error).__name__))
                try:
                    await asyncio.wait_for(stop.wait(), pause)
                except TimeoutError:
                    continue
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def look(self) -> int:
        """returns how many pulls were begun"""
        async with self._pool.acquire() as connection:
            due = await store.due(
                connection, self._vendors, self._every, self._worker, self._under_way, most=MOST, share=SHARE
            )
            leases = await store.claim(connection, due, self._worker, LEASE) if due else []
            for lease in leases:  # whatever comes next, these are ours
                self._begin(lease)
            overview = await store.overview(connection, self._vendors, self._every)
        for vendor in self._vendors:
            lags = [r["lag"] for r in overview if r["vendor"] == vendor and r["status"] == "active" and r["every"]]
            metrics.SYNC_LAG.labels(vendor).set(max(lags, default=0.0))
        return len(leases)

    async def settled(self) -> None:
        """Returns when no pull of this process is under way."""
        while self._under_way:
            await asyncio.wait(self._under_way.values())

    def _begin(self, lease: Lease) -> None:
        id_ = lease.connection_id
        task = self._under_way[id_] = asyncio.create_task(self._run(lease), name=f"pull {id_}")
        task.add_done_callback(lambda _done: self._under_way.pop(id_))

    async def _run(self, lease: Lease) -> None:
        told = {"connection_id": lease.connection_id}
        try:
            found = await self._puller.run(lease)
        except AdapterError as error:
            _log.warning("pull failed", extra=about(**told, fault=error.fault.value, error=str(error)))
        except LeaseLostError:
            _log.warning("pull taken over by another process", extra=about(**told))
        except Exception:  # noqa: BLE001 - logged and kept with the connection already; the others go on
            return
        else:
            if isinstance(found, Waiting):
                _log.info("pull put off", extra=about(**told, seconds=round(found.seconds), reason=found.reason))
            else:
                level = logging.INFO if found.recorded else logging.DEBUG
                _log.log(level, "pulled", extra=about(**told, listed=found.listed, recorded=found.recorded))
