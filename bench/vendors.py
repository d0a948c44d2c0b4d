"""Many vendors made of one: copies of the Beds24 adapter under other names, each with queues and a simulator of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from adapters.beds24.client import Beds24
from adapters.port import Adapter, Effects, Fact, Hint, Recorded, WebhookRequest
from ops import parts
from schemas.connection import Connection

NAMES = "STAYBUS_BENCH_VENDORS"  # variable: the copies' names, separated by commas


class Copy(Beds24):
    """Speaks as Beds24 does; its facts and queues have its own name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.manifest = replace(
            Beds24.manifest, name=name, title=name, inbound=(f"{name}.#",), webhook_auth=Beds24.manifest.webhook_auth
        )

    def parse(self, request: WebhookRequest, connection: Connection) -> list[Fact]:
        own, theirs = self.manifest.name, Beds24.manifest.name
        facts = super().parse(request, connection)
        return [replace(fact, event_type=own + fact.event_type.removeprefix(theirs)) for fact in facts]

    def interpret(self, fact: Recorded, connection: Connection) -> Effects | Hint:
        own, theirs = self.manifest.name, Beds24.manifest.name
        return super().interpret(replace(fact, event_type=theirs + fact.event_type.removeprefix(own)), connection)


def copies(names: list[str]) -> Mapping[str, Adapter]:
    return {name: Copy(name) for name in sorted(names)}


def install() -> None:
    """In place of the installed ones, for this process; the names are in the environment."""
    found = copies(os.environ[NAMES].split(","))
    parts.load_adapters = lambda: found  # type: ignore[assignment]
