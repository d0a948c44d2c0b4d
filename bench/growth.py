"""`make bench-growth`: what an event costs when ten thousand, a million, ten million lie behind it.

The statements of the product, over one connection with its settings, in batches of 100; the sizes in turn, several rounds, so
that a machine whose speed wanders is unfair to none. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ops.stack.errors import StackError
from schemas.commands import COMMANDS
from schemas.ids import derived, uuid7
from schemas.vocabulary import Result
from store import dead_letters, events, inbound, ingest, migrate, outbound, relay, results, retention
from store.pool import API_ROLE, as_company, open_pool
from store.retention import WALKS, Keep
from store.seal import KeyFile, join
from store.settle import FinishRow, finish
from workers.relay import BATCH, STALE, UNPUBLISHED, UNTOLD
from workers.results import command_ended, reservation_upserted

from . import past
from .machine import cost, snapshot
from .session import run, screen, servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from uuid import UUID

    from ops.stack.local import Stack
    from ops.stack.postgres import PostgresServer
    from schemas.connection import Connection as Connected
    from store.ingest import FactRow
    from store.pool import Connection, Pool

    from .past import Tenants

FOLDER = Path(".staybus/growth")
KEEP = Keep.of_days(30, 30)  # half of the past is older
SPARE = 4 * 2**30  # bytes of disk for write-ahead log and what is measured


@dataclass(slots=True)
class Spent:
    """What one case took in one round, while the clock ran.

    wall     seconds on the connection
    cpu      seconds of the backends that did it
    """

    pids: Sequence[int]
    items: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        cpu, began = self._cpu(), time.perf_counter()
        yield
        self.wall += time.perf_counter() - began
        self.cpu += self._cpu() - cpu

    def _cpu(self) -> float:
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self.pids) / 1e9


@dataclass(slots=True)
class Place:
    """One database with its past."""

    size: int
    reservations: int
    owner: asyncpg.Connection[Any]
    db: Connection  # as the workers have it
    api: Pool  # as the administration has it
    tenants: Tenants
    pids: Sequence[int]
    random: Random
    recorded: list[tuple[int, FactRow]] = field(default_factory=list)  # reservation and fact, not settled yet
    routed: list[UUID] = field(default_factory=list)  # deliveries, not claimed yet
    serial: int = 0
    swept: tuple[Any, ...] = WALKS[0].after

    def facts(self, count: int) -> list[tuple[int, FactRow]]:
        """Every other one is about a reservation of the past, whichever, the rest are about new ones."""
        now, made = datetime.now(UTC), []
        for _ in range(count):
            self.serial += 1
            old = self.random.random() < 0.5
            number = self.random.randrange(self.reservations) if old else self.size + self.reservations + self.serial
            made.append((number, past.fact(number, self.tenants.known(number), now, price=self.serial)))
        return made


@dataclass(frozen=True, slots=True)
class Case:
    """act: does one batch and tells how many it did. batches: in a round, after `warm` that do not count.

    hot   what every event meets: its write-ahead log and its reads are shown, too
    """

    name: str
    per: str
    act: Callable[[Place, Spent], Awaitable[int]]
    batches: int = 100
    warm: int = 20
    hot: bool = False


# ------------------------------------------------------------------------------------------------ what is measured


async def record(place: Place, spent: Spent) -> int:
    """Ingress: a hundred webhooks in one statement."""
    made, now = place.facts(100), datetime.now(UTC)
    requests = [
        ingest.RequestRow(now, "beds24", f.connection_id, f.company_id, "POST", 202, "valid", None, 1200, None, [f])
        for _, f in made
    ]
    with spent.timing():
        await ingest.record(place.db, requests)
    place.recorded += made
    return len(made)


async def settle_inbound(place: Place, spent: Spent) -> int:
    """Inbound worker: load, then state, status and results in one statement, then the mark that they were told."""
    batch, place.recorded = place.recorded[:100], place.recorded[100:]
    with spent.timing():
        rows = await inbound.load(place.db, [fact.id for _, fact in batch])
    states = []
    for number, fact in batch:
        row, known = rows[fact.id], place.tenants.known(number)
        payload = join(orjson.loads(row.payload), known.cipher.open(row.sealed))
        sourced = past.state(row.id, row.entity_external_id, payload, known)
        told = reservation_upserted(sourced.entity, row.connection_id, "beds24")
        states.append(
            inbound.StateRow(
                row.company_id, row.connection_id, row.id, known.cipher, sourced, row.payload, row.sealed, told,
                row.trace,
            )
        )  # fmt: skip
    with spent.timing():
        stored = await inbound.apply_states(place.db, states, settled_from=datetime.now(UTC))
        if stored.told is not None:
            await results.told(place.db, [stored.told.id])
    return len(batch)


async def route(place: Place, spent: Spent) -> int:
    """Router: commands recorded, looked up, routed to one delivery each."""
    numbers = place.random.sample(range(place.reservations), 100)
    subjects = await past.subjects(place.owner, numbers)
    commands = [
        _command(place.tenants.known(n).connection, subject, None) for n, subject in zip(numbers, subjects, strict=True)
    ]
    deliveries = [
        _command(place.tenants.known(n).connection, subject, command)
        for n, subject, command in zip(numbers, subjects, commands, strict=True)
    ]
    wanted = [(row.company_id, "reservation", str(row.entity_internal_id)) for row in commands]
    with spent.timing():
        await outbound.insert_commands(place.db, commands)
        await outbound.load_commands(place.db, [row.id for row in commands])
        await outbound.mapped_connections(place.db, wanted)
        async with place.db.transaction():
            await outbound.insert_commands(place.db, deliveries)
            await finish(place.db, [_done(row.id) for row in commands])
    place.routed += [row.id for row in deliveries]
    return len(commands)


async def deliver(place: Place, spent: Spent) -> int:
    """Outbound worker, without the vendor's call and what it is held back by: claim, look up, note; then the settling."""
    batch, place.routed = place.routed[:100], place.routed[100:]
    with spent.timing():
        claimed = await outbound.claim(place.db, batch, "bench", 120.0, uuid4())
    wanted = [(row.connection_id, "reservation", row.entity_internal_id) for row in claimed]
    notes = [(row.id, row.company_id, row.connection_id, None, f"staybus:{row.id}", "{}") for row in claimed]
    with spent.timing():
        external = await outbound.external_ids(place.db, wanted)
        await outbound.note_own_writes(place.db, notes)
    succeeded = [_succeeded(row, external[key]) for row, key in zip(claimed, wanted, strict=True)]
    with spent.timing():
        _, kept = await outbound.succeed(place.db, succeeded)
        await outbound.lane_heads(place.db, [row.lane for row in claimed if row.lane])
        if kept is not None:
            await results.told(place.db, [kept.id])
    return len(claimed)


async def look_in_vain(place: Place, spent: Spent) -> int:
    """Scheduler: one round, with nothing to be found."""
    with spent.timing():
        await relay.waiting(place.db, UNPUBLISHED, STALE, UNTOLD)
    return 1


async def gauge(place: Place, spent: Spent) -> int:
    """Scheduler: the gauges of what waits."""
    with spent.timing():
        await relay.backlog(place.db)
        await relay.open_letters(place.db, COMMANDS)
    return 1


async def wake(place: Place, spent: Spent) -> int:
    """Scheduler: rows that nobody has woken, marked."""
    await record(place, Spent(()))
    with spent.timing():
        async with place.db.transaction():
            found = await relay.take_in_turn(place.db, relay.Look(UNPUBLISHED.name, 0.0), BATCH)
    await settle_inbound(place, Spent(()))
    return len(found)


async def drop(place: Place, spent: Spent) -> int:
    """Retention: a page of rows that are old enough."""
    with spent.timing():
        async with place.db.transaction():
            page = await retention.drop(place.db, WALKS[0], place.swept, KEEP, 250)
    place.swept = page.after or place.swept
    return page.rows["channel_events"]


def listing(wanted: events.Filter, *, deep: bool) -> Callable[[Place, Spent], Awaitable[int]]:
    async def page(place: Place, spent: Spent) -> int:
        async with as_company(place.api, None) as db:
            before = (
                await db.fetchval("SELECT id FROM channel_events WHERE seq = $1", place.size // 2) if deep else None
            )
            with spent.timing():
                await events.find(db, wanted, 50, before)
        return 1

    return page


async def count(place: Place, spent: Spent) -> int:
    async with as_company(place.api, None) as db:
        with spent.timing():
            await events.count(db, events.Filter())
    return 1


def letters(*, deep: bool) -> Callable[[Place, Spent], Awaitable[int]]:
    async def page(place: Place, spent: Spent) -> int:
        before = await place.owner.fetchval("SELECT past_id($1)", place.size // 2) if deep else None
        async with as_company(place.api, None) as db:
            with spent.timing():
                await dead_letters.find(db, dead_letters.Filter(), 50, before)
        return 1

    return page


CASES = (
    Case("ingress: record", "event", record, hot=True),
    Case("inbound: load, settle", "event", settle_inbound, hot=True),
    Case("router: record, route", "command", route, 60, 10, hot=True),
    Case("outbound: claim, settle", "delivery", deliver, 60, 10, hot=True),
    Case("retention: drop", "event", drop, 5, 1, hot=True),
    Case("relay: looks in vain", "round", look_in_vain, 200),
    Case("relay: wake", "event", wake, 20, 5),
    Case("gauges", "look", gauge, 50, 10),
    Case("events: newest 50", "page", listing(events.Filter(), deep=False), 50, 10),
    Case("events: 50 from the middle", "page", listing(events.Filter(), deep=True), 50, 10),
    Case("events: failed", "page", listing(events.Filter(status="failed"), deep=False), 50, 10),
    Case("events: of a company", "page", listing(events.Filter(company_id="company-7"), deep=False), 50, 10),
    Case("events: count", "look", count, 20, 3),
    Case("dead letters: newest 50", "page", letters(deep=False), 50, 10),
    Case("dead letters: 50 from the middle", "page", letters(deep=True), 50, 10),
)


def _done(id_: UUID) -> FinishRow:
    return FinishRow(id_, "done", 1, 0, None, None, None, None, False, "done", datetime.now(UTC))


def _succeeded(row: outbound.Claimed, external_id: str) -> outbound.DeliveryRow:
    told = command_ended(
        Result.COMMAND_SUCCEEDED, company_id=row.company_id, connection_id=row.connection_id,
        subject=row.entity_internal_id, command_type=row.event_type, cause_id=row.id, trace=None,
    )  # fmt: skip
    return outbound.DeliveryRow(
        row.id, row.attempts, row.lease_token, datetime.now(UTC), external_id, row.entity_internal_id, row.entity_type,
        row.payload, '{"success": true}', told,
    )  # fmt: skip


def _command(at: Connected, subject: str, parent: outbound.CommandRow | None) -> outbound.CommandRow:
    """A command about the reservation; with a parent, its delivery."""
    id_ = derived(parent.id, at.id) if parent else uuid7()
    return outbound.CommandRow(
        id=id_, company_id=at.company_id, connection_id=at.id if parent else None,
        parent_id=parent.id if parent else None, event_type="pms.booking.update", entity_type="reservation",
        entity_internal_id=subject, idempotency_key=str(id_), sealed=None,
        payload=orjson.dumps({"reservationId": subject, "notes": "A remark of the guest. " * 40}).decode(),
        lane=f"reservation:{subject}@{at.id}" if parent else None, lane_policy="hold" if parent else None,
        max_attempts=3, trace=None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ how


@dataclass(slots=True)
class Figures:
    """Of one case at one size, a value for each round. In us an item; wal in bytes, reads in blocks an item."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wal: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)


async def measure(place: Place, case: Case, into: Figures) -> None:
    for _ in range(case.warm):
        await case.act(place, Spent(()))
    before = await _server(place)
    spent = Spent(place.pids)
    for _ in range(case.batches):
        spent.items += await case.act(place, spent)
    after = await _server(place)
    into.wall.append(spent.wall / spent.items * 1e6)
    into.cpu.append(spent.cpu / spent.items * 1e6)
    into.wal.append((after[0] - before[0]) / spent.items)
    into.reads.append((after[1] - before[1]) / spent.items)


async def _server(place: Place) -> tuple[int, int]:
    """Bytes of write-ahead log and blocks read from outside of its memory, up to now."""
    await place.db.execute("SELECT pg_stat_force_next_flush()")
    (row,) = await place.owner.fetch(
        "SELECT pg_current_wal_insert_lsn() - '0/0' AS wal,"
        " (SELECT blks_read FROM pg_stat_database WHERE datname = current_database()) AS reads"
    )
    return int(row["wal"]), int(row["reads"])


@asynccontextmanager
async def prepared(
    given: argparse.Namespace, server: PostgresServer, size: int, say: Callable[[str], None]
) -> AsyncIterator[Place]:
    """A database with its past, dropped at the end."""
    name = f"growth_{size}"
    admin = await asyncpg.connect(server.url)
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await admin.execute(f"CREATE DATABASE {name}")
    url = urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    try:
        await migrate.upgrade(url)
        key_file = FOLDER / "key"
        if not key_file.exists():
            KeyFile.create(key_file)
        owner = await asyncpg.connect(url)
        began = time.monotonic()
        say(f"making {size:,} events …")
        tenants = past.Tenants.new(KeyFile.read(key_file))
        await past.fill(owner, size, tenants, say, reservations=given.reservations)
        used = await owner.fetchval("SELECT pg_database_size(current_database())")
        say(f"  {used / 2**30:.1f} GiB in {time.monotonic() - began:.0f} s")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(owner.close)
            worker = await stack.enter_async_context(await open_pool(url, name="bench", size=1))
            db = await stack.enter_async_context(worker.acquire())
            api = await stack.enter_async_context(await open_pool(url, role=API_ROLE, name="bench", size=1))
            pids = [await db.fetchval("SELECT pg_backend_pid()"), await api.fetchval("SELECT pg_backend_pid()")]
            yield Place(size, given.reservations, owner, db, api, tenants, pids, Random(size))
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def rounds(given: argparse.Namespace, server: PostgresServer, say: Console) -> list[dict[str, Figures]]:
    """returns for each size its figures by case"""
    roots = {"postgres": [mark.pid for mark in server.processes]}
    async with AsyncExitStack() as stack:
        places = [await stack.enter_async_context(prepared(given, server, size, say.print)) for size in given.sizes]
        found: list[dict[str, Figures]] = [defaultdict(Figures) for _ in places]
        before = snapshot(roots)
        for number in range(given.rounds):
            say.print(f"round {number + 1} of {given.rounds} …")
            for place, figures in zip(places, found, strict=True):
                for case in CASES:
                    await measure(place, case, figures[case.name])
        say.print(f"other programs took {cost(before, snapshot(roots)).foreign:.0%} of the machine")
    return found


def table(title: str, sizes: Sequence[int], rows: Sequence[tuple[str, Sequence[float]]]) -> Table:
    shown = Table(title=title, box=SIMPLE, padding=(0, 1), pad_edge=False, title_justify="left")
    shown.add_column("")
    for size in sizes:
        shown.add_column(f"{size:,}", justify="right")
    for size in sizes[1:]:
        shown.add_column(f"x at {size:,}", justify="right")
    for name, values in rows:
        ratios = [f"{value / values[0]:.2f}" if values[0] else "" for value in values[1:]]
        shown.add_row(name, *(f"{value:,.0f}" if value >= 20 else f"{value:.2f}" for value in values), *ratios)
    return shown


def tables(sizes: Sequence[int], found: Sequence[dict[str, Figures]]) -> list[Table]:
    def rows(pick: Callable[[Figures], list[float]], *, hot: bool) -> list[tuple[str, list[float]]]:
        return [
            (f"{case.name} ({case.per})", [median(pick(figures[case.name])) for figures in found])
            for case in CASES
            if case.hot or not hot
        ]

    return [
        table("us of the backend's CPU", sizes, rows(lambda f: f.cpu, hot=False)),
        table("us on the connection", sizes, rows(lambda f: f.wall, hot=False)),
        table("bytes of write-ahead log", sizes, rows(lambda f: f.wal, hot=True)),
        table("blocks read from outside the server's memory", sizes, rows(lambda f: f.reads, hot=True)),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    sizes = [10_000, 1_000_000, 10_000_000]
    parser.add_argument(
        "--sizes", type=_sizes, default=sizes, help="events, with commas (default 10000,1000000,10000000)"
    )
    parser.add_argument(
        "--reservations",
        type=int,
        default=past.RESERVATIONS,
        help="that the events are about (default 20,000 at every size)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--keep", action="store_true", help="leave the server running for the next run, without the rows"
    )
    return parser.parse_args()


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if min(sizes) < 10_000:
        raise argparse.ArgumentTypeError("at least 10000 each: what is measured adds some ten thousand itself")
    return sizes


def _own(stack: Stack, sizes: Sequence[int]) -> PostgresServer:
    """raises StackError"""
    if stack.postgres is None:
        raise StackError(
            "what the server's processes cost is looked at, so it must be ours: unset STAYBUS_DATABASE_URL"
        )
    folder = stack.postgres.data or FOLDER
    needed, free = sum(sizes) * past.BYTES_AN_EVENT + SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise StackError(
            f"{folder} has {free / 2**30:.0f} GiB free, {needed / 2**30:.0f} are needed: take smaller --sizes, or make room"
        )
    return stack.postgres


def main() -> int:
    given, say = arguments(), screen()
    try:
        with servers(FOLDER, keep=given.keep, say=say.print) as stack:
            found = run(rounds(given, _own(stack, given.sizes), say))
    except StackError as error:
        say.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        say.print("ended; nothing is left running")
        return 130
    for shown in tables(given.sizes, found):
        say.print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
