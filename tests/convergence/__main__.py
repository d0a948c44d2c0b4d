"""`python -m tests.convergence`: many schedules, or one again. See the package's words."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor

from . import schedule

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
    parser.add_argument("--seed", type=int, help="play this one and show its steps")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.seed is not None:
        one = schedule.of(given.seed)
        print(schedule.shown(one))
        found = schedule.faults(one)
        print(*(f"  → {fault}" for fault in found or ["nothing wrong"]), sep="\n")
        return 1 if found else 0
    began = time.perf_counter()
    bad = many(given.start, given.count, given.processes)
    seconds = time.perf_counter() - began
    print(f"seeds {given.start} to {given.start + given.count - 1}: {len(bad)} diverge; {seconds:.0f} s")
    for seed in bad[:5]:
        print(report(seed))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
