"""Commands and their deliveries: insert, route, claim by lane, learn what the vendor answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from schemas.ids import uuid7
from schemas.vocabulary import MAX_STARTS, Result

from .results import Batch
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from .pool import Connection
    from .results import CoreEventRow

_SQL = statements("outbound")

WOKEN = 1_000  # deliveries of a connection at once: many more than a few workers may have under way


@dataclass(slots=True)
class CommandRow:
    """A command (no parent, no connection) or a delivery of it (both)."""

    id: UUID
    company_id: str
    connection_id: str | None
    parent_id: UUID | None
    event_type: str
    entity_type: str | None
    entity_internal_id: str | None
    idempotency_key: str
    payload: str
    sealed: bytes | None
    lane: str | None
    lane_policy: str | None
    max_attempts: int
    trace: str | None


@dataclass(frozen=True, slots=True)
class LoadedCommand:
    id: UUID
    company_id: str
    connection_id: str | None
    event_type: str
    idempotency_key: str
    payload: str
    sealed: bytes | None
    status: str
    attempts: int
    max_attempts: int
    starts: int
    received_at: datetime
    trace: str | None
    error_class: str | None
    overlay: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A leased delivery; attempts and starts count this one already."""

    id: UUID
    company_id: str
    connection_id: str
    event_type: str
    entity_type: str
    entity_internal_id: str
    idempotency_key: str
    payload: str
    sealed: bytes | None
    attempts: int
    max_attempts: int
    starts: int
    received_at: datetime
    trace: str | None
    error_class: str | None
    lane: str | None
    lane_policy: str | None
    lease_token: UUID
    overlay: str | None


@dataclass(slots=True)
class DeliveryRow:
    """A delivery that its vendor has done.

    attempts           as claimed
    lease_token        as claimed
    external_id        the vendor's name for what the core calls internal_id; None: it gave none
    request, response  what was said, as JSON without personal data
    result             what others hear of it
    """

    id: UUID
    attempts: int
    lease_token: UUID
    started_at: datetime
    external_id: str | None
    internal_id: str
    entity_type: str
    request: str | None
    response: str | None
    result: CoreEventRow


@dataclass(slots=True)
class SupersededRow:
    """A delivery that a newer one of its lane took along.

    why                with which one, or ahead of which one
    request, response  as a DeliveryRow has them; None where they are with the one that it went out with
    """

    id: UUID
    why: str
    request: str | None
    response: str | None
    result: CoreEventRow


@dataclass(frozen=True, slots=True)
class LaneHead:
    id: UUID
    company_id: str
    connection_id: str
    event_type: str
    trace: str | None
    status: str
    vendor: str


def lane_prefix(entity_type: str, internal_id: str) -> str:
    """Ordered lanes begin with the entity, so that its connections can be found by prefix."""
    return f"{entity_type}:{internal_id}@"


async def insert_commands(connection: Connection, rows: Sequence[CommandRow]) -> set[UUID]:
    """returns the ids that are new"""
    if not rows:
        return set()
    columns = zip(
        *(
            (r.id, r.company_id, r.connection_id, r.parent_id, r.event_type, r.entity_type, r.entity_internal_id,
             r.idempotency_key, r.payload, r.sealed, r.lane, r.lane_policy, r.max_attempts, r.trace)
            for r in rows
        ),
        strict=True,
    )  # fmt: skip
    return {row["id"] for row in await connection.fetch(_SQL["insert_commands"], *columns)}


async def deliveries_there(connection: Connection, rows: Sequence[CommandRow]) -> set[UUID]:
    """Of these deliveries, those that are recorded, by their ids and those of their commands."""
    if not rows:
        return set()
    found = await connection.fetch(_SQL["deliveries_there"], *_columns([(r.id, r.parent_id) for r in rows], 2))
    return {row["id"] for row in found}


async def load_commands(connection: Connection, ids: Sequence[UUID], most: int = 500) -> list[LoadedCommand]:
    """Those that are open, with what stands before them, in the order of recording: the first of them."""
    return [LoadedCommand(*row) for row in await connection.fetch(_SQL["load_commands"], ids, most)]


async def mapped_connections(
    connection: Connection, wanted: Sequence[tuple[str, str, str]]
) -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """wanted: (company, entity type, internal id). returns for each its (connection id, vendor) pairs"""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for row in await connection.fetch(_SQL["mapped_connections"], *_columns(wanted, 3)):
        key = (row["company_id"], row["entity_type"], row["internal_id"])
        found.setdefault(key, []).append((row["connection_id"], row["vendor"]))
    return found


async def laned_connections(
    connection: Connection, wanted: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """wanted: (company, lane prefix). returns for each its (connection id, vendor) pairs"""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in await connection.fetch(_SQL["laned_connections"], *_columns(wanted, 2)):
        found.setdefault((row["company_id"], row["prefix"]), []).append((row["connection_id"], row["vendor"]))
    return found


async def claim(connection: Connection, ids: Sequence[UUID], worker: str, lease: float, token: UUID) -> list[Claimed]:
    """lease in seconds; token: of this claim alone. With the same one it may be repeated when its answer was lost."""
    return [Claimed(*row) for row in await connection.fetch(_SQL["claim"], ids, worker, lease, token, MAX_STARTS)]


async def begin_alone(connection: Connection, id_: UUID, token: UUID, lease: float) -> bool:
    """Counts the last start of a claimed delivery, just before it. returns whether its lease is still held; it begins anew then"""
    return await connection.fetchval(_SQL["begin_alone"], id_, token, lease, MAX_STARTS) is not None


async def recount(connection: Connection, rows: Sequence[tuple[UUID, UUID, int, int]]) -> None:
    """rows: (id, token of the lease, attempts and starts that count). Of those whose lease is still held"""
    if rows:
        await connection.execute(_SQL["recount"], *_columns(rows, 4))


async def older_in_lane(connection: Connection, newest: UUID, most: int) -> list[Claimed]:
    """The oldest that wait in the lane of a claimed delivery, under its lease; attempts count the one that it makes for them."""
    return [Claimed(*row) for row in await connection.fetch(_SQL["older_in_lane"], newest, most)]


async def supersede(connection: Connection, rows: Sequence[SupersededRow]) -> Batch | None:
    """Ends those that wait, in one statement, in the order in which all lock them. returns what others hear, not published yet"""
    if not rows:
        return None
    in_order = sorted(rows, key=lambda row: row.id)
    given = [(r.id, r.why, r.request, r.response, r.result.id, r.result.data) for r in in_order]
    batch_id = uuid7()
    found = await connection.fetch(_SQL["supersede"], *_columns(given, 6), Result.COMMAND_SUCCEEDED.value, batch_id)
    ended = {row["id"] for row in found}
    told = [row.result for row in rows if row.id in ended]
    return Batch(batch_id, told) if told else None


async def external_ids(
    connection: Connection, wanted: Sequence[tuple[str, str, str]]
) -> dict[tuple[str, str, str], str]:
    """(connection id, entity type, internal id) → external id"""
    if not wanted:
        return {}
    rows = await connection.fetch(_SQL["external_ids"], *_columns(wanted, 3))
    return {(r["connection_id"], r["entity_type"], r["internal_id"]): r["external_id"] for r in rows}


async def note_own_writes(connection: Connection, rows: Sequence[tuple[UUID, str, str, str | None, str, str]]) -> None:
    """rows: (event id, company, connection, external id, marker, expected fields as JSON)"""
    if rows:
        await connection.execute(_SQL["note_own_writes"], *_columns(rows, 6))


async def forget_own_writes(connection: Connection, event_ids: Sequence[UUID]) -> None:
    if event_ids:
        await connection.execute(_SQL["forget_own_writes"], event_ids)


async def succeed(connection: Connection, rows: Sequence[DeliveryRow]) -> tuple[set[UUID], Batch | None]:
    """Ends those whose lease is still held, in one statement. returns them, and what others hear, not published yet"""
    if not rows:
        return set(), None
    given = [
        (r.id, r.attempts, r.started_at, r.external_id, r.internal_id, r.entity_type, r.request, r.response, r.result.id,
         r.result.data)
        for r in rows
    ]  # fmt: skip
    batch_id = uuid7()
    tokens = [r.lease_token for r in rows]
    found = await connection.fetch(_SQL["succeed"], given, tokens, Result.COMMAND_SUCCEEDED.value, batch_id)
    ended = {row["id"] for row in found}
    told = [row.result for row in rows if row.id in ended]
    return ended, Batch(batch_id, told) if told else None


async def lock_leased(connection: Connection, rows: Sequence[tuple[UUID, UUID]]) -> set[UUID]:
    """Of these (id, token of the lease), the deliveries whose lease is still held; locked."""
    if not rows:
        return set()
    found = await connection.fetch(_SQL["lock_leased"], *_columns(rows, 2))
    return {row["id"] for row in found}


async def note_exchanges(connection: Connection, rows: Sequence[tuple[UUID, str, str | None, str | None]]) -> None:
    """rows: (delivery, company, what we told the vendor, what it answered), both as JSON without personal data"""
    if rows:
        await connection.execute(_SQL["note_exchanges"], *_columns(rows, 4))


async def waiting(connection: Connection, connection_id: str, limit: int) -> list[UUID]:
    """Deliveries of this connection that could run, in the order in which they should."""
    return [row["id"] for row in await connection.fetch(_SQL["waiting"], connection_id, limit)]


async def wake_waiting(connection: Connection, connection_ids: Collection[str], *, but: Collection[UUID] = ()) -> None:
    """The deliveries of these connections that nobody has begun are woken by the next look of the relay."""
    if connection_ids:
        await connection.execute(_SQL["wake_waiting"], sorted(connection_ids), list(but), WOKEN)


async def lane_heads(connection: Connection, lanes: Sequence[str]) -> list[LaneHead]:
    return [LaneHead(*row) for row in await connection.fetch(_SQL["lane_heads"], lanes)] if lanes else []


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[Any]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
