"""Dead letters as operators and the recorder handle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from schemas.vocabulary import Fault, Owner

from .relay import Asleep
from .settle import DeadLetterRow
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from .pool import Connection

_SQL = statements("dead_letters")


@dataclass(frozen=True, slots=True)
class Behind:
    """The event behind a dead message. worker: who had it last"""

    id: UUID
    status: str
    starts: int
    worker: str | None
    asleep: Asleep


@dataclass(frozen=True, slots=True)
class Filter:
    """None matches all; status None means open (pending or retrying). until: up to this id, which are in order of time."""

    status: str | None = None
    vendor: str | None = None
    company_id: str | None = None
    operation: str | None = None
    error_class: str | None = None
    fingerprint: str | None = None
    owner: str | None = None
    until: UUID | None = None


async def behind_letters(connection: Connection, ids: Sequence[UUID]) -> list[Behind]:
    return [
        Behind(
            r["id"],
            r["status"],
            r["starts"],
            r["worker"],
            Asleep(
                r["id"],
                r["company_id"],
                r["event_type"],
                r["trace"],
                r["vendor"] if r["delivery"] else None,
                r["connection_id"],
                inbound=r["direction"] == "inbound",
            ),
        )
        for r in await connection.fetch(_SQL["behind_letters"], ids)
    ]


async def park_poison(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, DeadLetterRow]:
    """Ends these events as failed; the letters that the caller must bury, and tell of, in the same transaction."""
    if not ids:
        return {}
    return {
        r["id"]: DeadLetterRow(
            event_id=r["id"],
            company_id=r["company_id"],
            connection_id=r["connection_id"],
            vendor=r["vendor"],
            queue=None,
            operation=r["event_type"],
            entity_type=r["entity_type"],
            entity_external_id=r["entity_external_id"],
            entity_internal_id=r["entity_internal_id"],
            error_class=Fault.POISON.value,
            error_code="poison",
            error_message=r["last_error"],
            attempts=r["attempts"],
            first_attempt_at=r["received_at"],
            owner=Owner.PIPELINE.value,
        )
        for r in await connection.fetch(_SQL["park_poison"], ids)
    }


async def find(connection: Connection, wanted: Filter, limit: int, before: UUID | None = None) -> list[asyncpg.Record]:
    """Newest first; before: the last id of the page before."""
    return list(await connection.fetch(_SQL["list"], *_given(wanted), before, limit))


async def oldest(connection: Connection, wanted: Filter, limit: int, after: UUID | None = None) -> list[asyncpg.Record]:
    """Open ones, oldest first; after: the last id of the page before."""
    return list(await connection.fetch(_SQL["oldest"], *_given(wanted), after, limit))


async def newest(connection: Connection) -> UUID | None:
    """Up to where a filter reaches now."""
    id_: UUID | None = await connection.fetchval(_SQL["newest"])
    return id_


async def kinds(
    connection: Connection, wanted: Filter, limit: int | None = None, *, judged: bool = False
) -> list[asyncpg.Record]:
    """How many open ones, or how many of the oldest `limit`, of which vendor, operation and status, with an event or not.

    judged: and which of them something newer has overtaken; else none
    """
    return list(await connection.fetch(_SQL["kinds"], *_given(wanted), limit, judged))


async def overtaken(connection: Connection, event_ids: Sequence[UUID]) -> set[UUID]:
    """Of these, what a requeue would leave because of something newer."""
    return {row["id"] for row in await connection.fetch(_SQL["overtaken"], event_ids)}


async def groups(connection: Connection, wanted: Filter) -> list[asyncpg.Record]:
    """Open letters by cause, with one of their messages."""
    return list(await connection.fetch(_SQL["groups"], *_given(wanted)))


async def show(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    """By its own id or by its event's."""
    return await connection.fetchrow(_SQL["show"], id_)


async def requeue(
    connection: Connection,
    event_ids: Sequence[UUID],
    actor: str,
    note: str | None = None,
    job_id: UUID | None = None,
) -> list[tuple[UUID, str]]:
    """In a transaction. Left are those that have not failed nor been abandoned, and those that something newer overtook.

    returns  (event id, company) of those that go again
    """
    await connection.execute(_SQL["take_lanes"], event_ids)
    rows = await connection.fetch(_SQL["requeue"], event_ids, actor, note, job_id)
    return [(r["id"], r["company_id"]) for r in rows]


async def abandon(connection: Connection, letter_ids: Sequence[UUID], actor: str, reason: str) -> list[dict[str, Any]]:
    """In a transaction. Gives up, for good and with a reason; lanes that were held go on. What is being sent just now is left alone,
    alone or with something newer."""
    event_ids = [row["event_id"] for row in await connection.fetch(_SQL["events_of"], letter_ids)]
    await connection.execute(_SQL["take_lanes"], event_ids)
    rows = [dict(row) for row in await connection.fetch(_SQL["abandon"], letter_ids, actor, reason)]
    await wake_lanes(connection, [row["lane"] for row in rows if row["lane"]])
    return rows


async def wake_lanes(connection: Connection, lanes: Sequence[str]) -> None:
    """After their heads were given up, in the same transaction."""
    if lanes:
        await connection.execute(_SQL["wake_lanes"], lanes)


# ------------------------------------------------------------------------------------------------ edits


async def editable(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    """A letter, by its own id or its event's, with the event and the edit as they are kept."""
    return await connection.fetchrow(_SQL["editable"], id_)


@dataclass(frozen=True, slots=True)
class Edit:
    """An edit as it is kept: readable and sealed part, and all of its paths. readable None: no edit any more."""

    readable: Mapping[str, Any] | None
    sealed: bytes | None
    paths: Sequence[str]


async def edit(
    connection: Connection,
    letter_id: UUID,
    event_id: UUID,
    kept: Edit,
    actor: str,
    note: str | None,
    seen: datetime | None,
) -> bool:
    """False: its event runs again, or it was edited since `seen`; the caller must roll back then."""
    readable = None if kept.readable is None else orjson.dumps(kept.readable).decode()
    found = await connection.fetchval(
        _SQL["edit"], letter_id, event_id, readable, kept.sealed, list(kept.paths) or None, actor, note, seen
    )
    return found is not None


def _given(wanted: Filter) -> tuple[str | UUID | None, ...]:
    return (
        *(wanted.status, wanted.vendor, wanted.company_id, wanted.operation, wanted.error_class),
        *(wanted.fingerprint, wanted.owner, wanted.until),
    )
