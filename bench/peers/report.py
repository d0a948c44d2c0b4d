"""From runs to medians, ratios and goals; and how they are shown."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
from rich.box import SIMPLE
from rich.table import Table

from bench.measure import CLEAN, SERVERS, Result

from .running import PEERS

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ops.stack.local import Stack

_LIBRARIES = (
    "aio-pika",
    "asyncpg",
    "celery",
    "fastapi",
    "faststream",
    "kombu",
    "psycopg",
    "pydantic",
    "starlette",
    "uvicorn",
)
_VERSIONS = (
    "import json, sys; from importlib.metadata import version;"
    "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)

TITLES = {"staybus": "staybus"} | {name: peer.title for name, peer in PEERS.items()}

RATES = {"celery": 8.0, "faststream": 6.0, "handwritten": 4.0}  # staybus: times the peer's end-to-end rate
CPU_SHARE = 0.20  # of FastStream's CPU an event
HALF_MS = 60.0  # p99 to done at half of its own most
IDLE_MIB = 60.0  # of each process

PLACES = {"ingress": "web", "inbound": "worker", "outbound": "other", "scheduler": "other"}  # of the kinds of process
STEADY = ("100/s", "300/s", "half")
CLOSING = (
    f"Medians of the clean runs, in which other programs took at most {CLEAN:.0%} of the machine; ~ where there was none,"
    " then of all. The goals are information: nothing fails by them. docs/performance.md tells how to read this."
)


@dataclass(frozen=True, slots=True)
class Session:
    """One of them in one round. idle: MiB of each process by kind, before load; runs: burst, 100/s, 300/s, half"""

    round: int
    name: str
    idle: dict[str, list[float]]
    runs: dict[str, Result] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A median. clean: of how many clean runs; 0: of all that there were, none of them clean"""

    value: float
    least: float
    most: float
    clean: int

    def shown(self) -> str:
        return f"{'' if self.clean else '~'}{self.value:,.0f}"


Figures = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Goal:
    """measured: None when one of the compared took no part"""

    text: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """figures: name → what was measured → its median; ratios: peer → staybus' rate over the peer's, CPU as a share"""

    figures: dict[str, Figures]
    ratios: dict[str, dict[str, float]]
    goals: list[Goal]


async def surroundings(stack: Stack, given: argparse.Namespace, python: Path) -> dict[str, Any]:
    """What the figures mean nothing without. python: of the peers"""
    command = [python, "-c", _VERSIONS, *_LIBRARIES]
    versions = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    database = await asyncpg.connect(stack.database_url)
    try:
        postgres = await database.fetchval("SHOW server_version")
    finally:
        await database.close()
    async with httpx.AsyncClient() as http:
        rabbitmq = (await http.get(f"{stack.amqp_admin_url}/overview")).json()["rabbitmq_version"]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": postgres,
        "rabbitmq": rabbitmq,
        "libraries": json.loads(versions.stdout),
        "events": given.n,
        "rounds": given.rounds,
        "seconds": given.seconds,
        "queue": given.queue,
    }


def opening(about: dict[str, Any]) -> str:
    return (
        f"{about['cores']} cores, Python {about['python']}, PostgreSQL {about['postgres']}, RabbitMQ {about['rabbitmq']};"
        f" rounds: {about['rounds']}, events of a burst: {about['events']:,}, the peers' queues: {about['queue']}"
    )


def progress(session: Session, kind: str) -> str:
    """One run in a line."""
    run = session.runs[kind]
    faults = [
        *([] if run.clean else ["not clean"]),
        *([f"{run.count - run.accepted} NOT ACCEPTED"] if run.accepted < run.count else []),
        *([f"{run.accepted - run.done} LOST"] if run.accepted > run.done else []),
    ]
    return (
        f"round {session.round}  {TITLES[session.name]:<10}  {kind:<5}  {run.done_rate:>6,.0f}/s"
        f"  202 {_pair(run.ack):>13} ms  done {_pair(run.latency):>13} ms  {sum(run.cpu.values()):>6,.0f} us/event"
        f"  others {run.foreign:>3.0%}  {', '.join(faults)}".rstrip()
    )


def summary(sessions: list[Session]) -> Summary:
    names = list(dict.fromkeys(session.name for session in sessions))
    figures = {name: _figures([session for session in sessions if session.name == name]) for name in names}
    ratios = _ratios(figures)
    return Summary(figures, ratios, _goals(figures, ratios))


def figure_table(given: Summary) -> Table:
    """A column for each, a row for each figure."""
    figures = given.figures
    shown = Table(box=SIMPLE, padding=(0, 1), pad_edge=False)
    shown.add_column("median", no_wrap=True)
    for name in figures:
        shown.add_column(TITLES[name], justify="right", no_wrap=True)

    def row(label: str, cell: Callable[[Figures], str], *, last: bool = False) -> None:
        shown.add_row(label, *(cell(of) for of in figures.values()), end_section=last)

    row("burst: done/s", lambda of: of["burst done/s"].shown())
    row("  least … most", lambda of: f"{of['burst done/s'].least:,.0f} … {of['burst done/s'].most:,.0f}")
    shown.add_row("  staybus is", *(_times(given.ratios.get(name)) for name in figures))
    row("  202/s", lambda of: of["burst 202/s"].shown())
    row("  clean runs", lambda of: str(of["burst done/s"].clean))
    row("  lost", lambda of: f"{of['burst lost'].most:.0f}", last=True)

    row("CPU us/event: all", lambda of: of["CPU sum"].shown())
    for place in ("web", "worker", "other", "postgres", "rabbitmq"):
        row(f"  {place}", lambda of, what=f"CPU {place}": of[what].shown() if of[what].most else "")  # type: ignore[misc]
    shown.add_row("  staybus needs", *(_share(given.ratios.get(name)) for name in figures))
    row("  load, not counted", lambda of: of["CPU load"].shown(), last=True)

    for kind in STEADY:
        if kind == "half":
            row("half of its most: 1/s", lambda of: of["half rate"].shown())
        for answer in ("202", "done"):
            label = f"{'  ' if kind == 'half' else f'{kind}: '}{answer} ms p50 / p99"
            row(label, lambda of, what=f"{kind} {answer}": _both(of, what), last=answer == "done")  # type: ignore[misc]

    for when in ("idle", "loaded"):
        for place in ("web", "worker", "other"):
            row(f"MiB {when}: {place}", lambda of, what=f"{when} {place}": _held(of, what))  # type: ignore[misc]
    return shown


def goal_table(goals: list[Goal]) -> Table:
    shown = Table(box=SIMPLE, padding=(0, 1), pad_edge=False)
    for column in ("goal", "measured", "met"):
        shown.add_column(column)
    for goal in goals:
        shown.add_row(goal.text, goal.measured, "yes" if goal.met else "no")
    return shown


def _figures(sessions: list[Session]) -> Figures:
    """Of one of them, over all rounds."""
    bursts = [session.runs["burst"] for session in sessions]
    made = {
        "burst done/s": _median(bursts, lambda run: run.done_rate),
        "burst 202/s": _median(bursts, lambda run: run.ingest_rate),
        "burst lost": _median(bursts, lambda run: run.accepted - run.done),
        "CPU sum": _median(bursts, lambda run: sum(run.cpu.values())),
        "CPU load": _median(bursts, lambda run: run.load),
    }
    for place in ("web", "worker", "other", *sorted(SERVERS)):
        made[f"CPU {place}"] = _median(bursts, lambda run, place=place: sum(_of(place, run.cpu)))  # type: ignore[misc]
    for kind in STEADY:
        runs = [session.runs[kind] for session in sessions]
        made[f"{kind} rate"] = _median(runs, lambda run: run.rate)
        for at, share in enumerate(("p50", "p99")):
            made[f"{kind} 202 {share}"] = _median(runs, lambda run, at=at: run.ack[at] * 1e3)  # type: ignore[misc]
            made[f"{kind} done {share}"] = _median(runs, lambda run, at=at: run.latency[at] * 1e3)  # type: ignore[misc]
    for when, all_held in (
        ("idle", [session.idle for session in sessions]),
        ("loaded", [run.memory for run in bursts]),
    ):
        for place in ("web", "worker", "other"):
            processes = [[mib for kind in _of(place, held) for mib in kind] for held in all_held]
            made[f"{when} {place}"] = _known(map(sum, processes))
            made[f"{when} {place} processes"] = _known(map(len, processes))
    made["idle largest"] = _known(max(mib for kind in session.idle.values() for mib in kind) for session in sessions)
    return made


def _of(place: str, by_kind: dict[str, Any]) -> list[Any]:
    """The values of the kinds of process that stand in this place."""
    return [value for kind, value in by_kind.items() if PLACES.get(kind, kind) == place]


def _median(runs: list[Result], of: Callable[[Result], float]) -> Figure:
    clean = [run for run in runs if run.clean]
    values = [of(run) for run in clean or runs]
    return Figure(median(values), min(values), max(values), len(clean))


def _known(values: Iterable[float]) -> Figure:
    """Of what other programs do not change."""
    held = list(values)
    return Figure(median(held), min(held), max(held), len(held))


def _ratios(figures: dict[str, Figures]) -> dict[str, dict[str, float]]:
    ours = figures.get("staybus")
    if ours is None:
        return {}
    return {
        name: {
            "rate": ours["burst done/s"].value / of["burst done/s"].value,
            "cpu": ours["CPU sum"].value / of["CPU sum"].value,
        }
        for name, of in figures.items()
        if name != "staybus"
    }


def _goals(figures: dict[str, Figures], ratios: dict[str, dict[str, float]]) -> list[Goal]:
    """Those whose sides took part."""
    goals = []
    for name, wanted in RATES.items():
        if name in ratios:
            times = ratios[name]["rate"]
            goals.append(
                Goal(f"burst, end to end: at least {wanted:.0f} times {TITLES[name]}", f"{times:.1f}", times >= wanted)
            )
    if "faststream" in ratios:
        share = ratios["faststream"]["cpu"]
        goals.append(Goal(f"CPU an event: at most {CPU_SHARE:.0%} of FastStream's", f"{share:.0%}", share <= CPU_SHARE))
        for kind in ("100/s", "300/s"):
            ours, theirs = (figures[name][f"{kind} done p99"].value for name in ("staybus", "faststream"))
            goals.append(
                Goal(
                    f"done p99 at {kind}: at most FastStream's", f"{_ms(ours)} against {_ms(theirs)} ms", ours <= theirs
                )
            )
    if "staybus" in figures:
        half, idle = figures["staybus"]["half done p99"].value, figures["staybus"]["idle largest"].value
        goals.append(
            Goal(f"done p99 at half of its own most: under {HALF_MS:.0f} ms", f"{half:.1f} ms", half < HALF_MS)
        )
        goals.append(Goal(f"each process idle: at most {IDLE_MIB:.0f} MiB", f"{idle:.0f} MiB", idle <= IDLE_MIB))
    return goals


def _times(ratio: dict[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['rate']:.1f} x this"


def _share(ratio: dict[str, float] | None) -> str:
    return "" if ratio is None else f"{ratio['cpu']:.0%} of this"


def _both(of: Figures, what: str) -> str:
    p50, p99 = of[f"{what} p50"], of[f"{what} p99"]
    return f"{'' if p50.clean else '~'}{_ms(p50.value)} / {_ms(p99.value)}"


def _held(of: Figures, what: str) -> str:
    processes = of[f"{what} processes"].value
    if not processes:
        return ""
    return of[what].shown() + (f" in {processes:.0f}" if processes > 1 else "")


def _pair(seconds: tuple[float, float]) -> str:
    return " / ".join(_ms(each * 1e3) for each in seconds)


def _ms(value: float) -> str:
    """As exact as it deserves."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
