"""Exchanges, queues and bindings as values with equality; what they are is said in `topology.declared`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Arguments = Mapping[str, str | int]
"""Optional arguments (`x-…`). The broker accepts unknown names silently, so a typo passes: never write them elsewhere."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["topic", "direct", "fanout"]
    arguments: Arguments = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue. Its arguments can never be changed in place: see `topology.apply`."""

    name: str
    arguments: Arguments = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """What an exchange passes on to a queue, or to another exchange. For a fanout the key is empty."""

    exchange: str
    destination: str
    routing_key: str = ""
    destination_type: Literal["queue", "exchange"] = "queue"


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that is declared on the broker, in an order in which it can be declared."""

    exchanges: tuple[Exchange, ...]
    queues: tuple[Queue, ...]
    bindings: tuple[Binding, ...]
