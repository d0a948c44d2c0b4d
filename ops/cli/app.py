"""The tree of commands, and what every one of them does with an error."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from . import (
    apikeys,
    companies,
    connections,
    db,
    dlq,
    doctor,
    events,
    jobs,
    lanes,
    local,
    mappings,
    publish,
    run,
    secrets,
    send_webhook,
    simulate,
    sync,
    topology,
    vendors,
)
from .failures import describe
from .output import example


class Staybus(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Errors end as one line and code 1; usage errors, exits and Ctrl-C are typer's to end."""
        try:
            return super().invoke(ctx)
        except (TyperException, typer.Exit, typer.Abort, EOFError, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("STAYBUS_DEBUG"):
                raise
            print(f"staybus: {describe(error)}", file=sys.stderr)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="staybus",
    cls=Staybus,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help is read by pipes too, and needs no import of rich
    pretty_exceptions_enable=False,
    epilog=example("staybus doctor", "staybus dlq list --vendor beds24", "staybus events show 0192f0c1-…"),
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"staybus {version('staybus')}")
        raise typer.Exit


@app.callback()
def root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Gateway between a property-management core and its vendors.

    Exit codes: 0 done, 1 failed, 2 usage, 3 found something.
    STAYBUS_DEBUG=1 shows the traceback of an error.
    """


local.register(app)
run.register(app)
app.add_typer(db.app, name="db")
app.add_typer(topology.app, name="topology")
app.add_typer(companies.app, name="company")
app.add_typer(connections.app, name="connection")
app.add_typer(secrets.app, name="secret")
app.add_typer(apikeys.app, name="apikey")
app.add_typer(mappings.app, name="mapping")
app.add_typer(events.app, name="events")
app.add_typer(dlq.app, name="dlq")
app.add_typer(lanes.app, name="lanes")
app.add_typer(jobs.app, name="jobs")
app.add_typer(sync.app, name="sync")
publish.register(app)
simulate.register(app)
send_webhook.register(app)
vendors.register(app)
doctor.register(app)


def main() -> None:
    """The console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # `staybus … >&-`: what is said there goes nowhere, and what is done is done
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    try:
        app(prog_name="staybus")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # `staybus … | head`: the interpreter's own flush must not find it again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
