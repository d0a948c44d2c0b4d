"""What an adapter may raise, named for what the worker does next.

    AdapterError
    ├── Transient            try again later; nothing was done at the vendor
    │   └── RateLimited      … and the vendor said when
    ├── Unknown              sent, no answer: look the effect up before repeating
    ├── Rejected             the vendor said no; a person or the core must act
    ├── Unsupported          this cannot be said to this vendor; raised before any request
    ├── Misconfigured        credentials or settings; stops this connection, not the fleet
    │   ├── NoCredentials    … none are set: this connection only listens
    │   └── Unauthorized     … the access token was not accepted, nor was a new one: try again later, it may not be known everywhere
    ├── Unmapped             an id of ours has no counterpart at the vendor (or the reverse)
    └── Malformed            a vendor's document that cannot be what it claims: says which field

Anything else that leaves an adapter is a bug. Texts and places name vendor, operation, field and the vendor's own code, never a
guest's data nor a secret.
"""

from __future__ import annotations

from schemas.vocabulary import Fault


class AdapterError(Exception):
    """code is the vendor's own; retry_after is in seconds.

    place is what tells this cause from others with the same code: the field that was refused, what is not mapped. Dead letters
    are grouped by it; without one, by what the message opens with, up to its first colon.
    """

    fault: Fault = Fault.BUG

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: float | None = None, place: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.place = place


class Transient(AdapterError):  # noqa: N818 - named for what follows, as the tree above
    fault = Fault.TRANSIENT


class RateLimited(Transient):
    fault = Fault.RATE_LIMITED


class Unknown(AdapterError):  # noqa: N818
    fault = Fault.UNKNOWN


class Rejected(AdapterError):  # noqa: N818
    fault = Fault.REJECTED


class Unsupported(AdapterError):  # noqa: N818
    fault = Fault.UNSUPPORTED


class Misconfigured(AdapterError):  # noqa: N818
    fault = Fault.MISCONFIGURED


class NoCredentials(Misconfigured):
    """None are set: this connection only listens."""


class Unauthorized(Misconfigured):
    """401 for the access token that was used, and for the one in its place."""


class Unmapped(AdapterError):  # noqa: N818
    fault = Fault.UNMAPPED


class Malformed(AdapterError):  # noqa: N818
    """field is a dotted path into the vendor's document."""

    fault = Fault.INVALID

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", code="malformed")
        self.field = field
        self.problem = problem


class CardDataRefused(Malformed):
    """A body with card data is not stored; `hints` are what may be recorded of it instead (ids only)."""

    def __init__(self, field: str, hints: tuple[object, ...] = ()) -> None:
        super().__init__(field, "card data is refused; set the vendor's webhook to send none")
        self.hints = hints


class SignatureRefused(Exception):  # noqa: N818
    """The request does not prove that it is the vendor's. The text names the header and the reason, no secret."""
