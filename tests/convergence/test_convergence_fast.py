"""Thousands of random schedules without broker and database; and that breaking what holds them together is found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.beds24 import mapping, webhook
from adapters.beds24.client import Beds24
from schemas.commands import AvailabilityUpdate, CommandData
from schemas.entities import Version
from schemas.vocabulary import MAX_STARTS
from tests.convergence import machine, model, schedule
from tests.convergence.__main__ import many, report
from tests.convergence.outside import Op, Traits
from workers import delivery_rows, inbound_rows
from workers.echo import tells_more
from workers.outcome import Done

SCHEDULES = 10_000
START = int(os.environ.get("STAYBUS_CONVERGENCE_START", "0"))  # of the seeds


@pytest.mark.timeout(900)  # half a minute of two free processors
def test_ten_thousand_random_schedules_end_at_one_truth() -> None:
    print(f"seeds {START} to {START + SCHEDULES - 1}")
    bad = many(START, SCHEDULES, processes=2)
    assert not bad, "\n".join(map(report, bad[:3]))


def test_a_seed_is_the_same_schedule_with_the_same_end_again() -> None:
    for seed in range(20):
        first, second = (schedule.play(schedule.of(seed)) for _ in range(2))
        assert first.vendor.log == second.vendor.log
        assert first.tables.reservations == second.tables.reservations
        assert first.reached == second.reached


_STEP = st.tuples(st.sampled_from([int(op) for op in Op]), st.integers(0, 999), st.integers(0, 999))
_TRAITS = st.builds(
    Traits,
    skew=st.sampled_from([0.0, 2.5, -2.5]),
    echoes=st.booleans(),
    always_fetch=st.booleans(),
    lose_the_rest=st.booleans(),
    late=st.booleans(),
    workers_die=st.booleans(),
)


@settings(derandomize=True, max_examples=400, database=None)
@given(steps=st.lists(_STEP, max_size=40), traits=_TRAITS)
def test_schedules_of_hypothesis_end_at_one_truth(steps: list[schedule.Step], traits: Traits) -> None:
    one = schedule.Schedule(tuple(steps), traits)
    found = schedule.faults(one)
    assert not found, f"{schedule.shown(one)}\n{found}"


MEETINGS = {
    "webhook that is known", "pulled", "pulled that is known", "astray", "echo", "echo that tells more", "asked which is newer",
    "asked again",
    "call in doubt", "effect found", "superseded", "lease lost", "lease of a hint lost", "requeued", "poison", "inbound Retry",
    "inbound Park", "outbound Retry", "outbound Park",
}  # fmt: skip


# A hint that kills its workers: each dies while the vendor is asked, the last one beside nothing else. Seldom dealt.
_ASKED, _DIED = ((Op.TAKE_IN, 0, 0), (Op.GO_ON_IN, 0, 0), (Op.GO_ON_IN, 0, 0)), ((Op.DIE_IN, 0, 0), (Op.DUE, 0, 0))
DEADLY = schedule.Schedule(((Op.BOOK, 12, 0), (Op.DELIVER, 0, 0), *((*_ASKED, *_DIED) * (MAX_STARTS + 1))), Traits())


def test_what_schedules_are_for_happens_in_them() -> None:
    assert not schedule.faults(DEADLY)
    reached = Counter(schedule.play(DEADLY).reached)
    assert reached["inbound Park"]
    for seed in range(5_000):
        reached += schedule.play(schedule.of(seed)).reached
        if reached.keys() >= MEETINGS:
            return
    pytest.fail(f"never seen: {MEETINGS - reached.keys()}")


# ------------------------------------------------------------------------------------------------ was wrong once

_FULL, _ID_ONLY = 0, 12  # numbers that give a webhook this form
WRONG_ONCE: dict[str, schedule.Schedule] = {
    "a fetch, then a change in the same second and its webhook, then the fetch is settled": schedule.Schedule(
        (
            *((Op.BOOK, _ID_ONLY, 0), (Op.DELIVER, 0, 0), (Op.TAKE_IN, 0, 0), (Op.GO_ON_IN, 0, 0), (Op.GO_ON_IN, 0, 0)),
            *((Op.QUICK, 0, 2), (Op.GO_ON_IN, 0, 0)),
        ),
        Traits(echoes=True, webhooks_alone=True),
    ),
    "two hints of one second, the first of them fetched before the second change": schedule.Schedule(
        (
            *((Op.BOOK, _ID_ONLY, 0), (Op.DELIVER, 0, 0), (Op.TAKE_IN, 0, 0), (Op.GO_ON_IN, 0, 0), (Op.GO_ON_IN, 0, 0)),
            (Op.TOGGLE, 0, _ID_ONLY),
        ),
        Traits(echoes=True, webhooks_alone=True),
    ),
    "the second of two changes in one second is stored, and the webhook of the first comes after a pull": schedule.Schedule(
        ((Op.BOOK, 830, 432), (Op.CHANGE, 365, 870), (Op.DELIVER, 887, 489)), Traits(late=True)
    ),
    "our clock is behind the vendor's, and two changes fall into one second": schedule.Schedule(
        ((Op.BOOK, 864, 462), (Op.TOGGLE, 466, 54)), Traits(skew=-2.5, late=True)
    ),
    "there and back within one second": schedule.Schedule(
        (
            *((Op.BOOK, 0, 0), (Op.DELIVER, 0, 0), (Op.TAKE_IN, 0, 0), (Op.GO_ON_IN, 0, 0)),
            *((Op.TOGGLE, 0, _FULL), (Op.TOGGLE, 0, _FULL), (Op.LOSE, 1, 0)),
        ),
        Traits(),
    ),
    "the vendor's user changes what we create before its answer is stored": schedule.Schedule(
        (
            *((Op.CREATE, 714, 431), (Op.TAKE_OUT, 226, 825), (Op.GO_ON_OUT, 417, 65), (Op.GO_ON_OUT, 779, 520)),
            *((Op.DIE_OUT, 963, 823), (Op.CHANGE, 718, 22), (Op.DELIVER, 991, 788)),
        ),
        Traits(lose_the_rest=True),
    ),
    "the vendor's user changes a booking beside what we have changed a moment ago": schedule.Schedule(
        (
            *((Op.CREATE, 698, 0), (Op.TAKE_OUT, 660, 122), (Op.GO_ON_OUT, 601, 269), (Op.GO_ON_OUT, 706, 945)),
            *((Op.CHANGE, 139, 901), (Op.UPDATE, 503, 65)),
        ),
        Traits(echoes=True, lose_the_rest=True, workers_die=True),
    ),
    "the webhook of somebody's change comes when we have changed the same field, and then what we made it comes": schedule.Schedule(
        (
            *((Op.BOOK, 56, 0), (Op.QUICK, 61, 227), (Op.CHANGE, 820, 374), (Op.UPDATE, 412, 768)),
            *((Op.DELIVER, 301, 488), (Op.DELIVER, 945, 890)),
        ),
        Traits(always_fetch=True, late=True, workers_die=True, batches=True),
    ),
    "the webhooks of a create and of its cancellation come when both are done": schedule.Schedule(
        ((Op.CREATE, 224, 180), (Op.CANCEL, 765, 17)), Traits(echoes=True, webhooks_alone=True)
    ),
    "somebody's change is told while our command about the same field waits": schedule.Schedule(
        (
            *(
                (Op.BOOK, 363, 0),
                (Op.DELIVER, 648, 27),
                (Op.BOOK, 457, 70),
                (Op.TAKE_IN, 355, 379),
                (Op.GO_ON_IN, 607, 509),
            ),
            *((Op.DELIVER, 799, 102), (Op.TOGGLE, 657, 508), (Op.UPDATE, 592, 16), (Op.DELIVER, 390, 900)),
            (Op.QUICK, 334, 738),
        ),
        Traits(restamps=True, lose_the_rest=True),
    ),
}


@pytest.mark.parametrize("name", WRONG_ONCE)
def test_what_was_wrong_once_is_right(name: str) -> None:
    assert schedule.faults(WRONG_ONCE[name]) == []


# ------------------------------------------------------------------------------------------------ broken on purpose


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value


async def _finds_nothing(*_: Any) -> None:
    return None


async def _asks_nobody(session: Any, _work: Any, command: Any, _repeat: Any) -> Any:
    return await session.adapter.execute(session, command)


def _without_doubt(work: Any, now: Any) -> Any:
    row = _finish_row(work, now)
    row.starts = 0
    return row


def _as_told_by_a_webhook(*args: Any, **kwargs: Any) -> Any:
    return _reservation(*args, **{**kwargs, "asked": False})


def _by_id_alone(connection: Any, content: Any, *_: Any) -> str:
    return f"beds24-{content[0]['id']}" if isinstance(content[0], dict) else f"beds24-{content}"


def _as_if_never_told(sourced: Any, writes: Any, stored: Any) -> bool:
    return tells_more(sourced, writes, stored and replace(stored, told_at=None))


class _Forgets:
    def __init__(self, oldest: CommandData) -> None:
        self._newest = oldest

    def add(self, newer: CommandData) -> None:
        self._newest = newer

    def command(self) -> CommandData:
        return self._newest


_finish_row, _reservation = delivery_rows.finish_row, mapping.reservation

BROKEN: dict[str, tuple[Any, str, Any]] = {
    "an older state replaces a newer one": (Version, "replaces", _always(True)),
    "of several states the oldest is tried": (Version, "__lt__", lambda a, b: a.modified_at > b.modified_at),
    "a key that forgets what changed": (webhook, "_key", _by_id_alone),
    "a merge that forgets the older commands": (AvailabilityUpdate, "merging", _Forgets),
    "a look-up that finds nothing": (Beds24, "find", _finds_nothing),
    "no look-up before a repeated call": (machine, "ask_or_execute", _asks_nobody),
    "a doubt that is not remembered": (delivery_rows, "finish_row", _without_doubt),
    "an echo hides what others changed": (machine, "tells_more", _always(False)),
    "an echo hides what the core was told since it said it": (machine, "tells_more", _as_if_never_told),
    "every state is an echo": (machine, "is_echo", _always(True)),
    "a booking of the core's gets another name": (model, "_command", _always(None)),
    "the API counts no more than a webhook": (mapping, "reservation", _as_told_by_a_webhook),
    "the vendor is not asked which is newer": (model.Tables, "same_moment", _always(set())),
    "what is pulled and known is never looked at": (machine, "is_astray", _always(False)),
    "lanes hold nothing": (model.Tables, "is_free", _always(True)),
    "an answer of the API is taken for plain": (inbound_rows, "is_plain", lambda work: isinstance(work.outcome, Done)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_code_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(map(schedule.goes_wrong, WRONG_ONCE.values()))
    monkeypatch.setattr(*BROKEN[name])
    tried = chain(WRONG_ONCE.values(), map(schedule.of, range(5_000)))
    assert any(map(schedule.goes_wrong, tried)), f"{name}: 5,000 schedules do not find it"
