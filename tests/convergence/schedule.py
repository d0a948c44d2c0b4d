"""Random schedules by seed; playing one to its end; and the fewest steps of one that still go wrong."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import oracle
from .machine import Machine
from .outside import Op, Traits

if TYPE_CHECKING:
    from collections.abc import Mapping

Step = tuple[int, int, int]
ROUNDS = 60  # in which everything is settled, or never is

# How often each kind of step comes; most of them are workers', or nothing would ever meet its end.
_WEIGHTS = {
    Op.BOOK: 4, Op.CHANGE: 8, Op.TOGGLE: 3, Op.MESSAGE: 1, Op.MOMENT: 8, Op.SECONDS: 4, Op.MINUTES: 1,
    Op.DELIVER: 12, Op.DOUBLE: 3, Op.LOSE: 3, Op.CREATE: 4, Op.UPDATE: 5, Op.CANCEL: 2, Op.AVAILABILITY: 3, Op.REPEAT: 1,
    Op.TAKE_IN: 12, Op.GO_ON_IN: 16, Op.SETTLE_IN: 3, Op.DIE_IN: 1, Op.TAKE_OUT: 9, Op.GO_ON_OUT: 24, Op.DIE_OUT: 3,
    Op.DUE: 3, Op.REQUEUE: 2, Op.PULL: 3, Op.GO_ON_PULL: 5, Op.DIE_PULL: 1, Op.FATE: 8, Op.SLEEP_IN: 1, Op.SLEEP_OUT: 2,
    Op.QUICK: 5, Op.FLIP: 2,
}  # fmt: skip


class StuckError(Exception):
    """Something is never settled."""


@dataclass(frozen=True)
class Schedule:
    steps: tuple[Step, ...]
    traits: Traits


def of(seed: int) -> Schedule:
    rng = random.Random(seed)
    restamps, alone = rng.random() < 0.2, rng.random() < 0.2
    traits = Traits(
        skew=rng.choice((0.0, 0.0, 0.0, 2.5, -2.5)),
        echoes=alone or rng.random() < 0.3,
        restamps=restamps,
        always_fetch=rng.random() < (0.5 if alone else 0.1),
        lose_the_rest=not alone and rng.random() < 0.4,
        late=rng.random() < 0.5 and not restamps,
        webhooks_alone=alone,
        workers_die=rng.random() < 0.5,
        batches=rng.random() < 0.5,
    )
    return Schedule(dealt(rng, _WEIGHTS, 10, 60), traits)


def dealt(rng: random.Random, weights: Mapping[Op, int], fewest: int, most: int) -> tuple[Step, ...]:
    """Steps, the first of which makes a booking.

    Numbers of three digits: what they choose is decided by what there is when their step comes.
    """
    deck = [op for op, weight in weights.items() for _ in range(weight)]
    steps = [
        (int(rng.choice(deck)), rng.randrange(1000), rng.randrange(1000)) for _ in range(rng.randint(fewest, most))
    ]
    return (int(Op.BOOK if rng.random() < 0.7 else Op.CREATE), rng.randrange(1000), 0), *steps


def play(schedule: Schedule) -> Machine:
    """To its end. raises StuckError"""
    machine = Machine(schedule.traits)
    machine.play(schedule.steps)
    if not end(machine):
        raise StuckError(f"not settled after {ROUNDS} rounds")
    return machine


def faults(schedule: Schedule) -> list[str]:
    """What is wrong in the end."""
    try:
        return oracle.broken(play(schedule))
    except Exception as error:  # noqa: BLE001 - a step that raises is a fault, too
        return [f"{type(error).__name__}: {error}"]


def goes_wrong(schedule: Schedule) -> bool:
    return bool(faults(schedule))


def end(machine: Machine) -> bool:
    """All faults are over: everything is settled, then pulled, then settled again. False if that has no end."""
    traits, vendor = machine.traits, machine.vendor
    vendor.fates.clear()
    machine.pulling = None
    while machine.readings or machine.sendings:
        for reading in list(machine.readings):
            (machine.die_reading if traits.workers_die else machine.go_on_reading)(reading)
        for sending in list(machine.sendings):
            (machine.die_sending if traits.workers_die else machine.go_on_sending)(sending)
    if traits.lose_the_rest:
        vendor.letters.clear()
    if not traits.late:
        _deliver_all(machine)
    settled = settle(machine)
    machine.clock.pass_by(2)
    machine.steps[Op.PULL](0, 0)
    while machine.pulling is not None:
        machine.go_on_pulling(machine.pulling)
    settled = settled and settle(machine)
    while vendor.letters and (traits.late or traits.webhooks_alone):  # those of our own writes come after these
        _deliver_all(machine)
        settled = settled and settle(machine)
    return settled and settle(machine)


def _deliver_all(machine: Machine) -> None:
    while machine.vendor.letters:
        machine.steps[Op.DELIVER](0, 0)


def settle(machine: Machine) -> bool:
    tables = machine.tables
    for _ in range(ROUNDS):
        machine.run_out()
        for event in tables.failed():
            tables.requeue(event.id)
        for event in tables.open(outbound=False):
            machine.read(event)
            if not machine.traits.batches:
                _read_on(machine)
        machine.steps[Op.SETTLE_IN](0, 0)
        _read_on(machine)
        for event in tables.open(outbound=True):
            sending = machine.claim(event)
            while sending is not None and sending in machine.sendings:
                machine.go_on_sending(sending)
        left = [event for event in tables.failed() if not tables.gone_past(event)]
        if not (left or tables.open(outbound=False) or tables.open(outbound=True)):
            return True
        machine.clock.pass_by(3)
        tables.due(machine.clock.ours())
    return False


def _read_on(machine: Machine) -> None:
    while machine.readings:
        machine.go_on_reading(machine.readings[0])


def shortened(schedule: Schedule) -> Schedule:
    """The same fault with as few steps as can be had by leaving some out."""
    steps = list(schedule.steps)
    size = max(len(steps) // 2, 1)
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if goes_wrong(Schedule(tuple(fewer), schedule.traits)):
                steps = fewer
            else:
                at += size
        size //= 2
    return Schedule(tuple(steps), schedule.traits)


def shown(schedule: Schedule) -> str:
    steps = [f"{Op(op).name.lower()}({a}, {b})" for op, a, b in schedule.steps]
    return "\n".join([shown_traits(schedule.traits), *steps])


def shown_traits(traits: Traits) -> str:
    named = [f"{name}={getattr(traits, name)}" for name in Traits.__slots__ if getattr(traits, name)]
    return ", ".join(named) or "no traits"
