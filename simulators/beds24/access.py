"""Who may call, and how often: invite codes, refresh tokens, tokens, scopes, and the account's credits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

Clock = Callable[[], datetime]

TOKEN_LIFE = timedelta(seconds=86_400)  # measured; the specification's example says 3600
CODE_LIFE = timedelta(hours=24)
REFRESH_IDLE = timedelta(days=30)
LONG_LIFE_IDLE = timedelta(days=90)
WINDOW = timedelta(minutes=5)

RESOURCES = (
    "bookings",
    "bookings-personal",
    "bookings-financial",
    "inventory",
    "properties",
    "accounts",
    "channels",
)
ALL_SCOPES = tuple(f"all:{resource}" for resource in RESOURCES)
READ_SCOPES = tuple(f"read:{resource}" for resource in RESOURCES)


@dataclass(slots=True)
class Token:
    text: str
    scopes: frozenset[str]
    created: datetime
    expires: datetime | None
    """None for a long life token, which dies of 90 idle days instead."""
    last_used: datetime
    device: str = ""
    refresh: str | None = None

    def may(self, verb: str, resource: str) -> bool:
        return f"{verb}:{resource}" in self.scopes or f"all:{resource}" in self.scopes


@dataclass(slots=True)
class Invite:
    scopes: frozenset[str]
    expires: datetime


@dataclass(slots=True)
class Grant:
    """What a refresh token stands for. It does not rotate (measured) and dies of 30 idle days."""

    scopes: frozenset[str]
    created: datetime
    last_used: datetime
    device: str


@dataclass
class Access:
    clock: Clock
    rng: random.Random
    token_life: timedelta = TOKEN_LIFE
    settling: timedelta = timedelta(0)  # so long a new token is refused: not all servers of a vendor hear of it at once
    invites: dict[str, Invite] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)

    def invite(self, scopes: Iterable[str] = ALL_SCOPES) -> str:
        """A fresh invite code, as the customer creates it in the control panel."""
        code = self._secret("invite")
        self.invites[code] = Invite(frozenset(scopes), self.clock() + CODE_LIFE)
        return code

    def set_up(self, code: str, device: str) -> tuple[str, Token] | None:
        """Turn a code into a refresh token and a first token; a code works once."""
        invite = self.invites.pop(code, None)
        now = self.clock()
        if invite is None or invite.expires <= now:
            return None
        refresh = self._secret("refresh")
        self.grants[refresh] = Grant(invite.scopes, now, now, device)
        return refresh, self._issue(refresh, self.grants[refresh])

    def refresh(self, refresh: str) -> Token | None:
        grant = self.grants.get(refresh)
        if grant is None:
            return None
        now = self.clock()
        if now - grant.last_used > REFRESH_IDLE:
            del self.grants[refresh]
            return None
        grant.last_used = now
        return self._issue(refresh, grant)

    def revoke(self, refresh: str) -> bool:
        """Forget a refresh token. Whether its running tokens die with it is unverified: here they do."""
        if self.grants.pop(refresh, None) is None:
            return False
        self.tokens = {key: token for key, token in self.tokens.items() if token.refresh != refresh}
        return True

    def long_life(self) -> str:
        """A read-only token as made in the panel."""
        now = self.clock()
        token = Token(self._secret("long"), frozenset(READ_SCOPES), now, None, now)
        self.tokens[token.text] = token
        return token.text

    def valid(self, text: str) -> Token | None:
        token = self.tokens.get(text)
        if token is None:
            return None
        now = self.clock()
        ends = token.expires if token.expires is not None else token.last_used + LONG_LIFE_IDLE
        if ends <= now or now < token.created + self.settling:
            return None
        token.last_used = now
        return token

    def expire_all(self) -> None:
        """End every running token; refresh tokens stay."""
        self.tokens.clear()

    def _issue(self, refresh: str, grant: Grant) -> Token:
        now = self.clock()
        token = Token(
            self._secret("token"), grant.scopes, now, now + self.token_life, now, device=grant.device, refresh=refresh
        )
        self.tokens[token.text] = token
        return token

    def _secret(self, kind: str) -> str:
        return f"sim-{kind}-{self.rng.getrandbits(96):024x}"


@dataclass
class Credits:
    """Five-minute windows that open with the first call: remaining falls, and is whole again when the window ends."""

    clock: Clock
    limit: Decimal = Decimal(100)
    used: Decimal = Decimal(0)
    opened: datetime | None = None

    def remaining(self) -> Decimal:
        self._turn()
        return max(self.limit - self.used, Decimal(0))

    def resets_in(self) -> int:
        """Whole seconds, never 0 while a window is open, so that waiting them is enough."""
        self._turn()
        if self.opened is None:
            return int(WINDOW.total_seconds())
        left = self.opened + WINDOW - self.clock()
        return max(1, -int(-left.total_seconds() // 1))

    def affords(self, cost: Decimal) -> bool:
        return self.remaining() >= cost

    def spend(self, cost: Decimal) -> None:
        self._turn()
        if self.opened is None:
            self.opened = self.clock()
        self.used += cost

    def exhaust(self) -> None:
        self.spend(self.remaining())

    def _turn(self) -> None:
        if self.opened is not None and self.clock() - self.opened >= WINDOW:
            self.opened, self.used = None, Decimal(0)
