"""What a vendor must show to `test_every_adapter.py`: `tests/adapters/<vendor>/evidence.py` exports `evidence`.

The evidence says what is true of the vendor; the kit decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from adapters.port import Adapter, Budget, Command, Hint, Http, WebhookRequest
from schemas.commands import CommandData
from schemas.connection import Connection


class Break(StrEnum):
    """How the vendor's simulator is told to fail its next call of an operation."""

    TOKEN_EXPIRED = "the access token is refused once"
    TOKEN_DEAD = "every access token is refused"
    RATE_LIMITED = "429, with RESETS_IN seconds"
    RATE_LIMITED_BARE = "429 with RESETS_IN as Retry-After and no word of the limit"
    SERVER_ERROR = "500"
    HTML_200 = "a page of HTML with 200; the work is done"
    EMPTY_200 = "200 without a body; the work is done"
    HTML_404 = "a page of HTML with 404; nothing is done"
    HTML_502 = "a page of HTML with 502"
    CUT_JSON = "half of the JSON; the work is done"
    TIMEOUT_DONE = "the work is done, the answer never comes"
    TIMEOUT_NOT_DONE = "nothing is done, the answer never comes"
    REFUSED = "the vendor says no to what is asked"


RESETS_IN = 17.0  # seconds


@dataclass(frozen=True)
class Sample:
    """A webhook as the vendor sends it, unsigned.

    resends  the same fact, sent again as the vendor does: one key for all
    others   other facts about the same entity: each with a key of its own
    keyed    False for a bare hint, which has nothing to be told apart by
    """

    name: str
    request: WebhookRequest
    resends: Sequence[WebhookRequest] = ()
    others: Sequence[WebhookRequest] = ()
    keyed: bool = True


@dataclass(frozen=True)
class Seen:
    """A request that reached the vendor."""

    method: str
    path: str
    idempotency_key: str | None
    body: Any


class World(Protocol):
    """The vendor's simulator, up and running, with the ids that `Evidence.commands` name mapped and existing."""

    connection: Connection
    credentials: Mapping[str, str]
    external: Mapping[tuple[Any, str], str]
    hints: Sequence[Hint]  # entities that exist
    gone: Sequence[Hint]  # entities that do not

    def webhooks(self) -> Sequence[WebhookRequest]:
        """What the vendor's webhooks would say now of the entities in `hints` that `Manifest.pulls` covers."""
        ...

    def fail(self, how: Break, event_type: str | None) -> None:
        """From now on: once, or until mended for a dead token. None: the reads of `fetch` and `changes`."""
        ...

    def mend(self) -> None: ...

    def seen(self) -> Sequence[Seen]:
        """The requests so far, without those for tokens."""
        ...

    def effects(self) -> int:
        """How many things were made or changed at the vendor so far."""
        ...


@dataclass(frozen=True)
class Evidence:
    """guest_values: every personal value in samples, commands and the world. commands: one that succeeds, by type."""

    connection: Connection
    samples: Sequence[Sample]
    guest_values: frozenset[str]
    commands: Mapping[str, CommandData]
    world: Callable[[], AbstractAsyncContextManager[World]]
    card_data: Sequence[WebhookRequest] = ()
    bad_credentials: Mapping[str, str] = field(default_factory=dict)


class TestSession:
    """`port.Session` with a token kept in memory. time: what it tells, all the time"""

    __test__ = False

    def __init__(self, adapter: Adapter, connection: Connection, http: Http, credentials: Mapping[str, str]) -> None:
        self.connection = connection
        self.http = http
        self.budgets: list[Budget] = []
        self.time = datetime(2027, 4, 1, 12, 0, 0, 500_000, tzinfo=UTC)
        self.renewed = 0
        self._adapter = adapter
        self._credentials = dict(credentials)
        self._token: str | None = None

    def now(self) -> datetime:
        return self.time

    async def access_token(self) -> str:
        if self._token is None:
            grant = await self._adapter.grant(self.http, self.connection, self._credentials)
            self._credentials |= grant.credentials
            self._token = grant.access_token
        return self._token

    async def renew_token(self, refused: str) -> str:
        assert refused == self._token, "the refused token must be named"
        self.renewed += 1
        self._token = None
        return await self.access_token()

    def spent(self, budget: Budget) -> None:
        self.budgets.append(budget)

    @property
    def secrets(self) -> set[str]:
        return {*self._credentials.values(), self._token or ""} - {""}


def command(event_type: str, data: CommandData, world: World, number: int = 1) -> Command:
    from uuid import UUID

    return Command(
        id=UUID(int=number),
        event_type=event_type,
        idempotency_key=f"key-{number}",
        marker=f"staybus:{number:032x}",
        data=data,
        external=world.external,
    )
