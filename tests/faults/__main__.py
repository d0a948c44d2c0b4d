"""The long fault suite: `make faults`, or with words for it `make faults ARGS="--seed 7 --only 'kills-3' --kills 100"`.

One fleet on servers of its own is killed at every step, and broker, database and vendor fail in every way that we can cause,
under a load of webhooks and commands; after each stretch the oracle compares. Ends with 1 if it finds anything.

A stretch is dealt from the seed and its own name: with the same seed it can be run again by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ops.stack import local
from ops.stack.local import Stack
from tests.faults import broker, database, outside
from tests.faults.fault import Fault, endure
from tests.faults.ground import Ground, Verdict, database_of_its_own
from tests.faults.kills import Deal, deal, strike_all
from tests.faults.load import Load
from tests.faults.steps import POINTS
from tests.fleet import PROCESSES

ROOT = Path(__file__).resolve().parents[2]
KILLS = 520
FAULTS: tuple[Fault, ...] = (*broker.FAULTS, *database.FAULTS, *outside.FAULTS)


@dataclass
class Tally:
    """What the run has seen so far."""

    began: float = field(default_factory=time.monotonic)
    kills: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    webhooks: int = 0
    commands: int = 0
    effects: int = 0
    repeats: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, verdict: Verdict) -> None:
        self.webhooks += verdict.webhooks
        self.commands += verdict.commands
        self.effects += verdict.effects
        self.repeats.update(verdict.repeats)
        if verdict.violations:
            self.wrong[name] = verdict.violations

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60


def words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=20261121, help="deals the kill points and the load (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="kill points, at least (default: %(default)s)")
    parser.add_argument(
        "--only", default="*", help="stretches by name or pattern, separated by commas: kills-*,broker-kill"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault comes (default: %(default)s)")
    parser.add_argument("--pace", type=float, default=0.5, help="times the usual load (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the logs of the processes")
    parser.add_argument("--list", action="store_true", help="name the stretches and end")
    return parser.parse_args()


async def run(given: argparse.Namespace) -> int:
    chosen = [pattern.strip() for pattern in given.only.split(",")]
    deals = [each for each in deal(given.seed, given.kills) if _matches(each.name, chosen)]
    faults = [fault for fault in FAULTS if _matches(fault.name, chosen)] * given.rounds
    if given.list:
        print("\n".join([*(f"{each.name}: {each.size} kills" for each in deals), *(fault.name for fault in faults)]))
        return 0
    logging.getLogger().addHandler(logging.NullHandler())  # the suite's own clients see every fault, too
    tally = Tally()
    try:
        with servers() as (stack, folder):
            try:
                await _hurt(stack, folder, deals, faults, tally, given)
            finally:
                if tally.wrong or given.keep:
                    print(f"\nlogs of the processes: {_keep(folder)}")
    finally:  # also of a run that was ended by hand
        report(tally, given)
    return 1 if tally.wrong else 0


async def _hurt(
    stack: Stack, folder: Path, deals: list[Deal], faults: list[Fault], tally: Tally, given: argparse.Namespace
) -> None:
    database_url, amqp_url = await database_of_its_own(stack)
    async with Ground.open(stack, database_url, amqp_url, folder) as ground:
        for number, each in enumerate(deals):
            await _kill(ground, each, tally, given.pace, sum(left.size for left in deals[number + 1 :]))
        for number, fault in enumerate(faults):
            await _fault(ground, fault, tally, given, len(faults) - number - 1)


def _keep(folder: Path) -> Path:
    kept = ROOT / ".staybus/faults"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, kept)
    return kept


async def _kill(ground: Ground, each: Deal, tally: Tally, pace: float, left: int) -> None:
    struck = await strike_all(ground, each, pace=pace, echoes=each.seed % 4 == 0)
    tally.kills.update(strike.point.name for strike in struck.hits)
    tally.missed.update(strike.point.name for strike in struck.misses)
    tally.add(each.name, struck.verdict)
    names = ", ".join(strike.name for strike in struck.hits)
    print(
        f"{_state(tally, struck.verdict)}  {each.name}: {sum(tally.kills.values())} kills, {left} to come; {names}",
        flush=True,
    )
    for strike in struck.misses:
        print(f"        not reached: {strike.name}")
    _say(struck.verdict)


async def _fault(ground: Ground, fault: Fault, tally: Tally, given: argparse.Namespace, left: int) -> None:
    seed = given.seed + sum(map(ord, fault.name)) + tally.faults[fault.name]
    broken: list[str] = []
    try:
        verdict = await endure(ground, fault, seed, pace=given.pace)
    except* Exception as group:  # noqa: BLE001 - told with the rest, and the run goes on
        broken = [f"the suite itself: {error!r}" for error in group.exceptions]
    if broken:
        for name in PROCESSES:  # one may be about to stop
            ground.begin(name)
            await ground.world.wait_ready(name, 60)
        verdict = await ground.judge(Load.nothing(ground))
        verdict.violations[:] = broken
    tally.faults[fault.name] += 1
    tally.add(fault.name, verdict)
    print(f"{_state(tally, verdict)}  {fault.name}: {sum(tally.faults.values())} faults, {left} to come", flush=True)
    _say(verdict)


def _state(tally: Tally, verdict: Verdict) -> str:
    return f"{tally.minutes:5.1f} min {'WRONG' if verdict.violations else 'ok':5}"


def _say(verdict: Verdict) -> None:
    for violation in verdict.violations[:12]:
        print(f"        {violation[:600]}")


def report(tally: Tally, given: argparse.Namespace) -> None:
    by_process = {
        name: {k: n for k, n in sorted(tally.kills.items()) if k.startswith(f"{name}.")} for name in PROCESSES
    }
    print(f"\n== {sum(tally.kills.values())} kill points hit, {len(tally.kills)} of {len(POINTS)} different ones")
    for process, found in by_process.items():
        if found:
            print(
                f"{process} ({sum(found.values())}): "
                + ", ".join(f"{k.partition('.')[2]} {n}" for k, n in found.items())
            )
    if never := sorted(set(tally.missed) - set(tally.kills)):
        print(f"never reached: {', '.join(never)}")
    kinds = Counter(name.partition("-")[0] for name in tally.faults.elements())
    print(f"== {sum(tally.faults.values())} faults: " + ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items())))
    print(", ".join(sorted(tally.faults)))
    print(
        f"== {tally.webhooks} webhooks accepted, {tally.commands} commands, {tally.effects} effects, {tally.minutes:.1f} min"
    )
    told = ", ".join(f"{kind} {n}" for kind, n in sorted(tally.repeats.items())) or "none"
    print(f"calls made again though they had been done: {told}")
    print(f"== {len(tally.wrong)} stretches with violations")
    for name, found in tally.wrong.items():
        print(
            f"{name}: {len(found)}; again with: make faults ARGS=\"--seed {given.seed} --kills {given.kills} --only '{name}'\""
        )


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@contextmanager
def servers() -> Iterator[tuple[Stack, Path]]:
    """A Postgres and a RabbitMQ of this run's own: it kills them."""
    os.environ.setdefault("STAYBUS_RUNTIME", str(ROOT / ".staybus/runtime"))
    for variable in (*local.DATABASE_VARIABLES, *local.AMQP_VARIABLES):
        os.environ.pop(variable, None)
    folder = Path(tempfile.mkdtemp(prefix="staybus-faults-"))
    try:
        stack = local.start(folder / "stack", print)
        try:
            yield stack, folder
        finally:
            local.delete(folder / "stack", print)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(run(words())))
    except KeyboardInterrupt:
        sys.exit(130)
