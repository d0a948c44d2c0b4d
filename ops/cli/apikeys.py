"""`staybus apikey`: who may call staybus over HTTP."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer

from . import session
from .output import AsJson, Refused, emit, example, listing, note, noun, say

app = noun("API keys for staybus's own HTTP interface.")


class Scope(StrEnum):
    """design.md §9"""

    ACTIONS = "actions"
    INTEGRATION = "integration"
    PMS_READ = "pms:read"
    ADMIN = "admin"


@app.command("create", epilog=example("staybus apikey create --scope admin --company acme --name dashboard"))
def create(
    scope: Annotated[list[Scope], typer.Option("--scope", help="What it may do; may be repeated.")],
    company: Annotated[
        str | None, typer.Option("--company", help="Whose data it sees; without one, every company's.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Who or what uses it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept."""
    from schemas.ids import uuid7

    scopes = sorted({one.value for one in scope})
    id_ = uuid7()
    key = session.run(_create(id_, company, name or "unnamed", scopes))
    if as_json:
        emit({"id": str(id_), "key": key, "company_id": company, "name": name or "unnamed", "scopes": scopes})
        return
    note(f"{', '.join(scopes)} for {company or 'every company'}; shown once, keep it now:")
    say(key)


async def _create(id_: UUID, company: str | None, name: str, scopes: list[str]) -> str:
    import asyncpg

    from store import connections

    async with session.owner() as db:
        try:
            key = await connections.add_api_key(db, company, name, scopes, id_=id_)
        except asyncpg.ForeignKeyViolationError:
            raise session.no_company(company or "") from None
        details = {"name": name, "scopes": scopes}
        await connections.audit(db, session.actor(), company, "apikey.create", str(id_), details)
    return key


@app.command("revoke", epilog=example("staybus apikey revoke 0192f0c1-7a3e-7c00-8000-000000000001"))
def revoke(key_id: Annotated[UUID, typer.Argument(metavar="ID", help="Its id, from `staybus apikey list`.")]) -> None:
    """End a key at once."""
    session.run(_revoke(key_id))
    say(f"revoked {key_id}")


async def _revoke(key_id: UUID) -> None:
    from store import connections

    async with session.owner() as db:
        if not await connections.revoke_api_key(db, key_id):
            raise Refused(f"API key {key_id}: not known, or revoked already; see `staybus apikey list`")
        await connections.audit(db, session.actor(), None, "apikey.revoke", str(key_id), {})


@app.command("list", epilog=example("staybus apikey list"))
def list_(as_json: AsJson = False) -> None:
    """All keys, without the keys themselves."""
    session.run(_list(as_json))


async def _list(as_json: bool) -> None:
    from store import connections

    async with session.owner() as db:
        rows = await connections.list_api_keys(db)
    columns = ["id", "company=company_id", "name", "scopes", "created=created_at", "last used=last_used_at"]
    listing(map(dict, rows), [*columns, "revoked=revoked_at"], as_json=as_json, empty="no API keys")
