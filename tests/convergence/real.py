"""Plays schedules on the real parts: Postgres, RabbitMQ, every process of the fleet, and the vendor's simulator over HTTP.

One fleet is started once. Schedules are played on it, several at once, each by a company of its own with an account of its
own at the vendor; who is killed is killed for all of them. What the fast form plays step by step, the workers do here
by themselves, whenever they come to it. So a schedule says what happens around them: what the vendor's users and the core
do, which webhook arrives when, how often or never, how calls to the vendor end, who pulls, requeues, stops or dies.

The seed deals all that. When a process comes to what it does, it does not: a schedule that went wrong is played again
with the same steps, not with the same microseconds.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import orjson

from adapters.beds24 import webhook
from adapters.errors import AdapterError
from schemas.connection import Connection
from schemas.ids import uuid7
from simulators.beds24.app import create_app
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.webhooks import SIGNATURE_HEADER, sign
from simulators.server import SimServer
from store import connections, dead_letters, pulls
from tests.faults.journal import Journal
from tests.faults.load import AMQP_AWAY, insist
from tests.faults.oracle import Accepted, Call, violations
from tests.fleet import SECRET
from workers.pull import LEASE, LeaseLostError

from . import oracle, schedule
from .ending import UPSERTED, Ending
from .fleet import until_nothing_is
from .outside import PROPERTY, ROOMS, Op, Outside, Said, Traits
from .schedule import Schedule
from .served import ServedVendor, Simulator, WallClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from store.pool import Connection as Database

    from .fleet import Fleet
    from .vendor import Letter

LONGEST = 240.0  # seconds that a schedule may take; most take ten

# How often each kind of step comes. A death costs the fleet a second, and some of its work six.
_WEIGHTS = {
    Op.BOOK: 8, Op.CHANGE: 16, Op.TOGGLE: 6, Op.MESSAGE: 2, Op.MOMENT: 20, Op.SECONDS: 6, Op.DELIVER: 24, Op.DOUBLE: 6,
    Op.LOSE: 6, Op.CREATE: 8, Op.UPDATE: 12, Op.CANCEL: 4, Op.AVAILABILITY: 6, Op.REPEAT: 2, Op.DIE_IN: 1, Op.DIE_OUT: 1,
    Op.DIE_PULL: 1, Op.REQUEUE: 4, Op.PULL: 4, Op.FATE: 16, Op.QUICK: 10, Op.FLIP: 4,
}  # fmt: skip
_FATES = (
    Fault(FaultKind.UNAVAILABLE),
    Fault(FaultKind.SERVER_ERROR),
    Fault(FaultKind.SERVER_ERROR, commit=True),
    Fault(FaultKind.RATE_LIMITED, seconds=2),
    Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, close=True),
    Fault(FaultKind.TIMEOUT_AFTER_COMMIT, close=True),
    Fault(FaultKind.TIMEOUT_AFTER_COMMIT),
    Fault(FaultKind.CUT_JSON),
    Fault(FaultKind.HTML_200),
    Fault(FaultKind.REFUSE_ITEM, "POST /bookings"),
    Fault(FaultKind.SLOW, seconds=0.6),
    Fault(FaultKind.SLOW, seconds=0.6, commit=False),
    None,  # all tokens are dead; a new one helps, which a fault that hits that call, too, would not let it
)
# What the fleet waits for and no schedule has the time to: the look at what is stale, an open circuit, the next try of a
# pull that failed, the lease of who died while it pulled.
_A_MINUTE_PASSES = (
    "UPDATE channel_events SET published_at = published_at - interval '1 minute'"
    " WHERE company_id = $1 AND status = 'received' AND published_at < clock_timestamp() - interval '3 s'",
    "UPDATE channel_events SET next_attempt_at = clock_timestamp()"
    " WHERE company_id = $1 AND status = 'retrying' AND next_attempt_at > clock_timestamp() + interval '3 s'",
    "UPDATE call_circuits SET retry_at = clock_timestamp() WHERE company_id = $1",
    "UPDATE pulls SET lease_until = NULL, not_before = NULL WHERE company_id = $1",
)

_numbers = itertools.count(1)  # of companies: a seed may be played again on the same fleet


def of(seed: int) -> Schedule:
    rng = random.Random(seed)
    restamps, alone = rng.random() < 0.2, rng.random() < 0.3
    traits = Traits(
        skew=rng.choice((0.0, 0.0, 0.0, 2.5, -2.5)),
        echoes=alone or rng.random() < 0.3,
        restamps=restamps,
        always_fetch=rng.random() < 0.2,
        lose_the_rest=not alone and rng.random() < 0.4,
        late=rng.random() < 0.5 and not restamps,
        webhooks_alone=alone,
        workers_die=rng.random() < 0.1,
    )
    return Schedule(schedule.dealt(rng, _WEIGHTS, 10, 50), traits)


@dataclass(frozen=True, slots=True)
class Verdict:
    """faults: what is wrong in the end; story: what happened when, in seconds"""

    traits: Traits
    faults: list[str]
    story: list[str]

    @property
    def shown(self) -> str:
        return "\n".join([schedule.shown_traits(self.traits), *self.story, *(f"  → {fault}" for fault in self.faults)])


async def play(fleet: Fleet, played: Schedule) -> Verdict:
    async with Player.begin(fleet, played) as player:
        try:
            async with asyncio.timeout(LONGEST):
                await player.play()
            async with fleet.pool.acquire() as db:
                found = await player.judge(db)
        except Exception as error:  # noqa: BLE001 - a step that raises is a fault, too
            found = [f"{type(error).__name__}: {error}"]
    return Verdict(played.traits, found, player.story)


async def play_many(
    fleet: Fleet, schedules: Iterable[tuple[int, Schedule]], at_once: int, tell: Callable[[int, Verdict], None]
) -> None:
    """tell: each verdict as it comes, by the number of its schedule"""
    waiting = iter(schedules)

    async def one_after_the_other() -> None:
        for number, played in waiting:
            tell(number, await play(fleet, played))

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


class Player(Outside):
    """One schedule.

    accepted  webhooks, as they were answered; rows: the same, by the key of the fact that they tell
    requeued  how often each event was, by an operator
    """

    vendor: ServedVendor

    def __init__(self, fleet: Fleet, played: Schedule, sim: Simulator, url: str) -> None:
        number = next(_numbers)
        config = {
            "base_url": f"{url}/api/v2", "currency": "EUR", "webhook_auth": "hmac",
            "fetch": "always" if played.traits.always_fetch else "hint",
        }  # fmt: skip
        connection = Connection(f"beds24-{number}", f"company-{number}", "beds24", "Harbour Lofts", config=config)
        super().__init__(played.traits, connection, sim.vendor)
        self.fleet = fleet
        self.steps = played.steps
        self.sim = sim
        self.company = connection.company_id
        self.data_key = fleet.world.keys.new_data_key()
        self.cipher = fleet.world.keys.cipher(self.company, self.data_key)
        self.journal = Journal(sim)
        self.accepted: list[Accepted] = []
        self.rows: defaultdict[str, set[UUID]] = defaultdict(set)
        self.requeued: Counter[UUID] = Counter()
        self.story: list[str] = []
        self._began = time.monotonic()
        self._arriving: list[Letter] = []
        self._saying: list[Said] = []
        self._under_way: set[asyncio.Future[None]] = set()
        self._acts: dict[Op, Callable[[int, int], Awaitable[None] | None]] = {
            op: getattr(self, f"_{op.name.lower()}") for op in _WEIGHTS
        }

    @classmethod
    @asynccontextmanager
    async def begin(cls, fleet: Fleet, played: Schedule) -> AsyncIterator[Player]:
        """Its account is there, and its connection known to the fleet."""
        traits = played.traits
        clock = WallClock(timedelta(seconds=traits.skew))
        vendor = ServedVendor(clock, echoes=traits.echoes, restamps=traits.restamps, distinct=traits.webhooks_alone)
        sim = Simulator(vendor)
        async with SimServer(create_app(sim)) as server:
            player = cls(fleet, played, sim, server.url)
            await player._move_in()
            try:
                yield player
            finally:  # of a play that broke off, too: others need who is just begun anew
                await asyncio.gather(*player._under_way, return_exceptions=True)

    async def _move_in(self) -> None:
        access = self.vendor.account.access
        granted = access.set_up(access.invite(), "staybus")
        assert granted is not None
        async with self.fleet.pool.acquire() as db:
            id_, config = self.connection.id, self.connection.config
            await connections.add_company(db, self.company, "Acme Stays", self.data_key)
            await connections.add_connection(db, id_, self.company, "beds24", "Harbour Lofts", None, config)
            for name, value in (("webhook_secret", SECRET), ("refresh_token", granted[0])):
                await connections.put_secret(db, self.connection, name, self.cipher.seal_bytes(value.encode()))
            for kind, external, internal in (
                ("property", PROPERTY, "P1"),
                ("room_type", ROOMS[0], "RT1"),
                ("room_type", ROOMS[1], "RT2"),
            ):
                await connections.add_mapping(db, self.connection, kind, external, internal)

    async def play(self) -> None:
        """To its end. raises StuckError"""
        for op, a, b in self.steps:
            self._tell(f"{Op(op).name.lower()}({a}, {b})")
            self._listen()
            act = self._acts[Op(op)](a, b)
            if act is not None:
                await act
            await self._send()
        await self._end()

    def _tell(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:6.2f} {text}")

    def _begin(self, act: Awaitable[None]) -> None:
        """Goes on beside the steps, and is over before the end."""
        self._under_way.add(asyncio.ensure_future(act))

    # ------------------------------------------------------------------ time, the vendor's answers, deaths, operators

    async def _moment(self, a: int, _b: int) -> None:
        await asyncio.sleep(0.05 + (a % 8) / 20)

    async def _seconds(self, _a: int, _b: int) -> None:
        """Until the vendor's clock shows another one."""
        await asyncio.sleep(1.001 - self.clock.vendors().microsecond / 1e6)

    async def _quick(self, a: int, b: int) -> None:
        before = len(self.vendor.letters)
        self._change(a, b)
        if len(self.vendor.letters) > before:
            ids = await self._deliver_one(self.vendor.letters.pop())
            with suppress(TimeoutError):  # it may have to wait for the vendor
                async with asyncio.timeout(1):
                    while await self._open(ids):
                        await asyncio.sleep(0.01)

    def _fate(self, a: int, b: int) -> None:
        """Of the next call; sometimes of all that an attempt has, and of the attempts after it."""
        fault = _FATES[a % len(_FATES)]
        if fault is None:
            self.vendor.account.access.expire_all()
            self._tell("  tokens expire")
        else:
            count = 1 if b % 4 else 4
            self.sim.faults.add(replace(fault, count=count))
            self._tell(f"  {fault.kind} for {fault.operation}, {count} times")

    def _die_in(self, a: int, b: int) -> None:
        self._begin_anew("inbound" if a % 3 else "ingress", b)

    def _die_out(self, _a: int, b: int) -> None:
        self._begin_anew("outbound", b)

    def _die_pull(self, _a: int, b: int) -> None:
        self._begin_anew("scheduler", b)

    def _begin_anew(self, name: str, b: int) -> None:
        kill = b % 3 > 0
        self._tell(f"  {name} is {'killed' if kill else 'told to stop'}")
        self._begin(self.fleet.begin_anew(name, kill=kill))

    async def _requeue(self, a: int, _b: int) -> None:
        failed = await self._failed()
        if failed:
            await self._requeue_these([failed[a % len(failed)]])

    def _pull(self, _a: int, _b: int) -> None:
        if not self.traits.webhooks_alone:
            self._begin(self._sync_run())

    async def _sync_run(self) -> None:
        """As `staybus sync run` does."""
        async with self.fleet.pool.acquire() as db:
            leases = await pulls.claim(db, [self.connection.id], f"operator {uuid4()}", LEASE)
        for lease in leases:
            with suppress(AdapterError, LeaseLostError):
                self._tell(f"  {await self.fleet.puller.run(lease)}")
                self.fleet.reached["pulled while other things go on"] += 1

    # ------------------------------------------------------------------ the network, and the core

    def _receive(self, letter: Letter) -> None:
        self._arriving.append(letter)

    def _publish(self, said: Said) -> None:
        self._saying.append(said)

    async def _send(self) -> None:
        while self._arriving:
            await self._deliver_one(self._arriving.pop(0))
        while self._saying:
            await self._say_one(self._saying.pop(0))

    async def _deliver_one(self, letter: Letter) -> list[UUID]:
        """As the vendor does: again until it is answered with success. returns the ids of its events"""
        world = self.fleet.world
        url = world.url("ingress", f"/webhooks/beds24/{self.connection.id}")

        async def send() -> list[UUID]:
            request = letter.request(self.clock.vendors())
            headers = {"content-type": "application/json", SIGNATURE_HEADER: sign(SECRET, request.body)}
            answer = await world.http.request(
                request.method, url, params=dict(request.query), content=request.body, headers=headers
            )
            if answer.status_code in {429, 503}:
                raise OSError("not now")
            assert answer.status_code in {200, 202}, answer.text
            self._tell(f"  {letter.form.name.lower()}, sent {letter.sent} times: {answer.status_code}")
            self.fleet.reached["webhook" if answer.status_code == 202 else "webhook that is known"] += 1
            ids = [UUID(id_) for id_ in answer.json()["events"]]
            self.accepted.append(Accepted(tuple(ids)))
            for fact in webhook.parse(request, self.connection):
                if fact.idempotency_key is not None:
                    self.rows[fact.idempotency_key].update(ids)
            return ids

        found: list[UUID] = await insist(send)
        return found

    async def _say_one(self, said: Said) -> None:
        """Returns when the broker confirmed it, or its outbox row is committed."""
        subject = str(said.data.get("reservationId", said.data.get("roomTypeId")))
        self._tell(f"  {said.key} {said.event_type} {said.data}")
        # All that is said of one entity goes one way: between the two there is no order.
        if sum(map(ord, subject)) % 3:
            event = (said.event_type, subject, self.company, said.data, said.key)
            event_id = str(uuid7())
            await insist(lambda: self.fleet.core.publish(*event, event_id=event_id), AMQP_AWAY)
        else:
            await self.fleet.pool.execute(
                "INSERT INTO outbox (company_id, event_type, subject, payload, idempotency_key)"
                " VALUES ($1, $2, $3, $4::jsonb, $5)",
                self.company, said.event_type, subject, orjson.dumps(said.data).decode(), said.key,
            )  # fmt: skip

    def _listen(self) -> None:
        for event in self.fleet.heard[self.company]:
            if event.type == UPSERTED and event.subject is not None:
                self._hear(event.subject)

    # ------------------------------------------------------------------ the end

    async def _end(self) -> None:
        """All faults are over: everything is settled, then pulled, then settled again. raises StuckError"""
        self._tell("the end begins")
        traits, letters = self.traits, self.vendor.letters
        if traits.workers_die:
            self._begin(self.fleet.begin_anew("inbound", kill=True))
            self._begin(self.fleet.begin_anew("outbound", kill=True))
        await asyncio.gather(*self._under_way)
        self.sim.faults.clear()
        if traits.lose_the_rest:
            letters.clear()
        if not traits.late:
            await self._deliver_all()
        await self._rest()
        if not traits.webhooks_alone:
            await self._pulled()
            await self._rest()
        while letters and (traits.late or traits.webhooks_alone):  # those of our own writes come after these
            await self._deliver_all()
            await self._rest()
        self._tell("at rest")

    async def _deliver_all(self) -> None:
        while self.vendor.letters:
            self._deliver(0, 0)
            await self._send()

    async def _rest(self) -> None:
        async def left() -> list[str]:
            await self._requeue_these(await self._failed())
            return [*await self._unsettled(), *await self._unheard()]

        await until_nothing_is(left, a_minute_passes=self._a_minute_passes)

    async def _pulled(self) -> None:
        """By the scheduler: its time comes."""
        id_, pool = self.connection.id, self.fleet.pool
        async with pool.acquire() as db:
            since = await db.fetchval("SELECT clock_timestamp()")
            await connections.set_config(db, id_, {"pull": "1"})

        async def left() -> list[str]:
            covered = await pool.fetchval("SELECT covered_until FROM pulls WHERE connection_id = $1", id_)
            return [] if covered is not None and covered > since else [f"{id_} is not pulled"]

        await until_nothing_is(left, a_minute_passes=self._a_minute_passes)
        async with pool.acquire() as db:
            await connections.unset_config(db, id_, ["pull"])
        self._tell("pulled")
        self.fleet.reached["pulled"] += 1

    async def _a_minute_passes(self) -> None:
        for sql in _A_MINUTE_PASSES:
            await self.fleet.pool.execute(sql, self.company)

    async def _unsettled(self) -> list[str]:
        rows = await self.fleet.pool.fetch(
            "SELECT id, event_type, status, attempts, last_error, direction = 'outbound' AND parent_id IS NULL AS command"
            " FROM channel_events WHERE company_id = $1",
            self.company,
        )
        commands = sum(row["command"] for row in rows)
        missing = [f"{commands} of {len(self.said)} commands have a row"] if commands < len(self.said) else []
        return missing + [
            f"{row['event_type']} {row['id']} is {row['status']} after {row['attempts']} attempts: {row['last_error']}"
            for row in rows
            if row["status"] in {"received", "processing", "retrying", "failed"}
        ]

    async def _unheard(self) -> list[str]:
        rows = await self.fleet.pool.fetch("SELECT id FROM core_events WHERE company_id = $1", self.company)
        return [f"the core has not heard {row['id']}" for row in rows if str(row["id"]) not in self.fleet.core.seen]

    async def _open(self, ids: list[UUID]) -> bool:
        found: bool = await self.fleet.pool.fetchval(
            "SELECT EXISTS (SELECT FROM channel_events WHERE id = ANY ($1)"
            " AND status IN ('received', 'processing', 'retrying'))",
            ids,
        )
        return found

    async def _failed(self) -> list[UUID]:
        rows = await self.fleet.pool.fetch(
            "SELECT id FROM channel_events WHERE company_id = $1 AND status = 'failed' ORDER BY seq", self.company
        )
        return [row["id"] for row in rows]

    async def _requeue_these(self, ids: list[UUID]) -> None:
        if not ids:
            return
        async with self.fleet.pool.acquire() as db:
            again = [id_ for id_, _ in await dead_letters.requeue(db, ids, "operator")]
        self.requeued.update(again)
        self.fleet.reached["requeued"] += len(again)
        self._tell(f"  requeued: {len(again)}")

    # ------------------------------------------------------------------ judging

    async def judge(self, db: Database) -> list[str]:
        """What is wrong, by the rules of the fast form, of the fault suite, and one of this form's."""
        ending = await Ending.read(db, self.company)
        self.tables = ending.tables(self.cipher, self.requeued)
        self.told = ending.told()
        for write in ending.found(self.said, self.connection, self.vendor.looks):
            self.vendor.log[write.at] = write
        heard = Counter(event.id for event in self.fleet.heard[self.company])
        record = ending.record(self.said, self.accepted, self._calls(), heard, self.requeued)
        self.fleet.reached.update(ending.reached())
        self.fleet.reached.update(f"call: {call.fault}" for call in self.vendor.account.calls if call.fault)
        by_delivery, self.vendor.log = self.vendor.log, ending.said_as(self.vendor.log)
        broken = list(oracle.broken(self))
        self.vendor.log = by_delivery  # it may be judged again
        return [*broken, *violations(record), *self._one_row_for_each_fact()]

    def _calls(self) -> list[Call]:
        """To the journal a call that changed nothing is not done. Here it may be: somebody else had done it before."""
        calls = self.journal.calls()
        done = {call.key for call in calls if call.applied}
        for write in self.vendor.log:
            if write.key is None or write.key in done:
                continue
            at = self.vendor.moments[write.at]
            during = [call for call in calls if call.key == write.key and call.began <= at <= call.ended]
            for call in during:
                calls[calls.index(call)] = replace(call, applied=True)
            if not during:  # a look-up found it
                calls.append(Call(write.key, at, at, applied=True))
        return calls

    def _one_row_for_each_fact(self) -> list[str]:
        """Of webhooks that are recorded by their content; hints are all different."""
        wrong = [f"{key} has {len(ids)} rows" for key, ids in self.rows.items() if len(ids) != 1]
        once = len(set().union(*self.rows.values()))
        return wrong if once == len(self.rows) else [*wrong, f"{len(self.rows)} facts have {once} rows"]
