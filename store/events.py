"""Events as operators look at them (personal data is not among the columns), and as they let ended ones run again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

from schemas.ids import uuid7

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from .pool import Connection

_SQL = statements("events")
COUNTED = 10_000  # totals are exact up to here


class UnknownCursorError(LookupError):
    """The event after which a listing should go on is not there, or not any more: nobody knows where to go on."""


@dataclass(frozen=True, slots=True)
class Filter:
    """None matches all."""

    status: str | None = None
    vendor: str | None = None
    company_id: str | None = None
    event_type: str | None = None


async def find(connection: Connection, wanted: Filter, limit: int, before: UUID | None = None) -> list[asyncpg.Record]:
    """Newest first; before: the last id of the page before. raises UnknownCursorError"""
    rows = await connection.fetch(
        _SQL["list"], wanted.status, wanted.vendor, wanted.company_id, wanted.event_type, before, limit
    )
    if not rows and before is not None and not await connection.fetchval(_SQL["known"], before):
        raise UnknownCursorError
    return list(rows)


async def count(connection: Connection, wanted: Filter) -> int:
    """At most COUNTED."""
    return int(
        await connection.fetchval(_SQL["count"], wanted.status, wanted.vendor, wanted.company_id, wanted.event_type)
    )


async def show(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(_SQL["show"], id_)


async def attempts(connection: Connection, id_: UUID) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["attempts"], id_))


async def deliveries(connection: Connection, id_: UUID) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["deliveries"], id_))


# ------------------------------------------------------------------------------------------------ replay

_SKEW = timedelta(minutes=10)  # between clocks of machines that record; the exact bound is by received_at


@dataclass(frozen=True, slots=True)
class Selection:
    """Which ended events run again: those of `ids`, else those of a stretch of rows that fit the rest (None fits all).

    first, last  in order of recording; first is not part of it
    since, until  until is not part of it
    """

    statuses: tuple[str, ...] = ("done", "superseded")
    first: int = 0
    last: int = 0
    since: datetime | None = None
    until: datetime | None = None
    connection_ids: tuple[str, ...] | None = None
    company_id: str | None = None
    event_type: str | None = None
    ids: tuple[UUID, ...] | None = None

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("since", "until"):
            if name in given:
                given[name] = given[name].isoformat()
        if self.ids is not None:
            given["ids"] = [str(id_) for id_ in self.ids]
        return given

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Selection:
        given = dict(document)
        for name in ("since", "until"):
            if name in given:
                given[name] = datetime.fromisoformat(given[name])
        for name in ("statuses", "connection_ids"):
            if name in given:
                given[name] = tuple(given[name])
        if "ids" in given:
            given["ids"] = tuple(map(UUID, given["ids"]))
        return cls(**given)


async def stretch(connection: Connection, since: datetime | None, until: datetime | None) -> tuple[int, int]:
    """(after, up to): the rows that may have been recorded between these times, found without a scan."""
    newest = int(await connection.fetchval(_SQL["newest"]) or 0)
    first = 0 if since is None else await _recorded_before(connection, _shifted(since, -_SKEW), newest)
    last = newest if until is None else await _recorded_before(connection, _shifted(until, _SKEW), newest)
    return first, last


def _shifted(moment: datetime, by: timedelta) -> datetime:
    """As far as the calendar goes."""
    try:
        return moment + by
    except OverflowError:
        return moment


async def _recorded_before(connection: Connection, moment: datetime, newest: int) -> int:
    """The greatest number below which all rows were recorded before `moment`."""
    low, high = 0, newest
    while low < high:
        middle = (low + high) // 2
        row = await connection.fetchrow(_SQL["recorded"], middle + 1)
        if row is None or row["received_at"] >= moment:
            high = middle
        else:
            low = row["seq"]
    return low


async def replayable(
    connection: Connection, wanted: Selection, after: int, up_to: int, limit: int
) -> list[asyncpg.Record]:
    """Of the selection: those recorded after `after` and up to `up_to`, in this order."""
    return list(
        await connection.fetch(
            _SQL["replayable"], after, up_to, wanted.statuses, wanted.since, wanted.until, wanted.connection_ids,
            wanted.company_id, wanted.event_type, limit,
        )
    )  # fmt: skip


async def replayable_ids(connection: Connection, ids: Sequence[UUID]) -> list[asyncpg.Record]:
    """In the order of recording."""
    return list(await connection.fetch(_SQL["replayable_ids"], ids))


async def of_key(connection: Connection, company_id: str, key: str) -> UUID | None:
    """The command that was recorded with this key."""
    found: UUID | None = await connection.fetchval(_SQL["of_key"], company_id, key)
    return found


async def deliveries_of(connection: Connection, ids: Sequence[UUID]) -> list[asyncpg.Record]:
    """For each id that is known: itself or, of a command, its deliveries; `nothing` where that is none."""
    return list(await connection.fetch(_SQL["deliveries_of"], ids))


async def followers(
    connection: Connection, wanted: Selection, ids: Sequence[UUID], most: int | None = None
) -> list[asyncpg.Record]:
    """What the selection has behind these deliveries in their lanes, in the order of recording, or some of it."""
    rows = await connection.fetch(
        _SQL["followers"], ids, wanted.last, wanted.statuses, wanted.since, wanted.until, wanted.connection_ids,
        wanted.company_id, wanted.event_type, wanted.ids, most,
    )  # fmt: skip
    return sorted(rows, key=itemgetter("seq"))


async def overtaken(connection: Connection, ids: Sequence[UUID], repeated: Sequence[UUID]) -> set[UUID]:
    """Of these deliveries, those that would put an older state back. repeated: what goes out behind them in any case"""
    return {row["id"] for row in await connection.fetch(_SQL["overtaken"], ids, repeated)}


async def repeated(connection: Connection, run: UUID, ids: Sequence[UUID]) -> set[UUID]:
    """Of these, what that run of a replay has repeated already."""
    return {row["id"] for row in await connection.fetch(_SQL["repeated"], run, ids)}


async def mapped(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    """Of these deliveries, those whose entity has an id at their connection."""
    return {row["id"] for row in await connection.fetch(_SQL["mapped"], ids)}


async def replay(connection: Connection, originals: Sequence[UUID], run: UUID) -> list[asyncpg.Record]:
    """New rows for these, in the order of recording. run: part of their keys, so that one run repeats each but once.

    returns  id, replay_of, company_id of each that is new
    """
    return list(await connection.fetch(_SQL["replay"], originals, [uuid7() for _ in originals], run))


async def connections_of(connection: Connection, vendor: str) -> tuple[str, ...]:
    return tuple(row["id"] for row in await connection.fetch(_SQL["connections_of"], vendor))
