"""What holds calls to vendors back, shared by all processes: rate budgets and circuits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.vocabulary import CallKind

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    import asyncpg

    from .pool import Connection

_SQL = statements("limits")

Key = tuple[str, CallKind]  # of a circuit: the connection whose calls of that kind it stops


@dataclass(frozen=True, slots=True)
class Circuit:
    """failures in a row; from `OPENS` of them on nothing is tried before retry_at."""

    failures: int
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """Units of a scope's budget until it is full again: what was left when last known, and what is under way since."""

    remaining: float
    under_way: float
    resets_at: datetime

    @property
    def free(self) -> float:
        return self.remaining - self.under_way


@dataclass(slots=True)
class Spent:
    """Calls of one scope that are over.

    units   of those of which the vendor has told what they cost, and of those that were never made
    left    the vendor's word: (units left, when it is full again)
    """

    units: float = 0.0
    left: tuple[float, datetime] | None = None


OPENS = 5  # calls in a row that a vendor did not answer
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 300.0  # seconds for which a circuit is open


async def circuits(connection: Connection, keys: Collection[Key]) -> dict[Key, Circuit]:
    """Of these, those whose last calls were not answered."""
    rows = await connection.fetch(_SQL["circuits"], *_columns(keys))
    return {_key(row): Circuit(row["failures"], row["retry_at"]) for row in rows}


async def budgets(connection: Connection, scopes: Mapping[str, str]) -> dict[str, Balance]:
    """What is known of these (scope → company); all are locked until the caller's transaction ends."""
    rows = await connection.fetch(_SQL["budgets"], list(scopes))
    new = sorted(scopes.keys() - {row["scope"] for row in rows})
    if new:
        await connection.execute(_SQL["begin_budgets"], new, [scopes[scope] for scope in new])
        rows += await connection.fetch(_SQL["budgets"], new)
    return {
        row["scope"]: Balance(row["remaining"], row["under_way"], row["resets_at"]) for row in rows if row["running"]
    }


async def take_at_once(
    connection: Connection, keys: Collection[Key], costs: Mapping[str, float], needed: Mapping[str, float]
) -> bool:
    """Whether these costs (by scope) were taken: none of these circuits counts a failure, and each budget is known and has
    what is needed. Else none is."""
    scopes = list(costs)
    taken = await connection.execute(
        _SQL["take_at_once"],
        *_columns(keys),
        scopes,
        [costs[scope] for scope in scopes],
        [needed[scope] for scope in scopes],
    )
    return taken == f"UPDATE {len(scopes)}"


async def take(connection: Connection, balances: Mapping[str, Balance]) -> None:
    """balances: scope → what it is now; the caller has locked them"""
    rows = [(scope, b.remaining, b.under_way, b.resets_at) for scope, b in balances.items()]
    if rows:
        await connection.execute(_SQL["take"], *(list(column) for column in zip(*rows, strict=True)))


async def spent(connection: Connection, calls: Mapping[str, Spent]) -> None:
    """calls: scope → what became of its units"""
    rows = [(scope, s.units, *(s.left or (None, None))) for scope, s in calls.items() if s.units or s.left]
    if rows:
        await connection.execute(_SQL["spent"], *(list(column) for column in zip(*rows, strict=True)))


async def silent(connection: Connection, failures: Mapping[Key, tuple[str, int]], probes: Collection[Key]) -> set[Key]:
    """failures: circuit → (company, calls without answer); probes: the circuits that were being tried.

    returns  those of them that are open now
    """
    if not failures:
        return set()
    companies, counts = zip(*failures.values(), strict=True)
    found = await connection.fetch(
        _SQL["silent"],
        *_columns(failures),
        companies,
        counts,
        *(OPENS, FIRST_PAUSE, LONGEST_PAUSE),
        *_columns(probes),
    )
    return {_key(row) for row in found if row["failures"] >= OPENS}


async def heard(connection: Connection, keys: Collection[Key]) -> None:
    """Their vendors answered: these circuits are closed."""
    if keys:
        await connection.execute(_SQL["heard"], *_columns(keys))


async def open_circuits(connection: Connection) -> list[asyncpg.Record]:
    """Those that hold calls back. What waits for one tries it within one and a half pauses; the call takes some time, too."""
    return list(await connection.fetch(_SQL["open_circuits"], OPENS, 2 * LONGEST_PAUSE))


def _columns(keys: Collection[Key]) -> tuple[list[str], list[str]]:
    return [connection_id for connection_id, _ in keys], [kind.value for _, kind in keys]


def _key(row: asyncpg.Record) -> Key:
    return row["connection_id"], CallKind(row["kind"])
