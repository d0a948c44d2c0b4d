"""Waking rows: the events of one flush that share a routing key share a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from schemas.event import BATCH_CONTENT_TYPE, CONTENT_TYPE, MAX_EVENTS, wake_ups

from .burst import Outgoing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .publisher import Publisher


@dataclass(slots=True)
class WakeUp:
    """A row that may run. The routing key is the event type, but for deliveries (topology.declared.delivery_key)."""

    id: UUID
    company_id: str
    event_type: str
    routing_key: str
    trace: str | None = None
    connection_id: str | None = None  # of a delivery


async def announce(publisher: Publisher, wakes: Iterable[WakeUp]) -> list[UUID]:
    """Publishes and waits for the broker's confirms. returns the ids that it confirmed; the rest is the relay's."""
    by_key: dict[tuple[str, str], list[WakeUp]] = {}
    for wake in wakes:
        by_key.setdefault((wake.routing_key, wake.event_type), []).append(wake)
    groups = [
        (key, group[start : start + MAX_EVENTS])
        for key, group in by_key.items()
        for start in range(0, len(group), MAX_EVENTS)
    ]
    messages = [_message(routing_key, event_type, group) for (routing_key, event_type), group in groups]
    faults = await publisher.publish_all(messages)
    return [wake.id for (_, group), fault in zip(groups, faults, strict=True) if fault is None for wake in group]


def _message(routing_key: str, event_type: str, group: list[WakeUp]) -> Outgoing:
    body = wake_ups(event_type, [(wake.id, wake.company_id, wake.trace, wake.connection_id) for wake in group])
    single = len(group) == 1
    return Outgoing(
        routing_key=routing_key,
        body=body,
        content_type=CONTENT_TYPE if single else BATCH_CONTENT_TYPE,
        correlation_id=str(group[0].id) if single else None,
        type=event_type,
    )
