"""Reading inbound events and applying their effects."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import orjson

from schemas.ids import named, read_uuid, uuid7
from schemas.vocabulary import MAX_STARTS, Result

from .results import Batch, CoreEventRow, told
from .settle import SettledElsewhereError
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from schemas.entities import Availability, Property, Reservation, RoomType, Sourced

    from .pool import Connection
    from .seal import Cipher

_SQL = statements("inbound")
_GUESTS = uuid.UUID("0d2b6a5e-6c0f-5b5e-9a58-0f6f2f9b7f10")
_SETTLED_ELSEWHERE = "SB001"  # SQLSTATE of the function settled_elsewhere

Lease = tuple[UUID, UUID | None]  # id of an event, and the token of its lease; None of what was not leased


@dataclass(slots=True)
class InboundRow:
    id: UUID
    company_id: str
    connection_id: str
    event_type: str
    entity_type: str
    entity_external_id: str
    payload: str
    sealed: bytes | None
    status: str
    attempts: int
    max_attempts: int
    starts: int
    received_at: datetime
    trace: str | None
    error_class: str | None
    own_writes: str | None
    overlay: str | None


@dataclass(slots=True)
class StateRow:
    """A state of a reservation.

    raw, sealed  the vendor's document as JSON text without personal data, and that
    told         what others hear of it if it is applied, as a JSON object to which the database adds reservationId, created
                 and guestId; None: nothing
    """

    company_id: str
    connection_id: str
    event_id: UUID
    cipher: Cipher
    sourced: Sourced[Reservation]
    raw: str
    sealed: bytes | None
    told: str | None = None
    trace: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.connection_id, self.sourced.entity.external_id


@dataclass(slots=True)
class Applied:
    """A state that passed the fence. created: the first of its reservation"""

    internal_id: str
    created: bool


@dataclass(slots=True)
class Stored:
    """applied: by event and external id. told: the results, kept and not published yet"""

    applied: dict[tuple[UUID, str], Applied]
    told: Batch | None


@dataclass(frozen=True, slots=True)
class StoredState:
    """What is stored of a reservation, by the names of Reservation. told_at: when the core was told of it last; None: never"""

    fields: Mapping[str, Any]
    told_at: datetime | None


async def load(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, InboundRow]:
    return {row["id"]: InboundRow(*row) for row in await connection.fetch(_SQL["load"], ids)}


async def warm(connection: Connection) -> None:
    """Has the statements of the hot path planned, and writes nothing: the first time in a session takes 18 ms."""
    await connection.fetch(_SQL["load"], [])
    await connection.fetch(_SQL["apply_states"], [], [], None, Result.RESERVATION_UPSERTED.value, uuid7())
    await told(connection, [])


async def start_alone(connection: Connection, id_: UUID, token: UUID) -> int | None:
    """How often it was started without an answer before; None if it is settled, leased, or not due.

    token: of this start alone. With the same one it may be repeated when its answer was lost.
    """
    before: int | None = await connection.fetchval(_SQL["start_alone"], id_, MAX_STARTS, token)
    return before


async def lease(
    connection: Connection, ids: Sequence[UUID], worker: str, seconds: float, starts: int, token: UUID
) -> dict[UUID, int]:
    """Those that nobody else has, with how often they were started without an answer, this time included.

    starts: 0 of what `start_alone` has counted, else 1
    token: of these leases alone. With the same one it may be repeated when its answer was lost.
    """
    rows = await connection.fetch(_SQL["lease"], ids, worker, seconds, starts, token, MAX_STARTS)
    return {row["id"]: row["starts"] for row in rows}


async def begin_alone(connection: Connection, id_: UUID, worker: str) -> None:
    """Counts the last start of one that this worker has leased, just before it."""
    await connection.execute(_SQL["begin_alone"], id_, worker, MAX_STARTS)


async def prolong(connection: Connection, ids: Sequence[UUID], worker: str, seconds: float) -> None:
    """Leases that this worker still has begin anew."""
    if ids:
        await connection.execute(_SQL["prolong"], ids, worker, seconds)


async def release(connection: Connection, ids: Sequence[UUID], worker: str) -> None:
    """Leased, and never begun or cut off: back to whoever is next, as if nothing had been."""
    await connection.execute(_SQL["release"], ids, worker)


async def lock_open(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Of these, the rows that are still open; locked until the transaction ends."""
    return {row["id"] for row in await connection.fetch(_SQL["lock_open"], ids)}


async def lock_held(connection: Connection, leases: Sequence[Lease]) -> set[Lease]:
    """Those whose events may be ended still; locked, too. A worker may hold two leases of one event, an old one and its own anew."""
    if not leases:
        return set()
    found = await connection.fetch(_SQL["lock_held"], *zip(*leases, strict=True))
    return {(row["id"], row["lease_token"]) for row in found}


async def own_writes(connection: Connection, of: Sequence[tuple[str, str, str | None]]) -> dict[tuple[str, str], str]:
    """of: (connection id, external id, marker). By the first two of them, what InboundRow.own_writes is."""
    rows = await connection.fetch(_SQL["own_writes"], *zip(*of, strict=True))
    return {(row["connection_id"], row["external_id"]): row["own_writes"] for row in rows}


async def stored_states(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StoredState]:
    """keys: (connection id, external id). What is stored of these; locked."""
    if not keys:
        return {}
    rows = await connection.fetch(_SQL["stored_states"], *zip(*keys, strict=True))
    return {
        (row["connection_id"], row["external_id"]): StoredState(dict(list(row.items())[3:]), row["told_at"])
        for row in rows
    }


async def apply_states(
    connection: Connection, rows: Iterable[StateRow], *, settled_from: datetime | None = None
) -> Stored:
    """Applies what passes the fence; of several states of one reservation only the newest is tried.

    settled_from  given: the events of what is applied are done with it, at their first attempt, begun at this time; every
                  event has one state then, and without a transaction around it this is one
    raises  SettledElsewhereError, and nothing was applied: one of these events is not open any more
    """
    newest: dict[tuple[str, str], StateRow] = {}
    for row in rows:
        known = newest.get(row.key)
        if known is None or known.sourced.version < row.sourced.version:
            newest[row.key] = row
    if not newest:
        return Stored({}, None)
    given = [_state_row(row) for row in newest.values()]
    keys = ["\n".join(key) for key in newest]
    type_, batch_id = Result.RESERVATION_UPSERTED.value, uuid7()
    try:
        found = await connection.fetch(_SQL["apply_states"], given, keys, settled_from, type_, batch_id)
    except asyncpg.PostgresError as error:
        if error.sqlstate == _SETTLED_ELSEWHERE:
            raise SettledElsewhereError from error
        raise
    applied, results = {}, []
    for connection_id, external_id, internal_id, created, result_id, data in found:
        row = newest[connection_id, external_id]
        applied[row.event_id, external_id] = Applied(internal_id, created)
        if result_id is not None:
            cause = row.event_id, row.trace, result_id
            results.append(CoreEventRow(row.company_id, connection_id, type_, internal_id, data, *cause))
    return Stored(applied, Batch(batch_id, results) if results else None)


async def overtaken(connection: Connection, rows: Sequence[StateRow]) -> set[UUID]:
    """rows: as the vendor's API said. The events of those that must be asked for again, because a webhook came meanwhile."""
    if not rows:
        return set()
    columns = zip(
        *(
            (row.event_id, *row.key, row.sourced.version.modified_at, row.sourced.version.observed_at)
            for row in rows
        ),
        strict=True,
    )  # fmt: skip
    return {found["event_id"] for found in await connection.fetch(_SQL["overtaken"], *columns)}


async def same_moment(connection: Connection, rows: Sequence[StateRow]) -> set[UUID]:
    """Of these, which were not applied: the events whose state has the modification time of what another event stored."""
    if not rows:
        return set()
    columns = zip(*((row.event_id, *row.key, row.sourced.version.modified_at) for row in rows), strict=True)
    return {found["event_id"] for found in await connection.fetch(_SQL["same_moment"], *columns)}


def _state_row(row: StateRow) -> tuple[Any, ...]:
    """Of the type state_row."""
    r, version, guest = row.sourced.entity, row.sourced.version, row.sourced.entity.guest
    known = guest is not None and guest.is_known()
    return (
        uuid7(), row.company_id, row.connection_id, r.external_id, r.external_property_id, r.external_room_type_id,
        r.external_unit_id, named(_GUESTS, f"{row.connection_id}\n{r.external_id}") if known else None, r.status,
        r.check_in, r.check_out, r.adults, r.children, r.total_price, r.currency, r.source, r.source_reference,
        r.booked_at, r.cancelled_at, row.raw, row.sealed,
        version.modified_at, version.observed_at, version.rank, row.event_id,
        row.cipher.seal(guest.model_dump(include=SEALED_GUEST, exclude_none=True)) if guest and known else None,
        guest.language if guest else None, guest.country if guest else None, _command(r.marker),
        uuid7() if row.told else None, row.told, row.trace,
    )  # fmt: skip


def _command(marker: str | None) -> UUID | None:
    """The delivery that made it: its id is the marker's end. None where it is somebody else's word at the vendor."""
    return read_uuid(marker.rpartition(":")[2]) if marker else None


SEALED_GUEST = {"first_name", "last_name", "email", "phone"}


async def upsert_availability(
    connection: Connection, rows: Iterable[tuple[str, str, Sourced[Availability]]]
) -> set[tuple[str, str]]:
    """rows: (company id, connection id, night). returns the (connection id, external room type id) that changed"""
    newest: dict[tuple[str, str, object], tuple[str, str, Sourced[Availability]]] = {}
    for company, connection_id, sourced in rows:
        key = (connection_id, sourced.entity.external_room_type_id, sourced.entity.day)
        if key not in newest or newest[key][2].version < sourced.version:
            newest[key] = (company, connection_id, sourced)
    if not newest:
        return set()
    columns = zip(
        *(
            (company, connection_id, s.entity.external_property_id, s.entity.external_room_type_id, s.entity.day,
             s.entity.available, s.entity.price, s.entity.currency, s.entity.min_stay, s.entity.closed,
             orjson.dumps(s.document).decode(), s.version.modified_at, s.version.observed_at, s.version.tie)
            for company, connection_id, s in newest.values()
        ),
        strict=True,
    )  # fmt: skip
    changed = await connection.fetch(_SQL["upsert_availability"], *columns)
    return {(row["connection_id"], row["external_room_type_id"]) for row in changed}


async def upsert_properties(
    connection: Connection,
    company_id: str,
    connection_id: str,
    found: Sequence[Sourced[Property]],
) -> None:
    columns = zip(
        *(
            (uuid7(), company_id, connection_id, s.entity.external_id, s.entity.name, s.entity.currency,
             s.entity.timezone, s.entity.country, s.entity.city, s.entity.address, orjson.dumps(s.document).decode(),
             s.version.modified_at, s.version.observed_at, s.version.tie)
            for s in found
        ),
        strict=True,
    )  # fmt: skip
    if found:
        await connection.execute(_SQL["upsert_properties"], *columns)


async def upsert_room_types(
    connection: Connection,
    company_id: str,
    connection_id: str,
    found: Sequence[Sourced[RoomType]],
) -> None:
    columns = zip(
        *(
            (uuid7(), company_id, connection_id, s.entity.external_id, s.entity.external_property_id, s.entity.name,
             s.entity.quantity, s.entity.max_occupancy, orjson.dumps(s.document).decode(), s.version.modified_at,
             s.version.observed_at, s.version.tie)
            for s in found
        ),
        strict=True,
    )  # fmt: skip
    if found:
        await connection.execute(_SQL["upsert_room_types"], *columns)
