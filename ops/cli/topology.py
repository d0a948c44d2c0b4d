"""`staybus topology`: the broker's exchanges, queues and bindings."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import session
from .output import FOUND, AsJson, emit, example, note, noun, say, table

if TYPE_CHECKING:
    from topology.apply import Difference
    from topology.model import Topology

app = noun("The broker's exchanges, queues and bindings: show, compare, apply.")


def declared() -> Topology:
    """What the installed adapters ask for. raises RegistryError"""
    from adapters.registry import adapters
    from ops import parts

    return parts.declared(adapters())


@app.command("show", epilog=example("staybus topology show", "staybus topology show --definitions > definitions.json"))
def show(
    definitions: Annotated[
        bool, typer.Option("--definitions", help="As RabbitMQ's definitions file (JSON), for a managed broker.")
    ] = False,
    vhost: Annotated[str, typer.Option(help="With --definitions: the virtual host, which must exist.")] = "/",
    as_json: AsJson = False,
) -> None:
    """What staybus declares. Asks no broker."""
    from topology.apply import definitions as as_definitions

    wanted = declared()
    if definitions or as_json:
        emit(as_definitions(wanted, vhost))
        return
    table(["exchange", "type", "arguments"], [(e.name, e.type, dict(e.arguments)) for e in wanted.exchanges])
    say("")
    table(["queue", "arguments"], [(q.name, dict(q.arguments)) for q in wanted.queues])
    say("")
    table(["from", "routing key", "to"], [(b.exchange, b.routing_key, b.destination) for b in wanted.bindings])


@app.command("diff", epilog=example("staybus topology diff"))
def diff(as_json: AsJson = False) -> None:
    """What the broker lacks or has differently. Changes nothing; exit code 3 when there is something."""
    differences = session.run(_diff())
    _print(differences, as_json)
    if differences:
        raise typer.Exit(FOUND)


@app.command("apply", epilog=example("staybus topology apply --dry-run", "staybus topology apply"))
def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    leave_broken: Annotated[
        bool,
        typer.Option("--leave-broken", help="Replace no queue that takes no messages (a cluster without a majority)."),
    ] = False,
) -> None:
    """Declare and bind what is missing. Safe to repeat; refuses to touch what exists with other arguments."""
    if dry_run:
        _print(session.run(_diff()), as_json=False)
        note("dry run: nothing was changed")
        return
    for line in session.run(_apply(leave_broken)):
        say(line)
    say("the broker has everything that is declared")


async def _diff() -> list[Difference]:
    from topology.apply import diff as compare

    settings = session.settings()
    return await compare(settings.amqp_url, declared(), ca_file=settings.amqp_ca_file)


async def _apply(leave_broken: bool) -> list[str]:
    from topology.apply import apply as make_so

    settings = session.settings()
    return await make_so(settings.amqp_url, declared(), replace_broken=not leave_broken, ca_file=settings.amqp_ca_file)


def _print(differences: list[Difference], as_json: bool) -> None:
    if as_json:
        emit([{"kind": d.kind.value, "name": d.name, "detail": d.detail} for d in differences])
    elif differences:
        table(["difference", "name", "the broker says"], [(d.kind.value, d.name, d.detail) for d in differences])
    else:
        note("no differences")
