"""The one place that says which exchanges, queues and bindings staybus has, and why each argument is what it is.

    service, ingress ─► pms.events (topic) ─┬─ <vendor's patterns> ─────► <vendor>.inbound ──┐ returned too often
                                            ├─ pms.#, action types ─────► pms.outbound ──────┤
                                            ├─ deliver.<vendor>.# ──────► <vendor>.outbound ─┤
                                            ├─ core.# ► core.unheard: no queue               ▼
                                            └─ nobody binds the key                    pms.dlx (direct)
                                                   │                                         │
                                                   ▼                                         ▼
                                        pms.unroutable (fanout and queue)          <vendor>.dlq, pms.dlq

Everything here is valid, and means the same, on RabbitMQ 3.10 and 4.x. What operators may want to tune (`max-length`, a lower
delivery limit) is a policy on the broker and not an argument here, because arguments can never be changed in place.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from topology.model import Arguments, Binding, Exchange, Queue, Topology
from topology.routing import matches, overlap

EVENTS = "pms.events"
DEAD_LETTERS = "pms.dlx"
UNROUTABLE = "pms.unroutable"
"""Exchange, and the queue behind it."""

ROUTER_QUEUE = "pms.outbound"
ROUTER_DLQ = "pms.dlq"
UNHEARD = "core.unheard"
"""An exchange behind which there is nothing."""

COMMANDS = "pms.#"
RESULTS = "core.#"

_VENDOR_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FAMILIES = frozenset({"pms", "core", "deliver", "ops"})
"""First words of our own routing keys and queue names; a vendor of that name would share them."""


@dataclass(frozen=True, slots=True)
class VendorRoutes:
    """What the topology must know of a vendor.

    name      one word, as in routing keys and queue names
    inbound   binding patterns of `<name>.inbound`, such as ("beds24.#",); empty: the vendor reports nothing, and has no such queue
    """

    name: str
    inbound: tuple[str, ...]


def inbound_queue(vendor: str) -> str:
    return f"{vendor}.inbound"


def outbound_queue(vendor: str) -> str:
    return f"{vendor}.outbound"


def dlq(vendor: str) -> str:
    """The queue of a vendor's dead letters, both directions; also the routing key that leads there from `pms.dlx`."""
    return f"{vendor}.dlq"


def delivery_key(vendor: str, event_type: str) -> str:
    """Routing key of a delivery's wake-up. Its first word is ours, so that it can never land in an inbound queue."""
    return f"deliver.{vendor}.{event_type}"


def command_key(event_type: str) -> str:
    """Routing key of a recorded command's wake-up. It leads to the router whatever the type: a row may have one that is no command,
    or none any more (an action of a vendor that was taken away), and only the router can say so and end it."""
    return event_type if matches(COMMANDS, event_type) else f"pms.{event_type}"


def topology(vendors: Iterable[VendorRoutes], actions: Iterable[str] = ()) -> Topology:
    """All that staybus declares, for these vendors.

    actions   event types beside `pms.#` that go to the router, such as "turno.create_job"
    raises    ValueError where two vendors share a name, a name is not one plain word, or some routing key would land in
              two work queues
    """
    known = sorted(vendors, key=lambda vendor: vendor.name)
    to_router = (COMMANDS, *sorted(set(actions)))
    _refuse_bad_names(known)
    _refuse_shared_keys(known, to_router)
    return Topology(
        exchanges=(
            # An unroutable mandatory publish is not returned when there is an alternate exchange: it is kept, and the depth
            # of the queue behind it alerts.
            Exchange(EVENTS, "topic", {"alternate-exchange": UNROUTABLE}),
            Exchange(DEAD_LETTERS, "direct"),
            Exchange(UNROUTABLE, "fanout"),
            # Results are nobody's mistake though services bind queues of their own and there may be none yet: what goes on to
            # an exchange counts as routed, and none of it is stored. The rows are in core_events.
            Exchange(UNHEARD, "fanout"),
        ),
        queues=tuple(_queues(known)),
        bindings=tuple(_bindings(known, to_router)),
    )


def lands_in(declared: Topology, routing_key: str, exchange: str = EVENTS) -> set[str]:
    """The queues that a message published to `exchange` with this key is put into, alternate exchange included."""
    source = next(known for known in declared.exchanges if known.name == exchange)
    passed = [
        binding
        for binding in declared.bindings
        if binding.exchange == exchange and _passes(source, binding, routing_key)
    ]
    alternate = source.arguments.get("alternate-exchange")
    if not passed and isinstance(alternate, str):
        return lands_in(declared, routing_key, alternate)
    queues = {binding.destination for binding in passed if binding.destination_type == "queue"}
    further = (binding.destination for binding in passed if binding.destination_type == "exchange")
    return queues.union(*(lands_in(declared, routing_key, name) for name in further))


def _passes(source: Exchange, binding: Binding, routing_key: str) -> bool:
    match source.type:
        case "topic":
            return matches(binding.routing_key, routing_key)
        case "direct":
            return binding.routing_key == routing_key
        case "fanout":
            return True


def _queues(vendors: list[VendorRoutes]) -> Iterator[Queue]:
    yield Queue(UNROUTABLE, _last_stop())
    yield Queue(ROUTER_DLQ, _last_stop())
    # One consumer at a time, however many outbound processes there are: two commands about one entity that were published
    # one after the other are routed, and so laned, in that order.
    yield Queue(ROUTER_QUEUE, {**_work(ROUTER_DLQ), "x-single-active-consumer": True})
    for vendor in vendors:
        yield Queue(dlq(vendor.name), _last_stop())
        if vendor.inbound:
            yield Queue(inbound_queue(vendor.name), _work(dlq(vendor.name)))
        yield Queue(outbound_queue(vendor.name), _work(dlq(vendor.name)))


def _work(dead_letter_queue: str) -> Arguments:
    return {
        # Replicated, and it counts deliveries, so that a message that kills its worker is found.
        "x-queue-type": "quorum",
        # Set always: unset means none on 3.10 and 20 with a silent drop on 4.x; -1 means delete at once on 3.10.
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": DEAD_LETTERS,
        "x-dead-letter-routing-key": dead_letter_queue,
        # Default is at-most-once: with the exchange or its queue away or full, what is given up vanishes.
        "x-dead-letter-strategy": "at-least-once",
        # at-least-once needs it; without, the broker quietly falls back to at-most-once.
        "x-overflow": "reject-publish",
    }


def _last_stop() -> Arguments:
    # Nothing may fall out of the last queue. On 4.x every look without an ack counts, and the default limit of 20 emptied a
    # dead-letter queue by looking at it; so a number that nobody reaches, since "unlimited" is not portable (see above).
    return {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


def _bindings(vendors: list[VendorRoutes], to_router: tuple[str, ...]) -> Iterator[Binding]:
    yield Binding(UNROUTABLE, UNROUTABLE)
    yield Binding(DEAD_LETTERS, ROUTER_DLQ, ROUTER_DLQ)
    for pattern in to_router:
        yield Binding(EVENTS, ROUTER_QUEUE, pattern)
    yield Binding(EVENTS, UNHEARD, RESULTS, "exchange")
    for vendor in vendors:
        yield Binding(DEAD_LETTERS, dlq(vendor.name), dlq(vendor.name))
        for pattern in sorted(set(vendor.inbound)):
            yield Binding(EVENTS, inbound_queue(vendor.name), pattern)
        yield Binding(EVENTS, outbound_queue(vendor.name), delivery_key(vendor.name, "#"))


def _refuse_bad_names(vendors: list[VendorRoutes]) -> None:
    for vendor in vendors:
        if not _VENDOR_NAME.fullmatch(vendor.name) or vendor.name in _FAMILIES:
            raise ValueError(
                f"{vendor.name!r} cannot name a vendor: one word of a-z, 0-9 and _, and none of {sorted(_FAMILIES)}"
            )
    for one, next_one in itertools.pairwise(vendors):
        if one.name == next_one.name:
            raise ValueError(f"two vendors are named {one.name!r}")


def _refuse_shared_keys(vendors: list[VendorRoutes], to_router: tuple[str, ...]) -> None:
    """An event handled from two queues would be done twice, and as two different things."""
    ours = [*to_router, RESULTS, "deliver.#"]
    for vendor in vendors:
        theirs = [pattern for other in vendors if other.name != vendor.name for pattern in other.inbound]
        for pattern, taken in itertools.product(vendor.inbound, (*ours, *theirs)):
            if overlap(pattern, taken):
                raise ValueError(
                    f"{vendor.name}: a routing key can match its inbound pattern {pattern!r} and also {taken!r}"
                )
    for action, taken in itertools.product(to_router, (RESULTS, "deliver.#")):
        if overlap(action, taken):
            raise ValueError(f"a routing key can match the action {action!r} and also {taken!r}")
