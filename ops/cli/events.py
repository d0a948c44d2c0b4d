"""`staybus events`: what was recorded, and what became of it."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from schemas.vocabulary import EventStatus

from . import session
from .output import AsJson, Refused, emit, example, facts, listing, note, noun, say, table

if TYPE_CHECKING:
    from store.pool import Connection

app = noun("Events: what was recorded, and what became of it. Guests' data is never shown.")


@app.command("list", epilog=example("staybus events list --status failed --vendor beds24 --limit 20"))
def list_(
    status: Annotated[EventStatus | None, typer.Option("--status", help="Only with this status.")] = None,
    vendor: Annotated[str | None, typer.Option("--vendor", help="Only of this vendor's connections.")] = None,
    company: Annotated[str | None, typer.Option("--company", help="Only this company's.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    before: Annotated[UUID | None, typer.Option("--before", help="Go on after this id, the last one shown.")] = None,
    as_json: AsJson = False,
) -> None:
    """The newest events first."""
    session.run(_list(status.value if status else None, vendor, company, event_type, limit, before, as_json))


async def _list(
    status: str | None,
    vendor: str | None,
    company: str | None,
    event_type: str | None,
    limit: int,
    before: UUID | None,
    as_json: bool,
) -> None:
    from store import events

    wanted = events.Filter(status=status, vendor=vendor, company_id=company, event_type=event_type)
    async with session.operator() as db:
        rows = await events.find(db, wanted, limit, before)
        total = len(rows) if len(rows) < limit and before is None else await events.count(db, wanted)
    columns = ["id", "received=received_at", "type=event_type", "company=company_id", "connection=connection_id"]
    columns += ["status", "attempts", "entity=entity_external_id", "error=last_error"]
    listing(map(dict, rows), columns, as_json=as_json, empty="no events")
    if total > len(rows) and rows:
        bound = " or more" if total >= events.COUNTED else ""
        note(f"{len(rows)} of {total}{bound}; older ones: --before {rows[-1]['id']}")


@app.command("show", epilog=example("staybus events show 0192f0c1-7a3e-7c00-8000-000000000001"))
def show(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="An event's, or that of an outbox row.")],
    payload: Annotated[
        bool, typer.Option("--payload", help="With what it says, personal values left out as they are stored.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One event with its history and its deliveries."""
    session.run(_show(id_, payload, as_json))


async def _show(id_: UUID, payload: bool, as_json: bool) -> None:
    import orjson

    from store import events

    async with session.operator() as db:
        row = await events.show(db, id_)
        if row is None:
            row = await events.show(db, await _event_of_outbox_row(db, id_))
        if row is None:
            raise Refused(f"event {id_}: not known")
        history = [dict(one) for one in await events.attempts(db, row["id"])]
        deliveries = [dict(one) for one in await events.deliveries(db, row["id"])]
    document: dict[str, Any] = {name: value for name, value in row.items() if name != "payload"}
    if payload:
        document["payload"] = orjson.loads(row["payload"])
    if as_json:
        emit(document | {"history": history, "deliveries": deliveries})
        return
    facts({name: value for name, value in document.items() if name != "payload"}, as_json=False)
    if payload:
        say("\npayload")
        emit(document["payload"])
    if history:
        say("\nhistory")
        columns = ["attempt", "outcome", "error_class", "error_code", "error", "worker", "started_at", "finished_at"]
        table(columns, [[one[name] for name in columns] for one in history])
    if deliveries:
        say("\ndeliveries")
        columns = ["id", "connection_id", "status", "attempts", "last_error"]
        table(columns, [[one[name] for name in columns] for one in deliveries])


async def _event_of_outbox_row(db: Connection, id_: UUID) -> UUID:
    """raises Refused when there is none, or not yet"""
    from store import outbox

    row = await outbox.show(db, id_)
    if row is None:
        raise Refused(f"event {id_}: not known; `staybus events list` shows the newest")
    if row["error"]:
        raise Refused(f"outbox row {id_}: was not taken: {row['error']}")
    if row["event_id"] is None:
        raise Refused(f"outbox row {id_}: no scheduler has taken it yet; is `staybus run scheduler` running?")
    return UUID(str(row["event_id"]))
