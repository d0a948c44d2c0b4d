"""`staybus publish`: a command, by the exchange as a service would, or by the outbox as a transaction would."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import session
from .output import AsJson, Refused, emit, example, note, say

if TYPE_CHECKING:
    from uuid import UUID

    from schemas.event import Event

COMMANDS = "pms."


def register(app: typer.Typer) -> None:
    app.command(
        "publish",
        epilog=example(
            'staybus publish pms.booking.cancel --company acme --data \'{"reservationId": "R1"}\'',
            "staybus publish pms.availability.update --company acme --data-file periods.json --outbox",
        ),
    )(publish)


def publish(
    event_type: Annotated[str, typer.Argument(help="Such as pms.booking.create.")],
    company: Annotated[str, typer.Option("--company", help="Whose it is.")],
    data: Annotated[str | None, typer.Option("--data", help="The data: a JSON object.")] = None,
    data_file: Annotated[
        Path | None, typer.Option("--data-file", help="The data, from a file; - is stdin.", allow_dash=True)
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What it is about: the core's own id.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: the same again is a duplicate. Default: its id.")
    ] = None,
    connection: Annotated[
        str | None, typer.Option("--connection", help="Only this connection; default: wherever the entity is mapped.")
    ] = None,
    outbox: Annotated[bool, typer.Option("--outbox", help="Insert an outbox row instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send a command. It is validated first; published ones are confirmed by the broker."""
    document = _document(data, data_file)
    event = _event(event_type, company, document, subject, key, connection)
    earlier = session.run(_earlier(event)) if key is not None else None
    id_ = session.run(_add_to_outbox(event) if outbox else _publish(event))
    if as_json:
        emit({"outbox_id" if outbox else "id": id_, "type": event_type, "company_id": company})
        return
    say(id_)
    if earlier is not None:
        note(f"a duplicate, of which nothing will come: {earlier} has its key; see staybus events show {earlier}")
        return
    note(f"{'put into the outbox' if outbox else 'published'}; watch it: staybus events show {id_}")


def _document(data: str | None, data_file: Path | None) -> dict[str, Any]:
    import orjson

    if (data is None) == (data_file is None):
        raise typer.BadParameter("one of --data and --data-file")
    option = "--data" if data is not None else "--data-file"
    if data_file is not None:
        try:
            data = sys.stdin.read() if str(data_file) == "-" else data_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"--data-file {data_file}: cannot be read ({type(error).__name__})") from error
    try:
        document = orjson.loads(data or "")
    except orjson.JSONDecodeError as error:
        # Its place and not its text, which may be a guest's.
        raise typer.BadParameter(
            f"not JSON: {error.msg}, line {error.lineno} column {error.colno}", param_hint=option
        ) from None
    if not isinstance(document, dict):
        raise typer.BadParameter('a JSON object is needed, such as {"reservationId": "R1"}', param_hint=option)
    return document


def _event(
    event_type: str,
    company: str,
    document: dict[str, Any],
    subject: str | None,
    key: str | None,
    connection: str | None,
) -> Event:
    """raises typer.BadParameter, InvalidCommandError"""
    from pydantic import ValidationError

    from schemas.commands import describe, parse_command
    from schemas.event import MAX_BYTES, Event, encode
    from schemas.ids import uuid7

    _check_route(event_type)
    if event_type.startswith(COMMANDS):
        parse_command(event_type, document)
    try:
        event = Event(
            id=str(uuid7()),
            source="/staybus/cli",
            type=event_type,
            subject=subject,
            companyid=company,
            connectionid=connection,
            idempotencykey=key,
            data=document,
        )
    except ValidationError as error:
        raise typer.BadParameter(describe(error)) from None
    if (size := len(encode(event))) > MAX_BYTES:
        raise typer.BadParameter(f"data: the event has {size} bytes; at most {MAX_BYTES} go into a message")
    return event


def _check_route(event_type: str) -> None:
    """raises typer.BadParameter for what no router would take: such an event would lie in a queue that nobody reads"""
    from topology.declared import ROUTER_QUEUE, inbound_queue, lands_in

    from .topology import declared

    queues = lands_in(declared(), event_type)
    if ROUTER_QUEUE in queues:
        return
    vendor = event_type.partition(".")[0]
    hint = (
        f"{event_type} is what {vendor} tells us by webhook; `staybus send-webhook {vendor}` sends one"
        if inbound_queue(vendor) in queues
        else f"{event_type} is no command: those begin with {COMMANDS}, or are actions of a vendor (`staybus vendors`)"
    )
    raise typer.BadParameter(hint, param_hint="EVENT_TYPE")


async def _check_addressee(event: Event) -> None:
    """raises Refused: a command of nobody would only become a dead letter"""
    from store import connections

    async with session.owner() as db:
        if event.companyid not in {row["id"] for row in await connections.list_companies(db)}:
            raise session.no_company(event.companyid or "")
        if event.connectionid is not None:
            theirs = {row["id"] for row in await connections.list_connections(db, event.companyid)}
            if event.connectionid not in theirs:
                raise Refused(
                    f"connection {event.connectionid}: not one of {event.companyid}'s; "
                    f"see `staybus connection list --company {event.companyid}`"
                )


async def _earlier(event: Event) -> UUID | None:
    """What was recorded with the same key."""
    from store import events

    async with session.operator() as db:
        return await events.of_key(db, event.companyid or "", event.dedupe_key)


async def _publish(event: Event) -> str:
    from schemas.event import CONTENT_TYPE, encode
    from topology.burst import Outgoing
    from topology.link import where
    from topology.publisher import Publisher

    await _check_addressee(event)
    settings = session.settings()
    publisher = Publisher(settings.amqp_url, name="staybus cli", ca_file=settings.amqp_ca_file)
    await publisher.start(wait=5)
    try:
        message = Outgoing(event.type, encode(event), CONTENT_TYPE, correlation_id=event.id)
        (fault,) = await publisher.publish_all([message])
    finally:
        await publisher.stop()
    if fault is not None:
        raise Refused(
            f"the broker at {where(settings.amqp_url)} did not confirm it: {fault.kind.value} {fault.detail}".rstrip()
            + f"; publish it again with --key {event.dedupe_key}, or use --outbox, which needs no broker"
        )
    await _note(event, event.id, "event.publish")
    return event.id


async def _add_to_outbox(event: Event) -> str:
    import orjson

    from store import connections, outbox

    await _check_addressee(event)
    async with session.operator() as db:
        id_ = await outbox.add(
            db,
            event.companyid or "",
            event.type,
            orjson.dumps(event.data).decode(),
            subject=event.subject,
            connection_id=event.connectionid,
            idempotency_key=event.idempotencykey,
        )
        details = {"type": event.type}
        await connections.audit(db, session.actor(), event.companyid, "outbox.add", str(id_), details)
    return str(id_)


async def _note(event: Event, target: str, action: str) -> None:
    from store import connections

    async with session.operator() as db:
        await connections.audit(db, session.actor(), event.companyid, action, target, {"type": event.type})
