"""Was anything lost, done twice, or done in the wrong order? Pure: from what was said, and what is there, to violations.

Said is what the world outside knows: which webhooks were accepted, what the vendor's bookings are, which commands were
published in which order. There is what the database holds and what the vendor's journal shows. The two are compared, and
every sentence of the answer names the row, booking or call that is wrong.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

CREATE = "pms.booking.create"
AVAILABILITY = "pms.availability.update"
OPEN = frozenset({"received", "processing", "retrying"})
ENDED = frozenset({"done", "skipped", "superseded", "failed", "abandoned"})
SUCCEEDED, FAILED = "core.command.succeeded", "core.command.failed"
TOLD_AS = {"done": SUCCEEDED, "superseded": SUCCEEDED, "failed": FAILED}  # what others hear of a command that ended so


@dataclass(frozen=True, slots=True)
class Accepted:
    """A webhook that was answered 200 or 202, with the ids in the answer."""

    ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A command as the core said it; per `entity` they are listed in the order of saying."""

    key: str
    entity: str
    type: str


@dataclass(frozen=True, slots=True)
class Stay:
    """What a booking is, whoever tells."""

    check_in: str
    check_out: str
    adults: int
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One write at the vendor, from its own journal. key: of the delivery; seconds; applied: the work was done; said: its own
    key, where the delivery was said with others."""

    key: str
    began: float
    ended: float
    applied: bool
    created: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True)
class EventRow:
    id: UUID
    seq: int
    direction: str
    type: str
    parent_id: UUID | None
    key: str
    status: str
    lane: str | None
    attempts: int
    starts: int
    error: str | None
    retries: int = 0  # attempts that the vendor answered badly or not at all, by the history


@dataclass(frozen=True, slots=True)
class Job:
    """An operator's. asked: the events that it was to repeat; repeated: those that it did, as often as it did; done: as it says"""

    id: UUID
    asked: frozenset[UUID]
    repeated: Sequence[UUID]
    status: str
    done: int


@dataclass(slots=True)
class Record:
    """All that is known when everything has come to rest.

    events         of this stretch, by id
    logged         ids of events in the log of accepted webhooks
    results        (result id, cause id, type)
    heard          result ids as the core heard them; each at least once
    letters        event ids of dead letters; None where there is no event
    stored         external id → booking as we hold it
    told           external id → that booking as the core was told it by the event that stored it last; none for an echo
    echoes         ids of events that tell of nothing but our own writes
    vendors        external id → booking as the vendor holds it, of those that were told by webhook
    wanted, got    entity → the state that the commands ask for, and the vendor's; comparable values
    logged_calls   ids of deliveries with a line in the log of what was said to the vendor
    look_up        the command types whose effect the vendor lets us look up
    waiting        queue → messages left over; results_waiting: results that nobody was told
    vendor_sound   every answer of the vendor was a good one: then a fact is handled in one attempt
    unhurt         nor was a process killed: then a delivery is, too
    expected_letters  how many dead letters without an event were provoked: one each, however often a message came
    """

    accepted: Sequence[Accepted] = ()
    said: Sequence[Said] = ()
    events: Mapping[UUID, EventRow] = field(default_factory=dict)
    logged: frozenset[UUID] = frozenset()
    results: Sequence[tuple[UUID, UUID, str]] = ()
    heard: Mapping[str, int] = field(default_factory=dict)
    letters: Sequence[UUID | None] = ()
    stored: Mapping[str, Stay] = field(default_factory=dict)
    vendors: Mapping[str, Stay] = field(default_factory=dict)
    told: Mapping[str, Stay] = field(default_factory=dict)
    echoes: frozenset[UUID] = frozenset()
    wanted: Mapping[str, object] = field(default_factory=dict)
    got: Mapping[str, object] = field(default_factory=dict)
    calls: Sequence[Call] = ()
    logged_calls: frozenset[UUID] = frozenset()
    jobs: Sequence[Job] = ()
    look_up: frozenset[str] = frozenset({CREATE})
    waiting: Mapping[str, int] = field(default_factory=dict)
    results_waiting: int = 0
    unhurt: bool = False
    vendor_sound: bool = True
    expected_letters: int = 0


def violations(record: Record) -> list[str]:
    """Empty when every promise was kept."""
    found: list[str] = []
    for check in (_lost, _open, _state, _told, _results, _commands, _effects, _letters, _jobs, _attempts, _rest):
        found += check(record)
    found += [f"repeated: {said}" for said in _repeats(record, record.look_up)]
    found += [*_order(record), *_lanes(record)]
    return found


def repeats(record: Record) -> Counter[str]:
    """Command type → calls that were made again though an earlier one of the same delivery had been done."""
    types = {row.key: row.type for row in record.events.values()}
    return Counter(types.get(call.key, "unknown") for call in _again(record))


def _lost(record: Record) -> Iterator[str]:
    """Every accepted webhook has its line in the log and its rows."""
    for webhook in record.accepted:
        for id_ in webhook.ids:
            if id_ not in record.events:
                yield f"lost: accepted webhook has no event row {id_}"
            if id_ not in record.logged:
                yield f"lost: accepted webhook is not in the log: {id_}"


def _open(record: Record) -> Iterator[str]:
    for row in record.events.values():
        if row.status in OPEN:
            yield f"open: {row.type} {row.id} is {row.status} after {row.attempts} attempts: {row.error}"
        elif row.status not in ENDED:
            yield f"open: {row.type} {row.id} has the status {row.status}"


def _state(record: Record) -> Iterator[str]:
    """Ours equals the vendor's; the vendor's equals what the commands say."""
    for id_, theirs in record.vendors.items():
        if (ours := record.stored.get(id_)) != theirs:
            yield f"state: booking {id_} is {ours} here and {theirs} at the vendor"
    for entity, wanted in record.wanted.items():
        if (got := record.got.get(entity)) != wanted:
            yield f"state: {entity} is {got} at the vendor, the commands say {wanted}"


def _told(record: Record) -> Iterator[str]:
    """The core was told what is stored, and nothing of what it had said itself."""
    for id_, told in record.told.items():
        if (ours := record.stored.get(id_)) != told:
            yield f"told: booking {id_} is {ours} here and was told as {told}"
    for id_ in record.echoes:
        if (row := record.events.get(id_)) is not None and row.status != "skipped":
            yield f"told: {row.type} {id_} ({row.status}) is an echo of our own write"


def _results(record: Record) -> Iterator[str]:
    """One result for each fact applied and each delivery ended; each told, and nothing told that is not stored."""
    by_cause = Counter(cause for _, cause, _ in record.results)
    for row in record.events.values():
        told = by_cause.pop(row.id, 0)
        if row.direction == "inbound":
            due = 1 if row.status == "done" else 0
        elif row.parent_id is None:
            due = 1 if row.status == "failed" else 0
        else:
            due = 1 if row.status in {"done", "superseded", "failed"} else 0
        if told != due:
            yield f"results: {row.type} {row.id} ({row.status}) has {told} results, not {due}"
    for id_, cause, type_ in record.results:
        of = record.events.get(cause)
        if of is not None and of.direction == "outbound" and type_ != TOLD_AS.get(of.status):
            yield f"results: {of.type} {cause} ({of.status}) was told as {type_} in {id_}"
    for cause, told in by_cause.items():
        yield f"results: {told} of an event {cause} that is not there"
    known = {str(id_) for id_, *_ in record.results}
    for result in known - record.heard.keys():
        yield f"results: {result} was never heard"
    for result in record.heard.keys() - known:
        yield f"results: {result} was heard and is not stored"


def _commands(record: Record) -> Iterator[str]:
    """Every command that was said has its row and ended well; there is none that nobody said."""
    parents = {row.key: row for row in record.events.values() if row.direction == "outbound" and row.parent_id is None}
    children: defaultdict[UUID, list[EventRow]] = defaultdict(list)
    for row in record.events.values():
        if row.parent_id is not None:
            children[row.parent_id].append(row)
    for said in record.said:
        parent = parents.pop(said.key, None)
        if parent is None:
            yield f"lost: command {said.key} has no row"
            continue
        deliveries = children.pop(parent.id, [])
        if len(deliveries) != 1:
            yield f"commands: {said.key} ({parent.status}) has {len(deliveries)} deliveries"
        for row in deliveries:
            if row.status not in {"done", "superseded"}:
                yield f"commands: delivery of {said.key} is {row.status}: {row.error}"
    for key in parents:
        yield f"commands: a command {key} that nobody said"


def _effects(record: Record) -> Iterator[str]:
    """What is done was said to the vendor, and made one booking; the vendor heard nothing else."""
    applied = {call.key for call in record.calls if call.applied}
    deliveries = {row.key: row for row in record.events.values() if row.parent_id is not None}
    for key, row in deliveries.items():
        if row.status == "done" and key not in applied:
            yield f"effects: {key} is done, and the vendor knows nothing of it"
        if row.status == "done" and row.id not in record.logged_calls:
            yield f"effects: {key} is done, and what was said is not in the log"
        if row.status == "superseded" and key in applied and record.unhurt:
            yield f"effects: {key} is superseded, and was sent"
    for key in {call.key for call in record.calls} - deliveries.keys():
        yield f"effects: the vendor was called with {key}, which is no delivery of ours"
    for key, times in Counter(call.key for call in record.calls if call.created).items():
        if times > 1:
            yield f"effects: {key} made {times} bookings"


def _letters(record: Record) -> Iterator[str]:
    strangers = sum(letter is None for letter in record.letters)
    if strangers != record.expected_letters:
        yield f"letters: {record.expected_letters} unreadable messages, {strangers} dead letters of them"
    for letter in record.letters:
        if letter is not None:
            row = record.events.get(letter)
            what = f"{row.type} {row.key}: {row.error}" if row else str(letter)
            yield f"letters: a dead letter that nothing explains: {what}"


def _jobs(record: Record) -> Iterator[str]:
    """Each of them did all that it was to do, once, and says so."""
    for job in record.jobs:
        if (job.status, job.done) != ("done", len(job.asked)):
            yield f"jobs: {job.id} is {job.status} after {job.done} of {len(job.asked)}"
        times = Counter(job.repeated)
        for id_ in job.asked | times.keys():
            if times[id_] != (1 if id_ in job.asked else 0):
                yield f"jobs: {job.id} repeated {id_} {times[id_]} times"


def _attempts(record: Record) -> Iterator[str]:
    """Shutdowns, and brokers and databases that are away, are no attempts."""
    for row in record.events.values():
        if row.status not in {"done", "skipped"}:
            continue
        if row.starts != 0:
            yield f"attempts: {row.type} {row.id} is {row.status} with {row.starts} unanswered starts"
        sound = record.vendor_sound if row.direction == "inbound" else record.unhurt
        if row.attempts != 1 + row.retries and sound:
            yield f"attempts: {row.type} {row.id} is {row.status} after {row.attempts} attempts"


def _rest(record: Record) -> Iterator[str]:
    for queue, count in record.waiting.items():
        if count:
            yield f"queues: {count} messages wait in {queue}"
    if record.results_waiting:
        yield f"results: {record.results_waiting} batches that nobody was told"


def _again(record: Record) -> Iterator[Call]:
    done: set[str] = set()
    for call in sorted(record.calls, key=lambda call: call.began):
        said = call.said or call.key
        if said in done:
            yield call
        if call.applied:
            done.add(said)


def _repeats(record: Record, types: frozenset[str]) -> Iterator[str]:
    known = {row.key: row.type for row in record.events.values()}
    for call in _again(record):
        if known.get(call.key) in types:
            yield f"{known[call.key]} {call.key} was called again after it had been done"


def _order(record: Record) -> Iterator[str]:
    """Per entity: recorded as it was said."""
    parents = {row.id: row.key for row in record.events.values() if row.parent_id is None}
    recorded: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in record.events.values():
        if row.parent_id is not None and row.parent_id in parents:
            recorded[parents[row.parent_id]].append((row.seq, row.key))
    by_entity: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for said in record.said:
        by_entity[said.entity] += recorded[said.key]
    for entity, sequence in by_entity.items():
        if sequence != sorted(sequence):
            yield f"order: commands about {entity} were recorded as {[key for _, key in sorted(sequence)]}"


def _lanes(record: Record) -> Iterator[str]:
    """Per lane: called as it was recorded, and never two calls at once."""
    rows = {row.key: row for row in record.events.values()}
    lanes: defaultdict[str, list[tuple[Call, EventRow]]] = defaultdict(list)
    for call in sorted(record.calls, key=lambda call: call.began):
        row = rows.get(call.key)
        if row is not None and row.lane is not None:
            lanes[row.lane].append((call, row))
    for lane, calls in lanes.items():
        for (earlier, one), (later, other) in itertools.pairwise(calls):
            if other.seq < one.seq:
                yield f"order: in {lane} {other.key} was called after {one.key}"
            if later.began < earlier.ended:
                yield f"order: in {lane} {other.key} was called while {one.key} was under way"
