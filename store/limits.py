"""What holds calls to vendors back, shared by all processes: rate budgets and circuits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from .pool import Connection

_SQL = statements("limits")


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


async def circuits(connection: Connection, connection_ids: Sequence[str]) -> dict[str, Circuit]:
    """Of these, the connections whose last calls were not answered."""
    rows = await connection.fetch(_SQL["circuits"], connection_ids)
    return {row["connection_id"]: Circuit(row["failures"], row["retry_at"]) for row in rows}


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
    connection: Connection, connection_ids: Sequence[str], costs: Mapping[str, float], needed: Mapping[str, float]
) -> bool:
    """Whether these costs (by scope) were taken: no circuit counts against any of the connections, and each budget is known
    and has what is needed. Else none is."""
    scopes = list(costs)
    taken = await connection.execute(
        _SQL["take_at_once"],
        connection_ids,
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


async def silent(connection: Connection, failures: Mapping[str, tuple[str, int]], probes: Sequence[str]) -> set[str]:
    """failures: connection → (company, calls without answer); probes: of these, whose circuit was being tried.

    returns  the connections whose circuit is open now
    """
    rows = [(id_, company, count) for id_, (company, count) in sorted(failures.items())]
    if not rows:
        return set()
    columns = (list(column) for column in zip(*rows, strict=True))
    found = await connection.fetch(_SQL["silent"], *columns, OPENS, FIRST_PAUSE, LONGEST_PAUSE, probes)
    return {row["connection_id"] for row in found if row["failures"] >= OPENS}


async def heard(connection: Connection, connection_ids: Sequence[str]) -> None:
    """Their vendors answered: their circuits are closed."""
    if connection_ids:
        await connection.execute(_SQL["heard"], connection_ids)


async def open_circuits(connection: Connection) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["open_circuits"], OPENS))
