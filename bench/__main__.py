"""`make bench`: ingest and end-to-end rate in a burst, then latencies at half of that, in one table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ops.stack.errors import StackError

from . import measure
from .measure import Result, UnprovenError
from .session import EndedError, run, screen, servers
from .staybus import fleet

if TYPE_CHECKING:
    from ops.stack.local import Stack

FOLDER = Path(".staybus/bench")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("-n", type=int, default=20_000, help="events of the burst (default 20,000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run at a fixed rate")
    parser.add_argument("--rates", type=float, nargs="*", default=[100.0, 300.0], help="fixed rates besides half load")
    parser.add_argument("--full", action="store_true", help="bodies as large as real ones (2 KB in place of 1 KB)")
    parser.add_argument("--keep", action="store_true", help="leave the servers running for the next run")
    return parser.parse_args()


async def runs(given: argparse.Namespace, stack: Stack, say: Console) -> list[Result]:
    async with fleet(stack, FOLDER) as target:
        say.print("warming up …")
        await measure.burst(target, 1_000, 0, full=given.full)
        first = 10_000_000
        say.print(f"burst of {given.n:,} events over 64 connections …")
        results = [await measure.burst(target, given.n, first, full=given.full)]
        for rate in (*given.rates, results[0].done_rate / 2):
            first += 10_000_000
            say.print(f"{given.seconds:g} s at {rate:,.0f}/s …")
            results.append(await measure.steady(target, rate, given.seconds, first, full=given.full))
    return results


def table(results: list[Result]) -> Table:
    shown = Table(
        title="staybus, its servers and the load on one machine; ms: p50 / p99",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    columns = ("load", "202/s", "done/s", "202 ms", "done ms", "CPU", "lost", "other")
    for column in columns:
        shown.add_column(column, justify="left" if column == "load" else "right", no_wrap=True)
    for r in results:
        shown.add_row(
            r.name,
            f"{r.ingest_rate:,.0f}",
            f"{r.done_rate:,.0f}",
            f"{r.ack[0] * 1e3:.1f} / {r.ack[1] * 1e3:.1f}",
            f"{r.latency[0] * 1e3:.1f} / {r.latency[1] * 1e3:.1f}",
            f"{sum(r.cpu.values()):,.0f}",
            str(r.accepted - r.done),
            f"{r.foreign:.0%}",
        )
    return shown


def by_process(burst: Result) -> Table:
    """The burst's cost, split: where the time goes is what to work on."""
    shown = Table(title="the burst, by process", box=SIMPLE, padding=(0, 1), pad_edge=False)
    shown.add_column("")
    for name in burst.cpu:
        shown.add_column(name, justify="right")
    shown.add_row("CPU us", *(f"{value:.0f}" for value in burst.cpu.values()))
    shown.add_row("MiB", *(f"{sum(burst.memory[name]):.0f}" for name in burst.cpu))
    return shown


def main() -> int:
    given = arguments()
    say = screen()
    try:
        with servers(FOLDER, keep=given.keep, say=say.print) as stack:
            results = run(runs(given, stack, say))
    except (StackError, EndedError, UnprovenError) as error:
        say.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        say.print("ended; nothing is left running")
        return 130
    say.print(table(results))
    say.print(by_process(results[0]))
    say.print(
        "Runs with more than 5 % foreign CPU are not clean: repeat them. docs/performance.md tells how to read this."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
