"""What the database holds of one company when a schedule is over, in the forms that the rules read.

The model's tables, for the rules of both forms; and the record of the fault suite, for what only real parts can break: a
webhook that was accepted and is not there, a result that nobody was told, calls that overlap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from adapters.beds24.mapping import body_of
from adapters.port import Command
from schemas.commands import parse_command
from schemas.entities import Guest, Reservation, Version
from schemas.vocabulary import EntityType, EventStatus
from store.results import CoreEventRow
from tests.faults.oracle import EventRow, Record
from tests.faults.oracle import Said as SaidTo

from .model import Booking, Event, Tables
from .outside import AVAILABILITY, CREATE, Said, Told
from .vendor import Write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    import asyncpg

    from schemas.connection import Connection
    from store.pool import Connection as Database
    from store.seal import Cipher
    from tests.faults.oracle import Accepted, Call

    Row = asyncpg.Record

_EVENTS = """
SELECT e.*, x.request::text AS request, COALESCE(x.response ->> 'found', '') = 'true' AS found,
       COALESCE(p.idempotency_key || '@' || e.connection_id, e.idempotency_key) AS said_as
FROM channel_events e LEFT JOIN sync_exchanges x ON x.event_id = e.id LEFT JOIN channel_events p ON p.id = e.parent_id
WHERE e.company_id = $1 ORDER BY e.seq"""
_RESERVATIONS = """
SELECT r.*, g.sealed AS guest, g.language, g.country
FROM int_reservations r LEFT JOIN int_guests g ON g.id = r.guest_id
WHERE r.company_id = $1"""
_RESULTS = """
SELECT id, company_id, connection_id, event_type, subject, data::text AS data, cause_id, trace, created_at
FROM core_events WHERE company_id = $1 ORDER BY created_at"""
_FIELDS = Reservation.model_fields.keys() - {"guest", "marker"}
FAILED, UPSERTED = "core.command.failed", "core.reservation.upserted"


@dataclass(frozen=True, slots=True)
class Look:
    """The vendor was asked whether a command is done already. place: of the answer in its log; of: the entity's id there."""

    place: int
    of: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """As it was read, when nothing changes any more."""

    events: Sequence[Row]
    reservations: Sequence[Row]
    mappings: Sequence[Row]
    results: Sequence[Row]
    logged: frozenset[UUID]
    letters: Sequence[UUID]  # events with a dead letter that is not resolved

    @classmethod
    async def read(cls, db: Database, company: str) -> Ending:
        logged = await db.fetch(
            "SELECT unnest(event_ids) AS id FROM webhook_log WHERE company_id = $1 AND status < 300", company
        )
        letters = await db.fetch(
            "SELECT event_id FROM dead_letters WHERE company_id = $1 AND status IN ('pending', 'retrying')", company
        )
        return cls(
            events=await db.fetch(_EVENTS, company),
            reservations=await db.fetch(_RESERVATIONS, company),
            mappings=await db.fetch("SELECT * FROM int_mappings WHERE company_id = $1", company),
            results=await db.fetch(_RESULTS, company),
            logged=frozenset(row["id"] for row in logged),
            letters=[row["event_id"] for row in letters],
        )

    # ------------------------------------------------------------------ for the rules of both forms

    def tables(self, cipher: Cipher, requeued: Mapping[UUID, int]) -> Tables:
        """requeued: how often each event was"""
        found = Tables()
        for row in self.events:
            found.events[row["id"]] = _event(row, requeued=row["id"] in requeued)
            found.keys[row["direction"] == "outbound", row["said_as"]] = row["id"]
        for row in self.reservations:
            stored = _stored(row)
            found.reservations[row["external_id"]] = stored
            if stored.has_guest:
                guest = Guest(**cipher.open(row["guest"]), language=row["language"], country=row["country"])
                found.guests[row["external_id"]] = guest, stored.version
        for row in self.mappings:
            found.mappings[row["external_entity_type"], row["external_entity_id"]] = row["internal_entity_id"]
        return found

    def told(self) -> list[Told]:
        """What the core was told of reservations. It had said what was recorded by then: what crosses on its way, nobody knows."""
        said_at = {
            row["idempotency_key"]: row["received_at"]
            for row in self.events
            if row["direction"] == "outbound" and row["parent_id"] is None
        }
        told = []
        for row in self.results:
            if row["event_type"] == UPSERTED:
                external = orjson.loads(row["data"])["reservation"]["externalId"]
                said = frozenset(key for key, at in said_at.items() if at <= row["created_at"])
                told.append(Told(_result(row), external, said))
        return told

    def found(self, said: Sequence[Said], connection: Connection, looks: Sequence[Look]) -> Iterator[Write]:
        """The commands that were done already when the vendor was asked, at the place in its order where it said so.

        A lane sends one command after the other: the last look before a delivery ended is the one that it ended with.
        """
        by_key = {f"{one.key}@{connection.id}": one for one in said}
        external: dict[tuple[EntityType, str], str] = {
            (EntityType(row["internal_entity_type"]), row["internal_entity_id"]): row["external_entity_id"]
            for row in self.mappings
        }
        for row in self.events:
            if not row["found"] or row["event_type"] == CREATE:  # a create is in the log since it was done
                continue
            data = by_key[row["said_as"]].data | orjson.loads(row["request"])
            command = parse_command(row["event_type"], data)
            (body,) = body_of(Command(row["id"], row["event_type"], "", "", command, external), connection)
            of = row["entity_external_id"]
            look = max(
                (one for one in looks if one.of == of and one.at <= row["processed_at"]), key=lambda one: one.place
            )
            members = {name: value for name, value in body.items() if name != "id"}
            yield Write(look.place, row["idempotency_key"], body.get("id"), members)

    def said_as(self, log: Sequence[Write]) -> list[Write]:
        """As the oracle reads it: a delivery under the key of its command and its connection."""
        names = {row["idempotency_key"]: row["said_as"] for row in self.events if row["parent_id"] is not None}
        return [replace(write, key=names.get(write.key, write.key)) for write in log]

    def reached(self) -> Iterator[str]:
        """What came to pass in it."""
        for row in self.events:
            if row["direction"] == "inbound" or row["parent_id"] is not None:
                why = f": {row['last_error']}" if row["status"] == "skipped" else ""
                yield f"{row['direction']} {row['status']}{why}"
            if row["found"]:
                yield "effect found"
            if row["attempts"] > 1:
                yield f"{row['direction']} tried again"

    # ------------------------------------------------------------------ for the rules of the fault suite

    def record(
        self,
        said: Sequence[Said],
        accepted: Sequence[Accepted],
        calls: Sequence[Call],
        heard: Mapping[str, int],
        requeued: Mapping[UUID, int],
    ) -> Record:
        """Where an operator has requeued what failed, its failures were told, too: a result each, beside the last one."""
        left = Counter(requeued)
        earlier = set()
        for row in self.results:
            if row["event_type"] == FAILED and left[row["cause_id"]] > 0:
                left[row["cause_id"]] -= 1
                earlier.add(row["id"])
        unsure = {row["lane"] for row in self.events if row["event_type"] == AVAILABILITY and row["id"] in requeued}
        return Record(
            accepted=accepted,
            said=[SaidTo(one.key, _entity(one), one.event_type) for one in said],
            events={row["id"]: _event_row(row, unsure) for row in self.events},
            logged=self.logged,
            results=[
                (row["id"], row["cause_id"], row["event_type"]) for row in self.results if row["id"] not in earlier
            ],
            heard={id_: times for id_, times in heard.items() if id_ not in set(map(str, earlier))},
            letters=self.letters,
            calls=calls,
            logged_calls=frozenset(row["id"] for row in self.events if row["request"] is not None),
            vendor_sound=False,
        )


def _event(row: Row, *, requeued: bool) -> Event:
    return Event(
        row["id"], row["seq"], row["event_type"], row["entity_type"] or "", row["idempotency_key"], None,
        row["received_at"], row["max_attempts"], status=EventStatus(row["status"]), requeued=requeued,
    )  # fmt: skip


def _result(row: Row) -> CoreEventRow:
    return CoreEventRow(
        row["company_id"], row["connection_id"], row["event_type"], row["subject"], row["data"], row["cause_id"],
        row["trace"], row["id"],
    )  # fmt: skip


def _stored(row: Row) -> Booking:
    entity = Reservation(**{name: row[name] for name in _FIELDS})
    version = Version(row["source_version"], row["observed_at"], row["tie"] % 100, row["tie"] >= 100)
    has_guest = row["guest_id"] is not None
    return Booking(str(row["id"]), entity, version, row["source_event"], has_guest, row["updated_at"], row["told_at"])


def _event_row(row: Row, unsure: set[str]) -> EventRow:
    """unsure: lanes whose order is not promised any more"""
    return EventRow(
        row["id"], row["seq"], row["direction"], row["event_type"], row["parent_id"], row["idempotency_key"],
        row["status"], None if row["lane"] in unsure else row["lane"], row["attempts"], row["starts"], row["last_error"],
    )  # fmt: skip


def _entity(said: Said) -> str:
    return str(said.data["roomTypeId"] if said.event_type == AVAILABILITY else said.data["reservationId"])
