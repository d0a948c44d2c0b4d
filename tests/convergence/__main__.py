"""`python -m tests.convergence`: many schedules, or one again. See the package's words."""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from . import schedule

if TYPE_CHECKING:
    from .fleet import Fleet
    from .real import Verdict

CHUNK = 500


def failing(start: int, count: int) -> list[int]:
    """The seeds from `start` on whose schedules go wrong."""
    return [seed for seed in range(start, start + count) if schedule.goes_wrong(schedule.of(seed))]


def report(seed: int) -> str:
    """What goes wrong with this seed, and the fewest steps that still do."""
    fewer = schedule.shortened(schedule.of(seed))
    return f"seed {seed}\n{schedule.shown(fewer)}\n" + "\n".join(f"  → {fault}" for fault in schedule.faults(fewer))


def many(start: int, count: int, processes: int) -> list[int]:
    chunks = [(at, min(CHUNK, start + count - at)) for at in range(start, start + count, CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        return [seed for found in pool.map(failing, *zip(*chunks, strict=True)) for seed in found]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.convergence")
    parser.add_argument("--real", action="store_true", help="on the real parts: every process, Postgres, RabbitMQ")
    parser.add_argument("--seed", type=int, help="play this one and show its steps")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, help="how many; default: 10,000, or 100 on the real parts")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=8, help="how many at a time on the real parts")
    given = parser.parse_args()
    if given.real:
        return asyncio.run(on_the_real_parts(given))
    return (
        one(given.seed) if given.seed is not None else on_the_model(given.start, given.count or 10_000, given.processes)
    )


def one(seed: int) -> int:
    dealt = schedule.of(seed)
    print(schedule.shown(dealt))
    found = schedule.faults(dealt)
    print(*(f"  → {fault}" for fault in found or ["nothing wrong"]), sep="\n")
    return 1 if found else 0


def on_the_model(start: int, count: int, processes: int) -> int:
    began = time.perf_counter()
    bad = many(start, count, processes)
    seconds = time.perf_counter() - began
    print(f"seeds {start} to {start + count - 1}: {len(bad)} diverge; {seconds:.0f} s")
    for seed in bad[:5]:
        print(report(seed))
    return 1 if bad else 0


async def on_the_real_parts(given: argparse.Namespace) -> int:
    from tests.faults.__main__ import _keep, servers

    from .fleet import Fleet

    start, count = (given.start, given.count or 100) if given.seed is None else (given.seed, 1)
    logging.getLogger().addHandler(logging.NullHandler())  # our own clients see every death, too
    with servers() as (stack, folder):
        async with Fleet.open(stack, folder) as fleet:
            bad = await played(fleet, range(start, start + count), given.at_once, show=given.seed is not None)
            left_over = await fleet.left_over()
        print(*(f"  {times:5} {what}" for what, times in sorted(fleet.reached.items())), sep="\n")
        print(*(f"  → left over: {what}" for what in left_over), sep="\n", end="")
        if bad or left_over:
            print(f"logs of the processes: {_keep(folder)}")
    return 1 if bad or left_over else 0


async def played(fleet: Fleet, seeds: range, at_once: int, *, show: bool) -> list[int]:
    """The seeds that diverge; what went wrong is told as it comes. show: what went right, too"""
    from . import real

    began = time.monotonic()
    over: list[int] = []
    bad: list[int] = []

    def tell(seed: int, verdict: Verdict) -> None:
        over.append(seed)
        if verdict.faults:
            bad.append(seed)
        if show or verdict.faults:
            print(f"seed {seed}\n{verdict.shown}")
        if len(over) % 10 == 0 or len(over) == len(seeds):
            seconds = time.monotonic() - began
            print(f"{seconds:6.1f} s  {len(over)} of {len(seeds)} played, {len(bad)} diverge", flush=True)

    await real.play_many(fleet, ((seed, real.of(seed)) for seed in seeds), at_once, tell)
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
