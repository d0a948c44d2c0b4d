"""`python -m bench.isolation`: what others feel of a dead vendor, and of a tenant with fifty times their load.

Nine parties send a little of everything through the real ingress and broker: facts with all their members, hints that must be
fetched, commands that become calls. First alone, then beside the tenth; p50 and p99 from recorded to done, and their ratio.
Load, simulators, servers and fleet share this machine: on two cores read ratios, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import itertools
import secrets
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import orjson
from rich.box import SIMPLE
from rich.table import Table

from ops.parts import declared
from ops.stack.errors import StackError
from ops.stack.ports import free_port
from schemas.connection import Connection
from simulators.beds24.app import Beds24, create_app
from simulators.beds24.faults import Fault, FaultKind
from simulators.core_pms import CorePms
from simulators.server import SimServer
from store import connections, migrate
from store.seal import KeyFile
from topology.apply import apply

from . import payloads
from .load import Order
from .measure import UnprovenError, quantile, send
from .session import EndedError, children, fresh, run, screen, servers
from .vendors import NAMES, copies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from ops.stack.local import Stack

FOLDER = Path(".staybus/isolation")
PROCESSES = ("ingress", "inbound", "outbound", "scheduler")
PARTIES = 10
TIMES = 50  # the load of the one tenant, in that of another
BEFORE = 3.0  # seconds of it before the others are measured: to start its generator takes half a processor
PROPERTY, ROOM = "345754", "713992"  # the simulator's seed
GUESTS = 50  # bookings at a vendor that hints can name
_MAIN = (
    "import sys; from bench.vendors import install; install(); from ops.fleet import run; from ops.settings import load;"
    " run(sys.argv[1], load())"
)
_KINDS = {"facts": "direction = 'inbound' AND event_type NOT LIKE '%.hinted'",
          "hints": "event_type LIKE '%.hinted'",
          "commands": "parent_id IS NOT NULL"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Party:
    """A company with one connection, and the vendor's account behind it."""

    company: str
    vendor: str
    sim: Beds24
    url: str
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def connection(self) -> str:
        return f"{self.vendor}-{self.company}"

    @property
    def path(self) -> str:
        return f"/webhooks/{self.vendor}/{self.connection}"


@dataclass(slots=True)
class Ground:
    """A running fleet with its parties. numbers: of payloads, each used once"""

    database: asyncpg.Connection[asyncpg.Record]
    ingress: int
    parties: Sequence[Party]
    http: httpx.AsyncClient
    core: CorePms
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def steady(self, parties: Iterable[Party], rate: float, seconds: float) -> None:
        """Of each party `rate` events a second, half of them facts, the rest hints and commands in equal shares."""
        turns = itertools.cycle((self.fact, self.hint, self.fact, self.command))
        list_ = list(parties)
        begin = time.monotonic()
        async with asyncio.TaskGroup() as sending:
            for n in range(int(rate * seconds)):
                turn = next(turns)
                for k, party in enumerate(list_):
                    wait = begin + (n + k / len(list_)) / rate - time.monotonic()
                    if wait > 0:
                        await asyncio.sleep(wait)
                    sending.create_task(turn(party))

    async def fact(self, party: Party) -> None:
        headers, body = payloads.signed(next(self.numbers), party.secret.encode(), full=True)
        await self._post(party, headers, body)

    async def hint(self, party: Party) -> None:
        number = next(self.numbers)
        ids = list(party.sim.account.bookings)
        body = orjson.dumps({"booking": {"id": ids[number % GUESTS]}, "timeStamp": str(number)})
        signature = hmac.new(party.secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"content-type": "application/json", "x-beds24-signature": f"sha256={signature}"}
        await self._post(party, headers, body)

    async def _post(self, party: Party, headers: Mapping[str, str], body: bytes) -> None:
        while True:
            answer = await self.http.post(party.path, headers=dict(headers), content=body)
            if answer.status_code in {200, 202}:
                return
            if answer.status_code not in {429, 503}:
                raise UnprovenError(f"ingress answers {answer.status_code}: {answer.text[:200]}")
            await asyncio.sleep(0.2)

    async def command(self, party: Party) -> None:
        number = next(self.numbers)
        arrival = date(2027, 3, 1) + timedelta(days=number % 300)
        data = {
            "reservationId": f"{party.connection}-{number}",
            "propertyId": f"P-{party.company}",
            "roomTypeId": f"R-{party.company}",
            "checkIn": arrival.isoformat(),
            "checkOut": (arrival + timedelta(days=1)).isoformat(),
            "adults": 2,
        }
        await self.core.publish(
            "pms.booking.create", data["reservationId"], party.company, data, f"{party.connection}-{number}"
        )

    async def latencies(self, parties: Iterable[Party], since: float, patience: float = 90.0) -> dict[str, list[float]]:
        """By kind, in seconds, once all of these parties' events are done. raises UnprovenError"""
        ids = [party.connection for party in parties]
        rested = 0  # looks in a row; a command that was published a moment ago is no row yet
        for _ in range(int(patience / 0.3)):
            open_ = await self.database.fetchval(
                "SELECT count(*) FROM channel_events WHERE (connection_id = ANY ($1) OR connection_id IS NULL)"
                " AND processed_at IS NULL",
                ids,
            )
            rested = 0 if open_ else rested + 1
            if rested == 3:
                break
            await asyncio.sleep(0.3)
        else:
            raise UnprovenError(f"{open_} events of the others are not done after {patience:.0f} s")
        return {
            kind: [
                row[0]
                for row in await self.database.fetch(
                    "SELECT extract(epoch FROM processed_at - received_at)::float8 FROM channel_events"  # noqa: S608
                    f" WHERE connection_id = ANY ($1) AND received_at >= to_timestamp($2) AND {which}",
                    ids,
                    since,
                )
            ]
            for kind, which in _KINDS.items()
        }


@asynccontextmanager
async def ground(stack: Stack, who: Sequence[tuple[str, str]]) -> AsyncIterator[Ground]:
    """who: (company, vendor) of each party. raises EndedError"""
    vendors = copies(sorted({vendor for _, vendor in who}))
    key_file = FOLDER / "key"
    if not key_file.exists():
        KeyFile.create(key_file)
    async with AsyncExitStack() as opened:
        database_url, amqp_url = await opened.enter_async_context(fresh(stack, "isolation"))
        await migrate.upgrade(database_url)
        await apply(amqp_url, declared(vendors))
        database = await asyncpg.connect(database_url)
        opened.push_async_callback(database.close)
        parties = [
            await _seed(database, KeyFile.read(key_file), Party(company, vendor, *await _simulator(opened)))
            for company, vendor in who
        ]
        ports: dict[str, int] = {}
        for process in PROCESSES:
            ports[process] = free_port(set(ports.values()))
        running = await opened.enter_async_context(
            children(
                FOLDER / "logs",
                STAYBUS_DATABASE_URL=database_url,
                STAYBUS_AMQP_URL=amqp_url,
                STAYBUS_KEY_FILE=str(key_file),
                **{f"STAYBUS_{process.upper()}_PORT": str(port) for process, port in ports.items()},
            )
        )
        for process in PROCESSES:
            running.start(f"isolation-{process}", ["-c", _MAIN, process], **{NAMES: ",".join(vendors)})
        for port in ports.values():
            await running.ready(port, "/readyz", {200})
        http = await opened.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['ingress']}", timeout=60)
        )
        # Failures only: whoever hears the rest has a machine of its own, and not the loop in which the vendors answer.
        core = await opened.enter_async_context(CorePms(amqp_url, binding="core.command.failed"))
        yield Ground(database, ports["ingress"], parties, http, core)


async def _simulator(opened: AsyncExitStack) -> tuple[Beds24, str]:
    sim = Beds24()
    sim.account.credits.limit = Decimal(10**9)
    for n in range(GUESTS):
        arrival = date(2027, 1, 1) + timedelta(days=n)
        stay = {"arrival": arrival.isoformat(), "departure": (arrival + timedelta(days=1)).isoformat()}
        sim.account.book({"roomId": int(ROOM), "numAdult": 2, **stay}, channel="airbnb")
    server = await opened.enter_async_context(SimServer(create_app(sim)))
    return sim, server.url


async def _seed(database: asyncpg.Connection[asyncpg.Record], keys: KeyFile, party: Party) -> Party:
    data_key = keys.new_data_key()
    await connections.add_company(database, party.company, party.company, data_key)
    config: dict[str, Any] = {"base_url": f"{party.url}/api/v2", "currency": "EUR", "webhook_auth": "hmac", "pull": "0"}
    of = Connection(party.connection, party.company, party.vendor, party.company)
    await connections.add_connection(database, of.id, of.company_id, of.vendor, of.name, None, config)
    cipher = keys.cipher(party.company, data_key)
    credentials = {"webhook_secret": party.secret, "invite_code": party.sim.account.access.invite()}
    for name, value in credentials.items():
        await connections.put_secret(database, of, name, cipher.seal_bytes(value.encode()))
    await connections.add_mapping(database, of, "property", PROPERTY, f"P-{party.company}")
    await connections.add_mapping(database, of, "room_type", ROOM, f"R-{party.company}")
    return party


# ------------------------------------------------------------------------------------------------ the two neighbours


Latencies = dict[str, list[float]]


async def measured(place: Ground, others: Sequence[Party], given: argparse.Namespace) -> Latencies:
    since = time.time()
    await place.steady(others, given.rate, given.seconds)
    return await place.latencies(others, since)


async def dead_vendor(stack: Stack, given: argparse.Namespace) -> tuple[Latencies, Latencies]:
    """It takes requests and never answers them; it has as much to do as the others, and a backlog."""
    async with ground(stack, [(f"c{n}", f"vendor{n}") for n in range(PARTIES)]) as place:
        dead, *others = place.parties
        await place.steady(others, given.rate, 2)  # tokens, plans, caches
        alone = await measured(place, others, given)
        dead.sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, count=None))
        for act in (place.hint, place.command):
            await asyncio.gather(*(act(dead) for _ in range(given.backlog // 2)))
        async with asyncio.TaskGroup() as beside:
            beside.create_task(place.steady([dead], given.rate, given.seconds))
            found = beside.create_task(measured(place, others, given))
        return alone, found.result()


async def busy_tenant(stack: Stack, given: argparse.Namespace) -> tuple[Latencies, Latencies]:
    """All are at one vendor. The one sends whole facts by a load generator of its own, and a tenth as many hints and
    commands as they all do together."""
    async with ground(stack, [(f"c{n}", "vendor") for n in range(PARTIES)]) as place:
        busy, *others = place.parties
        await place.steady(others, given.rate, 2)
        alone = await measured(place, others, given)
        rate = TIMES * given.rate
        order = Order(
            place.ingress,
            busy.path,
            busy.secret,
            int(rate * (given.seconds + BEFORE)),
            50_000_000,
            rate=rate,
            full=True,
            timeout=600,
        )
        async with asyncio.TaskGroup() as beside:
            beside.create_task(send(order))
            beside.create_task(place.steady([busy], given.rate, given.seconds + BEFORE))
            await asyncio.sleep(BEFORE)
            found = beside.create_task(measured(place, others, given))
        return alone, found.result()


def table(rows: Sequence[tuple[str, Latencies, Latencies]]) -> Table:
    shown = Table(title="recorded → done of nine parties, ms: p50 / p99", box=SIMPLE, padding=(0, 1), pad_edge=False)
    for column in ("neighbour", "of the others", "events", "alone", "beside", "p99 ratio"):
        shown.add_column(column, justify="left" if column in {"neighbour", "of the others"} else "right", no_wrap=True)
    for name, alone, beside in rows:
        for kind in (*_KINDS, "all"):
            before, after = (
                sorted(itertools.chain.from_iterable(found.values())) if kind == "all" else found[kind]
                for found in (alone, beside)
            )
            p99 = [quantile(values, 0.99) for values in (before, after)]
            shown.add_row(
                name,
                kind,
                f"{len(after):,}",
                *(
                    f"{quantile(values, 0.5) * 1e3:.0f} / {quantile(values, 0.99) * 1e3:.0f}"
                    for values in (before, after)
                ),
                f"{p99[1] / p99[0]:.1f}",
            )
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.isolation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each of the four runs")
    parser.add_argument("--rate", type=float, default=4.0, help="events a second of each party (default 4)")
    parser.add_argument("--backlog", type=int, default=500, help="what waits for the dead vendor at the start")
    parser.add_argument("--keep", action="store_true", help="leave the servers running for the next run")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    say = screen()

    async def runs(stack: Stack) -> list[tuple[str, Latencies, Latencies]]:
        found = []
        for name, neighbour in (("a dead vendor", dead_vendor), (f"a tenant with {TIMES}x", busy_tenant)):
            say.print(f"nine parties at {given.rate:g}/s each, alone and beside {name} …")
            found.append((name, *await neighbour(stack, given)))
        return found

    try:
        with servers(FOLDER, keep=given.keep, say=say.print) as stack:
            found = run(runs(stack))
    except (StackError, EndedError, UnprovenError) as error:
        say.print(str(error), style="red")
        return 1
    except KeyboardInterrupt:
        say.print("ended; nothing is left running")
        return 130
    say.print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
