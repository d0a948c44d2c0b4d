"""The scheduler's loop that carries out operators' jobs.

A batch is one transaction that holds the job's row: its changes, the job's counts and the place where the next one begins
commit together. So a scheduler that is killed at any point costs a batch and repeats nothing, several schedulers share the
jobs, and a cancel takes effect between two batches.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg

from schemas.vocabulary import JobKind, JobStatus
from store import jobs as store
from store.events import Selection
from store.pool import OUTAGES, is_outage
from telemetry import metrics
from telemetry.logs import about

from .bulk import Abandon, Batch, Letters, Order, Replay, Requeue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adapters.port import Adapter
    from store.jobs import Job
    from store.pool import Connection, Pool

    from .bulk import Task

_log = logging.getLogger(__name__)

REST = 5.0  # seconds until a batch that did not come to its end is tried again
BATCH = 100  # in one transaction: each is locked no longer than that takes


class Jobs:
    def __init__(self, pool: Pool, adapters: Mapping[str, Adapter], *, pause: float = 0.5, batch: int = BATCH) -> None:
        """Seconds: pause between looks for jobs, and at the ends of a canary."""
        self._pool = pool
        self._adapters = adapters
        self._pause = pause
        self._batch = batch

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                found = await self.step()
            except Exception as error:
                if not is_outage(error):
                    raise
                metrics.DATABASE_FAULTS.inc()
                found = False
            if not found:
                try:
                    await asyncio.wait_for(stop.wait(), self._pause)
                except TimeoutError:
                    continue

    async def step(self) -> bool:
        """One batch of the job whose turn it is. False: none is due"""
        job = None
        try:
            async with self._pool.acquire() as db:
                if not await store.due(db):
                    return False
                async with db.transaction():
                    job = await store.take(db)
                    if job is not None:
                        await self._go_on(db, job)
        except Exception as error:
            if job is None:
                raise
            if is_outage(error):
                await self._rest(job, error)
                raise
            # A job that cannot be done must not stop the scheduler; its text could quote what it is about.
            _log.exception("operators' job failed", extra=about(job_id=str(job.id), kind=job.kind))
            async with self._pool.acquire() as db:
                await store.fail(db, job.id, f"{type(error).__name__} in staybus; the scheduler's log has the place")
        return job is not None

    async def _rest(self, job: Job, error: Exception) -> None:
        """It may be one that waits for a row which somebody holds locked: the next turn is another's."""
        told = about(job_id=str(job.id), kind=job.kind, error_type=type(error).__name__)
        _log.warning("operators' job not gone on with; trying again", extra=told)
        with suppress(*OUTAGES, asyncpg.InterfaceError):  # or the database is away, and so are the others' turns
            async with self._pool.acquire() as db:
                problem = f"{type(error).__name__}: a batch came to no end, and is tried again"
                await store.rest(db, job.id, REST, problem)

    async def _go_on(self, db: Connection, job: Job) -> None:
        if job.canary is not None and job.status != JobStatus.RUNNING:
            await self._canary(db, job, job.canary)
            return
        batch = await self._do(db, job, self._batch)
        await self._keep(db, job, JobStatus.RUNNING if batch.more else JobStatus.DONE, batch)

    async def _canary(self, db: Connection, job: Job, size: int) -> None:
        """The first ones decide about the rest, once each of them has ended."""
        batch = await self._do(db, job, min(self._batch, size - job.done))
        if batch.done or batch.more:
            await self._keep(db, job, JobStatus.CANARY, batch)
            return
        outcome = await store.outcome(db, job.id)
        if outcome.under_way:
            await store.advance(db, job, JobStatus.CANARY, failed=batch.failed, cursor=batch.cursor, pause=self._pause)
            return
        ended = outcome.came_through + outcome.failed_again
        if outcome.came_through >= ended * job.canary_share - 1e-9:  # 0.1 of 30 is 3
            await store.advance(db, job, JobStatus.RUNNING, failed=batch.failed, cursor=batch.cursor)
            return
        error = f"canary: {outcome.came_through} of {ended} came through, so the rest was left as it is"
        await store.advance(db, job, JobStatus.FAILED, failed=batch.failed, cursor=batch.cursor, error=error)

    async def _do(self, db: Connection, job: Job, most: int) -> Batch:
        """At most so many, and no more than rate and limit allow."""
        if job.rate is not None:
            most = min(most, max(1, int(job.rate * self._pause)))
        if job.most is not None:
            most = min(most, job.most - job.done - job.failed)
        if most <= 0:
            return Batch(job.cursor, more=False)
        order = Order(job.requested_by, job.note, job.id)
        batch = await self._task(job).batch(db, job.cursor, most, order)
        if job.most is not None and job.done + job.failed + len(batch.done) + batch.failed >= job.most:
            batch.more = False
        return batch

    def _task(self, job: Job) -> Task:
        match JobKind(job.kind):
            case JobKind.REQUEUE:
                return Requeue(Letters.read(job.filter))
            case JobKind.ABANDON:
                return Abandon(Letters.read(job.filter))
            case JobKind.REPLAY:
                selection = Selection.read(job.filter["selection"])
                return Replay(selection, self._adapters, bool(job.filter["again"]), job.id, whole=job.most is None)

    async def _keep(self, db: Connection, job: Job, status: JobStatus, batch: Batch) -> None:
        done = len(batch.done)
        pause = done / job.rate if job.rate is not None else 0.0
        await store.advance(db, job, status, done=done, failed=batch.failed, cursor=batch.cursor, pause=pause)
        if status is JobStatus.DONE:
            ended = about(job_id=str(job.id), kind=job.kind, done=job.done + done, left=job.failed + batch.failed)
            _log.info("operators' job done", extra=ended)
