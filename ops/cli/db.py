"""`staybus db`: the schema's version, and what is old enough to go."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from . import session
from .output import FOUND, AsJson, Refused, Yes, confirm, doing, example, facts, listing, note, noun, say

if TYPE_CHECKING:
    from store.pool import Pool
    from store.retention import Keep

app = noun("The database: schema upgrade, downgrade, status; dropping what is old.")


@app.command("upgrade", epilog=example("staybus db upgrade"))
def upgrade() -> None:
    """Bring the schema to the version of this staybus. Safe to repeat, and safe while others do the same."""
    session.run(_upgrade())


async def _upgrade() -> None:
    from store import migrate, schema

    settings = session.settings()
    with session.reaching_database(settings):
        before = await schema.status(settings.database_url)
        if before.up_to_date:
            say(f"up to date: {before.current}")
            return
        await migrate.upgrade(settings.database_url)
    say(f"upgraded: {before.current or 'empty'} -> {before.head}")


@app.command("downgrade", epilog=example("staybus db downgrade", "staybus db downgrade base --yes"))
def downgrade(
    revision: Annotated[str, typer.Argument(help="A version, -1 for the one before, base for nothing at all.")] = "-1",
    yes: Yes = False,
) -> None:
    """Go back to an earlier schema. The data of what is dropped is lost."""
    session.run(_downgrade(revision, yes))


async def _downgrade(revision: str, yes: bool) -> None:
    from alembic.util import CommandError

    from ops.stack.health import address
    from store import migrate, schema

    settings = session.settings()
    with session.reaching_database(settings):
        before = await schema.status(settings.database_url)
        if before.current is None:
            say("nothing to go back from: the schema is empty")
            return
        confirm(
            f"Drop from {address(settings.database_url)} all that came after {revision} (it is at {before.current})?",
            yes=yes,
        )
        try:
            await migrate.downgrade(settings.database_url, revision)
        except CommandError as error:
            raise typer.BadParameter(str(error), param_hint="REVISION") from error
        after = await schema.status(settings.database_url)
    say(f"downgraded: {before.current} -> {after.current or 'empty'}")


@app.command("status", epilog=example("staybus db status --check"))
def status(
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when an upgrade is due.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which version the schema has, and which one this staybus needs."""
    session.run(_status(check, as_json))


async def _status(check: bool, as_json: bool) -> None:
    from store import schema

    settings = session.settings()
    with session.reaching_database(settings):
        found = await schema.status(settings.database_url)
    facts({"current": found.current, "head": found.head, "up_to_date": found.up_to_date}, as_json=as_json)
    if check and not found.up_to_date:
        raise typer.Exit(FOUND)


@app.command("retain", epilog=example("staybus db retain --dry-run", "staybus db retain --yes"))
def retain(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show how much would go.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Drop what is finished and old, as the scheduler does by itself every few minutes."""
    session.run(_retain(dry_run, yes, as_json))


async def _retain(dry_run: bool, yes: bool, as_json: bool) -> None:
    from store.pool import WORKER_ROLE
    from store.retention import Keep

    settings = session.settings()
    keep = Keep.of_days(settings.retention_days, settings.dead_letter_retention_days)
    async with session.pool(WORKER_ROLE, settings) as pool:
        found = await _old(pool, keep)
        if dry_run or not found.total():
            _show_rows(found, as_json=as_json)
            note(f"{'dry run: ' if dry_run else ''}{found.total():,} rows are old enough to go; nothing was dropped")
            return
        confirm(f"{_in_words(found)}, and what belongs to them: drop?", yes=yes)
        _show_rows(await _drop(pool, keep, found), as_json=as_json)


async def _old(pool: Pool, keep: Keep) -> Counter[str]:
    from workers import retention

    async with pool.acquire() as connection:
        found: Counter[str] = Counter()
        async for page in retention.pages(connection, keep, asyncio.Event(), only_look=True):
            found.update(page.rows)
    return found


async def _drop(pool: Pool, keep: Keep, found: Counter[str]) -> Counter[str]:
    from store import connections
    from store.retention import WALKS, alone
    from workers import retention

    dropped: Counter[str] = Counter()
    async with alone(pool) as connection:
        if connection is None:
            raise Refused("a scheduler drops old rows just now: let it, or try again later")
        with doing("drop", found.total()) as advance:
            async for page in retention.pages(connection, keep, asyncio.Event()):
                dropped.update(page.rows)
                advance(sum(page.rows[walk.table] for walk in WALKS))
        await connections.audit(connection, session.actor(), None, "retention.drop", "old rows", dict(dropped))
    return dropped


def _show_rows(rows: Counter[str], *, as_json: bool) -> None:
    listing(
        [{"table": table, "rows": count} for table, count in rows.items() if count],
        ("table", "rows"),
        as_json=as_json,
        empty="nothing is old enough",
    )


def _in_words(rows: Counter[str]) -> str:
    return ", ".join(f"{count:,} of {table}" for table, count in rows.items() if count)
