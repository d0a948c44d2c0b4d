"""`staybus sync`: asking vendors for what their webhooks did not bring."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import session
from .events import moment
from .output import AsJson, Refused, example, facts, listing, note, noun, say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import asyncpg

    from store.directory import Known
    from store.pool import Pool
    from workers.pull import Progress, Pulled, Puller

app = noun("Pulls: asking vendors for what webhooks did not bring.")


@app.command(
    "run",
    epilog=example("staybus sync run beds24-acme", "staybus sync run beds24-acme --since 2026-01-01 --dry-run"),
)
def run(
    connection_id: Annotated[str, typer.Argument(metavar="CONNECTION", help="As in `staybus connection list`.")],
    since: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="What changed since then; default: since the last pull."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask the vendor and record nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask the vendor now for what changed. Nothing is recorded twice; the scheduler's workers apply what is new."""
    found = session.run(_run(connection_id, since, dry_run))
    counts = {"listed": found.listed, "new": found.recorded, "duplicate": found.duplicates, "pages": found.pages}
    if as_json:
        facts(counts, as_json=True)
        return
    would = "would be recorded" if dry_run else "recorded"
    say(f"{connection_id}: {found.listed} listed, {found.recorded} new {would}, {found.duplicates} known already")


async def _run(connection_id: str, since: datetime | None, dry_run: bool) -> Pulled:
    from adapters.errors import AdapterError
    from ops.parts import worker_name
    from store import connections, pulls
    from workers.pull import LEASE, LeaseLostError, Waiting

    async with _puller(connection_id) as (pool, puller, known, overview):
        usual = overview["covered_until"] or overview["created_at"]
        try:
            if dry_run:
                overlap = timedelta(seconds=session.settings().pull_overlap)
                found = await puller.look(connection_id, since or usual - overlap)
            else:
                async with pool.acquire() as db:
                    leases = await pulls.claim(db, [connection_id], worker_name("cli"), LEASE)
                    holder = None if leases else await pulls.holder(db, connection_id)
                if not leases:
                    who = f" by {holder[0]}, since {holder[1]:%H:%M:%SZ}" if holder else ""
                    raise Refused(f"connection {connection_id}: is being pulled now{who}; see `staybus sync status`")
                found = await puller.run(leases[0], since)
        except LeaseLostError as error:
            raise Refused(f"{error}; see `staybus sync status`") from error
        except AdapterError as error:
            raise Refused(f"connection {connection_id}: {error} ({error.fault.value})") from error
        if isinstance(found, Waiting):
            raise Refused(
                f"connection {connection_id}: not asked: {found.reason}; try again in {found.seconds:.0f} seconds"
            )
        if not dry_run:
            details = {"since": str(since) if since else None, "listed": found.listed, "recorded": found.recorded}
            async with pool.acquire() as db:
                await connections.audit(
                    db, session.actor(), known.connection.company_id, "sync.run", connection_id, details
                )
    return found


@asynccontextmanager
async def _puller(connection_id: str) -> AsyncIterator[tuple[Pool, Puller, Known, asyncpg.Record]]:
    """As the scheduler has it, role included; it publishes nothing: the relay wakes what is new. raises Refused"""
    import random

    from adapters.registry import adapters
    from adapters.transport import HttpTransport
    from ops.parts import inbound_attempts
    from store import pulls
    from store.clock import Clock
    from store.pool import WORKER_ROLE
    from workers.governor import Governor
    from workers.pull import Puller, pulled_vendors
    from workers.sessions import Sessions, Tokens

    settings = session.settings()
    async with session.keys(WORKER_ROLE) as (pool, directory):
        known = await session.known(directory, connection_id)
        all_adapters = dict(adapters())
        async with pool.acquire() as db:
            rows = await pulls.overview(db, pulled_vendors(all_adapters), settings.pull_interval)
        of = [row for row in rows if row["id"] == connection_id]
        if not of:
            title = all_adapters[known.connection.vendor].manifest.title
            raise Refused(f"connection {connection_id}: {title} cannot list what changed")
        if of[0]["status"] != "active":
            raise Refused(f"connection {connection_id}: is {of[0]['status']}; `staybus connection resume` first")
        transport = HttpTransport(total=settings.vendor_timeout)
        now = await Clock.of(pool)
        tokens = {vendor: Tokens(pool, transport.for_vendor(vendor), now=now) for vendor in all_adapters}
        try:
            puller = Puller(
                pool,
                directory,
                Sessions(all_adapters, transport.for_vendor, tokens.__getitem__, now),
                Governor(pool, random=random.random, now=now),
                inbound_attempts(all_adapters),
                None,
                overlap=timedelta(seconds=settings.pull_overlap),
                random=random.random,
                now=now,
                tell=_tell,
            )
            yield pool, puller, known, of[0]
        finally:
            await transport.close()


def _tell(progress: Progress) -> None:
    from workers.pull import Waiting

    if isinstance(progress, Waiting):
        note(f"waits {progress.seconds:.0f} s: {progress.reason}")
    elif sys.stderr.isatty():
        note(f"page {progress.pages}: {progress.listed} listed, {progress.recorded} new")


@app.command("status", epilog=example("staybus sync status", "staybus sync status --json"))
def status(
    company: Annotated[str | None, typer.Option("--company", help="Only this company's.")] = None,
    as_json: AsJson = False,
) -> None:
    """How far each connection was pulled, whose vendor can list what changed."""
    columns = ["connection=id", "company=company_id", "state", "every", "covered=covered_until", "behind", "listed"]
    columns += ["new=recorded", "again=not_before", "error=last_error"]
    rows = session.run(_status(company))
    listing(rows, columns, as_json=as_json, empty="no connections at vendors that can list what changed")


async def _status(company: str | None) -> list[dict[str, Any]]:
    from adapters.registry import adapters
    from store import pulls
    from workers.pull import pulled_vendors

    interval = session.settings().pull_interval
    async with session.operator() as db:
        rows = await pulls.overview(db, pulled_vendors(adapters()), interval)
    documents = [dict(row) for row in rows if company in {None, row["company_id"]}]
    return [{**document, **_state(document)} for document in documents]


def _state(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["running"]:
        state = "running"
    elif row["status"] != "active":
        state = row["status"]
    elif not row["every"]:
        state = "off"
    elif row["failures"]:
        state = "failing"
    else:
        state = "ok" if row["covered_until"] else "not yet"
    return {"state": state, "behind": f"{row['lag']:.0f} s" if row["covered_until"] else None}
