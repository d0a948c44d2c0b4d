"""Reading inbound events and applying their effects."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from schemas.entities import Availability, Property, Reservation, RoomType, Sourced

    from .pool import Connection
    from .seal import Cipher

_SQL = statements("inbound")
_GUESTS = uuid.UUID("0d2b6a5e-6c0f-5b5e-9a58-0f6f2f9b7f10")


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
class Applied:
    """A reservation that passed the fence."""

    internal_id: str
    guest_id: UUID | None
    created: bool


@dataclass(slots=True)
class ReservationRow:
    """A reservation to store for one connection; raw is the vendor's document as JSON text without personal data, sealed
    holds that."""

    company_id: str
    connection_id: str
    event_id: UUID
    cipher: Cipher
    sourced: Sourced[Reservation]
    raw: str
    sealed: bytes | None

    @property
    def key(self) -> tuple[str, str]:
        return self.connection_id, self.sourced.entity.external_id


async def load(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, InboundRow]:
    return {row["id"]: InboundRow(*row) for row in await connection.fetch(_SQL["load"], ids)}


async def start_alone(connection: Connection, id_: UUID) -> int | None:
    """How often it was started without an answer, this time included; None if it is settled."""
    starts: int | None = await connection.fetchval(_SQL["start_alone"], id_)
    return starts


async def lease(
    connection: Connection, ids: Sequence[UUID], worker: str, seconds: float, starts: int
) -> dict[UUID, int]:
    """Those that nobody else has, with how often they were started without an answer, this time included."""
    rows = await connection.fetch(_SQL["lease"], ids, worker, seconds, starts)
    return {row["id"]: row["starts"] for row in rows}


async def prolong(connection: Connection, ids: Sequence[UUID], worker: str, seconds: float) -> None:
    """Leases that this worker still has begin anew."""
    if ids:
        await connection.execute(_SQL["prolong"], ids, worker, seconds)


async def release(connection: Connection, ids: Sequence[UUID], worker: str) -> None:
    """Leased and never begun: back to whoever is next, as if nothing had been."""
    await connection.execute(_SQL["release"], ids, worker)


async def lock_open(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Of these, the rows that are still open; locked until the transaction ends."""
    return {row["id"] for row in await connection.fetch(_SQL["lock_open"], ids)}


async def own_writes_by_marker(
    connection: Connection, connection_ids: Sequence[str], markers: Sequence[str]
) -> dict[str, tuple[dict[str, Any], datetime]]:
    rows = await connection.fetch(_SQL["own_writes_by_marker"], connection_ids, markers)
    return {row["marker"]: (orjson.loads(row["expected"]), row["written_at"]) for row in rows}


async def stored_states(
    connection: Connection, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """keys: (connection id, external id). What is stored of these, by the names of Reservation; locked."""
    if not keys:
        return {}
    rows = await connection.fetch(_SQL["stored_states"], *zip(*keys, strict=True))
    return {(row["connection_id"], row["external_id"]): dict(list(row.items())[2:]) for row in rows}


async def upsert_reservations(
    connection: Connection, rows: Iterable[ReservationRow], new_id: Callable[[], UUID]
) -> dict[tuple[UUID, str], Applied]:
    """Applies what passes the fence; of several states of one reservation only the newest is tried.

    returns  (event id, external id) → what became of it, for those that were applied
    """
    newest: dict[tuple[str, str], ReservationRow] = {}
    for row in rows:
        known = newest.get(row.key)
        if known is None or known.sourced.version < row.sourced.version:
            newest[row.key] = row
    if not newest:
        return {}
    given = [_reservation_row(row, new_id()) for row in newest.values()]
    return {
        (newest[r["connection_id"], r["external_id"]].event_id, r["external_id"]): Applied(
            r["internal_id"], r["guest_id"], r["created"]
        )
        for r in await connection.fetch(_SQL["upsert_reservations"], given)
    }


async def overtaken(connection: Connection, rows: Sequence[ReservationRow]) -> set[UUID]:
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


async def same_moment(connection: Connection, rows: Sequence[ReservationRow]) -> set[UUID]:
    """Of these, which were not applied: the events whose state has the modification time of what another event stored."""
    if not rows:
        return set()
    columns = zip(*((row.event_id, *row.key, row.sourced.version.modified_at) for row in rows), strict=True)
    return {found["event_id"] for found in await connection.fetch(_SQL["same_moment"], *columns)}


def _reservation_row(row: ReservationRow, new_id: UUID) -> tuple[Any, ...]:
    """Of the type reservation_row."""
    r, version, guest = row.sourced.entity, row.sourced.version, row.sourced.entity.guest
    known = guest is not None and guest.is_known()
    return (
        new_id, row.company_id, row.connection_id, r.external_id, r.external_property_id, r.external_room_type_id,
        r.external_unit_id, uuid.uuid5(_GUESTS, f"{row.connection_id}\n{r.external_id}") if known else None, r.status,
        r.check_in, r.check_out, r.adults, r.children, r.total_price, r.currency, r.source, r.source_reference,
        r.booked_at, r.cancelled_at, row.raw, row.sealed,
        version.modified_at, version.observed_at, version.rank, row.event_id,
        row.cipher.seal(guest.model_dump(include=SEALED_GUEST, exclude_none=True)) if guest and known else None,
        guest.language if guest else None, guest.country if guest else None, _command(r.marker),
    )  # fmt: skip


def _command(marker: str | None) -> UUID | None:
    """The delivery that made it: its id is the marker's end."""
    try:
        return UUID(marker.rpartition(":")[2]) if marker else None
    except ValueError:
        return None  # somebody else's word at the vendor


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
    new_id: Callable[[], UUID],
) -> None:
    columns = zip(
        *(
            (new_id(), company_id, connection_id, s.entity.external_id, s.entity.name, s.entity.currency,
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
    new_id: Callable[[], UUID],
) -> None:
    columns = zip(
        *(
            (new_id(), company_id, connection_id, s.entity.external_id, s.entity.external_property_id, s.entity.name,
             s.entity.quantity, s.entity.max_occupancy, orjson.dumps(s.document).decode(), s.version.modified_at,
             s.version.observed_at, s.version.tie)
            for s in found
        ),
        strict=True,
    )  # fmt: skip
    if found:
        await connection.execute(_SQL["upsert_room_types"], *columns)
