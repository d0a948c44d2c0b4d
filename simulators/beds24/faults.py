"""What may go wrong on demand, and the record of every call: the ground on which tests count effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    RATE_LIMITED = "rate_limited"
    """429, credits shown as 0; nothing done."""
    RATE_LIMITED_BARE = "rate_limited_bare"
    """429 as something before the API says it: a Retry-After and none of the credit headers; nothing done."""
    REFUSED = "refused"
    """400 with the error envelope; nothing done."""
    SERVER_ERROR = "server_error"
    """500 with the error envelope."""
    UNAVAILABLE = "unavailable"
    """503 with a plain text body."""
    HTML_200 = "html_200"
    """An HTML page with status 200, as a login page or a proxy answers."""
    HTML_404 = "html_404"
    """As what stands before the API answers during a deploy."""
    HTML_502 = "html_502"
    EMPTY_200 = "empty_200"
    """200 without a body."""
    CUT_JSON = "cut_json"
    """The right status, the first half of the right body."""
    TIMEOUT_AFTER_COMMIT = "timeout_after_commit"
    """The work is done, the answer never comes."""
    TIMEOUT_BEFORE_COMMIT = "timeout_before_commit"
    SLOW = "slow"
    """The right answer, `seconds` late; the work is done before the wait."""
    EXPIRED_TOKEN = "expired_token"  # noqa: S105 - a name, not a secret
    """401, and every running token is dead: only a refresh helps."""
    REFUSE_ITEM = "refuse_item"
    """201, but the first item of the body is refused."""


COMMITS = frozenset(
    {FaultKind.CUT_JSON, FaultKind.HTML_200, FaultKind.EMPTY_200, FaultKind.TIMEOUT_AFTER_COMMIT, FaultKind.SLOW}
)
"""Faults that damage the answer, not the work."""


@dataclass(slots=True)
class Fault:
    """One programmed failure.

    operation   "POST /bookings", or "*" for any
    count       how many calls it hits; None: until cleared
    skip        how many matching calls pass untouched first
    seconds     slow: how late; rate_limited: what `resets-in` says (default: the window's rest),
                rate_limited_bare: what Retry-After says
    close       timeouts: cut the connection at once rather than keep the caller waiting
    commit      whether the work is done nevertheless; None: as the kind has it
    field, message   refuse_item: what the refusal says
    """

    kind: FaultKind
    operation: str = "*"
    count: int | None = 1
    skip: int = 0
    seconds: float | None = None
    close: bool = False
    commit: bool | None = None
    field: str = "roomId"
    message: str = "invalid"

    @property
    def commits(self) -> bool:
        return self.kind in COMMITS if self.commit is None else self.commit


@dataclass
class Faults:
    pending: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self.pending.append(fault)

    def clear(self) -> None:
        self.pending.clear()

    def take(self, operation: str) -> Fault | None:
        """The fault that hits this call, if any; first programmed, first served."""
        for fault in self.pending:
            if fault.operation not in {"*", operation}:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.count is not None:
                fault.count -= 1
                if fault.count <= 0:
                    self.pending.remove(fault)
            return fault
        return None


@dataclass(slots=True)
class Call:
    """One request as it came in, and what it did. Credentials are not kept.

    idempotency_key  `X-Idempotency-Key`: recorded only, the vendor does not know it
    status           None while under way and when the answer was withheld
    effects          ids of what was created or changed, one for each change: its length counts effects
    """

    at: datetime
    method: str
    path: str
    query: str
    operation: str
    idempotency_key: str | None
    body: Any
    status: int | None = None
    fault: FaultKind | None = None
    effects: list[str] = field(default_factory=list)
