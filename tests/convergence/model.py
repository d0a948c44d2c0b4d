"""The tables that matter for convergence, by the rules of the SQL that each method names; `test_mirror.py` holds both together.

A method is one statement or one transaction: nothing of another worker comes between. Rows are handed out as copies.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from schemas.vocabulary import MAX_STARTS, OPEN_STATUSES, EventStatus, LanePolicy, Result
from store.inbound import SEALED_GUEST, Applied, Stored, StoredState, _command
from store.results import Batch, CoreEventRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from adapters.port import Fact
    from schemas.entities import Guest, Reservation, Sourced, Version
    from store.inbound import StateRow
    from store.settle import FinishRow

COMPANY, CONNECTION = "acme", "beds24-acme"
OPEN = frozenset(OPEN_STATUSES)
_WAITING = frozenset({EventStatus.RECEIVED, EventStatus.RETRYING})
_UNFINISHED = OPEN | {EventStatus.FAILED}


@dataclass(slots=True)
class Event:
    """A row of channel_events, as far as any rule looks at it."""

    id: UUID
    seq: int
    event_type: str
    entity_type: str
    idempotency_key: str
    payload: Any
    received_at: datetime
    max_attempts: int
    entity_external_id: str = ""
    entity_internal_id: str = ""
    status: EventStatus = EventStatus.RECEIVED
    attempts: int = 0
    starts: int = 0
    lane: str | None = None
    lane_policy: LanePolicy | None = None
    next_attempt_at: datetime | None = None
    lease_token: int | None = None  # of a claim or lease alone
    error_class: str | None = None
    requeued: bool = False  # for the oracle: an operator gave it a fresh budget
    company_id: str = COMPANY
    connection_id: str = CONNECTION
    trace: str | None = None

    @property
    def outbound(self) -> bool:
        return self.lane_policy is not None


@dataclass(frozen=True, slots=True)
class Booking:
    """A row of int_reservations. has_guest: its guest_id is set."""

    internal_id: str  # the row's own id
    entity: Reservation
    version: Version
    source_event: UUID
    has_guest: bool
    updated_at: datetime
    told_at: datetime | None


@dataclass(frozen=True, slots=True)
class OwnWrite:
    event_id: UUID
    external_id: str | None
    marker: str
    expected: Mapping[str, Any]
    written_at: datetime


@dataclass(slots=True)
class Tables:
    events: dict[UUID, Event] = field(default_factory=dict)
    keys: dict[tuple[bool, str], UUID] = field(default_factory=dict)
    reservations: dict[str, Booking] = field(default_factory=dict)
    guests: dict[str, tuple[Guest, Version]] = field(default_factory=dict)
    mappings: dict[tuple[str, str], str] = field(default_factory=dict)  # (entity type, external id) → internal id
    own_writes: dict[UUID, OwnWrite] = field(default_factory=dict)
    ids: int = 0

    def new_id(self) -> UUID:
        self.ids += 1
        return uuid.UUID(int=self.ids)

    def row(self, id_: UUID) -> Event:
        return copy.copy(self.events[id_])

    def open(self, *, outbound: bool) -> list[Event]:
        return [e for e in self.events.values() if e.outbound == outbound and e.status in OPEN]

    def failed(self) -> list[Event]:
        return [e for e in self.events.values() if e.status is EventStatus.FAILED]

    # ------------------------------------------------------------------ store/sql/ingest.sql

    def record(self, fact: Fact, now: datetime, max_attempts: int, suffix: str = "") -> tuple[UUID, bool]:
        """record: ON CONFLICT (company_id, direction, idempotency_key) DO NOTHING. returns (its row, whether it is new)"""
        id_ = self.new_id()
        key = f"{CONNECTION}:{fact.idempotency_key or id_}{suffix}"
        known = self.keys.setdefault((False, key), id_)
        if known == id_:
            self._add(
                Event(
                    id_, self.ids, fact.event_type, fact.entity_type.value, key, fact.payload, now, max_attempts,
                    entity_external_id=fact.external_id,
                )
            )  # fmt: skip
        return known, known == id_

    # ------------------------------------------------------------------ store/sql/inbound.sql

    def apply_states(self, rows: Iterable[StateRow], now: datetime, *, settles: bool = False) -> Stored:
        """Of several states the newest is tried (store.inbound); the fence is the WHERE of the statement's upserts."""
        newest: dict[str, StateRow] = {}
        for row in rows:
            known = newest.get(row.sourced.entity.external_id)
            if known is None or known.sourced.version < row.sourced.version:
                newest[row.sourced.entity.external_id] = row
        applied = {}
        told = []
        for external, row in sorted(newest.items()):
            event_id, sourced = row.event_id, row.sourced
            has_guest = self._upsert_guest(external, sourced)
            before = self.reservations.get(external)
            if before is not None and not sourced.version.replaces(before.version):
                continue
            row_id = before.internal_id if before else str(self.new_id())
            kept = before is not None and before.has_guest
            told_at = now if row.told is not None else before.told_at if before else None
            self.reservations[external] = Booking(
                row_id, sourced.entity, sourced.version, event_id, has_guest or kept, now, told_at
            )
            internal = self.mappings.get(("reservation", external)) or self._name(sourced) or row_id
            if before is None:
                self.mappings.setdefault(("reservation", external), internal)  # ON CONFLICT DO NOTHING
            applied[event_id, external] = Applied(internal, before is None)
            if row.told is not None:
                told.append(_result(row, internal, created=before is None))
            if settles:
                event = self.events[event_id]
                event.status, event.attempts, event.starts = EventStatus.DONE, 1, 0
                event.next_attempt_at = event.error_class = event.lease_token = None
        return Stored(applied, Batch(self.new_id(), told) if told else None)

    def _name(self, sourced: Sourced[Reservation]) -> str | None:
        """The CTE `ours`: what the core calls the booking that it created, unless another booking has that name."""
        command = _command(sourced.entity.marker)
        event = self.events.get(command) if command is not None else None
        if event is None or event.entity_internal_id in self.mappings.values():
            return None
        return event.entity_internal_id

    def stored_state(self, external: str) -> StoredState | None:
        """stored_states"""
        stored = self.reservations.get(external)
        if stored is None:
            return None
        return StoredState(stored.entity.model_dump(exclude={"guest", "marker", "external_id"}), stored.told_at)

    def sealed_guest(self, external: str) -> dict[str, Any] | None:
        """What is sealed of the guest."""
        stored = self.reservations.get(external)
        if stored is None or not stored.has_guest:
            return None
        return self.guests[external][0].model_dump(include=SEALED_GUEST, exclude_none=True)

    def _upsert_guest(self, external: str, sourced: Sourced[Reservation]) -> bool:
        """The CTE `guest`: a row and a fence of its own; language and country are kept where a state does not tell them."""
        guest = sourced.entity.guest
        if guest is None or not guest.is_known():
            return False
        before = self.guests.get(external)
        if before is None:
            self.guests[external] = guest, sourced.version
        elif sourced.version.replaces(before[1]):
            kept = {name: getattr(guest, name) or getattr(before[0], name) for name in ("language", "country")}
            self.guests[external] = guest.model_copy(update=kept), sourced.version
        return True

    def overtaken(self, rows: Iterable[StateRow]) -> set[UUID]:
        """overtaken: a webhook of the same modification time was stored since the API was asked."""
        found = set()
        for row in rows:
            stored, version = self.reservations.get(row.sourced.entity.external_id), row.sourced.version
            if stored is None or stored.source_event == row.event_id or stored.version.asked:
                continue
            if stored.version.modified_at == version.modified_at and stored.updated_at >= version.observed_at:
                found.add(row.event_id)
        return found

    def same_moment(self, rows: Iterable[StateRow]) -> set[UUID]:
        """same_moment: as new as what another event stored."""
        found = set()
        for row in rows:
            stored = self.reservations.get(row.sourced.entity.external_id)
            if stored is None or stored.source_event == row.event_id:
                continue
            if row.sourced.version.modified_at == stored.version.modified_at:
                found.add(row.event_id)
        return found

    def lease(self, id_: UUID, token: int, now: datetime) -> int | None:
        """lease: the vendor must be asked first. returns its starts, this one included; None: somebody else has it"""
        event = self.events[id_]
        if event.status not in _WAITING or (event.next_attempt_at is not None and event.next_attempt_at > now):
            return None
        event.status, event.lease_token, event.next_attempt_at = EventStatus.PROCESSING, token, None
        event.starts += event.starts < MAX_STARTS
        return event.starts

    def begin_alone(self, id_: UUID, token: int) -> bool:
        """begin_alone: counts the last start. returns whether the lease is still held"""
        event = self.events[id_]
        if event.status is not EventStatus.PROCESSING or event.lease_token != token:
            return False
        event.starts = MAX_STARTS + 1
        return True

    # ------------------------------------------------------------------ store/sql/pulls.sql

    def stored(self, external: str, event_id: UUID) -> Booking | None:
        """stored: only where the event has had its end."""
        over = self.events[event_id].status in {EventStatus.DONE, EventStatus.SKIPPED}
        return self.reservations.get(external) if over else None

    # ------------------------------------------------------------------ store/sql/settle.sql, dead_letters.sql, relay.sql

    def finish(self, row: FinishRow) -> None:
        """finish; the caller has looked whether the row may still be finished."""
        event = self.events[row.id]
        event.status, event.attempts, event.starts = EventStatus(row.status), row.attempts, row.starts
        event.next_attempt_at, event.error_class = row.next_attempt_at, row.error_class
        event.lease_token = None

    def gone_past(self, event: Event) -> bool:
        """is_overtaken: something newer of its lane went out, also merged, is being sent, or may have been done and goes again
        without waiting for this one."""
        ended = {EventStatus.PROCESSING, EventStatus.DONE, EventStatus.SUPERSEDED}
        holds = event.lane_policy is LanePolicy.HOLD
        newer = [other for other in self.events.values() if other.lane == event.lane and other.seq > event.seq]
        return event.lane is not None and any(
            other.status in ended or (other.status in _WAITING and other.starts > 0 and not holds) for other in newer
        )

    def requeue(self, id_: UUID) -> bool:
        """requeue: a fresh budget; what nobody answered is still asked before it is repeated."""
        event = self.events[id_]
        if self.gone_past(event):
            return False
        event.status, event.attempts, event.next_attempt_at = EventStatus.RECEIVED, 0, None
        event.starts = min(event.starts, 1)
        event.requeued = True
        return True

    def due(self, now: datetime) -> None:
        """due: retries whose time has come."""
        for event in self.events.values():
            if event.status is EventStatus.RETRYING and event.next_attempt_at and event.next_attempt_at <= now:
                event.status, event.next_attempt_at = EventStatus.RECEIVED, None

    def expire(self, id_: UUID) -> None:
        """expired: the worker that had it did not answer; its starts stay."""
        event = self.events[id_]
        event.status, event.error_class = EventStatus.RECEIVED, "unknown"

    # ------------------------------------------------------------------ store/sql/outbound.sql

    def insert_delivery(
        self, event_type: str, entity: tuple[str, str], key: str, payload: Any, lane: tuple[str, LanePolicy],
        now: datetime, max_attempts: int,
    ) -> UUID | None:  # fmt: skip
        """insert_commands: in the order of the lane; None for a key that is known."""
        if (True, key) in self.keys:
            return None
        id_ = self.new_id()
        self.keys[True, key] = id_
        self._add(
            Event(
                id_, self.ids, event_type, entity[0], key, payload, now, max_attempts, entity_internal_id=entity[1],
                lane=lane[0], lane_policy=lane[1],
            )
        )  # fmt: skip
        return id_

    def is_free(self, event: Event) -> bool:
        """lane_is_free"""
        lane = [other for other in self.events.values() if other.lane == event.lane and other is not event]
        if event.lane_policy is LanePolicy.HOLD:
            return not any(other.seq < event.seq and other.status in _UNFINISHED for other in lane)
        return not any(
            other.status is EventStatus.PROCESSING or (other.status in _WAITING and other.seq > event.seq)
            for other in lane
        )

    def claim(self, id_: UUID, token: int, now: datetime) -> Event | None:
        """claim: a lease, if it is due and its lane lets it run. Counts the start before it happens, but for the last."""
        event = self.events[id_]
        due = event.next_attempt_at is None or event.next_attempt_at <= now
        if event.status not in _WAITING or not due or not self.is_free(event):
            return None
        event.status, event.lease_token, event.next_attempt_at = EventStatus.PROCESSING, token, None
        event.attempts += 1
        event.starts += event.starts < MAX_STARTS
        return self.row(id_)

    def holds(self, row: Event) -> bool:
        """lock_leased: the token of the lease."""
        event = self.events[row.id]
        return event.status is EventStatus.PROCESSING and event.lease_token == row.lease_token

    def older_in_lane(self, row: Event, most: int) -> list[Event]:
        """older_in_lane: the oldest first, attempts count this one."""
        older = [e for e in self.events.values() if e.lane == row.lane and e.seq < row.seq and e.status in _WAITING]
        rows = [self.row(e.id) for e in sorted(older, key=lambda e: e.seq)[:most]]
        for found in rows:
            found.attempts += 1
        return rows

    def supersede(self, ids: Sequence[UUID]) -> None:
        """supersede"""
        for event in map(self.events.__getitem__, ids):
            if event.status in _WAITING:
                event.status, event.next_attempt_at = EventStatus.SUPERSEDED, None

    def external_ids(self) -> dict[tuple[str, str, str], str]:
        return {(CONNECTION, kind, internal): external for (kind, external), internal in self.mappings.items()}

    def learn(self, entity_type: str, external: str, internal: str) -> None:
        """succeed: ON CONFLICT DO UPDATE SET internal_entity_id"""
        self.mappings[entity_type, external] = internal

    def note_own_write(self, write: OwnWrite) -> None:
        """note_own_writes: again: the time and the fields are the new ones, a known external id is kept."""
        before = self.own_writes.get(write.event_id)
        external = write.external_id or (before.external_id if before else None)
        self.own_writes[write.event_id] = OwnWrite(
            write.event_id, external, write.marker, write.expected, write.written_at
        )

    def answer_own_write(self, event_id: UUID, external: str) -> None:
        write = self.own_writes.get(event_id)
        if write is not None:
            self.own_writes[event_id] = OwnWrite(event_id, external, write.marker, write.expected, write.written_at)

    def forget_own_write(self, event_id: UUID) -> None:
        """forget_own_writes"""
        self.own_writes.pop(event_id, None)

    def own_writes_of(self, external: str) -> list[OwnWrite]:
        """The sub-select of `load`."""
        return [write for write in self.own_writes.values() if write.external_id == external]

    def own_write_by_marker(self, marker: str) -> OwnWrite | None:
        """own_writes: of a create that is not answered yet."""
        return next((w for w in self.own_writes.values() if w.marker == marker and w.external_id is None), None)

    def _add(self, event: Event) -> None:
        self.events[event.id] = event


def _result(row: StateRow, internal_id: str, *, created: bool) -> CoreEventRow:
    """The CTE `result`, but for the guest's id, which the model does not have."""
    data = {"reservationId": internal_id, "created": created} | orjson.loads(row.told or "{}")
    return CoreEventRow(
        row.company_id, row.connection_id, Result.RESERVATION_UPSERTED, internal_id, orjson.dumps(data).decode(),
        row.event_id, row.trace,
    )  # fmt: skip
