"""`make bench-peers`: staybus and three peers in turn on the same servers, several rounds, then medians and ratios."""

from __future__ import annotations

import argparse
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console

from bench import machine, measure
from bench.measure import UnprovenError
from bench.session import EndedError, run, screen, servers
from bench.staybus import fleet
from ops.stack.errors import StackError

from . import report
from .report import Session
from .running import PEERS, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from bench.measure import Target
    from ops.stack.local import Stack

FOLDER = Path(".staybus/peers")
PYTHON = FOLDER / "venv/bin/python"  # of the peers
NAMES = ("staybus", *PEERS)
APART = 10_000_000  # between the numbers of two runs' payloads
GIVEN = "STAYBUS_DATABASE_URL DATABASE_URL STAYBUS_AMQP_URL RABBITMQ_URL"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("-n", type=int, default=24_000, help="events of a burst (default 24,000)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run at a fixed rate (default 10)")
    parser.add_argument("--warm", type=int, default=1_000, help="events before anything is measured (default 1,000)")
    parser.add_argument("--only", type=_names, default=NAMES, help=f"some of {','.join(NAMES)} (default all)")
    parser.add_argument(
        "--queue", choices=("quorum", "classic"), default="quorum", help="of the peers (default quorum)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a look in a minute or two: -n 1000 --rounds 1 --seconds 3"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures of all runs")
    parser.add_argument("--keep", action="store_true", help="leave the servers running for the next run")
    given = parser.parse_args()
    if given.quick:
        given.n, given.rounds, given.seconds, given.warm = 1_000, 1, 3.0, 200
    if min(given.n, given.rounds, given.seconds, given.warm) <= 0:
        parser.error("-n, --rounds, --seconds and --warm must be above 0")
    return given


def main() -> int:
    given = arguments()
    say = screen()
    if not PYTHON.exists():
        say.print(f"{PYTHON} is not there: run `make bench-peers`, which makes it and installs the peers into it.")
        return 2
    about: dict[str, Any] = {}
    sessions: list[Session] = []
    code = 0
    try:
        with servers(FOLDER, keep=given.keep, say=say.print) as stack:
            if stack.amqp_admin_url is None or stack.postgres is None:
                say.print(f"The peers need servers of their own, whose cost can be seen: unset {GIVEN}.")
                return 2
            about = run(report.surroundings(stack, given, PYTHON))
            say.print(report.opening(about))
            run(rounds(given, stack, sessions, say.print))
    except (StackError, EndedError, UnprovenError) as error:
        say.print(str(error), style="red", markup=False)
        code = 1
    except KeyboardInterrupt:
        say.print("ended; nothing is left running" + (", except the servers" if given.keep else ""))
        code = 130
    if sessions:
        _tell(about, sessions, given.json, say)
    return code


def _tell(about: dict[str, Any], sessions: list[Session], file: Path | None, say: Console) -> None:
    """Also of a run that broke off: what was measured until then."""
    summary = report.summary(sessions)
    say.print(report.figure_table(summary))
    say.print(report.goal_table(summary.goals))
    say.print(report.CLOSING)
    if file is not None:
        whole = {"about": about, "summary": summary, "sessions": sessions}
        file.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
        say.print(f"all figures: {file}")


async def rounds(given: argparse.Namespace, stack: Stack, sessions: list[Session], say: Callable[[str], None]) -> None:
    """All in turn, then all again: what slows the machine for a while slows them alike."""
    for number in range(1, given.rounds + 1):
        for name in given.only:
            async with _started(name, stack, given.queue) as target:
                sessions.append(await _session(number, target, given, say))


async def _session(number: int, target: Target, given: argparse.Namespace, say: Callable[[str], None]) -> Session:
    """One of them from its start to its end: proof, idle memory, warm-up, burst, fixed rates, half of its own most."""
    await measure.prove(target, APART // 2)
    own = {kind: pids for kind, pids in target.roots.items() if kind not in measure.SERVERS}
    session = Session(number, target.name, idle={kind: machine.memory(pids) for kind, pids in own.items()})
    await measure.burst(target, given.warm, 0)

    burst = session.runs["burst"] = await measure.burst(target, given.n, APART)
    say(report.progress(session, "burst"))
    for place, (kind, rate) in enumerate({"100/s": 100.0, "300/s": 300.0, "half": burst.done_rate / 2}.items()):
        session.runs[kind] = await measure.steady(target, rate, given.seconds, (place + 2) * APART)
        say(report.progress(session, kind))
    return session


@asynccontextmanager
async def _started(name: str, stack: Stack, queue_type: str) -> AsyncIterator[Target]:
    peer = None if name == "staybus" else running(name, stack, FOLDER, queue_type, PYTHON)
    async with peer or fleet(stack, FOLDER) as target:
        yield target


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(NAMES):
        raise argparse.ArgumentTypeError(f"choose from {','.join(NAMES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
