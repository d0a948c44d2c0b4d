"""What an adapter is.

A vendor's package exports `adapter`, an object that fits `Adapter`. Everything pure is a function of documents; all I/O
goes through the `Session` that it is handed. The manifest is data, from which come the settings form, the topology,
the sealing of personal data, the retry policy, the capability table and the tests to run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Protocol
from uuid import UUID

from schemas.commands import CommandData
from schemas.connection import Connection
from schemas.entities import Availability, Property, Reservation, RoomType, Sourced
from schemas.vocabulary import EntityType, LanePolicy

# ------------------------------------------------------------------------------------------------ the manifest


class Scheme(StrEnum):
    """How a webhook proves where it comes from."""

    HMAC = "hmac"  # `header` holds hex HMAC-SHA256 of the raw body, bare or after "sha256="
    STATIC_HEADER = "header"  # `header` holds a secret that we chose


@dataclass(frozen=True, slots=True)
class WebhookAuth:
    """header: the name it uses when the connection's `webhook_header` setting names no other."""

    scheme: Scheme
    header: str


class Repeat(StrEnum):
    """What may be done with a command that was sent and not answered."""

    SAFE = "safe"  # says the whole wanted state: sending it again changes nothing
    LOOK_UP = "look_up"  # `Adapter.find` can tell whether it happened
    ASK = "ask"  # only a person can tell


@dataclass(frozen=True, slots=True)
class CommandSupport:
    repeat: Repeat
    lane: LanePolicy


@dataclass(frozen=True, slots=True)
class Field:
    """A credential (kept sealed) or a setting (kept in `connections.config`) of a connection. form: of a setting's whole value."""

    name: str
    help: str
    secret: bool = False
    required: bool = False
    default: str | None = None
    form: str | None = None
    grants: tuple[str, ...] = ()  # of a secret: names of those that it was exchanged for, of no use once it is set anew


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What the vendor allows, and how much of it is kept back for commands that matter more than rates."""

    units: float
    per: timedelta
    scope: str  # "account", "token", "property": what shares one budget
    reserve: float  # below this remainder only bookings go out
    least: float = 1.0  # below this remainder nothing goes out
    cost: float = 1.0  # units that one call is taken to cost until the vendor says what it did


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    title: str
    docs_url: str
    docs_read: date
    api_version: str
    capabilities: frozenset[str]
    fields: tuple[Field, ...]
    webhook_auth: tuple[WebhookAuth, ...]
    inbound: tuple[str, ...]  # binding patterns of `<vendor>.inbound`
    commands: Mapping[str, CommandSupport]
    personal_paths: tuple[str, ...]  # dotted paths into a fact's payload; the whole value there is sealed
    retry_policy: str  # a name of topology/retry.py
    rate_limit: RateLimit
    idempotency: str  # what the vendor offers, in a sentence
    actions: tuple[str, ...] = ()  # named action types that `pms.outbound` must be bound to
    external_ids: Mapping[EntityType, str] = field(default_factory=dict)  # regular expressions
    webhook_methods: tuple[str, ...] = ("POST",)
    webhook_answer: int = 202
    calls_at_once: int = 8  # to one connection, from one process
    commands_with_marker: frozenset[str] = frozenset()  # the vendor keeps our marker and gives it back
    pulls: frozenset[EntityType] = frozenset()  # what `Adapter.changes` lists; none: it is never asked

    @property
    def personal(self) -> tuple[tuple[str, ...], ...]:
        """`personal_paths`, each as the names on its way."""
        return _ways(self.personal_paths)


@cache
def _ways(paths: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(path.split(".")) for path in paths)


# ------------------------------------------------------------------------------------------------ inbound


@dataclass(frozen=True, slots=True)
class WebhookRequest:
    """headers and query have lower-case names; body is as it came."""

    method: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a vendor told us, ready to be recorded.

    idempotency_key  same for a resend of the same fact, different for a second change; None when the vendor gives
                     nothing to tell them apart (a bare hint): each arrival is then its own event
    """

    event_type: str
    entity_type: EntityType
    external_id: str
    payload: Mapping[str, Any]
    idempotency_key: str | None
    property_external_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A part of what a vendor lists. more: another call brings another part."""

    facts: Sequence[Fact]
    more: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """A fact as it comes back from its row, personal values put back in."""

    event_id: UUID
    event_type: str
    entity_type: EntityType
    external_id: str
    payload: Mapping[str, Any]
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Hint:
    """The fact says only that something changed: fetch the present state of this entity."""

    entity_type: EntityType
    external_id: str


@dataclass(frozen=True, slots=True)
class Effects:
    """Rows to write. Which events follow is derived from what was really applied."""

    reservations: tuple[Sourced[Reservation], ...] = ()
    availability: tuple[Sourced[Availability], ...] = ()
    properties: tuple[Sourced[Property], ...] = ()
    room_types: tuple[Sourced[RoomType], ...] = ()


# ------------------------------------------------------------------------------------------------ outbound

MARKER = "staybus:"  # how every marker begins that we leave at a vendor


@dataclass(frozen=True, slots=True)
class Command:
    """One delivery: a neutral command for one connection.

    id        of the delivery's event; the same over retries and requeues
    marker    what we leave at the vendor to find the effect again; derived from id
    external  (entity type, internal id) → external id, for every reference that is mapped
    """

    id: UUID
    event_type: str
    idempotency_key: str
    marker: str
    data: CommandData
    external: Mapping[tuple[EntityType, str], str]

    def external_id(self, entity_type: EntityType, internal_id: str) -> str | None:
        return self.external.get((entity_type, internal_id))


@dataclass(frozen=True, slots=True)
class Reply:
    """What the vendor did.

    external_id  of the entity the command is about, once known
    found        the effect was there already: found by its marker, not made by this call
    response     the vendor's answer for the sync log, without personal data
    """

    external_id: str | None
    response: Mapping[str, Any] = field(default_factory=dict)
    found: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """An access token. expires_in in seconds; credentials: names and new values to be sealed (a refresh token)."""

    access_token: str
    expires_in: float
    credentials: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Budget:
    """What an answer said about the rate limit: units left, seconds until it is full again."""

    remaining: float
    resets_in: float


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request to a vendor. `operation` names it in metrics and errors: `bookings.create`."""

    operation: str
    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Sequence[tuple[str, str]] = ()
    json: Any = None


@dataclass(frozen=True, slots=True)
class Response:
    """headers have lower-case names; document is the decoded JSON, None for an empty body."""

    status: int
    headers: Mapping[str, str]
    document: Any


class Http(Protocol):
    """The one way to a vendor's server (adapters/transport.py)."""

    async def send(self, request: Request) -> Response:
        """Any status is returned. raises Transient (surely not sent, or not JSON with a 5xx), Unknown (no answer)."""
        ...


class Session(Protocol):
    """What an adapter may use while it works for one connection."""

    @property
    def connection(self) -> Connection: ...

    @property
    def http(self) -> Http: ...

    def now(self) -> datetime:
        """The time that all processes share. `Version.observed_at` of what the vendor is asked for is this, just before the
        call: it is compared with when what others told was stored. A machine's own clock may differ."""
        ...

    async def access_token(self) -> str:
        """A token that is valid now; renewed by one refresher for all processes. raises Misconfigured, Transient"""
        ...

    async def renew_token(self, refused: str) -> str:
        """After a 401 for `refused`: a newer one. raises Misconfigured (Unauthorized if it is too new to be replaced), Transient"""
        ...

    def spent(self, budget: Budget) -> None:
        """Tell what the vendor's answer said about the rate limit."""
        ...


# ------------------------------------------------------------------------------------------------ the adapter


class Adapter(Protocol):
    manifest: Manifest

    def parse(self, request: WebhookRequest, connection: Connection) -> list[Fact]:
        """Pure. The facts in a verified webhook. raises Malformed (→ 400), CardDataRefused"""
        ...

    def interpret(self, fact: Recorded, connection: Connection) -> Effects | Hint:
        """Pure. raises Malformed (→ dead letter that names the field)"""
        ...

    async def fetch(self, session: Session, hints: Sequence[Hint]) -> Mapping[Hint, Effects]:
        """The present state of these entities, in as few calls as the vendor allows; what is gone is left out. It was observed
        at `session.now()`, before the call that told it; of a reservation it is `asked`."""
        ...

    def changes(self, session: Session, since: datetime) -> AsyncGenerator[Page]:
        """What the vendor changed since then, page by page, in its present state and in any order; only asked of
        vendors with `Manifest.pulls`. A fact is the one that a webhook about this state brings, its key included.

        since   aware; what changed before may be listed, too
        raises  any AdapterError, also in the middle; Malformed at the end, after all that could be read
        """
        ...

    async def execute(self, session: Session, command: Command) -> Reply:
        """Do it. raises any AdapterError"""
        ...

    async def find(self, session: Session, command: Command) -> Reply | None:
        """Was it done already? Asked after a call that was not answered, but for commands with Repeat.ASK.

        returns  None: it was not done; with Repeat.SAFE also where the vendor cannot be asked
        """
        ...

    async def grant(self, http: Http, connection: Connection, credentials: Mapping[str, str]) -> Grant:
        """A new access token from the credentials (their names as in the manifest). raises Misconfigured, Transient"""
        ...

    async def check(self, session: Session) -> Mapping[str, Any]:
        """Does the connection work? What the account says of itself, for `staybus connection test`."""
        ...


def actions(adapters: Mapping[str, Adapter]) -> frozenset[str]:
    """The types beside `pms.*` that are commands, of all vendors."""
    return frozenset(action for adapter in adapters.values() for action in adapter.manifest.actions)
