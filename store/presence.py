"""Who is alive: a worker holds an advisory lock for as long as its session lives, and the server frees it at its death."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from .pool import Connection

_LOCK = "hashtextextended($1, 7203411961)"


@dataclass(frozen=True, slots=True)
class Lease:
    """Of a delivery."""

    id: UUID
    token: UUID


class Presence(Session):
    """Holds the lock of `worker`."""

    def __init__(self, database_url: str, worker: str, *, pause: float = 0.5) -> None:
        super().__init__(database_url, f"staybus presence {worker}", pause=pause)
        self._worker = worker

    async def begin(self, connection: Connection) -> None:
        await connection.execute(f"SELECT pg_advisory_lock_shared({_LOCK})", self._worker)


async def leaseholders(connection: Connection) -> list[str]:
    """The workers that hold leases now: of events, and of tokens to renew."""
    rows = await connection.fetch(
        "SELECT worker FROM channel_events WHERE status = 'processing'"
        " UNION SELECT renewing_by FROM connections WHERE renewing_until > clock_timestamp()"
    )
    return [row["worker"] for row in rows if row["worker"]]


async def absent(connection: Connection, workers: Sequence[str]) -> set[str]:
    """Of these, who does not hold its lock; the caller owns a transaction, at whose end nothing is held."""
    gone = set()
    for worker in workers:
        if await connection.fetchval(f"SELECT pg_try_advisory_xact_lock({_LOCK})", worker):
            gone.add(worker)
    return gone


async def end_leases(connection: Connection, worker: str) -> int:
    """The worker is dead: its leases end now, and what it had begun is unknown. What somebody holds locked, an operator perhaps,
    is for a later look, and keeps none of the others. returns how many"""
    rows = await connection.fetch(
        "UPDATE channel_events SET lease_until = clock_timestamp() WHERE id IN ("
        "SELECT id FROM channel_events WHERE status = 'processing' AND worker = $1 AND lease_until > clock_timestamp()"
        " FOR UPDATE SKIP LOCKED) RETURNING 1",
        worker,
    )
    renewals = await connection.fetch(
        "UPDATE connections SET renewing_until = NULL WHERE id IN ("
        "SELECT id FROM connections WHERE renewing_by = $1 AND renewing_until > clock_timestamp()"
        " FOR UPDATE SKIP LOCKED) RETURNING 1",
        worker,
    )
    return len(rows) + len(renewals)


async def leases(connection: Connection, worker: str) -> list[Lease]:
    """The deliveries that this worker has."""
    rows = await connection.fetch(
        "SELECT id, lease_token FROM channel_events WHERE status = 'processing' AND worker = $1 AND parent_id IS NOT NULL"
        " AND lease_until > clock_timestamp()",
        worker,
    )
    return [Lease(row["id"], row["lease_token"]) for row in rows]


async def end_strays(connection: Connection, strays: Sequence[Lease]) -> int:
    """Those of them that are held still end now. returns how many"""
    if not strays:
        return 0
    rows = await connection.fetch(
        "UPDATE channel_events e SET lease_until = clock_timestamp()"
        " FROM unnest($1::uuid[], $2::uuid[]) AS g (id, token)"
        " WHERE e.id = g.id AND e.lease_token = g.token AND e.status = 'processing' RETURNING 1",
        [stray.id for stray in strays],
        [stray.token for stray in strays],
    )
    return len(rows)
