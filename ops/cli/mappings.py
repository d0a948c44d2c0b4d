"""`staybus mapping`: which id of ours is which id of a vendor's."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import re
from typing import Annotated

import typer

from schemas.vocabulary import EntityType

from . import session
from .output import AsJson, Refused, example, listing, noun, say

app = noun("Mappings between a vendor's ids and the core's own.")


ConnectionId = Annotated[str, typer.Argument(metavar="CONNECTION", help="As in `staybus connection list`.")]
Type = Annotated[EntityType, typer.Argument(metavar="TYPE", help=", ".join(EntityType))]
External = Annotated[str, typer.Argument(metavar="EXTERNAL_ID", help="Its id at the vendor.")]


@app.command("add", epilog=example("staybus mapping add beds24-acme property 345754 P1"))
def add(
    connection_id: ConnectionId,
    entity: Type,
    external_id: External,
    internal_id: Annotated[str, typer.Argument(metavar="INTERNAL_ID", help="The core's own id.")],
    auto_sync: Annotated[bool, typer.Option(help="Whether changes go to the vendor by themselves.")] = True,
) -> None:
    """Map an id, or change what it is mapped to."""
    session.run(_add(connection_id, entity.value, external_id, internal_id, auto_sync))
    say(f"mapped {entity.value} {external_id} of {connection_id} to {internal_id}")


async def _add(connection_id: str, entity: str, external_id: str, internal_id: str, auto_sync: bool) -> None:
    import asyncpg

    from adapters.registry import adapter
    from store import connections

    async with session.keys() as (pool, directory), pool.acquire() as db, db.transaction():
        connection = (await session.known(directory, connection_id)).connection
        manifest = adapter(connection.vendor).manifest
        form = manifest.external_ids.get(EntityType(entity))
        if form is not None and not re.fullmatch(form, external_id):
            raise typer.BadParameter(
                f"{external_id}: not the form of a {entity}'s id at {manifest.title}; the vendor's id comes first, yours second",
                param_hint="EXTERNAL_ID",
            )
        try:
            await connections.add_mapping(db, connection, entity, external_id, internal_id, auto_sync=auto_sync)
        except asyncpg.UniqueViolationError:
            raise Refused(
                f"{entity} {internal_id}: is mapped to another id of {connection_id} already; "
                f"see `staybus mapping list {connection_id} --type {entity}`"
            ) from None
        details = {"type": entity, "external_id": external_id, "internal_id": internal_id}
        await connections.audit(db, session.actor(), connection.company_id, "mapping.add", connection_id, details)


@app.command("list", epilog=example("staybus mapping list beds24-acme --type property"))
def list_(
    connection_id: Annotated[str | None, typer.Argument(metavar="CONNECTION", help="Only this one's.")] = None,
    entity: Annotated[EntityType | None, typer.Option("--type", help="Only of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 500,
    as_json: AsJson = False,
) -> None:
    """The mappings."""
    session.run(_list(connection_id, entity.value if entity else None, limit, as_json))


async def _list(connection_id: str | None, entity: str | None, limit: int, as_json: bool) -> None:
    from store import connections

    async with session.operator() as db:
        rows = await connections.list_mappings(db, connection_id, entity, limit)
    columns = ["connection=connection_id", "type=external_entity_type", "external id=external_entity_id"]
    columns += ["internal id=internal_entity_id", "auto sync=auto_sync", "active=is_active"]
    listing(map(dict, rows), columns, as_json=as_json, empty="no mappings")


@app.command("remove", epilog=example("staybus mapping remove beds24-acme property 345754"))
def remove(connection_id: ConnectionId, entity: Type, external_id: External) -> None:
    """Forget a mapping. Events about it end as unmapped until there is one again."""
    session.run(_remove(connection_id, entity.value, external_id))
    say(f"removed {entity.value} {external_id} of {connection_id}")


async def _remove(connection_id: str, entity: str, external_id: str) -> None:
    from store import connections

    async with session.owner() as db:
        if not await connections.remove_mapping(db, connection_id, entity, external_id):
            raise Refused(f"{entity} {external_id}: is not mapped at {connection_id}; see `staybus mapping list`")
        details = {"type": entity, "external_id": external_id}
        await connections.audit(db, session.actor(), None, "mapping.remove", connection_id, details)
