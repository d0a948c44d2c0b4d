"""`staybus simulate`: a vendor's API as a real server, for trying and testing."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Annotated

import typer

from .output import Refused, example


def register(app: typer.Typer) -> None:
    app.command(
        "simulate",
        epilog=example("staybus simulate beds24 --port 8024", "staybus simulate beds24 -- --help"),
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(simulate)


def simulate(
    context: typer.Context,
    vendor: Annotated[str, typer.Argument(help="Whose API.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one, which is printed.")] = 0,
) -> None:
    """Serve a vendor's API until Ctrl-C. Prints its address and how to get in; other words go to the simulator."""
    known = vendors()
    if vendor not in known:
        raise Refused(f"{vendor}: has no simulator; there are: {', '.join(known)}")
    # In this process's place, so that signals and the exit code are the simulator's own.
    command = [sys.executable, "-m", f"simulators.{vendor}", "--port", str(port), *context.args]
    os.execv(sys.executable, command)  # noqa: S606 - our own module, no shell


def vendors() -> list[str]:
    import simulators

    return sorted(
        module.name
        for module in iter_modules(simulators.__path__)
        if module.ispkg and find_spec(f"simulators.{module.name}.__main__")
    )
