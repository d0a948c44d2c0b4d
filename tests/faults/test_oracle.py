"""The oracle finds what it shall find: pure, from records that are wrong in one place each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest

from tests.faults.oracle import (
    FAILED,
    SUCCEEDED,
    Accepted,
    Call,
    EventRow,
    Job,
    Record,
    Said,
    Stay,
    repeats,
    violations,
)

FACT, COMMAND, DELIVERY, UPDATE, UPDATING = (UUID(int=n) for n in range(1, 6))
STAY = Stay("2027-01-01", "2027-01-03", 2, cancelled=False)
LANE = "reservation:B-1@beds24"


def row(id_: UUID, seq: int, direction: str, type_: str, key: str, parent: UUID | None = None) -> EventRow:
    lane = LANE if parent else None
    return EventRow(id_, seq, direction, type_, parent, key, "done", lane, attempts=1, starts=0, error=None)


def sound() -> Record:
    """A webhook, and a booking that the core makes and changes."""
    return Record(
        accepted=[Accepted((FACT,))],
        said=[Said("c", "B-1", "pms.booking.create"), Said("u", "B-1", "pms.booking.update")],
        events={
            FACT: row(FACT, 1, "inbound", "beds24.booking.created", "f"),
            COMMAND: row(COMMAND, 2, "outbound", "pms.booking.create", "c"),
            DELIVERY: row(DELIVERY, 3, "outbound", "pms.booking.create", "c@", COMMAND),
            UPDATE: row(UPDATE, 4, "outbound", "pms.booking.update", "u"),
            UPDATING: row(UPDATING, 5, "outbound", "pms.booking.update", "u@", UPDATE),
        },
        logged=frozenset({FACT}),
        results=[
            (UUID(int=10), FACT, "core.reservation.upserted"),
            *((UUID(int=10 + n), cause, SUCCEEDED) for n, cause in ((1, DELIVERY), (2, UPDATING))),
        ],
        heard={str(UUID(int=10 + n)): 1 for n in range(3)},
        stored={"7": STAY},
        vendors={"7": STAY},
        told={"7": STAY},
        wanted={"B-1": [STAY]},
        got={"B-1": [STAY]},
        calls=[Call("c@", 1.0, 2.0, applied=True, created=True), Call("u@", 3.0, 4.0, applied=True)],
        logged_calls=frozenset({DELIVERY, UPDATING}),
        jobs=[Job(UUID(int=20), frozenset({FACT, DELIVERY}), [DELIVERY, FACT], "done", 2)],
        waiting={"beds24.inbound": 0},
        unhurt=True,
    )


def test_a_sound_record_has_nothing_wrong() -> None:
    assert violations(sound()) == []
    assert not repeats(sound())


def _row(record: Record, id_: UUID, **changes: object) -> None:
    record.events = {**record.events, id_: replace(record.events[id_], **changes)}  # type: ignore[arg-type]


def _job(record: Record, **changes: object) -> None:
    record.jobs = [replace(record.jobs[0], **changes)]  # type: ignore[arg-type]


def _without(record: Record, id_: UUID) -> None:
    record.events = {known: row for known, row in record.events.items() if known != id_}


WRONG: dict[str, tuple[str, Callable[[Record], object]]] = {
    "an accepted webhook without a row": ("lost: accepted", lambda r: _without(r, FACT)),
    "an accepted webhook without a line in the log": ("lost: accepted", lambda r: setattr(r, "logged", frozenset())),
    "a row left open": ("open: beds24", lambda r: _row(r, FACT, status="received")),
    "an older state": ("state: booking 7", lambda r: setattr(r, "stored", {"7": replace(STAY, adults=1)})),
    "a booking that is not ours": ("state: booking 7", lambda r: setattr(r, "stored", {})),
    "two bookings for one command": ("state: B-1", lambda r: setattr(r, "got", {"B-1": [STAY, STAY]})),
    "another state told": ("was told as", lambda r: setattr(r, "told", {"7": replace(STAY, adults=1)})),
    "an echo told": ("is an echo", lambda r: setattr(r, "echoes", frozenset({FACT}))),
    "a failure told of a success": (
        f"was told as {FAILED}",
        lambda r: setattr(r, "results", [*r.results[:2], (r.results[2][0], UPDATING, FAILED)]),
    ),
    "a call that is not in the log": ("not in the log", lambda r: setattr(r, "logged_calls", frozenset({UPDATING}))),
    "a job that came to no end": ("jobs: ", lambda r: _job(r, status="running", done=1)),
    "a job that left something out": (f"repeated {FACT} 0 times", lambda r: _job(r, repeated=[DELIVERY])),
    "a job that did something twice": (f"repeated {FACT} 2 times", lambda r: _job(r, repeated=[FACT, FACT, DELIVERY])),
    "a job that did what nobody asked for": (
        f"repeated {UPDATING} 1 times",
        lambda r: _job(r, repeated=[FACT, DELIVERY, UPDATING]),
    ),
    "a job that counts too much": ("done after 3 of 2", lambda r: _job(r, done=3)),
    "two results": ("results: beds24", lambda r: setattr(r, "results", [*r.results, (UUID(int=10), FACT, "core")])),
    "no result": ("results: beds24", lambda r: setattr(r, "results", r.results[1:])),
    "a result that nobody heard": ("never heard", lambda r: setattr(r, "heard", {})),
    "a result before its commit": ("not stored", lambda r: setattr(r, "heard", {**r.heard, "x": 1})),
    "a command without a row": ("lost: command c", lambda r: _without(r, COMMAND)),
    "a command that failed": ("delivery of u is failed", lambda r: _row(r, UPDATING, status="failed")),
    "a command that nobody said": ("that nobody said", lambda r: setattr(r, "said", r.said[:1])),
    "done without a call": ("knows nothing", lambda r: setattr(r, "calls", r.calls[:1])),
    "a stranger's call": ("no delivery", lambda r: setattr(r, "calls", [*r.calls, Call("x", 5, 6, applied=True)])),
    "a create twice": (
        "made 2 bookings",
        lambda r: setattr(r, "calls", [*r.calls, Call("c@", 5, 6, applied=True, created=True)]),
    ),
    "a create called again": ("repeated", lambda r: setattr(r, "calls", [*r.calls, Call("c@", 5, 6, applied=False)])),
    "calls in the wrong order": (
        "was called after",
        lambda r: setattr(r, "calls", [r.calls[1], replace(r.calls[0], began=8, ended=9)]),
    ),
    "calls at once": ("under way", lambda r: setattr(r, "calls", [r.calls[0], replace(r.calls[1], began=1.5)])),
    "recorded in the wrong order": ("recorded as", lambda r: setattr(r, "said", r.said[::-1])),
    "an attempt too many": ("after 2 attempts", lambda r: _row(r, DELIVERY, attempts=2)),
    "a start that nobody answered": ("unanswered", lambda r: _row(r, FACT, starts=1)),
    "a dead letter": ("nothing explains", lambda r: setattr(r, "letters", [FACT])),
    "a dead letter of nothing": ("0 unreadable messages, 1", lambda r: setattr(r, "letters", [None])),
    "a dead letter that is missing": ("1 unreadable", lambda r: setattr(r, "expected_letters", 1)),
    "a message left over": ("wait in", lambda r: setattr(r, "waiting", {"beds24.dlq": 1})),
    "results left over": ("nobody was told", lambda r: setattr(r, "results_waiting", 1)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_each_wrong_is_found(wrong: str) -> None:
    words, spoil = WRONG[wrong]
    record = sound()
    spoil(record)
    assert any(words in violation for violation in violations(record)), violations(record)


def test_only_what_the_vendor_lets_us_look_up_may_never_be_called_again() -> None:
    record = sound()
    record.calls = [*record.calls, Call("u@", 5.0, 6.0, applied=True)]
    assert violations(record) == []
    assert repeats(record) == {"pms.booking.update": 1}
    record.look_up = frozenset({"pms.booking.update"})
    assert any("repeated" in violation for violation in violations(record))
