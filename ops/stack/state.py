"""What is known of one server between commands: a JSON file in its folder, readable by its owner only."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ops.stack.processes import ProcessMark


@dataclass(frozen=True, slots=True)
class ServerState:
    """The ports, processes and private facts (password, data folder) of one server."""

    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, ProcessMark] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def read(file: Path) -> ServerState:
    """The recorded state; an empty one when there is none or a crash left half of it."""
    try:
        held = json.loads(file.read_text())
        processes = {name: ProcessMark(**mark) for name, mark in held["processes"].items()}
        return ServerState(ports=held["ports"], processes=processes, facts=held["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ServerState()


def write(file: Path, state: ServerState) -> None:
    """Replace the file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as target:
        json.dump(asdict(state), target, indent=1)
    draft.replace(file)
