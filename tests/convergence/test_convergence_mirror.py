"""The model's tables keep the rules of the SQL that they name: random steps on both, compared after each."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest

from adapters.port import MARKER, Fact
from schemas.entities import Guest, Reservation, Sourced, Version
from schemas.ids import uuid7
from schemas.vocabulary import EntityType, EventStatus, LanePolicy, ReservationStatus
from store import connections, dead_letters, inbound, ingest, outbound, pulls, relay, results, settle
from store.inbound import StateRow, StoredState
from store.outbound import CommandRow
from store.results import CoreEventRow
from store.seal import Cipher, KeyFile
from store.settle import FinishRow
from tests.convergence.model import COMPANY, CONNECTION, Event, Tables

Db = asyncpg.Connection
PAST, FUTURE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
NOW = datetime(2050, 1, 1, tzinfo=UTC)  # of the model: the database's own lies between PAST and FUTURE, too
SEEDS = range(12)
STEPS = 40


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Db]:
    KeyFile.create(tmp_path / "key")
    keys = KeyFile.read(tmp_path / "key")
    db = await asyncpg.connect(database_url)
    await connections.add_company(db, COMPANY, "Acme", keys.new_data_key())
    await connections.add_connection(db, CONNECTION, COMPANY, "beds24", "Lofts", None, {})
    yield db
    await db.close()


async def clear(db: Db) -> None:
    await db.execute("TRUNCATE channel_events, int_reservations, int_guests, int_mappings, dead_letters, own_writes")


# ------------------------------------------------------------------------------------------------ the fence


def state(rng: random.Random, markers: list[str]) -> Sourced[Reservation]:
    """Few values, so that states meet; `adults` tells one from another."""
    guest = rng.choice([None, Guest(last_name=f"L{rng.randrange(3)}", language=rng.choice([None, "en", "de"]))])
    entity = Reservation(
        external_id=str(rng.randrange(1, 4)), external_property_id="1", external_room_type_id="2",
        status=rng.choice([ReservationStatus.CONFIRMED, ReservationStatus.CANCELLED]), check_in=date(2027, 1, 1),
        check_out=date(2027, 1, 3), adults=rng.randrange(500), children=0, guest=guest,
        marker=rng.choice([None, None, *markers]),
    )  # fmt: skip
    version = Version(
        PAST + timedelta(seconds=rng.randrange(2)),
        rng.choice([PAST, FUTURE]) + timedelta(seconds=rng.randrange(3)),
        rng.choice([10, 99]),
        asked=rng.random() < 0.4,
    )
    return Sourced(entity, version, {"n": entity.adults})


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_fence(seed: int, db: Db) -> None:
    rng = random.Random(seed)
    cipher, tables = Cipher(bytes(32), COMPANY), Tables()
    told_at: dict[str, datetime] = {}
    commands = [f"B{n}" for n in range(2)]
    deliveries = [await deliver(db, tables, uuid7(), name, LanePolicy.HOLD) for name in commands]
    markers = [f"{MARKER}{id_}" for id_ in deliveries] + [f"{MARKER}somebody", "else's"]
    for _ in range(STEPS):
        sources = [await fact(db, tables) for _ in range(rng.randint(1, 3))]
        rows = [
            StateRow(
                COMPANY, CONNECTION, id_, cipher, state(rng, markers), "{}", None,
                rng.choice([None, '{"reservation":{}}']), "trace",
            )
            for id_ in sources
        ]  # fmt: skip
        settles = rng.random() < 0.5
        asked = [row for row in rows if row.sourced.version.asked]
        assert await inbound.overtaken(db, asked) == tables.overtaken(asked)
        real = await inbound.apply_states(db, rows, settled_from=PAST if settles else None)
        modelled = tables.apply_states(rows, NOW, settles=settles)
        assert real.applied.keys() == modelled.applied.keys()
        for key, applied in real.applied.items():
            told = modelled.applied[key]
            assert applied.created == told.created
            assert (applied.internal_id in commands) == (told.internal_id in commands)
            if applied.internal_id in commands:
                assert applied.internal_id == told.internal_id
        assert heard(real.told) == heard(modelled.told)
        assert real.told == (await results.untold(db, 0, 10) or [None])[0]
        await results.told(db, [real.told.id] if real.told else [])
        for id_ in sources:
            status = await db.fetchval("SELECT status FROM channel_events WHERE id = $1", id_)
            assert status == tables.events[id_].status
        behind = [row for row in rows if (row.event_id, row.key[1]) not in real.applied]
        assert await inbound.same_moment(db, behind) == tables.same_moment(behind)
        assert await stored(db, cipher) == modelled_rows(tables)
        known = await inbound.stored_states(db, [(CONNECTION, id_) for id_ in tables.reservations])
        assert {id_: of(state) for (_, id_), state in known.items()} == {
            id_: of(tables.stored_state(id_)) for id_ in tables.reservations
        }
        for external, told_before in told_at.items():
            assert told_before <= known[CONNECTION, external].told_at  # type: ignore[operator]
        told_at = {id_: state.told_at for (_, id_), state in known.items() if state.told_at is not None}


def of(state: StoredState | None) -> tuple[dict[str, Any], bool]:
    """Its fields, and whether anybody was told of it; when, each says by its own clock."""
    assert state is not None
    return dict(state.fields), state.told_at is not None


def heard(batch: results.Batch | None) -> dict[UUID, Any]:
    """What is told of each cause; the names that it is told by are the database's own."""
    found = {}
    for row in batch.rows if batch else ():
        data = orjson.loads(row.data)
        assert data.pop("reservationId") == row.subject
        data.pop("guestId", None)
        found[row.cause_id] = (row.company_id, row.connection_id, row.event_type, row.trace, data)
    return found


async def fact(db: Db, tables: Tables) -> UUID:
    """An inbound event in both, as webhooks and pulls record it."""
    told = Fact("beds24.booking.modified", EntityType.RESERVATION, "1", {}, None)
    id_, _ = tables.record(told, NOW, 3)
    await db.execute(
        "INSERT INTO channel_events (id, company_id, connection_id, direction, event_type, idempotency_key, payload)"
        " VALUES ($1, $2, $3, 'inbound', $4, $5, '{}')",
        id_, COMPANY, CONNECTION, told.event_type, str(id_),
    )  # fmt: skip
    return id_


async def stored(db: Db, cipher: Cipher) -> dict[str, Any]:
    rows = await db.fetch(
        "SELECT r.*, g.sealed AS guest, g.language FROM int_reservations r LEFT JOIN int_guests g ON g.id = r.guest_id"
    )
    return {
        row["external_id"]: (
            row["adults"], row["status"], row["source_version"], row["observed_at"], row["tie"], row["source_event"],
            cipher.open(row["guest"]).get("last_name"), row["language"],
        )
        for row in rows
    }  # fmt: skip


def modelled_rows(tables: Tables) -> dict[str, Any]:
    found = {}
    for external, row in tables.reservations.items():
        guest = tables.guests[external][0] if row.has_guest else None
        found[external] = (
            row.entity.adults, row.entity.status, row.version.modified_at, row.version.observed_at, row.version.rank,
            row.source_event, guest.last_name if guest else None, guest.language if guest else None,
        )  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------------ lanes and leases


async def deliver(db: Db, tables: Tables, id_: UUID, name: str, policy: LanePolicy) -> UUID:
    """A delivery in both, the last of its lane."""
    row = CommandRow(
        id=id_, company_id=COMPANY, connection_id=CONNECTION, parent_id=uuid7(), event_type="pms.booking.create",
        entity_type="reservation", entity_internal_id=name, idempotency_key=str(id_), payload="{}", sealed=None,
        lane=f"lane {name} {policy}", lane_policy=policy.value, max_attempts=3, trace=None,
    )  # fmt: skip
    assert await outbound.insert_commands(db, [row]) == {id_}
    assert row.lane is not None
    tables.events[id_] = Event(
        id_, len(tables.events), row.event_type, "reservation", row.idempotency_key, {}, NOW, 3, entity_internal_id=name,
        lane=row.lane, lane_policy=policy,
    )  # fmt: skip
    return id_


def succeeded(row: Any, name: str | None) -> outbound.DeliveryRow:
    told = CoreEventRow(COMPANY, CONNECTION, "core.command.succeeded", str(name), "{}", row.id, None)
    token = UUID(int=row.lease_token)
    return outbound.DeliveryRow(row.id, row.attempts, token, NOW, None, str(name), "reservation", None, None, told)


class Lanes:
    """A few deliveries in both, and what may happen to one."""

    def __init__(self, db: Db, rng: random.Random) -> None:
        self.db, self.rng, self.tables = db, rng, Tables()
        self.leases = 0

    async def step(self) -> None:
        acts = [self.deliver, self.claim, self.claim, self.finish, self.finish, self.requeue, self.expire, self.due]
        await self.rng.choice([*acts, self.supersede, self.inbound_lease, self.begin_alone])()
        rows = await self.db.fetch("SELECT id, status, attempts, starts, next_attempt_at FROM channel_events")
        real = {r["id"]: (r["status"], r["attempts"], r["starts"], r["next_attempt_at"]) for r in rows}
        assert real == {
            e.id: (e.status.value, e.attempts, e.starts, e.next_attempt_at) for e in self.tables.events.values()
        }

    def some(self, *statuses: EventStatus) -> Event | None:
        found = [e for e in self.tables.events.values() if not statuses or e.status in statuses]
        return self.rng.choice(found) if found else None

    async def deliver(self) -> None:
        policy = self.rng.choice([LanePolicy.HOLD, LanePolicy.SUPERSEDE])
        await deliver(self.db, self.tables, uuid7(), self.rng.choice("ab"), policy)

    async def claim(self) -> None:
        event = self.some()
        if event is not None:
            self.leases += 1
            mine = self.tables.claim(event.id, self.leases, NOW)
            for _ in range(self.rng.choice([1, 2])):  # its answer may be lost
                taken = await outbound.claim(self.db, [event.id], "w", -1.0, UUID(int=self.leases))
                assert [(row.id, row.attempts, row.starts) for row in taken] == (
                    [(mine.id, mine.attempts, mine.starts)] if mine else []
                )
            if mine is not None and mine.lane_policy is LanePolicy.SUPERSEDE:
                older = await outbound.older_in_lane(self.db, event.id, 2)
                assert {row.lease_token for row in older} <= {UUID(int=self.leases)}
                assert [(row.id, row.attempts, row.starts) for row in older] == [
                    (e.id, e.attempts, e.starts) for e in self.tables.older_in_lane(mine, 2)
                ]

    async def finish(self) -> None:
        event = self.some(EventStatus.PROCESSING)
        if event is None or event.lease_token is None:
            return
        row = self.tables.row(event.id)
        if self.rng.random() < 0.3:  # one that slept through its lease
            row.lease_token = self.rng.randint(1, self.leases)
        status = self.rng.choice(["done", "failed", "retrying"])
        due = self.rng.choice([PAST, FUTURE]) if status == "retrying" else None
        end = FinishRow(
            id=row.id, status=status, attempts=row.attempts, starts=0 if status == "done" else self.rng.choice([0, 1]),
            next_attempt_at=due, error_class=None, last_error="x", error_code=None, keep_attempt=True, outcome=status,
            started_at=NOW,
        )  # fmt: skip
        if status == "done":
            held, told = await outbound.succeed(self.db, [succeeded(row, event.entity_internal_id)])
            assert (told is not None) == (row.id in held)
        else:
            lease = row.id, UUID(int=row.lease_token)
            if self.rng.random() < 0.5:  # as a hint is ended, else as a delivery
                # Beside one that ended long ago: it may have been leased anew by who slept through that.
                held = {id_ for id_, _ in await inbound.lock_held(self.db, [(row.id, UUID(int=0)), lease])}
                end.lease_token = lease[1]
                assert await settle.finish(self.db, [end]) == len(held)
            elif held := await outbound.lock_leased(self.db, [lease]):
                assert await settle.finish(self.db, [end]) == 1
        assert (row.id in held) == self.tables.holds(row)
        if held:
            self.tables.finish(end)

    async def requeue(self) -> None:
        event = self.some(EventStatus.FAILED)
        if event is not None:
            again = await dead_letters.requeue(self.db, [event.id], "test")
            assert bool(again) == self.tables.requeue(event.id)

    async def expire(self) -> None:
        for row in await relay.take(self.db, relay.Look("expired", 0.0), 100):
            self.tables.expire(row.id)
        assert not [e for e in self.tables.events.values() if e.status is EventStatus.PROCESSING]

    async def due(self) -> None:
        await relay.take(self.db, relay.Look("due", 0.0), 100)
        self.tables.due(NOW)

    async def supersede(self) -> None:
        event = self.some()
        if event is not None:
            told = CoreEventRow(COMPANY, CONNECTION, "core.command.succeeded", "x", "{}", event.id, None)
            row = outbound.SupersededRow(event.id, "sent with another", None, None, told)
            batch = await outbound.supersede(self.db, [row])
            assert (batch is not None) == (event.status in {EventStatus.RECEIVED, EventStatus.RETRYING})
            self.tables.supersede([event.id])

    async def inbound_lease(self) -> None:
        """Of facts about which the vendor must be asked; to the statement all events are alike."""
        event = self.some()
        if event is not None:
            self.leases += 1
            starts = self.tables.lease(event.id, self.leases, NOW)
            for _ in range(self.rng.choice([1, 2])):  # its answer may be lost
                leased = await inbound.lease(self.db, [event.id], "w", -1.0, 1, UUID(int=self.leases))
                assert leased == ({} if starts is None else {event.id: starts})

    async def begin_alone(self) -> None:
        event = self.some()
        if event is not None and event.lease_token is not None:
            token = self.rng.choice([event.lease_token, self.leases + 1])
            held = self.tables.begin_alone(event.id, token)
            for _ in range(self.rng.choice([1, 2])):  # its answer may be lost
                assert await outbound.begin_alone(self.db, event.id, UUID(int=token), -1.0) == held


@pytest.mark.parametrize("seed", SEEDS)
async def test_lanes_and_leases(seed: int, db: Db) -> None:
    lanes = Lanes(db, random.Random(seed))
    for _ in range(3):
        await lanes.deliver()
    for _ in range(STEPS * 2):
        await lanes.step()


# ------------------------------------------------------------------------------------------------ keys, names, pulls


async def test_a_key_is_recorded_once_and_its_end_lets_what_is_stored_be_compared(db: Db) -> None:
    tables = Tables()
    told = Fact("beds24.booking.modified", EntityType.RESERVATION, "1", {}, "k")
    ids = []
    for suffix in ("", "", "~x"):
        id_, new = tables.record(told, NOW, 3, suffix)
        row = ingest.FactRow(
            id=uuid7(), company_id=COMPANY, connection_id=CONNECTION, property_id=None, event_type=told.event_type,
            entity_type="reservation", entity_external_id="1", idempotency_key=f"{CONNECTION}:k{suffix}", payload="{}",
            sealed=None, trace="", max_attempts=3,
        )  # fmt: skip
        (outcome,) = await ingest.record_facts(db, [row])
        assert outcome.recorded == new
        ids.append((outcome.id, id_))
    assert len({real for real, _ in ids}) == len({mine for _, mine in ids}) == 2
    real, mine = ids[0]
    sourced = state(random.Random(1), []).entity.model_copy(update={"external_id": "1", "guest": None})
    version = Version(PAST, PAST)
    cipher = Cipher(bytes(32), COMPANY)
    for here, id_ in ((db, real), (None, mine)):
        reservation = StateRow(COMPANY, CONNECTION, id_, cipher, Sourced(sourced, version, {}), "{}", None)
        if here is not None:
            await inbound.apply_states(here, [reservation])
        else:
            tables.apply_states([reservation], NOW)
    assert (await pulls.stored(db, CONNECTION, [("1", real)]), tables.stored("1", mine)) == ({}, None)
    await db.execute("UPDATE channel_events SET status = 'done' WHERE id = $1", real)
    tables.events[mine].status = EventStatus.DONE
    found = (await pulls.stored(db, CONNECTION, [("1", real)]))[0]
    modelled = tables.stored("1", mine)
    assert modelled is not None
    assert (found.source_event, found.source_version) == (real, modelled.version.modified_at)
    assert (dict(found.fields), False) == of(tables.stored_state("1"))
