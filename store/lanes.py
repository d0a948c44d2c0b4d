"""Lanes as operators see them: what holds them, what waits behind it, and how they go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dead_letters import wake_lanes
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import asyncpg

    from .pool import Connection

_SQL = statements("lanes")


@dataclass(frozen=True, slots=True)
class Filter:
    """None matches all. age: seconds since the lane's head was recorded"""

    vendor: str | None = None
    company_id: str | None = None
    connection_id: str | None = None
    error_class: str | None = None
    age: float | None = None
    lane: str | None = None


async def held(connection: Connection, wanted: Filter, limit: int, after: int | None = None) -> list[asyncpg.Record]:
    """Lanes that stand behind a failed head, oldest head first; after: `seq` of the last one of the page before."""
    return list(await connection.fetch(_SQL["held"], *_given(wanted), after, limit))


async def open_(connection: Connection, wanted: Filter, limit: int, after: int | None = None) -> list[asyncpg.Record]:
    """Every lane with commands that have not ended."""
    return list(await connection.fetch(_SQL["open"], *_given(wanted), after, limit))


async def commands(connection: Connection, lane: str, limit: int) -> list[asyncpg.Record]:
    """What has not ended, in order."""
    return list(await connection.fetch(_SQL["commands"], lane, limit))


async def following(connection: Connection, heads: Sequence[tuple[str, UUID]]) -> dict[str, asyncpg.Record]:
    """heads: (lane, its head). returns by lane what comes behind the head, where anything does"""
    lanes, ids = [lane for lane, _ in heads], [id_ for _, id_ in heads]
    return {row["lane"]: row for row in await connection.fetch(_SQL["following"], lanes, ids)}


async def give_up(connection: Connection, head_ids: Sequence[UUID], actor: str, reason: str) -> set[UUID]:
    """Abandons failed heads with their dead letters and lets what waits behind them run. returns those it did"""
    rows = await connection.fetch(_SQL["give_up"], head_ids, actor, reason)
    await wake_lanes(connection, [row["lane"] for row in rows])
    return {row["id"] for row in rows}


def _given(wanted: Filter) -> tuple[Any, ...]:
    return (
        *(wanted.vendor, wanted.company_id, wanted.connection_id, wanted.error_class),
        *(wanted.age, wanted.lane),
    )
