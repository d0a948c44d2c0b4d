"""What can become of an attempt: a closed set, matched where events are settled and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from schemas.vocabulary import EventStatus, Fault, Owner

if TYPE_CHECKING:
    from adapters.port import Effects, Reply


@dataclass(frozen=True, slots=True)
class Done:
    """result: what a vendor's fact means, what a vendor answered; None of a command that was routed."""

    result: Effects | Reply | None


@dataclass(frozen=True, slots=True)
class Retry:
    """after in seconds from now"""

    fault: Fault
    message: str
    after: float
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Defer:
    """Not an attempt: an empty budget, a vendor or database that is away."""

    until: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Park:
    """place: as an AdapterError has it"""

    fault: Fault
    message: str
    owner: Owner
    code: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing to tell the core. effects: what is stored all the same (an echo brings the vendor's version)."""

    reason: str
    effects: Effects | None = None


Outcome = Done | Retry | Defer | Park | Skip


@dataclass(frozen=True, slots=True)
class Ending:
    """What an outcome means for the event's row. counted: 1 if it was an attempt; word: for the history."""

    status: EventStatus
    word: str
    counted: int = 1
    fault: str | None = None
    message: str | None = None
    code: str | None = None
    next_attempt_at: datetime | None = None


def ending(outcome: Outcome, now: datetime) -> Ending:
    match outcome:
        case Done():
            return Ending(EventStatus.DONE, "done")
        case Skip(reason=reason):
            return Ending(EventStatus.SKIPPED, "skip", message=reason)
        case Retry(fault=fault, message=message, after=after, code=code):
            due = now + timedelta(seconds=after)
            return Ending(EventStatus.RETRYING, "retry", 1, fault.value, message, code, due)
        case Defer(until=until, message=message):
            return Ending(EventStatus.RETRYING, "defer", 0, message=message, next_attempt_at=until)
        case Park(fault=fault, message=message, code=code):
            return Ending(EventStatus.FAILED, "park", 1, fault.value, message, code)
