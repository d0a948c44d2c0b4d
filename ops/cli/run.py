"""`staybus run`: one process of the fleet, until it is told to stop."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from . import session
from .output import example


class Process(StrEnum):
    INGRESS = "ingress"
    INBOUND = "inbound"
    OUTBOUND = "outbound"
    SCHEDULER = "scheduler"


def register(app: typer.Typer) -> None:
    app.command("run", epilog=example("staybus run ingress"))(run)


def run(process: Annotated[Process, typer.Argument(help="Which one; each may run any number of times.")]) -> None:
    """Run one process in the foreground; SIGTERM or Ctrl-C lets it finish what it has in hand."""
    found = session.settings()
    from ops import fleet

    with session.reaching_database(found):
        fleet.run(process.value, found)
