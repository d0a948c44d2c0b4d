"""One fleet of real processes, with what surrounds it: started once, hurt many times, looked at after each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import asyncpg
import httpx
import orjson
from aiormq.exceptions import AMQPError

from adapters.beds24.manifest import MANIFEST
from adapters.port import Repeat
from simulators.beds24.faults import Fault, FaultKind
from simulators.core_pms import CorePms
from store import migrate
from tests.faults.journal import Journal
from tests.faults.load import AMQP_AWAY, AWAY, ROOMS, Load, insist, vendors_stay
from tests.faults.nursery import Nursery
from tests.faults.oracle import EventRow, Job, Record, Stay, repeats, violations
from tests.faults.steps import Moment, Point
from tests.fleet import COMPANY, PROPERTY, World
from tests.topology.tcp_proxy import TcpProxy
from topology.declared import UNROUTABLE, dlq, inbound_queue, outbound_queue
from topology.depth import Depths

if TYPE_CHECKING:
    from ops.stack.local import Stack
    from store.seal import Cipher

LOOK_UP = frozenset(type_ for type_, support in MANIFEST.commands.items() if support.repeat is not Repeat.ASK)
LONG_AGO = datetime.min.replace(tzinfo=UTC)
HIT = 40.0  # seconds for an armed process to reach its point
REST = 45.0  # seconds for everything to come to rest once nothing is hurt any more: a takeover takes six
QUEUES = ("pms.outbound", inbound_queue("beds24"), outbound_queue("beds24"), dlq("beds24"), "pms.dlq", UNROUTABLE)

_OPERATIONS = {
    "bookings.create": "POST /bookings",
    "bookings.update": "POST /bookings",
    "bookings.cancel": "POST /bookings",
    "bookings.find": "GET /bookings",
    "bookings.read": "GET /bookings",
    "calendar.update": "POST /inventory/rooms/calendar",
}
_EVENTS = """
SELECT id, seq, direction, event_type, parent_id, idempotency_key, status, lane, attempts, starts, last_error,
       (SELECT count(*) FROM event_attempts a WHERE a.event_id = e.id AND a.outcome = 'retry'
          AND a.error_class IN ('unknown', 'transient', 'rate_limited')) AS retries
FROM channel_events e"""
_UNREST = """
SELECT (SELECT count(*) FROM channel_events WHERE seq > $1 AND status IN ('received', 'processing', 'retrying'))
     + (SELECT count(*) FROM pulls WHERE finished_at < clock_timestamp() - interval '1 hour')
     + (SELECT count(*) FROM core_batches) + (SELECT count(*) FROM outbox WHERE taken_at IS NULL)
     + (SELECT count(*) FROM operator_jobs WHERE finished_at IS NULL)
     + cardinality($2::text[]) - (SELECT count(*) FROM channel_events
                                  WHERE seq > $1 AND parent_id IS NULL AND idempotency_key = ANY ($2))
"""


@dataclass(slots=True)
class Verdict:
    """What came of one stretch."""

    violations: list[str]
    webhooks: int
    commands: int
    effects: int
    repeats: dict[str, int]
    record: Record


@dataclass
class Ground:
    world: World
    stack: Stack
    core: CorePms
    pool: asyncpg.Pool[asyncpg.Record]
    journal: Journal
    amqp: TcpProxy
    database: TcpProxy
    clean: dict[str, str] = field(default_factory=dict)
    """variables of a process that nothing kills"""
    times: dict[str, float] = field(default_factory=dict)
    _seq: int = 0
    _log: int = 0
    _calls: int = 0
    _since: datetime = LONG_AGO
    _heard: set[str] = field(default_factory=set)
    _marks: Any = field(default_factory=itertools.count)

    @classmethod
    @asynccontextmanager
    async def open(cls, stack: Stack, database_url: str, amqp_url: str, folder: Path) -> AsyncIterator[Ground]:
        """The fleet behind proxies, every process up, warm, and idle."""
        async with AsyncExitStack() as resources:
            amqp = await resources.enter_async_context(_proxy(amqp_url))
            database = await resources.enter_async_context(_proxy(database_url))
            world = await World.build(_through(database_url, database), _through(amqp_url, amqp), folder, resources)
            world.apart = True
            world.extra["vendor_timeout"] = 4.0
            world.spawner = resources.enter_context(Nursery(folder)).start
            world.sim.account.credits.limit = Decimal(10**9)
            await world.map("property", PROPERTY, "P1")
            for room, external in ROOMS.items():
                await world.map("room_type", str(external), room)
            pool = await asyncpg.create_pool(database_url, min_size=0, max_size=6)
            resources.push_async_callback(pool.close)
            core = await resources.enter_async_context(CorePms(amqp_url))
            ground = cls(world, stack, core, pool, Journal(world.sim), amqp, database)
            await world.start()
            await ground.warm()
            try:
                yield ground
            finally:
                for name in list(world.processes):
                    world.kill(name)
                world.db.terminate()

    async def warm(self) -> None:
        """The invite code is good for one use: a kill between that and our commit needs a person, so it comes before."""
        load = Load(self, random.Random(0))
        await load.hint()
        await load.story("exchange")
        await self.judge(load)

    # ------------------------------------------------------------------ the test's own hands

    async def execute(self, sql: str, *values: Any) -> str:
        async with self.pool.acquire() as connection:
            return str(await connection.execute(sql, *values))

    async def cipher(self) -> Cipher:
        async with self.pool.acquire() as connection:
            wrapped = await connection.fetchval("SELECT data_key FROM companies WHERE id = $1", COMPANY)
        return self.world.keys.cipher(COMPANY, wrapped)

    async def publish(self, exchange: str, key: str, body: bytes, content_type: str) -> None:
        async def act() -> None:
            connection = await aio_pika.connect(self.amqp_url)
            try:
                channel = await connection.channel()
                target = await channel.get_exchange(exchange, ensure=False)
                message = aio_pika.Message(body, content_type=content_type, delivery_mode=2)
                await target.publish(message, routing_key=key, timeout=10)
            finally:
                await connection.close()

        await insist(act, AMQP_AWAY)

    @property
    def amqp_url(self) -> str:
        """Past the proxy."""
        return _past(self.world.amqp_url, self.amqp)

    @property
    def database_url(self) -> str:
        return _past(self.world.database_url, self.database)

    # ------------------------------------------------------------------ processes

    def begin(self, name: str, plan: dict[str, Any] | None = None) -> None:
        """Starts the process anew, with what is to happen to it; a living one is killed, which is harmless while idle."""
        if name in self.world.processes:
            self.world.kill(name)
        self.world.environment[name] = {**self.clean, **({"FAULTS": orjson.dumps(plan).decode()} if plan else {})}
        self.world._spawn(name)

    async def ensure(self, name: str) -> None:
        """Up, and with nothing in store for it."""
        process = self.world.processes.get(name)
        if process is None or process.poll() is not None or "FAULTS" in self.world.environment.get(name, {}):
            self.world.processes.pop(name, None)
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            self.begin(name)
        await self.world.wait_ready(name, timeout=60)

    async def died(self, name: str, timeout: float) -> bool:
        """Whether it died within this time."""
        process = self.world.processes[name]
        try:
            async with asyncio.timeout(timeout):
                while process.poll() is None:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    async def kill_at(self, point: Point, hit: int, load: Load, **more: Any) -> bool:
        """One process is killed at one point, the load going on. False: it never came there; then it is killed anyhow."""
        name, step = point.step.process, point.step
        mark = self.world.folder / f"mark-{next(self._marks)}"
        if point.moment is Moment.DURING and step.where is not None:
            self.slow(_OPERATIONS[step.where[1]], 0.3, 6, late=hit % 2 == 0)
        self.begin(name, {"point": point.name, "hit": hit, "mark": str(mark), **more})
        errands = asyncio.create_task(self._errands(step.needs, load))
        armed = time.monotonic()
        try:
            struck = await self.died(name, HIT)
        finally:
            errands.cancel()
            await asyncio.gather(errands, return_exceptions=True)
        self.times[point.name] = time.monotonic() - armed
        process = self.world.processes.pop(name)
        if not struck:
            process.kill()
        code = process.wait()
        self.world.environment[name] = {}
        if struck and code != -signal.SIGKILL:
            raise AssertionError(f"{name} ended with {code} at {point.name}: {self.world.log(name)[-3000:]}")
        return struck and mark.read_text() == point.name

    def slow(self, operation: str, seconds: float, count: int, *, late: bool = False) -> None:
        """The vendor takes its time for the next calls: they are done at once and answered late, or (late) done late."""
        fault = Fault(FaultKind.SLOW, operation=operation, seconds=seconds, count=count, commit=False if late else None)
        self.world.sim.faults.add(fault)

    async def _errands(self, needs: str, load: Load) -> None:
        while needs not in {"", "death", "returned", "expired"}:
            load.begin(lambda: load.errand(needs))
            await asyncio.sleep(1.2)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.world.processes[name].send_signal(number)

    # ------------------------------------------------------------------ judging

    async def rest(self, load: Load, patience: float) -> None:
        """Until nothing is open any more, or patience ends: the oracle will then say what still is."""
        keys = [said.key for said in load.said]
        # Looked at and not cancelled: a cancelled wait for the broker may be taken for a lost connection, and go on.
        end, minute = time.monotonic() + patience, time.monotonic() + 4
        while time.monotonic() < end:
            with contextlib.suppress(*AWAY, AMQPError):
                if await self._at_rest(keys):
                    return
            if time.monotonic() > minute:
                minute = time.monotonic() + 8
                await self._a_minute_passes()
            await asyncio.sleep(0.1)

    async def _at_rest(self, keys: list[str]) -> bool:
        async with self.pool.acquire() as connection:
            if await connection.fetchval(_UNREST, self._seq, keys):
                return False
            results = await connection.fetch("SELECT id FROM core_events WHERE created_at > $1", self._since)
        if not all(str(row["id"]) in self.core.seen for row in results):
            return False
        return not any(n for queue, n in (await self.waiting()).items() if queue != UNROUTABLE)

    async def _a_minute_passes(self) -> None:
        """For what waits for one: a row that was woken by a scheduler that died before it published, a lease that its worker
        does not know of, because a network held the claim back and let it through when nobody waited for it any more (no call
        takes so long), the pull of a scheduler that died, and the pause of a circuit."""
        with contextlib.suppress(*AWAY):
            await self.execute(
                "UPDATE channel_events SET published_at = published_at - interval '1 minute'"
                " WHERE status = 'received' AND published_at < clock_timestamp() - interval '3 s'"
            )
            await self.execute(
                "UPDATE channel_events SET lease_until = lease_until - interval '2 minutes'"
                " WHERE status = 'processing' AND lease_until < clock_timestamp() + interval '105 s'"
            )
            await self.execute(
                "UPDATE pulls SET lease_until = NULL, not_before = NULL WHERE finished_at < clock_timestamp() - interval '1 hour'"
                " AND started_at < clock_timestamp() - interval '15 s'"
            )
            await self.execute("UPDATE call_circuits SET retry_at = retry_at - interval '1 minute'")
            await self.execute(
                "UPDATE channel_events SET next_attempt_at = next_attempt_at - interval '1 minute'"
                " WHERE status = 'retrying' AND last_error LIKE 'circuit open%'"
            )

    async def judge(
        self,
        load: Load,
        *,
        patience: float = REST,
        unhurt: bool = False,
        unroutable: int | None = 0,
        echoes: bool = False,
    ) -> Verdict:
        """Waits for rest, then asks the oracle about this stretch, and begins the next."""
        await self.rest(load, patience)
        if echoes:
            await load.echoes()
            await self.rest(load, patience)
        record = await self._collect(load, unhurt=unhurt, unroutable=unroutable)
        found = [*load.problems, *violations(record)]
        applied = sum(call.applied for call in record.calls)
        verdict = Verdict(
            found, len(record.accepted), len(record.said), len(record.results) + applied, dict(repeats(record)), record
        )
        await self._next_stretch()
        return verdict

    async def waiting(self) -> dict[str, int]:
        async with Depths(self.amqp_url, name="what is left") as depths:
            return await depths.ask(QUEUES)

    async def _collect(self, load: Load, *, unhurt: bool, unroutable: int | None) -> Record:
        account = self.world.sim.account
        for id_ in load.at_vendor:
            load.facts[str(id_)] = vendors_stay(account.bookings[id_])
        async with self.pool.acquire() as connection:
            events = {
                row["id"]: EventRow(*row)
                for row in await connection.fetch(
                    f"{_EVENTS} WHERE seq > $1 ORDER BY seq",
                    self._seq,
                )
            }
            known = {id_ for webhook in load.accepted for id_ in webhook.ids} - events.keys()
            if known:  # of an earlier stretch: an echo of what an earlier one made
                events |= {
                    row["id"]: EventRow(*row)
                    for row in await connection.fetch(
                        f"{_EVENTS} WHERE id = ANY ($1)",
                        list(known),
                    )
                }
            logged = await connection.fetch(
                "SELECT unnest(event_ids) AS id FROM webhook_log WHERE id > $1 AND status < 300", self._log
            )
            results = await connection.fetch(
                "SELECT id, cause_id, event_type FROM core_events WHERE cause_id = ANY ($1)", list(events)
            )
            letters = await connection.fetch("SELECT event_id FROM dead_letters WHERE created_at > $1", self._since)
            stored = await connection.fetch(
                "SELECT external_id, check_in, check_out, adults, status FROM int_reservations WHERE external_id = ANY ($1)",
                list(load.facts),
            )
            told = await connection.fetch(
                "SELECT r.external_id, c.data::text AS data FROM int_reservations r JOIN core_events c ON c.cause_id = r.source_event"
                " WHERE r.external_id = ANY ($1)",
                list(load.facts),
            )
            names = await connection.fetch(
                "SELECT internal_entity_id, external_entity_id FROM int_mappings WHERE internal_entity_id = ANY ($1)"
                " ORDER BY external_entity_id",
                list(load.stays),
            )
            calls = await connection.fetch(
                "SELECT event_id FROM sync_exchanges WHERE event_id = ANY ($1)", list(events)
            )
            jobs = await connection.fetch(
                "SELECT id, status, done, ARRAY(SELECT replay_of FROM channel_events e WHERE e.job_id = j.id) AS repeated"
                " FROM operator_jobs j WHERE id = ANY ($1)",
                list(load.jobs),
            )
            batches = await connection.fetchval("SELECT count(*) FROM core_batches")
        waiting = await insist(self.waiting, (*AWAY, AMQPError))
        if unroutable is None:
            waiting.pop(UNROUTABLE, None)
        else:
            waiting[UNROUTABLE] = waiting.get(UNROUTABLE, 0) - unroutable
        wanted, got = self._wanted(load)
        wanted |= {f"names of {entity}": ids for entity, ids in self._ids(load).items()}
        for row in names:
            got.setdefault(f"names of {row['internal_entity_id']}", []).append(row["external_entity_id"])  # type: ignore[attr-defined]
        return Record(
            accepted=load.accepted,
            said=load.said,
            events=events,
            logged=frozenset(row["id"] for row in logged),
            results=[tuple(row) for row in results],
            heard={id_: times for id_, times in self.core.seen.items() if id_ not in self._heard},
            letters=[row["event_id"] for row in letters],
            stored={
                row["external_id"]: Stay(
                    row["check_in"].isoformat(),
                    row["check_out"].isoformat(),
                    row["adults"],
                    row["status"] == "cancelled",
                )
                for row in stored
            },
            vendors=load.facts,
            told={row["external_id"]: _told_stay(row["data"]) for row in told},
            echoes=frozenset(load.own),
            wanted=wanted,
            got=got,
            calls=self.journal.calls(self._calls),
            logged_calls=frozenset(row["event_id"] for row in calls),
            jobs=[Job(row["id"], load.jobs[row["id"]], row["repeated"], row["status"], row["done"]) for row in jobs],
            look_up=LOOK_UP,
            waiting=waiting,
            results_waiting=batches,
            unhurt=unhurt and load.vendor_sound,
            vendor_sound=load.vendor_sound,
            expected_letters=load.letters,
        )

    def _ids(self, load: Load) -> dict[str, list[str]]:
        """The vendor's, of what the core created."""
        found: dict[str, list[str]] = {}
        for id_, booking in self.world.sim.account.bookings.items():
            if booking["lastName"] in load.stays:
                found.setdefault(booking["lastName"], []).append(str(id_))
        return {entity: sorted(ids) for entity, ids in found.items()}

    def _wanted(self, load: Load) -> tuple[dict[str, object], dict[str, object]]:
        """Bookings by the name that the core gave them, and the calendar's nights that were pushed."""
        account = self.world.sim.account
        wanted: dict[str, object] = {entity: [stay] for entity, stay in load.stays.items()}
        got: dict[str, object] = {}
        for booking in account.bookings.values():
            if booking["lastName"] in wanted:
                held = got.setdefault(booking["lastName"], [])
                assert isinstance(held, list)
                held.append(vendors_stay(booking))
        for room, nights in load.nights.items():
            wanted[f"calendar of {room}"] = nights
            got[f"calendar of {room}"] = {
                night: {
                    name: value
                    for name, value in account.inventory.day_values(ROOMS[room], night, set(values)).items()
                    if name in values
                }
                for night, values in nights.items()
            }
        return wanted, got

    async def _next_stretch(self) -> None:
        async with self.pool.acquire() as connection:
            self._seq = await connection.fetchval("SELECT COALESCE(max(seq), 0) FROM channel_events")
            self._log = await connection.fetchval("SELECT COALESCE(max(id), 0) FROM webhook_log")
            self._since = await connection.fetchval("SELECT clock_timestamp()")  # ids tell the clocks of processes
            # Nothing of one stretch may reach into the next, whatever became of it.
            await connection.execute(
                "UPDATE channel_events SET status = 'abandoned' WHERE status IN"
                " ('received', 'processing', 'retrying', 'failed')"
            )
        self._calls = len(self.journal)
        self._heard = set(self.core.seen)
        self.world.sim.faults.clear()
        await self._sweep()

    async def _sweep(self) -> None:
        connection = await aio_pika.connect(self.amqp_url)
        try:
            for queue in QUEUES:
                channel = await connection.channel()
                held = await channel.declare_queue(queue, passive=True)
                await held.purge()
                await channel.close()
        finally:
            await connection.close()


def _told_stay(data: str) -> Stay:
    """As a result says it."""
    told = orjson.loads(data)["reservation"]
    return Stay(told["checkIn"], told["checkOut"], told["adults"], told["status"] == "cancelled")


async def database_of_its_own(stack: Stack) -> tuple[str, str]:
    """A migrated database, and a vhost: their URLs."""
    name = f"faults_{secrets.token_hex(4)}"
    owner = await asyncpg.connect(stack.database_url)
    await owner.execute(f"CREATE DATABASE {name}")
    await owner.close()
    database_url = urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
    await migrate.upgrade(database_url)
    async with httpx.AsyncClient() as http:
        (await http.put(f"{stack.amqp_admin_url}/vhosts/{name}")).raise_for_status()
    return database_url, urlunsplit(urlsplit(stack.amqp_url)._replace(path=f"/{name}"))


def _proxy(url: str) -> TcpProxy:
    parts = urlsplit(url)
    return TcpProxy(parts.hostname or "127.0.0.1", parts.port or 0)


def _through(url: str, proxy: TcpProxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"))


def _past(url: str, proxy: TcpProxy) -> str:
    parts = urlsplit(url)
    host, port = proxy._target
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@{host}:{port}"))
