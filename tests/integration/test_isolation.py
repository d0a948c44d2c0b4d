"""What is slow or dead holds nobody else: vendors, connections, tenants. And what waits for it loses nothing by waiting."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest

from adapters.registry import adapters
from bench.vendors import copies
from ops.parts import declared
from schemas.connection import Connection
from schemas.vocabulary import MAX_STARTS, CallKind
from simulators.beds24.app import Beds24, create_app
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.state import Account
from simulators.core_pms import CorePms
from simulators.server import SimServer
from store import connections, limits, outbound
from store.pool import open_pool
from telemetry import metrics
from tests.fleet import COMPANY, CONNECTION, PROPERTY, ROOM, SECRET, World
from tests.integration.test_relay_rows import insert
from topology.apply import apply

POST, READ = "POST /bookings", "GET /bookings"
ROOMY = 100_000  # credits: the rate limit is not what is looked at here
AT_ONCE = adapters()["beds24"].manifest.calls_at_once
# A row that nobody looks after is found after a minute, by then nobody would know whether anybody did look after it.
NO_LAST_RESORT = (
    "import workers.relay as r; r.STALE = r.Look('stale', 86400.0)\n"
    "import sys; from ops.fleet import run; from ops.settings import load; run(sys.argv[1], load())"
)


@dataclass
class Gate:
    """Slow answers, as late as the test wants: given to a simulator as its `sleep`."""

    inside: list[asyncio.Event] = field(default_factory=list)
    fullest: int = 0
    passed: int = 0
    is_open: bool = False

    async def __call__(self, _seconds: float) -> None:
        if not self.is_open:
            turn = asyncio.Event()
            self.inside.append(turn)
            self.fullest = max(self.fullest, len(self.inside))
            try:
                await turn.wait()
            finally:
                self.inside.remove(turn)
        self.passed += 1

    def let_one(self, rng: random.Random) -> None:
        rng.choice(self.inside).set()

    def open(self) -> None:
        self.is_open = True
        for turn in self.inside:
            turn.set()

    async def until(self, inside: int, timeout: float = 30) -> None:
        async with asyncio.timeout(timeout):
            while len(self.inside) != inside:
                await asyncio.sleep(0.01)


@dataclass
class Client:
    """One company's account at a vendor of its own making: connection, simulator, and the properties of the core's."""

    world: World
    vendor: str
    connection: str
    sim: Beds24
    gate: Gate

    @property
    def place(self) -> str:
        return f"P-{self.connection}"

    def die(self, operation: str = "*") -> None:
        """It takes requests and never answers them."""
        self.sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, operation=operation, count=None))

    def slow_down(self, operation: str) -> None:
        """Answers come when the gate lets them."""
        self.sim.faults.add(Fault(FaultKind.SLOW, operation=operation, count=None, seconds=1))

    def made(self) -> int:
        return len(self.sim.account.bookings)

    async def create(self, core: CorePms, count: int, first: int = 0) -> None:
        for n in range(first, first + count):
            arrival = date(2027, 3, 1) + timedelta(days=n % 300)
            data = {
                "reservationId": f"{self.connection}-{n}",
                "propertyId": self.place,
                "roomTypeId": f"R-{self.connection}",
                "checkIn": arrival.isoformat(),
                "checkOut": (arrival + timedelta(days=1)).isoformat(),
                "adults": 2,
            }
            await core.publish(
                "pms.booking.create", data["reservationId"], COMPANY, data, f"create-{self.connection}-{n}"
            )

    def book(self, count: int) -> list[int]:
        """Guests book at the vendor."""
        made = []
        for n in range(count):
            arrival = date(2027, 1, 1) + timedelta(days=n % 300)
            stay = {"arrival": arrival.isoformat(), "departure": (arrival + timedelta(days=1)).isoformat()}
            outcome = self.sim.account.book({"roomId": int(ROOM), "numAdult": 2, **stay}, channel="airbnb")
            assert outcome.id is not None, outcome.errors
            made.append(outcome.id)
        return made

    async def hint(self, *booking_ids: int) -> None:
        for id_ in booking_ids:
            raw = orjson.dumps({"booking": {"id": id_}})
            signature = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
            answer = await self.world.http.post(
                self.world.url("ingress", f"/webhooks/{self.vendor}/{self.connection}"),
                content=raw,
                headers={"content-type": "application/json", "x-beds24-signature": f"sha256={signature}"},
            )
            assert answer.status_code == 202, answer.text

    async def settled(self, direction: str, count: int, timeout: float = 60) -> None:
        await self.world.until(
            "SELECT count(*) FROM channel_events WHERE connection_id = $1 AND direction = $2 AND status = 'done'",
            *(self.connection, direction),
            equals=count,
            timeout=timeout,
        )

    async def waiting(self) -> int:
        return int(
            await self.world.db.fetchval(
                "SELECT count(*) FROM channel_events WHERE connection_id = $1 AND processed_at IS NULL", self.connection
            )
        )


@asynccontextmanager
async def client(world: World, vendor: str, connection: str) -> AsyncIterator[Client]:
    gate = Gate()
    account = Account()
    account.credits.limit = ROOMY  # type: ignore[assignment]
    sim = Beds24(account, sleep=gate)
    async with SimServer(create_app(sim)) as server:
        config = {"base_url": f"{server.url}/api/v2", "currency": "EUR", "webhook_auth": "hmac"}
        await connections.add_connection(world.db, connection, COMPANY, vendor, connection, None, config)
        of, cipher = Connection(connection, COMPANY, vendor, connection), await world.cipher()
        for name, value in (("webhook_secret", SECRET), ("invite_code", account.access.invite())):
            await connections.put_secret(world.db, of, name, cipher.seal_bytes(value.encode()))
        made = Client(world, vendor, connection, sim, gate)
        await connections.add_mapping(world.db, of, "property", PROPERTY, made.place)
        await connections.add_mapping(world.db, of, "room_type", ROOM, f"R-{connection}")
        yield made


@pytest.fixture
async def core(world: World) -> AsyncIterator[CorePms]:
    async with CorePms(world.amqp_url) as listening:
        yield listening


@pytest.fixture
async def one(world: World) -> AsyncIterator[Client]:
    async with client(world, "beds24", "one") as made:
        yield made


@pytest.fixture
def quick_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(limits, "LONGEST_PAUSE", 0.4)


async def attempts(world: World) -> int:
    return int(await world.db.fetchval("SELECT count(*) FROM event_attempts"))


async def most_attempts(world: World) -> int:
    """Of a command. One that is under way counts its try already, and a probe that fails gives it back."""
    sql = "SELECT max(attempts - (status = 'processing')::int) FROM channel_events WHERE direction = 'outbound'"
    return int(await world.db.fetchval(sql))


async def opened(world: World, kind: CallKind) -> None:
    await world.until("SELECT failures >= $1 FROM call_circuits WHERE kind = $2", limits.OPENS, kind.value)


async def probed(world: World, kind: CallKind, times: int) -> None:
    """The circuit was tried so many times more, in vain."""
    before = await world.db.fetchval("SELECT failures FROM call_circuits WHERE kind = $1", kind.value)
    await world.until("SELECT failures >= $1 FROM call_circuits WHERE kind = $2", before + times, kind.value)


# ------------------------------------------------------------------------------------------------ vendors and connections


async def test_a_dead_vendor_holds_none_of_nine_others(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never answers, and nothing gives up on it as long as this test lasts."""
    vendors = copies([f"vendor{n}" for n in range(10)])
    monkeypatch.setattr("ops.parts.load_adapters", lambda: vendors)
    await apply(world.amqp_url, declared(vendors))
    world.extra |= {"vendor_timeout": 600.0, "grace": 0.1}
    async with AsyncExitStack() as stack:
        dead, *healthy = [await stack.enter_async_context(client(world, name, f"at-{name}")) for name in vendors]
        dead.die()
        await world.start()
        stack.push_async_callback(world.stop_all)
        await dead.create(core, 20)
        await dead.hint(*dead.book(20))
        for other in healthy:
            await other.create(core, 10)
            await other.hint(*other.book(10))
        for other in healthy:
            await other.settled("outbound", 10)
            await other.settled("inbound", 10)
            assert other.made() == 20
        assert await dead.waiting() == 40


async def test_a_dead_connection_holds_none_of_the_same_vendor(world: World, core: CorePms) -> None:
    """It has more to do than all deliveries of a vendor that may be under way."""
    world.extra |= {"vendor_timeout": 600.0, "grace": 0.1}
    async with client(world, "beds24", "dead") as dead, client(world, "beds24", "healthy") as healthy:
        dead.die(POST)
        await world.start()
        await dead.create(core, 300)
        await healthy.create(core, 30)
        await healthy.settled("outbound", 30)
        assert await dead.waiting() == 300
        assert len([call for call in dead.sim.account.calls if call.operation == POST]) == AT_ONCE
        await world.stop_all()


# ------------------------------------------------------------------------------------------------ circuits


@pytest.mark.usefixtures("quick_circuits")
@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.TIMEOUT_AFTER_COMMIT])
async def test_an_outage_costs_no_attempts_once_the_circuit_is_open(
    world: World, one: Client, core: CorePms, kind: FaultKind
) -> None:
    """However long it lasts; and afterwards everything is done, once, also what the vendor did and did not answer."""
    await world.start()
    await one.create(core, 1)  # has a token now
    await one.settled("outbound", 1)
    one.sim.faults.add(Fault(kind, operation=POST, count=None, close=True))
    one.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=READ, count=None))
    await one.create(core, 40, first=1)
    await opened(world, CallKind.WRITE)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'received'", equals=0)
    await probed(world, CallKind.WRITE, 1)  # what was under way when it opened is over
    spent = await attempts(world)
    await probed(world, CallKind.WRITE, 5)
    assert await attempts(world) == spent
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await most_attempts(world) <= 2
    one.sim.faults.clear()
    await one.settled("outbound", 41)
    assert one.made() == 41
    await world.until("SELECT count(*) FROM call_circuits", equals=0)


@pytest.mark.usefixtures("quick_circuits")
async def test_reads_that_are_answered_cost_commands_no_attempts(world: World, one: Client, core: CorePms) -> None:
    """Of an outage of writes alone: hints go on meanwhile, and afterwards each command is done, once."""
    told = 0

    async def hints(count: int) -> None:
        nonlocal told
        for _ in range(count):  # one by one: each is a read that is answered
            await one.hint(*one.book(1))
            told += 1
            await one.settled("inbound", told)

    await world.start()
    await one.create(core, 1)  # has a token now
    await one.settled("outbound", 1)
    one.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=POST, count=None))
    await one.create(core, 40, first=1)
    await hints(3)
    await opened(world, CallKind.WRITE)
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'received'", equals=0)
    await probed(world, CallKind.WRITE, 1)  # what was under way when it opened is over
    spent = await attempts(world)
    for _ in range(5):
        await hints(2)
        await probed(world, CallKind.WRITE, 1)
    assert await attempts(world) == spent
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await world.db.fetchval("SELECT count(*) FROM call_circuits WHERE kind = 'read'") == 0
    one.sim.faults.clear()
    await one.settled("outbound", 41)
    assert one.made() == 41 + told
    await world.until("SELECT count(*) FROM call_circuits", equals=0)


@pytest.mark.usefixtures("quick_circuits")
async def test_commands_that_are_answered_cost_a_look_up_no_attempts(world: World, one: Client, core: CorePms) -> None:
    """Of an outage of reads alone: what must be looked up waits for it, and other commands go on."""
    await world.start()
    await one.create(core, 1)  # has a token now
    await one.settled("outbound", 1)
    one.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=READ, count=None))
    await one.hint(*one.book(10))
    await opened(world, CallKind.READ)
    one.sim.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT, operation=POST, close=True))
    await one.create(core, 1, first=1)
    await world.until(
        "SELECT count(*) FROM event_attempts a JOIN channel_events e ON e.id = a.event_id"
        " WHERE e.direction = 'outbound'",
        equals=1,
    )
    for n in range(2, 12):
        await one.create(core, 1, first=n)
        await one.settled("outbound", n)
    await probed(world, CallKind.READ, 5)
    assert await most_attempts(world) <= 1
    one.sim.faults.clear()
    await one.settled("outbound", 12)
    assert one.made() == 12 + 10
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters WHERE operation LIKE 'pms.%'") == 0


@pytest.mark.usefixtures("quick_circuits")
async def test_what_a_look_up_finds_done_closes_the_circuit_of_writes(world: World, one: Client, core: CorePms) -> None:
    """The vendor does what it is told and does not say so: only by look-ups is anything known to be done."""
    await world.start()
    await one.create(core, 1)  # has a token now
    await one.settled("outbound", 1)
    one.sim.faults.add(Fault(FaultKind.TIMEOUT_AFTER_COMMIT, operation=POST, count=None, close=True))
    await one.create(core, 12, first=1)
    await one.settled("outbound", 13)
    assert one.made() == 13
    await world.until("SELECT count(*) FROM call_circuits WHERE kind = 'write'", equals=0)
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0


@pytest.mark.usefixtures("quick_circuits")
async def test_an_outage_costs_hints_no_more_than_commands(world: World, one: Client) -> None:
    bookings = one.book(30)
    one.sim.faults.add(Fault(FaultKind.SERVER_ERROR, operation=READ, count=None))
    await world.start("ingress", "inbound", "scheduler")
    await one.hint(*bookings)
    await opened(world, CallKind.READ)
    await probed(world, CallKind.READ, 1)
    spent = await attempts(world)
    await probed(world, CallKind.READ, 5)
    assert await attempts(world) == spent
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters WHERE connection_id = 'one'") <= 2
    one.sim.faults.clear()
    await world.all_settled()
    lost = await world.db.fetchval("SELECT count(*) FROM dead_letters")
    assert await world.db.fetchval("SELECT count(*) FROM int_reservations") == 30 - lost


async def test_a_refusal_is_an_answer(world: World, one: Client, core: CorePms) -> None:
    one.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, operation=POST, count=10))
    await world.start()
    await one.create(core, 10)
    await world.until("SELECT count(*) FROM dead_letters", equals=10)
    assert await world.db.fetchval("SELECT count(*) FROM call_circuits") == 0


# ------------------------------------------------------------------------------------------------ the window


async def test_never_more_calls_at_once_than_the_vendor_may_get(world: World, one: Client, core: CorePms) -> None:
    one.slow_down(POST)
    await world.start()
    await one.create(core, 40)
    await one.gate.until(AT_ONCE)
    rng = random.Random(4)
    while one.gate.passed < 40:
        if one.gate.inside:
            one.gate.let_one(rng)
        await asyncio.sleep(0.01)
    await one.settled("outbound", 40)
    assert one.gate.fullest == AT_ONCE
    assert one.made() == 40


@pytest.mark.parametrize("ending", ["kill", "stop", "stop in time"])
async def test_what_waits_for_a_window_is_not_forgotten_with_its_worker(
    world: World, one: Client, core: CorePms, ending: str
) -> None:
    """Its messages are acked long since. What no row is looked at for a minute would find is switched off here."""
    world.apart = True
    world.program = NO_LAST_RESORT
    world.extra["grace"] = 10.0 if ending == "stop in time" else 0.5
    one.slow_down(POST)
    await world.start()
    await one.create(core, 40)
    await one.gate.until(AT_ONCE)
    # All the others have been announced and turned away.
    await world.until(
        "SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND published_at IS NOT NULL", equals=40
    )
    if ending == "kill":
        world.kill("outbound")
    elif ending == "stop":
        assert await asyncio.to_thread(world.stop, "outbound") == 0
    else:
        one.gate.open()
        assert await asyncio.to_thread(world.stop, "outbound") == 0
    one.gate.open()
    await world.start("outbound")
    await one.settled("outbound", 40, timeout=50)
    assert one.made() == 40
    tries = await world.db.fetch("SELECT attempts, count(*) FROM channel_events WHERE parent_id IS NOT NULL GROUP BY 1")
    assert dict(map(tuple, tries)) == ({1: 40 - AT_ONCE, 2: AT_ONCE} if ending == "kill" else {1: 40})


async def test_a_paused_connection_is_not_looked_through_again_and_again(database_url: str, world: World) -> None:
    """What `claim` refuses `waiting` must not offer: found and refused, found and refused, as fast as the database can."""
    pool = await open_pool(database_url, name="test")
    await world.db.execute("UPDATE connections SET id = 'beds24-acme' WHERE id = $1", CONNECTION)
    ids = [await insert(database_url, "received", lane_policy="'independent'") for _ in range(3)]
    async with pool.acquire() as database:
        assert await outbound.waiting(database, "beds24-acme", 10) == ids
        await world.db.execute("UPDATE connections SET status = 'paused'")
        assert await outbound.waiting(database, "beds24-acme", 10) == []
        assert await outbound.claim(database, ids, "w", 1, uuid4()) == []
    await pool.close()


async def test_who_is_let_in_next_may_run_and_bookings_come_before_rates(database_url: str, world: World) -> None:
    pool = await open_pool(database_url, name="test")

    async def row(lane: str, policy: str, status: str = "received", **columns: Any) -> Any:
        return await insert(database_url, status, lane=f"'{lane}'", lane_policy=f"'{policy}'", **columns)

    await row("r1", "supersede")
    await row("r2", "supersede")
    newest_of_r1 = await row("r1", "supersede")
    await row("r3", "supersede", "processing")
    await row("r3", "supersede")  # while another of its lane is being sent
    await row("r4", "supersede")
    await row("r4", "supersede", "retrying", next_attempt_at="now() + interval '1 hour'")  # the newest is not due
    newest_of_r2 = await row("r2", "supersede")
    note = await insert(database_url, "received", lane_policy="'independent'")
    head = await row("b1", "hold")
    await row("b1", "hold")
    await row("b2", "hold", "failed")
    await row("b2", "hold")
    second = await row("b3", "hold")
    async with pool.acquire() as database:
        turns = [head, second, note, newest_of_r1, newest_of_r2]
        for most in (1, 3, 5, 10):
            found = await outbound.waiting(database, "beds24-acme", most)
            assert found == turns[:most]
        assert {row.id for row in await outbound.claim(database, turns, "w", 60, uuid4())} == set(turns)
    await pool.close()


# ------------------------------------------------------------------------------------------------ hints


async def test_a_stop_gives_hints_back_that_were_not_asked_for_yet(world: World, one: Client) -> None:
    world.apart = True
    world.program = NO_LAST_RESORT
    bookings = one.book(20)
    one.slow_down(READ)
    await world.start("ingress", "inbound", "scheduler")
    await one.hint(bookings[0])
    await one.gate.until(1)
    await one.hint(*bookings[1:])
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=20)
    leaving = world.processes.pop("inbound")
    leaving.terminate()
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'received' AND starts = 0", equals=19)
    one.gate.open()
    assert await asyncio.to_thread(leaving.wait, 40) == 0
    assert await world.db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'done'") == 1
    await world.start("inbound")
    await one.settled("inbound", 20)
    assert await attempts(world) == 0  # nothing but first successes
    assert await world.db.fetchval("SELECT max(attempts) FROM channel_events") == 1


async def test_what_waits_for_a_slow_vendor_keeps_its_lease(world: World, one: Client) -> None:
    """Or it would be begun again and again elsewhere, and parked as a poison though nobody ever tried it."""
    from ops.fleet import inbound_stage
    from ops.parts import open_parts
    from schemas.event import Event
    from workers.inbound import InboundStage

    bookings = one.book(3)
    one.slow_down(READ)
    await world.start("ingress")
    await one.hint(*bookings)
    rows = await world.db.fetch("SELECT id, event_type FROM channel_events ORDER BY seq")
    events = [Event(id=str(row["id"]), type=row["event_type"]) for row in rows]
    async with open_parts("inbound", world.settings()) as parts:
        stage: InboundStage = inbound_stage(parts)
        stage._hints._lease = 2.0
        await stage.process(events[:1])
        await one.gate.until(1)
        await stage.process(events[1:])  # they wait for the first
        began = await world.db.fetchval("SELECT max(lease_until) FROM channel_events")
        await world.until("SELECT min(lease_until) > $1::timestamptz + interval '2 s' FROM channel_events", began)
        assert {row["status"] for row in await world.db.fetch("SELECT status FROM channel_events")} == {"processing"}
        one.gate.open()
        await one.settled("inbound", 3)
        await stage.drain(5)
    assert await attempts(world) == 0


async def came_twice(world: World, direction: str) -> None:
    """What is recorded from here on has been begun twice already, and never ended."""
    await world.db.execute(
        f"""CREATE FUNCTION came_twice() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.starts := {MAX_STARTS - 1};
            RETURN NEW;
        END $$"""
    )
    await world.db.execute(
        "CREATE TRIGGER came_twice BEFORE INSERT ON channel_events FOR EACH ROW"
        f" WHEN (NEW.direction = '{direction}' AND NEW.connection_id IS NOT NULL) EXECUTE FUNCTION came_twice()"
    )


@dataclass
class Calls:
    """A process, and what it asks the vendor for."""

    process: str
    operation: str
    one: Client
    core: CorePms

    async def begin(self, n: int) -> None:
        if self.process == "outbound":
            await self.one.create(self.core, 1, first=n)
        else:
            await self.one.hint(*self.one.book(1))

    async def leased(self, starts: int) -> None:
        await self.one.world.until(
            "SELECT count(*) FROM channel_events WHERE status = 'processing' AND starts = $1", starts, equals=1
        )


@pytest.fixture(params=["outbound", "inbound"])
async def calls(request: pytest.FixtureRequest, world: World, core: CorePms, one: Client) -> Calls:
    """Of a vendor whose answers come when the gate lets them."""
    made = Calls(request.param, {"outbound": POST, "inbound": READ}[request.param], one, core)
    world.apart, world.extra["grace"] = True, 0.2
    one.slow_down(made.operation)
    await world.start("ingress", "scheduler", made.process)
    return made


async def test_what_waits_to_begin_alone_has_not_begun_when_its_worker_dies(
    world: World, one: Client, calls: Calls
) -> None:
    """Of what was let in before, and not of this: or it would be parked beside it, without ever having had its last start."""
    await calls.begin(0)
    await one.gate.until(1)
    await came_twice(world, calls.process)
    await calls.begin(1)
    await calls.leased(MAX_STARTS)
    world.kill(calls.process)
    one.gate.open()
    await world.start(calls.process)
    await one.settled(calls.process, 2)
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0


@pytest.mark.parametrize(
    ("process", "operation", "kind"), [("outbound", POST, CallKind.WRITE), ("inbound", READ, CallKind.READ)]
)
async def test_what_begins_alone_has_nobody_wait_for_its_silent_vendor(
    world: World, core: CorePms, one: Client, process: str, operation: str, kind: CallKind
) -> None:
    """Nothing else would begin, each time that it comes back, until all that is under way has ended: and then it is put off."""
    of_nobody = metrics.EVENTS.labels("none", "outbound", "defer")._value
    before = of_nobody.get()
    async with client(world, "beds24", "two") as two:
        two.slow_down(operation)
        await world.start("ingress", "scheduler", process)
        await Calls(process, operation, two, core).begin(0)
        await two.gate.until(1)
        await came_twice(world, process)
        await world.db.execute(
            "INSERT INTO call_circuits (connection_id, kind, company_id, failures, retry_at)"
            " VALUES ($1, $2, $3, $4, now() + interval '1 hour')",
            *(one.connection, kind.value, COMPANY, limits.OPENS),
        )
        await Calls(process, operation, one, core).begin(0)
        put_off = "SELECT starts FROM channel_events WHERE connection_id = $1 AND last_error LIKE 'circuit open%'"
        await world.until(put_off, one.connection, equals=MAX_STARTS - 1)
        assert of_nobody.get() == before
        assert len(two.gate.inside) == 1
        two.gate.open()
        await two.settled(process, 1)
        await world.stop_all()


async def test_a_stop_in_the_middle_of_a_call_is_no_start_that_never_ended(
    world: World, one: Client, calls: Calls
) -> None:
    """Or three stops would make a poison of what only its vendor was slow with."""
    await came_twice(world, calls.process)
    await calls.begin(0)
    await one.gate.until(1)
    await calls.leased(MAX_STARTS + 1)  # alone
    assert await asyncio.to_thread(world.stop, calls.process) == 0
    one.gate.open()
    await world.start(calls.process)
    await one.settled(calls.process, 1)
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_one_entity_that_cannot_be_read_fails_alone(world: World, one: Client) -> None:
    bookings = one.book(12)
    broken = one.sim.account.bookings[bookings[7]]
    broken["departure"] = broken["arrival"]
    one.slow_down(READ)
    await world.start("ingress", "inbound", "scheduler")
    await one.hint(bookings[0])
    await one.gate.until(1)
    await one.hint(*bookings[1:])  # they share the next fetch
    await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=12)
    one.gate.open()
    await world.all_settled()
    (letter,) = await world.db.fetch("SELECT entity_external_id, error_class FROM dead_letters")
    assert tuple(letter) == (str(bookings[7]), "invalid")
    assert await world.db.fetchval("SELECT count(*) FROM int_reservations") == 11


async def test_many_slow_connections_of_a_vendor_do_not_take_all_its_sockets(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.hints.FETCHES", 2)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(world, "beds24", f"c{n}")) for n in range(5)]
        await world.start("ingress", "inbound")
        for of in clients:
            of.slow_down(READ)
            await of.hint(*of.book(1))
        await world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=5)
        seen: set[str] = set()
        async with asyncio.timeout(30):
            while len(seen) < 5:
                inside = [of for of in clients if of.gate.inside]
                assert len(inside) <= 2
                for of in inside:
                    seen.add(of.connection)
                    of.gate.open()
                await asyncio.sleep(0.01)
        await world.all_settled()
        await world.stop_all()


def test_http_has_room_for_all_calls_that_a_process_may_have_under_way() -> None:
    """A call that finds no socket looks like a vendor that does not answer."""
    import inspect

    from adapters.transport import MAX_CONNECTIONS
    from workers.delivery import DeliveryStage
    from workers.hints import FETCHES

    most = inspect.signature(DeliveryStage).parameters["most"].default
    assert max(most, FETCHES) < MAX_CONNECTIONS
    assert httpx.Limits(max_connections=MAX_CONNECTIONS).max_connections == MAX_CONNECTIONS
