"""`python -m bench.backlog`: what the processes hold in memory while a million events wait, and while the broker is away.

Three runs, each with a database and a vhost of its own and the real processes: a backlog in messages of up to 200 events; a
smaller one in messages of one event; a flood of webhooks while the broker is stopped, and its return.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import psutil
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from adapters.registry import adapters
from ops.parts import declared
from ops.stack.errors import StackError
from ops.stack.ports import free_port
from store import connections, migrate
from store.seal import KeyFile
from topology.announce import WakeUp, announce
from topology.apply import apply
from topology.publisher import Publisher

from . import measure, past
from .load import Order
from .session import EndedError, children, fresh, run, screen, servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from ops.stack.docker import RabbitContainer
    from ops.stack.local import Stack
    from ops.stack.rabbitmq import RabbitNode

    from .session import Children

FOLDER = Path(".staybus/backlog")
LIMITS = {"ingress": 120, "inbound": 150, "scheduler": 150}  # MiB that each may hold at most
_MAIN = ("-c", "from ops.cli import main; main()", "run")
_TYPE = "beds24.booking.modified"
_OPEN = "SELECT count(*) FROM channel_events WHERE status IN ('received', 'processing', 'retrying')"


@dataclass(slots=True)
class Watch:
    """Resident MiB of each process, looked at four times a second."""

    pids: dict[str, int]
    seen: dict[str, list[float]] = field(default_factory=dict)

    async def run(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while True:
                for name, pid in self.pids.items():
                    self.seen.setdefault(name, []).append(psutil.Process(pid).memory_info().rss / 2**20)
                await asyncio.sleep(0.25)


@dataclass(frozen=True, slots=True)
class Row:
    """What one process held in one run, MiB; grown: from the second to the last quarter of the run, by their medians."""

    run: str
    process: str
    events: int
    seconds: float
    first: float
    most: float
    last: float
    grown: float


@dataclass(slots=True)
class Ground:
    """A database, a vhost, and processes to start on them."""

    stack: Stack
    db: asyncpg.Connection[Any]
    amqp_url: str
    tenants: past.Tenants
    running: Children
    ports: dict[str, int]

    async def start(self, *names: str) -> dict[str, int]:
        """name → pid, each ready."""
        pids = {name: self.running.start(name, [*_MAIN, name.partition("-")[0]], **self._port(name)) for name in names}
        for name in names:
            await self.running.ready(self.ports[name], "/readyz", {200})
        return pids

    def _port(self, name: str) -> dict[str, str]:
        self.ports[name] = free_port(set(self.ports.values()))
        return {f"STAYBUS_{name.partition('-')[0].upper()}_PORT": str(self.ports[name])}

    async def publish(self, count: int, *, single: bool) -> None:
        """`count` facts that wait, and the messages that wake them: of one event each, or as full as they get."""
        publisher = Publisher(self.amqp_url, name="bench")
        await publisher.start(wait=10)
        try:
            async for made in past.wait(self.db, count, self.tenants):
                wakes = [WakeUp(row["id"], row["company_id"], _TYPE, _TYPE, row["trace"]) for row in made]
                groups = [[wake] for wake in wakes] if single else [wakes]
                told = 0
                for start in range(0, len(groups), 500):
                    answers = await asyncio.gather(
                        *(announce(publisher, group) for group in groups[start : start + 500])
                    )
                    told += sum(map(len, answers))
                if told < len(wakes):
                    raise EndedError(f"the broker confirmed {told:,} of {len(wakes):,} events")
        finally:
            await publisher.stop()

    async def settled(self, patience: float = 60.0) -> None:
        """Until nothing is open. raises EndedError when nothing moves for `patience` seconds"""
        left, moved = -1, time.monotonic()
        while (now := int(await self.db.fetchval(_OPEN))) > 0:
            self.running.check()
            if now != left:
                left, moved = now, time.monotonic()
            elif time.monotonic() - moved > patience:
                raise EndedError(f"{now:,} events are open and nothing moves, see {self.running.logs}")
            await asyncio.sleep(1)

    async def metric(self, process: str, line: str) -> float:
        """The sum of the values of all lines that begin so."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://127.0.0.1:{self.ports[process]}/metrics")).text
        return sum(float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(line))


@asynccontextmanager
async def ground(stack: Stack, name: str) -> AsyncIterator[Ground]:
    key_file = FOLDER / "key"
    if not key_file.exists():
        KeyFile.create(key_file)
    async with AsyncExitStack() as resources:
        database_url, amqp_url = await resources.enter_async_context(fresh(stack, name))
        await migrate.upgrade(database_url)
        await apply(amqp_url, declared(adapters()))
        db = await asyncpg.connect(database_url)
        resources.push_async_callback(db.close)
        running = await resources.enter_async_context(
            children(
                FOLDER / "logs",
                STAYBUS_DATABASE_URL=database_url,
                STAYBUS_AMQP_URL=amqp_url,
                STAYBUS_KEY_FILE=str(key_file),
                STAYBUS_LOG_LEVEL="WARNING",
            )
        )
        yield Ground(stack, db, amqp_url, past.Tenants.new(KeyFile.read(key_file)), running, {})


async def drained(stack: Stack, count: int, workers: int, say: Console, *, single: bool) -> list[Row]:
    """A backlog, then the processes that work it off."""
    name = f"{count:,} in messages of {'1' if single else '200'}"
    async with ground(stack, "backlog") as place:
        say.print(f"{name}: making …")
        await place.publish(count, single=single)
        say.print(f"{name}: draining …")
        began = time.monotonic()
        pids = await place.start(*(f"inbound-{n}" for n in range(1, workers + 1)), "scheduler")
        async with watched(pids) as watch:
            await place.settled()
        seconds = time.monotonic() - began
        again = await place.metric("scheduler", "staybus_relayed_total")
        say.print(f"{name}: {count / seconds:,.0f}/s; {again:,.0f} events were woken again by the scheduler")
    return _rows(name, count, seconds, watch)


async def flooded(stack: Stack, broker: RabbitNode | RabbitContainer, count: int, say: Console) -> list[Row]:
    """Webhooks while the broker is stopped; then it is back."""
    name = f"{count:,} webhooks, no broker"
    async with ground(stack, "flood") as place:
        known = place.tenants.known(0).connection
        secret = secrets.token_urlsafe(24)
        await connections.add_company(place.db, known.company_id, "Bench", place.tenants.data_key)
        config = {"currency": "EUR", "webhook_auth": "hmac"}
        await connections.add_connection(place.db, known.id, known.company_id, "beds24", "Bench", None, config)
        sealed = place.tenants.ciphers[0].seal_bytes(secret.encode())
        await connections.put_secret(place.db, known, "webhook_secret", sealed)
        pids = await place.start("ingress", "inbound-1", "scheduler")
        say.print(f"{name}: stopping the broker, sending …")
        await asyncio.to_thread(broker.stop)
        began = time.monotonic()
        async with watched(pids) as watch:
            try:
                path = f"/webhooks/beds24/{known.id}"
                answers = await measure.send(Order(place.ports["ingress"], path, secret, count, 0))
            finally:
                await asyncio.to_thread(broker.start)
            sent = time.monotonic() - began
            say.print(f"{name}: {count / sent:,.0f}/s answered ({answers.statuses}); the broker is back, draining …")
            await place.settled()
        seconds = time.monotonic() - began
    return _rows(name, count, seconds, watch)


@asynccontextmanager
async def watched(pids: dict[str, int]) -> AsyncIterator[Watch]:
    watch = Watch(pids)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _rows(name: str, events: int, seconds: float, watch: Watch) -> list[Row]:
    rows = []
    for process, seen in watch.seen.items():
        quarter = max(1, len(seen) // 4)
        grown = median(seen[-quarter:]) - median(seen[quarter : 2 * quarter] or seen)
        rows.append(Row(name, process, events, seconds, seen[0], max(seen), seen[-1], grown))
    return rows


def table(rows: Sequence[Row]) -> Table:
    shown = Table(
        title="resident MiB of each process", box=SIMPLE, padding=(0, 1), pad_edge=False, title_justify="left"
    )
    for column in ("run", "process", "events/s", "at first", "most", "at last", "grown", "limit"):
        shown.add_column(column, justify="left" if column in {"run", "process"} else "right", no_wrap=True)
    for row in rows:
        figures = (row.events / row.seconds, row.first, row.most, row.last, row.grown)
        limit = LIMITS[row.process.partition("-")[0]]
        shown.add_row(row.run, row.process, *(f"{value:,.0f}" for value in figures), str(limit))
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.backlog", description=__doc__)
    parser.add_argument("-n", type=int, default=1_000_000, help="events in full messages (default 1,000,000)")
    parser.add_argument("--single", type=int, default=100_000, help="events in messages of one (default 100,000)")
    parser.add_argument(
        "--flood", type=int, default=50_000, help="webhooks while the broker is stopped (default 50,000)"
    )
    parser.add_argument("--workers", type=int, default=1, help="inbound processes (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave the servers running for the next run")
    return parser.parse_args()


async def runs(given: argparse.Namespace, stack: Stack, say: Console) -> list[Row]:
    if stack.rabbitmq is None:
        raise StackError("the broker is stopped and started, so it must be ours: unset STAYBUS_AMQP_URL")
    rows: list[Row] = []
    if given.n:
        rows += await drained(stack, given.n, given.workers, say, single=False)
    if given.single:
        rows += await drained(stack, given.single, given.workers, say, single=True)
    if given.flood:
        rows += await flooded(stack, stack.rabbitmq, given.flood, say)
    return rows


def main() -> int:
    given, say = arguments(), screen()
    try:
        with servers(FOLDER, keep=given.keep, say=say.print) as stack:
            rows = run(runs(given, stack, say))
    except (StackError, EndedError, measure.UnprovenError) as error:
        say.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        say.print("ended; nothing is left running")
        return 130
    say.print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
