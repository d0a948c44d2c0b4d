"""Plays one schedule without broker and database: what happens outside, and workers that overlap and die.

Each step of a worker ends where the real one commits, calls or answers, so that any other step can come between. What a step
does is the real code wherever that is pure; what it reads and writes is `model.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from adapters.beds24.client import Beds24
from adapters.beds24.mapping import body_of
from adapters.errors import AdapterError, Unknown
from adapters.port import MARKER, Command, Effects, Hint, Recorded, Repeat
from schemas.commands import parse_command
from schemas.connection import Connection
from schemas.vocabulary import MAX_STARTS, EntityType, EventStatus, LanePolicy
from store.directory import Known
from store.outbound import lane_prefix
from store.seal import Cipher
from topology.retry import POLICIES
from workers import delivery_rows, echo, inbound_rows
from workers.decide import decide, poison
from workers.echo import is_echo, tells_more
from workers.hints import DOUBTS, in_doubt
from workers.inbound import ECHO
from workers.outcome import Defer, Done, Outcome, Park, Skip
from workers.pull import is_astray
from workers.say import PAGE, ask_or_execute, say

from .model import COMPANY, CONNECTION, OPEN, Event, OwnWrite, Tables
from .outside import CREATE, PROPERTY, ROOMS, Op, Outside, Told
from .vendor import BASE, Clock, Fate, Vendor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import datetime
    from uuid import UUID

    from adapters.port import Budget, Fact, Page
    from store.results import Batch

    from .outside import Said, Traits

T = TypeVar("T")

POLICY = POLICIES["channel_event"]
OVERLAP = timedelta(minutes=10)


@dataclass(slots=True)
class Session:
    """port.Session and what workers.delivery asks of one."""

    adapter: Beds24
    connection: Connection
    http: Vendor
    now: Callable[[], datetime]
    budget: Budget | None = None

    async def access_token(self) -> str:
        return "token"

    async def renew_token(self, _refused: str) -> str:
        return "token"

    def spent(self, budget: Budget) -> None:
        self.budget = budget


@dataclass(slots=True)
class Reading:
    """An inbound event in a worker's hands. leased: its row says so."""

    work: inbound_rows.Work
    worker: int
    leased: bool = False


@dataclass(slots=True)
class Sending:
    """A delivery in a worker's hands. stage: what was done last."""

    work: delivery_rows.Work
    worker: int
    stage: str = "claimed"


@dataclass(slots=True)
class Pulling:
    pages: Any  # the adapter's generator
    started_at: datetime


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what never waits for anything but its turn."""
    try:
        while coroutine.send(None) is None:
            pass
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("the model's I/O never waits")


class Lane:
    """say.Older of the model, as workers/lane.py."""

    def __init__(self, machine: Machine, newest: delivery_rows.Work) -> None:
        self._machine = machine
        self._newest = newest

    async def waiting(self) -> list[delivery_rows.Work]:
        of = self._newest
        return [
            delivery_rows.Work(row, of.started_at, of.known)  # type: ignore[arg-type]
            for row in self._machine.tables.older_in_lane(of.row, PAGE)  # type: ignore[arg-type]
        ]

    def read(self, older: delivery_rows.Work) -> Command:
        return command_of(older.row)

    async def resolved(self, command: Command) -> Command:
        return delivery_rows.with_ids(command, CONNECTION, self._machine.tables.external_ids())

    async def said(self, part: Sequence[delivery_rows.Work]) -> None:
        self._machine.reached["a part alone"] += 1
        self._machine.tables.supersede([work.row.id for work in part])

    async def refused(self, older: delivery_rows.Work, error: Exception) -> None:
        self._machine.reached["older refused"] += 1
        assert isinstance(error, AdapterError)
        older.outcome = self._machine.not_sent(older, error, Repeat.SAFE)
        self._machine.tables.finish(delivery_rows.finish_row(older, self._machine.clock.ours()))


def command_of(row: Any) -> Command:
    data = parse_command(row.event_type, row.payload)
    return Command(row.id, row.event_type, row.idempotency_key, f"{MARKER}{row.id}", data, {})


class Machine(Outside):
    def __init__(self, traits: Traits) -> None:
        clock = Clock(timedelta(seconds=traits.skew))
        config = {"base_url": BASE, "currency": "EUR", "fetch": "always" if traits.always_fetch else "hint"}
        super().__init__(
            traits,
            Connection(CONNECTION, COMPANY, "beds24", "Harbour Lofts", config=config),
            Vendor(clock, echoes=traits.echoes, restamps=traits.restamps, distinct=traits.webhooks_alone),
        )
        self.tables = Tables()
        self.adapter = Beds24()
        self.known = Known(self.connection, Cipher(bytes(32), COMPANY), ())
        self.covered_until = self.clock.ours()
        self.readings: list[Reading] = []
        self.sendings: list[Sending] = []
        self.pulling: Pulling | None = None
        self.workers = 0
        self.reached: Counter[str] = Counter()  # what schedules are for: how often each came to pass
        for external, internal in ((PROPERTY, "P1"), (ROOMS[0], "RT1"), (ROOMS[1], "RT2")):
            kind = EntityType.PROPERTY if internal == "P1" else EntityType.ROOM_TYPE
            self.tables.learn(kind.value, external, internal)
        self.steps = {op: getattr(self, f"_{op.name.lower()}") for op in Op}

    def play(self, schedule: Sequence[tuple[int, int, int]]) -> None:
        for op, a, b in schedule:
            self.steps[op](a, b)  # type: ignore[index]

    # ------------------------------------------------------------------ time, the network

    def _quick(self, a: int, b: int) -> None:
        before = len(self.vendor.letters)
        self._change(a, b)
        if len(self.vendor.letters) > before:
            known = self.tables.events.keys() | set()
            self._receive(self.vendor.letters.pop())
            for id_ in self.tables.events.keys() - known:
                reading = self.read(self.tables.events[id_])
                while reading in self.readings:
                    self.go_on_reading(reading)

    def _moment(self, a: int, _b: int) -> None:
        self.clock.pass_by(0.05 + (a % 8) / 20)

    def _seconds(self, a: int, _b: int) -> None:
        self.clock.pass_by(1 + a % 30)

    def _minutes(self, a: int, _b: int) -> None:
        self.clock.pass_by(60 + 60 * (a % 25))

    def _fate(self, a: int, b: int) -> None:
        """Of the next call; sometimes of all that an attempt has, and of the attempts after it."""
        self.vendor.fates.extend([list(Fate)[a % len(Fate)]] * (1 if b % 4 else 5))

    # ------------------------------------------------------------------ ingress

    def _receive(self, letter: Any) -> None:
        for fact in self.adapter.parse(letter.request(self.clock.vendors()), self.connection):
            _, new = self.tables.record(fact, self.clock.ours(), POLICY.attempts)
            self.reached["webhook" if new else "webhook that is known"] += 1

    # ------------------------------------------------------------------ the router

    def _repeat(self, a: int, b: int) -> None:
        known = len(self.tables.events)
        super()._repeat(a, b)
        assert len(self.tables.events) == known, "a command that is known has a row once more"

    def _publish(self, said: Said) -> None:
        """As workers.router: one delivery for the one connection, in the order of recording."""
        command = parse_command(said.event_type, said.data)
        kind, internal = command.lane_entity()
        policy = self.adapter.manifest.commands[said.event_type].lane
        lane = f"{lane_prefix(kind, internal)}{CONNECTION}"
        self.tables.insert_delivery(
            said.event_type, (kind.value, internal), f"{said.key}@{CONNECTION}", said.data, (lane, policy),
            self.clock.ours(), POLICY.attempts,
        )  # fmt: skip

    # ------------------------------------------------------------------ inbound, as workers/inbound.py

    def _take_in(self, a: int, _b: int) -> None:
        found = self.tables.open(outbound=False)
        if found:
            self.read(found[a % len(found)])

    def read(self, event: Event) -> Reading:
        """_begin, _interpret, _mark_echoes"""
        row = self.tables.row(event.id)
        work = inbound_rows.Work(row, self.known, "beds24", self.clock.ours())  # type: ignore[arg-type]
        kind = EntityType(row.entity_type)
        fact = Recorded(row.id, row.event_type, kind, row.entity_external_id, row.payload, row.received_at)
        try:
            found = self.adapter.interpret(fact, self.connection)
        except AdapterError as error:
            work.outcome = self._failed(work, error)
        else:
            work.outcome = found if isinstance(found, Hint) else self._echo_or_done(work, found)
        self.workers += 1
        reading = Reading(work, self.workers)
        self.readings.append(reading)
        return reading

    def _echo_or_done(self, work: inbound_rows.Work, effects: Effects) -> Outcome:
        """_mark_echoes"""
        (reservation,) = effects.reservations
        found = self.tables.own_writes_of(work.row.entity_external_id)
        marker = reservation.entity.marker
        if not found and marker and (write := self.tables.own_write_by_marker(marker)) is not None:
            found = [write]
        writes = [
            echo.OwnWrite(write.expected, write.written_at, self.tables.events[write.event_id].received_at)
            for write in found
        ]
        if not is_echo(reservation, writes):
            return Done(effects)
        self.reached["echo"] += 1
        work.own_writes = writes
        return Skip(ECHO, effects)

    def _unmark(self, works: Sequence[inbound_rows.Work]) -> None:
        for work in works:
            match work.outcome:
                case Skip(effects=Effects(reservations=(sourced,)) as effects) if work.own_writes:
                    stored = self.tables.stored_state(sourced.entity.external_id)
                    if tells_more(sourced, work.own_writes, stored):
                        self.reached["echo that tells more"] += 1
                        work.outcome = Done(effects)
                case _:
                    pass

    def _go_on_in(self, a: int, _b: int) -> None:
        if self.readings:
            self.go_on_reading(self.readings[a % len(self.readings)])

    def go_on_reading(self, reading: Reading) -> None:
        work = reading.work
        if not isinstance(work.outcome, Hint):
            self.settle_readings([reading])
        elif not reading.leased:
            self._lease(reading)
        else:
            if work.starts == MAX_STARTS:
                self.tables.begin_alone(work.row.id, reading.worker)
            self._fetch(work)

    def _lease(self, reading: Reading) -> None:
        work = reading.work
        starts = self.tables.lease(work.row.id, reading.worker, self.clock.ours())
        if starts is None:
            self.readings.remove(reading)
            return
        reading.leased, work.starts = True, starts
        if starts > MAX_STARTS:
            self.reached["poison"] += 1
            work.outcome = poison(starts)

    def _fetch(self, work: inbound_rows.Work) -> None:
        self.clock.pass_by(0.001)  # since what was stored last, some time has passed
        hint = work.outcome
        try:
            found = drive(self.adapter.fetch(self._session(), [hint]))
        except AdapterError as error:
            work.outcome = self._failed(work, error)
            return
        effects = found.get(hint)  # type: ignore[arg-type]
        work.outcome = self._echo_or_done(work, effects) if effects is not None else Skip("gone at the vendor")
        work.fetched = True

    def _failed(self, work: inbound_rows.Work, error: AdapterError) -> Outcome:
        row = work.row
        return decide(error, POLICY, attempt=row.attempts + 1, max_attempts=row.max_attempts, random=_half)

    def _settle_in(self, _a: int, _b: int) -> None:
        """Two of the same event are two workers', each with a transaction of its own."""
        ready = [reading for reading in self.readings if not isinstance(reading.work.outcome, Hint)]
        first = {reading.work.row.id: reading for reading in ready}
        self.settle_readings(list(first.values()))

    def settle_readings(self, readings: Sequence[Reading]) -> None:
        """_settle: the plain ones by one statement, what is left by a transaction."""
        for reading in readings:
            self.readings.remove(reading)
        readings = [reading for reading in readings if self._may_end(reading)]
        plain = [reading for reading in readings if inbound_rows.is_plain(reading.work)]
        rest = [reading for reading in readings if reading not in plain]
        self._write(rest + self._apply(plain))

    def _may_end(self, reading: Reading) -> bool:
        """What was leased is ended by its lease only."""
        event = self.tables.events[reading.work.row.id]
        if not reading.leased:
            return event.status in OPEN
        held = event.status is EventStatus.PROCESSING and event.lease_token == reading.worker
        self.reached["lease of a hint lost"] += not held
        return held

    def _apply(self, readings: Sequence[Reading]) -> list[Reading]:
        """returns those that it left open"""
        states = [row for reading in readings for row in inbound_rows.state_rows(reading.work)]
        stored = self.tables.apply_states(states, self.clock.ours(), settles=True)
        self._tell(stored.told)
        ids = {id_ for id_, _ in stored.applied}
        self.reached["inbound Done"] += len(ids)
        return [reading for reading in readings if reading.work.row.id not in ids]

    def _write(self, readings: Sequence[Reading]) -> None:
        works = [reading.work for reading in readings]
        self._unmark(works)
        states = [row for work in works for row in inbound_rows.state_rows(work)]
        overtaken = self.tables.overtaken([row for row in states if row.sourced.version.asked])
        states = [row for row in states if row.event_id not in overtaken]
        stored = self.tables.apply_states(states, self.clock.ours())
        self._tell(stored.told)
        fetched = {work.row.id for work in works if work.fetched}
        behind = [
            row for row in states if (row.event_id, row.key[1]) not in stored.applied and row.event_id not in fetched
        ]
        doubtful = overtaken | self.tables.same_moment(behind)
        for reading in readings:
            work = reading.work
            if work.row.id in doubtful and not self._put_off(work):
                self.reached["asked again" if work.row.id in overtaken else "asked which is newer"] += 1
                in_doubt(work)
                self.readings.append(reading)
                continue
            outcome = inbound_rows.final(work, stored.applied, set())
            self.reached[f"inbound {type(outcome).__name__}"] += 1
            self.tables.finish(inbound_rows.finish_row(work, outcome, self.clock.ours()))

    def _put_off(self, work: inbound_rows.Work) -> bool:
        if work.fetched and work.doubts >= DOUBTS:
            self.reached["overtaken again and again"] += 1
            work.outcome = Defer(self.clock.ours() + timedelta(seconds=1.5), "overtaken")
            return True
        return False

    def _tell(self, batch: Batch | None) -> None:
        for row in batch.rows if batch else ():
            external = self.tables.events[row.cause_id].entity_external_id
            self.told.append(Told(row, external, frozenset(said.key for said in self.said)))
            self._hear(row.subject)

    def _die_in(self, a: int, _b: int) -> None:
        if self.readings:
            self.die_reading(self.readings[a % len(self.readings)])

    def die_reading(self, reading: Reading) -> None:
        """Its message comes again, or its lease runs out."""
        self.readings.remove(reading)
        self.run_out()

    def _sleep_in(self, a: int, _b: int) -> None:
        leased = [reading for reading in self.readings if reading.leased]
        if leased:
            self._expire(leased[a % len(leased)].work.row.id, leased[a % len(leased)].worker)

    # ------------------------------------------------------------------ outbound, as workers/delivery.py

    def _take_out(self, a: int, _b: int) -> None:
        found = [e for e in self.tables.open(outbound=True) if e.status is not EventStatus.PROCESSING]
        if found:
            self.claim(found[a % len(found)])

    def claim(self, event: Event) -> Sending | None:
        """_claim, _prepare"""
        self.workers += 1
        row = self.tables.claim(event.id, self.workers, self.clock.ours())
        if row is None:
            return None
        work = delivery_rows.Work(row, self.clock.ours(), self.known, doubt=row.starts > 1)  # type: ignore[arg-type]
        sending = Sending(work, self.workers)
        self.sendings.append(sending)
        if row.starts > MAX_STARTS:
            self.reached["poison"] += 1
            work.outcome = poison(row.starts)
            sending.stage = "called"
            return sending
        work.command = command_of(row)
        return sending

    def _go_on_out(self, a: int, _b: int) -> None:
        if self.sendings:
            self.go_on_sending(self.sendings[a % len(self.sendings)])

    def go_on_sending(self, sending: Sending) -> None:
        row = sending.work.row
        if sending.stage == "claimed":
            if row.starts == MAX_STARTS and not self.tables.begin_alone(row.id, sending.worker):
                self.sendings.remove(sending)
                return
            self._note(sending.work)
            sending.stage = "noted"
        elif sending.stage == "noted":
            self._call(sending.work)
            sending.stage = "called"
        else:
            self._settle_sending(sending)

    def _note(self, work: delivery_rows.Work) -> None:
        """_resolve_and_note"""
        assert work.command is not None
        work.command = delivery_rows.with_ids(work.command, CONNECTION, self.tables.external_ids())
        note = delivery_rows.own_write(work.row, work.command)
        if note is not None:
            id_, _, _, external, marker, expected = note
            self.tables.note_own_write(OwnWrite(id_, external, marker, orjson.loads(expected), self.clock.ours()))

    def _call(self, work: delivery_rows.Work) -> None:
        """_ask"""
        row, command = work.row, work.command
        assert command is not None
        repeat = self.adapter.manifest.commands[row.event_type].repeat
        if work.doubt:
            self.reached["call in doubt"] += 1
        try:
            if row.lane_policy is LanePolicy.SUPERSEDE:
                reply = drive(say(self._session(), work, Lane(self, work), repeat))  # type: ignore[arg-type]
                command = work.command
            else:
                delivery_rows.all_mapped(command)
                reply = drive(ask_or_execute(self._session(), work, command, repeat))  # type: ignore[arg-type]
        except AdapterError as error:
            if isinstance(error, Unknown):
                work.doubt = True
            work.outcome = self.not_sent(work, error, repeat)
        else:
            work.external_id = reply.external_id
            work.outcome = Done(reply)
            self.reached["effect found"] += reply.found
            if reply.found and row.event_type != CREATE:
                (body,) = body_of(command, self.connection)
                self.vendor.note(row.idempotency_key, body.get("id"), body)

    def not_sent(self, work: delivery_rows.Work, error: AdapterError, repeat: Repeat) -> Outcome:
        row = work.row
        return decide(error, POLICY, attempt=row.attempts, max_attempts=row.max_attempts, random=_half, repeat=repeat)

    def _settle_sending(self, sending: Sending) -> None:
        """_write"""
        self.sendings.remove(sending)
        work = sending.work
        if not self.tables.holds(work.row):
            self.reached["lease lost"] += 1
            return
        self.reached[f"outbound {type(work.outcome).__name__}"] += 1
        if work.external_id is not None and work.command is not None:
            kind, internal = work.command.data.lane_entity()
            if kind is EntityType.RESERVATION:
                self.tables.learn(kind.value, work.external_id, internal)
            self.tables.answer_own_write(work.row.id, work.external_id)
        self.tables.finish(delivery_rows.finish_row(work, self.clock.ours()))
        if isinstance(work.outcome, Done):
            self.reached["superseded"] += len(work.absorbed)
            self.tables.supersede([older.row.id for older in work.absorbed])
        elif not work.doubt:
            self.tables.forget_own_write(work.row.id)
        elif isinstance(work.outcome, Park) and work.itself and work.row.lane_policy is LanePolicy.SUPERSEDE:
            self._end_with(work, work.outcome)

    def _end_with(self, newest: delivery_rows.Work, park: Park) -> None:
        """lane.end_with"""
        for row in self.tables.older_in_lane(newest.row, PAGE):  # type: ignore[arg-type]
            self.reached["ended with a newer one"] += 1
            now = self.clock.ours()
            work = delivery_rows.Work(row, now, outcome=park, doubt=row.starts > 0)  # type: ignore[arg-type]
            self.tables.finish(delivery_rows.finish_row(work, now))

    def _die_out(self, a: int, _b: int) -> None:
        if self.sendings:
            self.die_sending(self.sendings[a % len(self.sendings)])

    def _sleep_out(self, a: int, _b: int) -> None:
        """Whoever sleeps before the call and makes it later is not played: that is not promised."""
        called = [sending for sending in self.sendings if sending.stage == "called"]
        if called:
            self._expire(called[a % len(called)].work.row.id, called[a % len(called)].worker)

    def _expire(self, id_: UUID, worker: int) -> None:
        event = self.tables.events[id_]
        if event.status is EventStatus.PROCESSING and event.lease_token == worker:
            self.tables.expire(id_)

    def die_sending(self, sending: Sending) -> None:
        """Its lease runs out."""
        self.sendings.remove(sending)
        self.run_out()

    # ------------------------------------------------------------------ scheduler and operators

    def _due(self, _a: int, _b: int) -> None:
        """The next retry's time comes."""
        waiting = [e.next_attempt_at for e in self.tables.events.values() if e.next_attempt_at is not None]
        if waiting:
            self.clock.at = max(self.clock.at, min(waiting) - self.clock.skew)
            self.tables.due(self.clock.ours())

    def run_out(self) -> None:
        """Leases that nobody works on any more end."""
        alive = {hand.worker for hand in (*self.readings, *self.sendings)}
        for event in self.tables.events.values():
            if event.status is EventStatus.PROCESSING and event.lease_token not in alive:
                self.tables.expire(event.id)

    def _requeue(self, a: int, _b: int) -> None:
        failed = self.tables.failed()
        if failed:
            self.reached["requeued"] += self.tables.requeue(failed[a % len(failed)].id)

    # ------------------------------------------------------------------ pull, as workers/pull.py

    def _pull(self, _a: int, _b: int) -> None:
        if self.pulling is None and not self.traits.webhooks_alone:
            self.pulling = Pulling(
                self.adapter.changes(self._session(), self.covered_until - OVERLAP), self.clock.ours()
            )

    def _go_on_pull(self, _a: int, _b: int) -> None:
        if self.pulling is not None:
            self.go_on_pulling(self.pulling)

    def go_on_pulling(self, pulling: Pulling) -> None:
        """A page, or the end: only then is it remembered how far it came."""
        try:
            page: Page | None = drive(_next(pulling.pages))
        except AdapterError:
            self.pulling = None
            return
        if page is None:
            self.covered_until = pulling.started_at
            self.pulling = None
            return
        for fact in page.facts:
            self._record_pulled(fact)

    def _record_pulled(self, fact: Fact) -> None:
        """_record, _astray"""
        now = self.clock.ours()
        id_, new = self.tables.record(fact, now, POLICY.attempts)
        self.reached["pulled" if new else "pulled that is known"] += 1
        stored = None if new else self.tables.stored(fact.external_id, id_)
        if stored is None:
            return
        recorded = Recorded(id_, fact.event_type, fact.entity_type, fact.external_id, fact.payload, now)
        meant = self.adapter.interpret(recorded, self.connection)
        assert isinstance(meant, Effects)
        state = self.tables.stored_state(fact.external_id)
        guest = self.tables.sealed_guest(fact.external_id)
        fields = state.fields if state else {}
        if is_astray(meant.reservations[0], stored.version.modified_at, fields, guest):
            self.reached["astray"] += 1
            self.tables.record(fact, now, POLICY.attempts, suffix=f"~{stored.source_event}")

    def _die_pull(self, _a: int, _b: int) -> None:
        self.pulling = None

    def _session(self) -> Session:
        return Session(self.adapter, self.connection, self.vendor, self.clock.ours)


async def _next(pages: Any) -> Page | None:
    return await anext(pages, None)  # type: ignore[no-any-return]


def _half() -> float:
    return 0.5
