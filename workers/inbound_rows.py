"""What an inbound event carries on its way, and the rows that follow from its outcome. Pure; the stage is in inbound.py."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from adapters.port import Effects, Hint
from store.inbound import StateRow
from store.seal import split
from store.settle import DeadLetterRow, FinishRow
from telemetry import metrics
from telemetry.logs import about

from .outcome import Defer, Done, Outcome, Park, Retry, Skip, ending
from .results import reservation_upserted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from store.directory import Known
    from store.inbound import Applied, InboundRow, Lease
    from store.seal import Cipher

    from .echo import OwnWrite

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One event on its way through the stage. known is None when its connection is gone."""

    row: InboundRow
    known: Known | None
    vendor: str
    started_at: datetime
    personal: tuple[tuple[str, ...], ...] = ()  # paths in the vendor's documents
    document: Mapping[str, Any] | None = None  # what the row says, personal values put back in
    outcome: Outcome | Hint | None = None
    fetched: bool = False  # its state came from the vendor's API, not from the fact
    doubts: int = (
        0  # how often the vendor had to be asked because nothing else tells whether it or the stored one is newer
    )
    own_writes: Sequence[OwnWrite] = ()  # where what it tells is an echo of them
    starts: int = 0  # of a hint: how often it was begun and never ended, this time included
    lease_token: UUID | None = None  # of a hint, once it is leased

    @property
    def lease(self) -> Lease:
        return self.row.id, self.lease_token


def is_plain(work: Work) -> bool:
    """Whether one state is all that it brings, at its first attempt: if that is applied, the event is done with it."""
    match work.outcome:
        case Done(result=Effects(reservations=(sourced,), availability=(), properties=(), room_types=())):
            row, here = work.row, not sourced.version.asked and work.lease_token is None
            return here and row.attempts == 0 and row.error_class is None
        case _:
            return False


def is_asked(work: Work) -> bool:
    """Whether the vendor's API said what it brings."""
    return any(sourced.version.asked for sourced in effects_of(work).reservations)


def state_rows(work: Work) -> list[StateRow]:
    """What is only stored, because the core said it itself, is told to nobody."""
    if work.known is None:
        return []
    row, cipher, told = work.row, work.known.cipher, isinstance(work.outcome, Done)
    return [
        StateRow(
            row.company_id,
            row.connection_id,
            row.id,
            cipher,
            sourced,
            *_kept(work, sourced.document, cipher),
            reservation_upserted(sourced.entity, row.connection_id, work.vendor) if told else None,
            row.trace,
        )
        for sourced in effects_of(work).reservations
    ]


def keys_of(work: Work) -> list[tuple[str, str]]:
    """As StateRow.key"""
    return [(work.row.connection_id, sourced.entity.external_id) for sourced in effects_of(work).reservations]


def _kept(work: Work, document: Mapping[str, Any], cipher: Cipher) -> tuple[str, bytes | None]:
    """(JSON text without personal data, that sealed): the event's own row has both already, unless an edit was laid over it."""
    if document is work.document and work.row.overlay is None:
        return work.row.payload, work.row.sealed
    readable, private = split(document, work.personal)
    return orjson.dumps(readable).decode(), cipher.seal(private)


def effects_of(work: Work) -> Effects:
    match work.outcome:
        case Done(result=Effects() as effects) | Skip(effects=Effects() as effects):
            return effects
        case _:
            return Effects()


def final(
    work: Work, applied: Mapping[tuple[UUID, str], Applied], nights: set[tuple[str, str]]
) -> Done | Retry | Defer | Park | Skip:
    """What was stored decides whether a Done really changed something."""
    outcome = work.outcome
    if outcome is None or isinstance(outcome, Hint):
        raise AssertionError("an event reached settle without an outcome")
    if isinstance(outcome, Done):
        effects = effects_of(work)
        row = work.row
        touched = any((row.id, s.entity.external_id) in applied for s in effects.reservations) or any(
            (row.connection_id, s.entity.external_room_type_id) in nights for s in effects.availability
        )
        if (effects.reservations or effects.availability) and not touched:
            return Skip("stale: a newer or the same state is stored")
    return outcome


def finish_row(work: Work, outcome: Outcome, now: datetime) -> FinishRow:
    row, end = work.row, ending(outcome, now)
    attempts = row.attempts + end.counted
    return FinishRow(
        id=row.id,
        status=end.status.value,
        attempts=attempts,
        starts=work.starts - 1 if isinstance(outcome, Defer) and work.starts else 0,
        next_attempt_at=end.next_attempt_at,
        # Put off: what it failed with before still tells that it has a dead letter to close.
        error_class=end.fault if end.counted else row.error_class,
        last_error=end.message,
        error_code=end.code,
        # A first attempt that went well is told by its row already; history is kept of everything else.
        keep_attempt=end.counted == 1 and (attempts > 1 or isinstance(outcome, Retry | Park)),
        outcome=end.word,
        started_at=work.started_at,
        lease_token=work.lease_token,
    )


def dead_letter(work: Work, outcome: Park) -> DeadLetterRow:
    row = work.row
    return DeadLetterRow(
        event_id=row.id,
        company_id=row.company_id,
        connection_id=row.connection_id,
        vendor=work.vendor,
        queue=None,
        operation=row.event_type,
        entity_type=row.entity_type,
        entity_external_id=row.entity_external_id,
        entity_internal_id=None,
        error_class=outcome.fault.value,
        error_code=outcome.code,
        error_message=outcome.message,
        attempts=row.attempts + 1,
        first_attempt_at=work.started_at,
        owner=outcome.owner.value,
        place=outcome.place,
    )


def observe(ended: Sequence[tuple[Work, Outcome]], now: datetime) -> None:
    told = []
    counts: Counter[tuple[str, str]] = Counter()
    latency = {vendor: metrics.EVENT_LATENCY.labels(vendor, "inbound") for vendor in {work.vendor for work, _ in ended}}
    for work, outcome in ended:
        word = type(outcome).__name__.lower()
        counts[work.vendor, word] += 1
        if isinstance(outcome, Done | Skip):
            latency[work.vendor].observe((now - work.row.received_at).total_seconds())
        elif isinstance(outcome, Retry | Park):
            metrics.ATTEMPTS.labels(work.vendor, outcome.fault.value).inc()
        told.append({**ids(work), "outcome": word, **_reason(outcome)})
    for (vendor, word), count in counts.items():
        metrics.EVENTS.labels(vendor, "inbound", word).inc(count)
    # One line a batch: a line an event costs more than all the rest of the settling does in Python.
    _log.info("settled", extra=about(count=len(told), events=told))


def _reason(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Retry(fault=fault, message=message) | Park(fault=fault, message=message):
            return {"fault": fault.value, "error": message}
        case Skip(reason=reason):
            return {"reason": reason}
        case _:
            return {}


def ids(work: Work) -> dict[str, Any]:
    row = work.row
    return {
        "event_id": str(row.id),
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "vendor": work.vendor,
        "type": row.event_type,
        "trace": row.trace,
    }


def about_of(work: Work) -> dict[str, Any]:
    return about(**ids(work))
