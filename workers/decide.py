"""From an error to an outcome: one pure function of the error, the policy, the attempts so far and a random number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapters.errors import AdapterError, Unauthorized
from adapters.port import Repeat
from schemas.vocabulary import Fault, Owner
from topology.retry import RetryPolicy, delay

from .outcome import Park, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

# What may come out differently the next time, beside a refusal for the rate limit and of a new access token. All else needs a
# person, a mapping or a mended program.
RETRIED = frozenset({Fault.TRANSIENT, Fault.UNKNOWN})

_OWNERS = {
    Fault.TRANSIENT: Owner.PIPELINE,
    Fault.RATE_LIMITED: Owner.PIPELINE,
    Fault.UNKNOWN: Owner.PIPELINE,
    Fault.POISON: Owner.PIPELINE,
    Fault.BUG: Owner.PIPELINE,
    Fault.REJECTED: Owner.TENANT,
    Fault.UNSUPPORTED: Owner.TENANT,
    Fault.MISCONFIGURED: Owner.TENANT,
    Fault.UNMAPPED: Owner.TENANT,
    Fault.INVALID: Owner.TENANT,
}


SOONEST = 3.0  # seconds after a refusal for the rate limit, whatever the vendor says
LONGEST = 3600.0  # seconds that a vendor's word puts anything off
SETTLES = 10.0  # seconds at least until a new access token that was refused is tried again: not all servers hear of it at once
SPREAD = 0.2  # what was refused together comes back over this share of its wait


def poison(starts: int) -> Park:
    """starts counts the one that does not happen any more."""
    return Park(Fault.POISON, f"started {starts - 1} times and never ended", _OWNERS[Fault.POISON], "poison")


def decide(
    error: BaseException,
    policy: RetryPolicy,
    *,
    attempt: int,
    max_attempts: int,
    random: Callable[[], float],
    repeat: Repeat = Repeat.SAFE,
) -> Retry | Park:
    """attempt counts from 1 and includes the one that failed.

    A vendor's Retry-After raises the delay, up to an hour, and never lowers it. After an unknown end of a command that nothing
    can look up, only a person may repeat it. A refusal for the rate limit is never the last word: `governor.uncounted` puts it off.
    """
    fault, message, code, after = _read(error)
    if fault is Fault.RATE_LIMITED:
        return Retry(fault, message, max(after, SOONEST) * (1 + SPREAD * random()), code)
    unsettled = isinstance(error, Unauthorized)
    again = fault in RETRIED and not (fault is Fault.UNKNOWN and repeat is Repeat.ASK)
    # The row's number is of the release that recorded it, whose policy may have allowed more.
    if (again or unsettled) and attempt < min(max_attempts, policy.attempts):
        least = SETTLES if unsettled else 0.0
        return Retry(fault, message, max(delay(policy, attempt - 1, random), after, least), code)
    return Park(fault, message, _OWNERS[fault], code, error.place if isinstance(error, AdapterError) else None)


def _read(error: BaseException) -> tuple[Fault, str, str | None, float]:
    if isinstance(error, AdapterError):
        return error.fault, str(error), error.code, min(error.retry_after or 0.0, LONGEST)
    # The text of a foreign exception may quote a guest; its type and place are in the log.
    return Fault.BUG, f"{type(error).__name__} in staybus; the log has the place", None, 0.0
