"""`staybus jobs`: what the schedulers do to many dead letters or events for an operator, and how far they are."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from schemas.vocabulary import OPEN_JOBS, JobKind, JobStatus

from . import session
from .output import AsJson, Refused, emit, example, facts, listing, note, noun, progress, say, table

if TYPE_CHECKING:
    from store.jobs import Job, NewJob

app = noun("Operators' jobs: bulk requeues, abandons and replays that the schedulers carry out.")

PAUSE = 0.3  # seconds between two looks at a job
MOST = 1_000_000_000  # letters or events that a --limit lets through: what the table holds
UNTAKEN = 10.0  # seconds after which a job that nobody has begun is worth a word
DONE_WORDS = {JobKind.REQUEUE: "requeued", JobKind.ABANDON: "abandoned", JobKind.REPLAY: "replayed"}

AsJob = Annotated[bool, typer.Option("--job", help="Let a scheduler do it, however few they are.")]
Detach = Annotated[bool, typer.Option("--detach", help="As a job, and do not wait for its end.")]
JobId = Annotated[UUID, typer.Argument(metavar="JOB", help="As in `staybus jobs list`.")]

REASONS = ("letters", "class=error_class", "code=error_code", "fingerprint", "error")


class UnknownJob(Refused):
    def __init__(self, id_: UUID) -> None:
        super().__init__(f"job {id_}: not known; `staybus jobs list` shows the newest")


@app.command("list", epilog=example("staybus jobs list --status running"))
def list_(
    status: Annotated[JobStatus | None, typer.Option("--status", help="Only with this status.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """The newest first."""
    rows = session.run(_find(status.value if status else None, limit))
    columns = ["id", "created=created_at", "kind", "status", "done", "left=failed", "total", "by=requested_by"]
    listing(rows, [*columns, "note", "error=last_error"], as_json=as_json, empty="no jobs")


@app.command("show", epilog=example("staybus jobs show 0192f0c1-7a3e-7c00-8000-000000000001"))
def show(id_: JobId, as_json: AsJson = False) -> None:
    """One job, and what became of the events that it let run."""
    document = session.run(describe(id_))
    if as_json:
        emit(document)
        return
    facts({name: value for name, value in document.items() if name != "reasons"}, as_json=False)
    _tell_reasons(document["reasons"])
    if document["status"] in OPEN_JOBS:
        note(f"follow it: staybus jobs follow {id_}; stop it: staybus jobs cancel {id_}")


@app.command("cancel", epilog=example("staybus jobs cancel 0192f0c1-7a3e-7c00-8000-000000000001"))
def cancel(id_: JobId) -> None:
    """Stop a job after the batch that is under way. What it let run before goes on."""
    document = session.run(_cancel(id_))
    say(f"cancelled {id_} after {document['done']} of {document['total']}")


@app.command("follow", epilog=example("staybus jobs follow 0192f0c1-7a3e-7c00-8000-000000000001"))
def follow(id_: JobId, as_json: AsJson = False) -> None:
    """Watch a job until it ends; exit code 1 when it failed or was cancelled. Ctrl-C stops watching, not the job."""
    finish(id_, as_json=as_json)


# ------------------------------------------------------------------------------------------------ for other commands


def start(job: NewJob, *, detach: bool, as_json: bool) -> None:
    """Ask for a job, and watch it until it ends."""
    id_ = session.run(_add(job))
    if not detach:
        first = f"; {min(job.canary, job.total)} go first, and the rest waits for their ends" if job.canary else ""
        note(f"job {id_}: {job.total} in all{first}")
        finish(id_, as_json=as_json)
    elif as_json:
        emit(session.run(describe(id_)))
    else:
        say(str(id_))
        note(f"follow it: staybus jobs follow {id_}; stop it: staybus jobs cancel {id_}")


def finish(id_: UUID, *, as_json: bool) -> None:
    """raises typer.Exit: 1 unless the job ended as done, 130 when nobody watches any more"""
    try:
        job = session.run(_until_ended(id_))
    except UnknownJob:
        raise
    except BaseException as error:
        note(f"the job goes on. Follow it: staybus jobs follow {id_}; stop it: staybus jobs cancel {id_}")
        if isinstance(error, KeyboardInterrupt):
            raise typer.Exit(130) from None
        raise
    document = session.run(describe(id_))
    if as_json:
        emit(document)
    else:
        say(f"{DONE_WORDS[JobKind(job.kind)]} {job.done} of {job.total}")
        if job.failed:
            note(f"left as they are: {job.failed}; see the reasons in `staybus {_where(job)}`")
        _tell_reasons(document["reasons"])
        if job.last_error:
            note(job.last_error)
    if job.status != JobStatus.DONE:
        raise typer.Exit(1)


def _where(job: Job) -> str:
    return {JobKind.REPLAY: "events replay --dry-run", JobKind.REQUEUE: "dlq requeue --dry-run"}.get(
        JobKind(job.kind), "dlq list"
    )


def _tell_reasons(reasons: list[dict[str, Any]]) -> None:
    if reasons:
        say("\nfailed again")
        members = [column.partition("=") for column in REASONS]
        table(
            [name for name, _, _ in members], [[one[member or name] for name, _, member in members] for one in reasons]
        )


# ------------------------------------------------------------------------------------------------ doing


async def _find(status: str | None, limit: int) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from store import jobs

    async with session.operator() as db:
        return [asdict(job) for job in await jobs.find(db, status, limit)]


async def _add(job: NewJob) -> UUID:
    from store import connections, jobs

    async with session.operator() as db:
        id_ = await jobs.add(db, job)
        details = {"kind": job.kind, "filter": dict(job.filter), "total": job.total}
        await connections.audit(db, session.actor(), job.company_id, "job.add", str(id_), details)
    return id_


async def describe(id_: UUID) -> dict[str, Any]:
    """A job with what became of its events so far. raises Refused"""
    from dataclasses import asdict

    from store import jobs

    async with session.operator() as db:
        job = await jobs.show(db, id_)
        if job is None:
            raise UnknownJob(id_)
        outcome = asdict(await jobs.outcome(db, id_)) if job.kind != JobKind.ABANDON else {}
        reasons = [dict(row) for row in await jobs.reasons(db, id_)]
    return asdict(job) | {"left": job.failed} | outcome | {"reasons": reasons}


async def _cancel(id_: UUID) -> dict[str, Any]:
    from store import connections, jobs

    async with session.operator() as db:
        if not await jobs.cancel(db, id_, session.actor()):
            job = await jobs.show(db, id_)
            if job is None:
                raise UnknownJob(id_)
            raise Refused(f"job {id_}: has ended already ({job.status})")
        job = await jobs.show(db, id_)
        if job is None:
            raise UnknownJob(id_)
        await connections.audit(db, session.actor(), job.company_id, "job.cancel", str(id_), {"done": job.done})
    return {"done": job.done, "total": job.total}


async def _until_ended(id_: UUID) -> Job:
    from store import jobs
    from store.pool import API_ROLE, as_company

    began, told, seen = time.monotonic(), False, 0
    async with session.pool(API_ROLE) as pool:

        async def look() -> Job:
            async with as_company(pool, None) as db:
                job = await jobs.show(db, id_)
            if job is None:
                raise UnknownJob(id_)
            return job

        job = await look()
        with progress(job.kind, job.total) as advance:
            while job.status in OPEN_JOBS:
                if job.status == JobStatus.WAITING and not told and time.monotonic() - began > UNTAKEN:
                    note("no scheduler has begun it yet; is `staybus run scheduler` running?")
                    told = True
                advance(job.done + job.failed - seen)
                seen = job.done + job.failed
                await asyncio.sleep(PAUSE)
                job = await look()
    return job
