"""What an adapter is handed while it works for one connection: its HTTP, its access token, the ear for its rate limit."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from adapters.errors import Misconfigured, Transient, Unauthorized
from store import connections
from store.pool import is_outage

from .persist import outlast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from adapters.port import Adapter, Budget, Http
    from schemas.connection import Connection
    from store.directory import Known
    from store.pool import Pool

TOKEN = "access_token"  # noqa: S105 - the name of a secret
NO_CREDENTIALS = frozenset({TOKEN, "webhook_secret"})  # secrets of which no access token is made
# Renewed this long before its end, so that no call is under way with a token that ends.
EARLY = timedelta(minutes=5)
# So long a token is taken to be the one that is stored: an operator who replaces a credential ends it there.
FRESH = timedelta(seconds=2)
# So long what came in place of a refused token is not replaced as well: the vendor may not know it everywhere yet, and one that
# refuses whatever it grants is not to be asked for more with each call. Less than two retries take (workers.decide.SETTLES).
SETTLING = timedelta(seconds=15)
LONGEST = timedelta(days=365).total_seconds()  # a token that is said to live longer is renewed then
PAUSE = 0.1  # seconds between looks whether another process has renewed a token
RENEWAL = 45.0  # seconds that asking for one may take; longer than any call
LEASE = 60.0  # seconds for which it is ours to ask, and to store what it brings


@dataclass(frozen=True, slots=True)
class _Token:
    """read_at: when it was seen in the database"""

    value: str
    expires_at: datetime
    read_at: datetime


@dataclass(frozen=True, slots=True)
class _Lease:
    """used: the sealed credentials, by name"""

    until: datetime
    used: dict[str, bytes]


class Tokens:
    """Access tokens, one refresher for all processes: who has the connection's lease renews, the others read what it got.

    A lease in the row and no lock: a vendor that does not answer holds nothing of the database.
    """

    def __init__(
        self,
        pool: Pool,
        http: Http,
        *,
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        worker: str | None = None,
    ) -> None:
        """worker: see store.connections.begin_renewal"""
        self._worker = worker
        self._pool = pool
        self._http = http
        self._now = now
        self._sleep = sleep
        self._cache: dict[str, _Token] = {}
        self._replacements: dict[
            str, tuple[str, datetime]
        ] = {}  # the last one that came in place of a refused one, and when
        self._asking: dict[tuple[str, str | None], asyncio.Task[str]] = {}
        self._granting: set[asyncio.Task[str | None]] = set()

    async def current(self, adapter: Adapter, known: Known) -> str:
        """raises Misconfigured, Transient"""
        cached = self._cache.get(known.connection.id)
        now = self._now()
        if cached is not None and cached.expires_at - now > EARLY and now - cached.read_at < FRESH:
            return cached.value
        return await self._shared(adapter, known, refused=None)

    async def renewed(self, adapter: Adapter, known: Known, refused: str) -> str:
        """After the vendor refused a token: the newer one that another process got, or a new one.

        raises  Misconfigured, Transient; Unauthorized while the refused one is too new to be replaced
        """
        connection = known.connection
        last, came_at = self._replacements.get(connection.id, (None, datetime.min.replace(tzinfo=UTC)))
        if refused == last and self._now() - came_at < SETTLING:
            raise Unauthorized(
                f"{connection.vendor}: the access token is not accepted, nor was the one before it; "
                "if it stays so, set the connection's credential anew",
                code="token",
            )
        self._cache.pop(connection.id, None)
        token = await self._shared(adapter, known, refused)
        if token != last:
            self._replacements[connection.id] = token, self._now()
        return token

    async def stop(self, grace: float) -> None:
        """Nobody waits for a token any more. What a vendor has been asked for is kept all the same, if it comes within `grace`
        seconds: the vendor may have taken the credential as used up.
        """
        await _end(self._asking.values())
        if self._granting:
            await asyncio.wait(set(self._granting), timeout=grace)
        await _end(self._granting)

    async def _shared(self, adapter: Adapter, known: Known, refused: str | None) -> str:
        """Callers of this process wait for one of them."""
        key = known.connection.id, refused
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._get(adapter, known, refused))
            task.add_done_callback(lambda _: self._asking.pop(key))
            task.add_done_callback(_told)
        return await asyncio.shield(task)

    async def _get(self, adapter: Adapter, known: Known, refused: str | None) -> str:
        waited = 0.0
        while True:
            found = await outlast(lambda: self._stored_or_lease(known, refused))
            if isinstance(found, str):
                return found
            if found is not None:
                granting = asyncio.create_task(self._renew(adapter, known, found))
                self._granting.add(granting)
                granting.add_done_callback(self._granting.discard)
                granting.add_done_callback(_told)
                token = await asyncio.shield(granting)
                if token is not None:
                    return token
                continue
            if waited >= LEASE:
                raise Transient("another process renews the access token and does not come to an end", code="renewing")
            await self._sleep(PAUSE)
            waited += PAUSE

    async def _stored_or_lease(self, known: Known, refused: str | None) -> str | _Lease | None:
        """A token that is good; or the lease to renew it, if nobody else has it."""
        connection_id = known.connection.id
        async with self._pool.acquire() as database, database.transaction():
            token = self._good(known, await connections.secrets(database, connection_id), refused)
            if token is not None:
                return token
            until = await connections.begin_renewal(database, connection_id, LEASE, self._worker)
            if until is None:
                return None
            # Whoever had the lease before may have renewed it since the first look, and used these credentials up.
            stored = await connections.secrets(database, connection_id)
            token = self._good(known, stored, refused)
            if token is not None:
                await connections.end_renewal(database, connection_id, until)
                return token
        return _Lease(until, _credentials(stored))

    def _good(self, known: Known, stored: Mapping[str, connections.SealedSecret], refused: str | None) -> str | None:
        token = stored.get(TOKEN)
        if token is None or token.expires_at is None:
            return None
        value = known.cipher.open_bytes(token.sealed).decode()
        if value == refused or token.expires_at - self._now() <= EARLY:
            return None
        self._cache[known.connection.id] = _Token(value, token.expires_at, self._now())
        return value

    async def _renew(self, adapter: Adapter, known: Known, lease: _Lease) -> str | None:
        """None: the credentials are others now, and what was got with those before is of no use."""
        connection = known.connection
        try:
            async with asyncio.timeout(RENEWAL):
                credentials = {name: known.cipher.open_bytes(sealed).decode() for name, sealed in lease.used.items()}
                grant = await adapter.grant(self._http, connection, credentials)
        except TimeoutError as error:
            await self._give_up(connection, lease)
            raise Transient(f"the access token was not renewed within {RENEWAL:.0f} s", code="renewing") from error
        except BaseException:
            await self._give_up(connection, lease)
            raise
        # In this order NaN, too, becomes one that can be stored: what it came with may have used an invite code up.
        expires_at = self._now() + timedelta(seconds=max(0.0, min(LONGEST, grant.expires_in)))

        async def store() -> bool:
            async with self._pool.acquire() as database, database.transaction():
                # First: its lock has whoever replaces a credential wait, or us for them.
                await connections.end_renewal(database, connection.id, lease.until)
                if _credentials(await connections.secrets(database, connection.id)) != lease.used:
                    return False
                for name, value in grant.credentials.items():
                    await connections.put_secret(database, connection, name, known.cipher.seal_bytes(value.encode()))
                sealed = known.cipher.seal_bytes(grant.access_token.encode())
                await connections.put_secret(database, connection, TOKEN, sealed, expires_at=expires_at)
                return True

        if not await outlast(store):  # what it came with may be the only way to the next one
            return None
        self._cache[connection.id] = _Token(grant.access_token, expires_at, self._now())
        return grant.access_token

    async def _give_up(self, connection: Connection, lease: _Lease) -> None:
        """Others need not wait for the lease to run out; if the database is away, they do."""
        try:
            async with self._pool.acquire() as database:
                await connections.end_renewal(database, connection.id, lease.until)
        except Exception as error:
            if not is_outage(error):
                raise


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    ending = set(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending)


def _told(task: asyncio.Task[Any]) -> None:
    """Whoever waits for it has its error; it is no matter of the loop's when nobody does."""
    if not task.cancelled():
        task.exception()


def _credentials(stored: Mapping[str, connections.SealedSecret]) -> dict[str, bytes]:
    return {name: secret.sealed for name, secret in stored.items() if name not in NO_CREDENTIALS}


@dataclass(slots=True)
class VendorSession:
    """adapters.port.Session for one piece of work; `budget` is the last thing that the vendor said of its limit."""

    adapter: Adapter
    known: Known
    http: Http
    tokens: Tokens
    now: Callable[[], datetime]
    budget: Budget | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def connection(self) -> Connection:
        return self.known.connection

    async def access_token(self) -> str:
        return await self.tokens.current(self.adapter, self.known)

    async def renew_token(self, refused: str) -> str:
        return await self.tokens.renewed(self.adapter, self.known, refused)

    def spent(self, budget: Budget) -> None:
        self.budget = budget


@dataclass(frozen=True, slots=True)
class Sessions:
    """Opens sessions. adapters: vendor name → adapter; now: by the database's clock"""

    adapters: dict[str, Adapter]
    http: Callable[[str], Http]  # by vendor name, for the metric's label
    tokens: Callable[[str], Tokens]
    now: Callable[[], datetime]

    def adapter(self, vendor: str) -> Adapter:
        """raises Misconfigured"""
        try:
            return self.adapters[vendor]
        except KeyError:
            raise Misconfigured(f"no adapter for the vendor {vendor!r} is installed") from None

    async def stop(self, grace: float) -> None:
        """See Tokens.stop."""
        await asyncio.gather(*(self.tokens(vendor).stop(grace) for vendor in self.adapters))

    def open(self, known: Known) -> VendorSession:
        vendor = known.connection.vendor
        return VendorSession(self.adapter(vendor), known, self.http(vendor), self.tokens(vendor), self.now)
