"""What an adapter is handed while it works for one connection: its HTTP, its access token, the ear for its rate limit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from adapters.errors import Misconfigured
from store import connections

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapters.port import Adapter, Budget, Http
    from schemas.connection import Connection
    from store.directory import Known
    from store.pool import Pool

TOKEN = "access_token"  # noqa: S105 - the name of a secret
# Renewed this long before its end, so that no call is under way with a token that ends.
EARLY = timedelta(minutes=5)


class Tokens:
    """Access tokens, one refresher for all processes: who holds the connection's advisory lock renews, the others read."""

    def __init__(self, pool: Pool, http: Http, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._pool = pool
        self._http = http
        self._now = now
        self._cache: dict[str, tuple[str, datetime]] = {}

    async def current(self, adapter: Adapter, known: Known) -> str:
        """raises Misconfigured, Transient"""
        cached = self._cache.get(known.connection.id)
        if cached is not None and cached[1] - self._now() > EARLY:
            return cached[0]
        return await self._shared(adapter, known, refused=None)

    async def renewed(self, adapter: Adapter, known: Known, refused: str) -> str:
        """After the vendor refused a token: the newer one that another process got, or a new one."""
        self._cache.pop(known.connection.id, None)
        return await self._shared(adapter, known, refused)

    async def _shared(self, adapter: Adapter, known: Known, refused: str | None) -> str:
        connection = known.connection
        async with self._pool.acquire() as database, database.transaction():
            await connections.lock_tokens(database, connection.id)
            stored = await connections.secrets(database, connection.id)
            token = stored.get(TOKEN)
            if token is not None and token.expires_at is not None:
                value = known.cipher.open_bytes(token.sealed).decode()
                if value != refused and token.expires_at - self._now() > EARLY:
                    self._cache[connection.id] = value, token.expires_at
                    return value
            credentials = {
                name: known.cipher.open_bytes(secret.sealed).decode()
                for name, secret in stored.items()
                if name != TOKEN
            }
            grant = await adapter.grant(self._http, connection, credentials)
            expires_at = self._now() + timedelta(seconds=grant.expires_in)
            for name, value in grant.credentials.items():
                await connections.put_secret(database, connection, name, known.cipher.seal_bytes(value.encode()))
            await connections.put_secret(
                database, connection, TOKEN, known.cipher.seal_bytes(grant.access_token.encode()), expires_at=expires_at
            )
        self._cache[connection.id] = grant.access_token, expires_at
        return grant.access_token


@dataclass(slots=True)
class VendorSession:
    """adapters.port.Session for one piece of work; `budget` is the last thing that the vendor said of its limit."""

    adapter: Adapter
    known: Known
    http: Http
    tokens: Tokens
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
    """Opens sessions. adapters: vendor name → adapter."""

    adapters: dict[str, Adapter]
    http: Callable[[str], Http]  # by vendor name, for the metric's label
    tokens: Callable[[str], Tokens]

    def adapter(self, vendor: str) -> Adapter:
        """raises Misconfigured"""
        try:
            return self.adapters[vendor]
        except KeyError:
            raise Misconfigured(f"no adapter for the vendor {vendor!r} is installed") from None

    def open(self, known: Known) -> VendorSession:
        vendor = known.connection.vendor
        return VendorSession(self.adapter(vendor), known, self.http(vendor), self.tokens(vendor))
