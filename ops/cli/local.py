"""`staybus up`, `down`, `demo`: everything on this machine."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from . import session
from .output import Refused, example

Folder = Annotated[Path, typer.Option(help="Where its servers, key and logs are kept.")]


def register(app: typer.Typer) -> None:
    app.command("up", epilog=example("staybus up"))(up)
    app.command("down", epilog=example("staybus down"))(down)
    app.command("demo", epilog=example("staybus demo"))(demo)


def up(folder: Folder = session.FOLDER) -> None:
    """Start Postgres, RabbitMQ and every process of staybus on this machine."""
    _call("ops.demo.running", "up", folder)


def down(folder: Folder = session.FOLDER) -> None:
    """Stop what `up` left running; the data stays."""
    _call("ops.demo.running", "down", folder)


def demo(folder: Folder = session.FOLDER) -> None:
    """The whole gateway against simulated vendors, with a story to watch."""
    _call("ops.demo.story", "demo", folder)


def _call(module: str, function: str, folder: Path) -> None:
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        # The stack's own dependencies are a development group; a production image has none of them.
        raise Refused(
            f"{function}: the Python package {error.name} is missing; from a checkout, `make setup`"
        ) from error
    raise typer.Exit(getattr(found, function)(folder))
