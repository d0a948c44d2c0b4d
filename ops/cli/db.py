"""`staybus db`: the schema's version."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from typing import Annotated

import typer

from . import session
from .output import FOUND, AsJson, Yes, confirm, example, facts, noun, say

app = noun("The database schema: upgrade, downgrade, status.")


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
