"""A past of so many events: rows as sixty days of work would have left them, made by the database itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from adapters.port import Effects, Recorded, WebhookRequest
from adapters.registry import adapters
from schemas.connection import Connection
from schemas.vocabulary import EntityType
from store.directory import Known
from store.ingest import fact_row
from workers.results import reservation_upserted

from . import payloads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import asyncpg

    from schemas.entities import Reservation, Sourced
    from store.ingest import FactRow
    from store.seal import Cipher, KeyFile

BYTES_AN_EVENT = 3_200  # of disk, with indexes and with its share of the other tables
RESERVATIONS = 20_000  # state does not grow with the past
FIRST_BOOKING = 10_000_000
_MODEL = 10_999_999  # the booking whose number is replaced
_CHUNK = 200_000  # events of one transaction
_COMPANIES = 20
_BEFORE = ("helpers", "companies", "connections", "int_reservations", "int_guests", "int_mappings")
_WAITING, _LAST = "waiting", "command_results"
_BEDS24 = adapters()["beds24"]
_PERSONAL = tuple(tuple(path.split(".")) for path in _BEDS24.manifest.personal_paths)


@dataclass(frozen=True, slots=True)
class Tenants:
    """Twenty companies with five connections each; one data key serves them all."""

    data_key: bytes
    ciphers: list[Cipher]

    @classmethod
    def new(cls, keys: KeyFile) -> Tenants:
        data_key = keys.new_data_key()
        return cls(data_key, [keys.cipher(f"company-{n}", data_key) for n in range(_COMPANIES)])

    def known(self, reservation: int) -> Known:
        """To whom this reservation belongs, as past_company and past_connection have it."""
        company = reservation % _COMPANIES
        id_ = f"beds24-{company}-{reservation // _COMPANIES % 5}"
        connection = Connection(id_, f"company-{company}", "beds24", "Connection", config={"currency": "EUR"})
        return Known(connection, self.ciphers[company], ())


async def fill(
    db: asyncpg.Connection[Any],
    count: int,
    tenants: Tenants,
    say: Callable[[str], None],
    *,
    reservations: int = RESERVATIONS,
) -> None:
    """Makes `count` events with all that belongs to them. db: its owner's connection to a migrated, empty database"""
    statements = await _begin(db, count, tenants, reservations)
    del statements[_WAITING]
    last_of_all = statements.pop(_LAST)
    for first in range(1, count + 1, _CHUNK):
        last = min(first + _CHUNK - 1, count)
        async with db.transaction():
            await db.execute("TRUNCATE past")
            for statement in statements.values():
                await db.execute(statement, *([first, last] if "$1" in statement else []), timeout=600)
        if last % 1_000_000 == 0 and last < count:
            say(f"  {last:,} of {count:,} events")
    await db.execute("VACUUM core_events", timeout=600)
    await db.execute(last_of_all, timeout=600)
    await db.execute("VACUUM (ANALYZE)", timeout=3600)
    await db.execute("CHECKPOINT", timeout=600)


async def wait(db: asyncpg.Connection[Any], count: int, tenants: Tenants) -> AsyncIterator[list[asyncpg.Record]]:
    """Makes `count` facts that wait for their worker. yields (id, company_id, trace) of those that were just committed"""
    statements = await _begin(db, count, tenants, RESERVATIONS)
    for first in range(1, count + 1, _CHUNK):
        last = min(first + _CHUNK - 1, count)
        async with db.transaction():
            await db.execute("TRUNCATE past")
            await db.execute(statements["past"], first, last, timeout=600)
            made = await db.fetch(statements[_WAITING], timeout=600)
        yield made


async def _begin(db: asyncpg.Connection[Any], count: int, tenants: Tenants, reservations: int) -> dict[str, str]:
    """returns the statements that are left to do"""
    statements = _statements(count, tenants, reservations)
    await db.execute("SET synchronous_commit = off")
    for name in _BEFORE:
        await db.execute(statements.pop(name), *([tenants.data_key] if name == "companies" else []))
    return statements


async def subjects(db: asyncpg.Connection[Any], reservations: list[int]) -> list[str]:
    """Our ids of these reservations."""
    rows = await db.fetch("SELECT past_id(n)::text AS id FROM unnest($1::bigint[]) n", reservations)
    return [row["id"] for row in rows]


def fact(reservation: int, known: Known, at: datetime, price: float = 1234.5) -> FactRow:
    """A change of this reservation, as ingress makes it from a webhook of about 1 KB. price: tells two in one second apart"""
    booking = payloads.booking(reservation) | {"id": FIRST_BOOKING + reservation, "price": price}
    shown = {name: booking[name] for name in payloads.KEPT} | {"modifiedTime": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    item = {"timeStamp": at.isoformat(), "booking": shown, "infoItems": [], "messages": [], "retries": 0}
    request = WebhookRequest("POST", {}, {}, orjson.dumps(item))
    (told,) = _BEDS24.parse(request, known.connection)
    trace = f"00-{hashlib.md5(str(reservation).encode(), usedforsecurity=False).hexdigest()}-00f067aa0ba902b7-01"
    return fact_row(told, known, _PERSONAL, trace=trace, max_attempts=3)


def state(event_id: UUID, external_id: str, payload: dict[str, Any], known: Known) -> Sourced[Reservation]:
    """What the fact says of its reservation. payload: with its personal part"""
    recorded = Recorded(
        event_id, "beds24.booking.modified", EntityType.RESERVATION, external_id, payload, datetime.now(UTC)
    )
    effects = _BEDS24.interpret(recorded, known.connection)
    if not isinstance(effects, Effects):
        raise TypeError("a webhook with the whole booking needs no fetch")
    return effects.reservations[0]


def _statements(count: int, tenants: Tenants, reservations: int) -> dict[str, str]:
    """past.sql with the texts of a model event put in."""
    model = _MODEL - FIRST_BOOKING
    known = tenants.known(model)
    row = fact(model, known, datetime.now(UTC))
    sourced = state(row.id, row.entity_external_id, orjson.loads(row.payload), known)
    named = {"reservationId": str(row.id), "created": False, "guestId": str(row.id)}
    result = named | orjson.loads(reservation_upserted(sourced.entity, known.connection.id, "beds24"))
    personal = known.cipher.open(row.sealed)
    sealed = ", ".join(f"decode('{(cipher.seal(personal) or b'').hex()}', 'hex')" for cipher in tenants.ciphers)
    words = {
        ":payload": _quoted(row.payload),
        ":sealed": f"(ARRAY[{sealed}])",  # by company: one cannot open another's
        ":result": _quoted(orjson.dumps(result).decode()),
        ":raw": _quoted(row.payload),
        ":total": str(count),
        ":reservations": str(reservations),
        ":ends": str(int(datetime.now(UTC).timestamp())),
    }
    text = Path(__file__).with_suffix(".sql").read_text()
    for word, value in words.items():
        text = text.replace(word, value)
    found = {}
    for part in text.split("-- name: ")[1:]:
        name, _, statement = part.partition("\n")
        found[name] = statement
    return found


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
