"""`staybus company`: the tenants."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import re
from typing import Annotated

import typer

from . import session
from .output import AsJson, Refused, example, listing, note, noun, say

app = noun("Companies: the tenants whose data is kept apart.")

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def identifier(value: str) -> str:
    """A company's or a connection's id: it is part of addresses and routing, so plain words only."""
    if not ID.fullmatch(value):
        raise typer.BadParameter("1 to 64 letters, digits, `_`, `.`, `-`; the first one a letter or digit")
    return value


@app.command("add", epilog=example('staybus company add acme --name "Acme Stays"'))
def add(
    company_id: Annotated[str, typer.Argument(callback=identifier, metavar="ID", help="How events name it.")],
    name: Annotated[str, typer.Option("--name", help="For people; default: the id.")] = "",
) -> None:
    """Add a company, with a data key of its own that seals its guests' data."""
    session.run(_add(company_id, name or company_id))
    say(f"added company {company_id}")
    note(f"next: staybus connection add VENDOR --company {company_id} --id …")


async def _add(company_id: str, name: str) -> None:
    from store import connections
    from store.seal import KeyFile

    settings = session.settings()
    keys = KeyFile.read(settings.key_file)
    async with session.pool(given=settings) as pool, pool.acquire() as db, db.transaction():
        if not await connections.add_company(db, company_id, name, keys.new_data_key()):
            raise Refused(f"company {company_id}: is there already; nothing was changed")
        await connections.audit(db, session.actor(), company_id, "company.add", company_id, {"name": name})


@app.command("list", epilog=example("staybus company list --json"))
def list_(as_json: AsJson = False) -> None:
    """All companies."""
    session.run(_list(as_json))


async def _list(as_json: bool) -> None:
    from store import connections

    async with session.owner() as db:
        rows = await connections.list_companies(db)
    listing(map(dict, rows), ["id", "name", "created=created_at"], as_json=as_json, empty="no companies")
