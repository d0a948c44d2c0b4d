"""What a delivery carries on its way, and the rows that follow from its outcome. Pure; the stage is in delivery.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from adapters.errors import Unmapped
from adapters.port import Command, Reply
from schemas.commands import BookingCreate
from schemas.vocabulary import CallKind, Result
from store.outbound import DeliveryRow, SupersededRow
from store.results import CoreEventRow
from store.settle import DeadLetterRow, FinishRow
from telemetry import metrics
from telemetry.logs import about

from . import results
from .echo import expected
from .outcome import Defer, Done, Outcome, Park, Retry, ending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from adapters.port import Budget
    from schemas.commands import CommandData
    from store.directory import Known
    from store.outbound import Claimed

    from .governor import Call

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Work:
    row: Claimed
    started_at: datetime
    known: Known | None = None
    command: Command | None = None
    outcome: Outcome | None = None
    call: Call | None = None  # once it may go out
    answered: bool | None = None
    budget: Budget | None = None
    external_id: str | None = None
    # An earlier start was never answered, or its end is not known: until a look-up or an answer says otherwise, what was
    # meant may have happened. Carried over every outcome that does not say. Of a create a look-up never says for good that
    # it has not.
    doubt: bool = False
    until: float = inf  # by the loop's clock: all its calls end before its lease does
    # What was said last has it in it, or nothing was: of an older part alone, the vendor has heard nothing of it.
    itself: bool = True
    absorbed: list[Work] = field(default_factory=list)  # older ones of its lane that the vendor has done with it
    asked: CallKind = CallKind.WRITE  # of its vendor, last
    looked_up: bool = False  # the vendor has told whether it was done
    existed: bool = False  # what it should make had an id at the connection already: nothing was sent


def with_ids(command: Command, connection_id: str, found: Mapping[tuple[str, str, str], str]) -> Command:
    wanted = (*command.data.references(), command.data.lane_entity())
    external = {
        (kind, internal): found[connection_id, kind.value, internal]
        for kind, internal in wanted
        if (connection_id, kind.value, internal) in found
    }
    return replace(command, external=external)


def own_write(row: Claimed, command: Command) -> tuple[UUID, str, str, str | None, str, str] | None:
    own = expected(command)
    if own is None:
        return None
    external = command.external_id(*command.data.lane_entity())
    return row.id, row.company_id, row.connection_id, external, command.marker, orjson.dumps(own).decode()


def made_before(command: Command) -> str | None:
    """The id that what this command makes has at the connection already: made once more, there would be two of it."""
    return command.external_id(*command.data.lane_entity()) if isinstance(command.data, BookingCreate) else None


def all_mapped(command: Command) -> None:
    """raises Unmapped"""
    for kind, internal in command.data.references():
        if (kind, internal) not in command.external:
            raise Unmapped(
                f"{kind.value}: {internal} has no id at this connection; add it with `staybus mapping add`, then requeue",
                code="unmapped",
                place=f"{kind.value} {internal}",
            )


def is_plain(work: Work) -> bool:
    """Done without having failed before, for itself alone: no dead letter to close, no older command to end with it."""
    return isinstance(work.outcome, Done) and work.row.error_class is None and not work.absorbed


def delivery_row(work: Work) -> DeliveryRow:
    """Of one that is done."""
    row, command = work.row, work.command
    if command is None:
        raise AssertionError("a delivery was done without its command")
    kind, internal = command.data.lane_entity()
    _, _, request, response = exchange(work)
    (result,) = results_of(work)
    return DeliveryRow(
        row.id,
        row.attempts,
        row.lease_token,
        work.started_at,
        work.external_id,
        internal,
        kind.value,
        request,
        response,
        result,
    )


def superseded_row(older: Work, why: str, *, exchanged: bool) -> SupersededRow:
    """Of one that the vendor has done. exchanged: what was said is kept with it, and not with the one that it went out with."""
    _, _, request, response = exchange(older) if exchanged else (None, None, None, None)
    (result,) = results_of(older)
    return SupersededRow(older.row.id, why, request, response, result)


def absorbed_rows(work: Work) -> list[SupersededRow]:
    """Of those that went out with it."""
    why = f"sent with the newer {work.row.id}"
    return [superseded_row(older, why, exchanged=False) for older in work.absorbed]


def finish_row(work: Work, now: datetime) -> FinishRow:
    row, outcome = work.row, work.outcome
    if outcome is None:
        raise AssertionError("a delivery reached settle without an outcome")
    end = ending(outcome, now)
    return FinishRow(
        id=row.id,
        status=end.status.value,
        attempts=row.attempts if end.counted else row.attempts - 1,
        starts=_starts(work),
        next_attempt_at=end.next_attempt_at,
        # Put off: what it failed with before still tells that it has a dead letter to close.
        error_class=end.fault if end.counted else row.error_class,
        last_error=end.message,
        error_code=end.code,
        keep_attempt=end.counted == 1,
        outcome=end.word,
        started_at=work.started_at,
    )


def _starts(work: Work) -> int:
    """A doubt is remembered, so that the next attempt asks before it repeats. Only starts that end without a settle add up to a
    poison; one that was put off neither adds to them nor begins them anew."""
    if isinstance(work.outcome, Done):
        return 0
    doubt = 1 if work.doubt else 0
    return max(doubt, work.row.starts - 1) if isinstance(work.outcome, Defer) else doubt


def exchange(work: Work) -> tuple[UUID, str, str | None, str | None]:
    """What was said to the vendor and what it answered, for the sync log."""
    reply = work.outcome.result if isinstance(work.outcome, Done) and isinstance(work.outcome.result, Reply) else None
    request = orjson.dumps(_told_vendor(work.command.data)).decode() if work.command else None
    response = orjson.dumps({**reply.response, "found": reply.found}).decode() if reply else None
    return work.row.id, work.row.company_id, request, response


def _told_vendor(data: CommandData) -> dict[str, Any]:
    """The command without its personal part."""
    return data.model_dump(mode="json", by_alias=True, exclude={"guest", "notes", "reason"}, exclude_none=True)


def results_of(work: Work) -> list[CoreEventRow]:
    row, outcome = work.row, work.outcome
    common: dict[str, Any] = {
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "subject": row.entity_internal_id,
        "command_type": row.event_type,
        "cause_id": row.id,
        "trace": row.trace,
    }
    match outcome:
        case Done():
            common |= {"externalId": work.external_id} | ({"existed": True} if work.existed else {})
            return [results.command_ended(Result.COMMAND_SUCCEEDED, **common)]
        case Park(fault=fault, message=message):
            return [results.command_ended(Result.COMMAND_FAILED, **common, fault=fault.value, error=message)]
        case _:
            return []


def dead_letter(work: Work, park: Park) -> DeadLetterRow:
    row = work.row
    return DeadLetterRow(
        event_id=row.id,
        company_id=row.company_id,
        connection_id=row.connection_id,
        vendor=work.known.connection.vendor if work.known else None,
        queue=None,
        operation=row.event_type,
        entity_type=row.entity_type,
        entity_external_id=work.external_id,
        entity_internal_id=row.entity_internal_id,
        error_class=park.fault.value,
        error_code=park.code,
        error_message=park.message,
        attempts=row.attempts,
        first_attempt_at=work.started_at,
        owner=park.owner.value,
        place=park.place,
    )


def ids(work: Work) -> dict[str, Any]:
    row = work.row
    return {
        "event_id": str(row.id),
        "company_id": row.company_id,
        "connection_id": row.connection_id,
        "vendor": work.known.connection.vendor if work.known else None,
        "type": row.event_type,
        "trace": row.trace,
    }


def observe(works: Sequence[Work], now: datetime) -> None:
    for work in works:
        vendor = work.known.connection.vendor if work.known else "none"
        outcome = work.outcome
        word = type(outcome).__name__.lower()
        metrics.EVENTS.labels(vendor, "outbound", word).inc()
        if isinstance(outcome, Done):
            metrics.EVENT_LATENCY.labels(vendor, "outbound").observe((now - work.row.received_at).total_seconds())
        elif isinstance(outcome, Retry | Park):
            metrics.ATTEMPTS.labels(vendor, outcome.fault.value).inc()
        if work.budget is not None:
            metrics.RATE_BUDGET.labels(vendor, work.row.connection_id).set(work.budget.remaining)
        reason = {"fault": outcome.fault.value, "error": outcome.message} if isinstance(outcome, Retry | Park) else {}
        _log.info("delivery settled", extra=about(**ids(work), outcome=word, attempt=work.row.attempts, **reason))
