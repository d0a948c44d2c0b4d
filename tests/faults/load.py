"""What the outside does to the fleet while it is hurt, and the account of what was accepted and said."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aio_pika
import asyncpg
import httpx
import orjson

from schemas.event import CONTENT_TYPE, Event, encode
from schemas.ids import uuid7
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.state import Author
from simulators.bookings import deliveries, generate, truth
from store import jobs
from store.events import Selection
from store.jobs import NewJob
from store.outbound import insert_commands
from tests.faults.oracle import Accepted, Said, Stay
from tests.fleet import COMPANY, CONNECTION
from topology.declared import DEAD_LETTERS, EVENTS, dlq
from workers.commands import command_row

if TYPE_CHECKING:
    from tests.faults.ground import Ground

CREATE, UPDATE, CANCEL = "pms.booking.create", "pms.booking.update", "pms.booking.cancel"
AVAILABILITY = "pms.availability.update"
ROOMS = {"RT1": 713992, "RT2": 713993}
YOUNG = timedelta(seconds=5)  # a token of that age has been tried by whoever was refused with the one before
FIRST_NIGHT = date(2028, 1, 1)  # of the calendar pushes: far from any booking's nights
AWAY = (OSError, TimeoutError, httpx.TransportError, asyncpg.PostgresError, asyncpg.InterfaceError)
AMQP_AWAY = (*AWAY, aio_pika.exceptions.AMQPError, RuntimeError)

DUE = """
INSERT INTO pulls AS p (connection_id, company_id, covered_until, finished_at)
VALUES ($1, $2, clock_timestamp(), clock_timestamp() - interval '1 day')
ON CONFLICT (connection_id) DO UPDATE
SET finished_at = EXCLUDED.finished_at, not_before = NULL,
    lease_until = CASE WHEN p.started_at > clock_timestamp() - interval '15 s' THEN p.lease_until END
WHERE NOT (p.started_at > $3 AND p.finished_at > p.started_at) IS TRUE
"""  # and no row once a pull has ended that began after $3

_numbers = itertools.count(1)  # of bookings, over all stretches of a run


async def insist(act: Callable[[], Awaitable[Any]], away: tuple[type[BaseException], ...] = AWAY) -> Any:
    """Again and again until it works: as a vendor and a service do."""
    while True:
        try:
            return await act()
        except away:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            await asyncio.sleep(0.1)  # aio-pika's way to say that the connection is gone


class Load:
    """One stretch: from idle over load back to idle. Everything random comes from `dice`."""

    def __init__(self, ground: Ground, dice: random.Random, *, exchange: bool = True) -> None:
        """exchange: whether commands come by it, too, or by outbox only"""
        self._ground = ground
        self._exchange = exchange
        self._dice = dice
        self.accepted: list[Accepted] = []
        self.said: list[Said] = []
        self.facts: dict[str, Stay] = {}
        self.at_vendor: set[int] = set()
        """bookings that the simulator holds and of which a webhook told"""
        self.stays: dict[str, Stay] = {}
        self.nights: dict[str, dict[str, dict[str, float]]] = {room: {} for room in ROOMS}
        self.own: set[UUID] = set()
        """events of webhooks that tell of nothing but what the commands made"""
        self.jobs: dict[UUID, frozenset[UUID]] = {}
        """operators' jobs, and which events they were to repeat"""
        self.letters = 0
        """unreadable messages that were sent"""
        self.problems: list[str] = []
        self.vendor_sound = True
        self._pulled = False
        self._booked_at: datetime | None = None
        """what a guest booked last that a pull has to find"""
        self._rooms = {room: asyncio.Lock() for room in ROOMS}
        self._under_way: set[asyncio.Task[None]] = set()
        self._stories: list[str] = []

    @classmethod
    def nothing(cls, ground: Ground) -> Load:
        return cls(ground, random.Random(0))

    # ------------------------------------------------------------------ steady

    async def run(self, stop: asyncio.Event, *, pace: float = 1.0) -> None:
        """Everything at once until `stop`, then what was begun is finished. pace: times the usual rates."""
        kinds = ((self.history, 2.0), (self.story, 0.5), (self.hint, 0.8), (self.push, 0.6))
        try:
            async with asyncio.TaskGroup() as pumps:
                for act, seconds in kinds:
                    pumps.create_task(self._repeat(act, seconds / pace, stop))
            await self.finish()
        finally:
            for task in self._under_way:
                task.cancel()

    async def finish(self) -> None:
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    def begin(self, act: Callable[[], Awaitable[None]]) -> None:
        async def go() -> None:
            try:
                await act()
            except Exception as error:  # noqa: BLE001 - a load that failed has said less than it counts: reported with the rest
                self.problems.append(f"load: {error!r}")

        task = asyncio.create_task(go())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _repeat(self, act: Callable[[], Awaitable[None]], seconds: float, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if len(self._under_way) < 12:  # while everything stands still the outside does not pile up without end
                self.begin(act)
            try:
                await asyncio.wait_for(stop.wait(), seconds * self._dice.uniform(0.5, 1.5))
            except TimeoutError:
                continue

    # ------------------------------------------------------------------ webhooks

    async def deliver(self, body: Any) -> tuple[UUID, ...]:
        """returns the ids in the answer"""

        async def send() -> tuple[UUID, ...]:
            answer = await self._ground.world.webhook(body)
            if answer.status_code in {429, 503}:
                raise OSError("not now")
            assert answer.status_code in {200, 202}, answer.text
            ids = answer.json()["events"]
            if "None" in ids:
                self.problems.append(f"ingress: {answer.status_code} without the id of the event that it is about")
            self.accepted.append(Accepted(tuple(UUID(id_) for id_ in ids if id_ != "None")))
            return self.accepted[-1].ids

        found: tuple[UUID, ...] = await insist(send)
        return found

    async def history(self, bookings: int = 6, changes: int = 3) -> None:
        """Some bookings' whole lives, three webhooks in ten twice, in any order, by four senders."""
        first = 91_000_000 + 10 * next(_numbers)
        seed = self._dice.randrange(2**31)
        lives = generate(seed, bookings, changes, first_id=first)
        arriving = deliveries(lives, seed, duplicates=0.3)

        async def sender() -> None:
            while arriving:
                await self.deliver(arriving.pop().body)

        await asyncio.gather(*(sender() for _ in range(4)))
        self.facts |= {str(id_): vendors_stay(booking) for id_, booking in truth(lives).items()}

    async def backwards(self) -> None:
        """A booking's whole life, the end of it first, each state when the one that follows it is settled."""
        life = generate(self._dice.randrange(2**31), 1, 3, first_id=91_000_000 + 10 * next(_numbers))
        for change in reversed(life):
            await self.deliver(change.body)
            await self._ground.world.all_settled()
        self.facts |= {str(id_): vendors_stay(booking) for id_, booking in truth(life).items()}

    async def hint(self) -> None:
        """A guest books and changes; the webhook says only which booking."""
        account = self._ground.world.sim.account
        arrival = date(2027, 1, 1) + timedelta(days=self._dice.randrange(300))
        stay = {"arrival": arrival.isoformat(), "departure": (arrival + timedelta(days=3)).isoformat()}
        booked = account.book({"roomId": ROOMS["RT1"], **stay, "lastName": "Hint", "numAdult": 2})
        assert booked.id is not None
        self.at_vendor.add(booked.id)
        await self.deliver({"booking": {"id": booked.id}})
        if self._dice.random() < 0.5:
            account.cancel(booked.id)
        else:
            account.write_booking({"id": booked.id, "numAdult": 3}, Author(api=False))
        await self.deliver({"booking": {"id": booked.id}})

    async def echoes(self) -> None:
        """The vendor tells of what the commands made there."""
        account = self._ground.world.sim.account
        entities = set(self._stories)
        for id_, booking in list(account.bookings.items()):
            if booking["lastName"] in entities:
                self.at_vendor.add(id_)
                told = await self.deliver(account.webhook_body(id_))
                # A pull may have told what a booking was between two commands: what the core had said before is news then.
                self.own.update(() if self._pulled else told)

    # ------------------------------------------------------------------ commands

    async def story(self, way: str | None = None, changes: int | None = None) -> None:
        """A booking made, changed and perhaps cancelled by the core, each command said after the one before.

        changes   how many follow the create; None: that is diced
        """
        entity = f"B-{next(_numbers)}"
        self._stories.append(entity)
        way = way or self._dice.choice(("exchange", "exchange", "outbox"))
        arrival = date(2027, 1, 1) + timedelta(days=self._dice.randrange(300))
        departure, adults, cancelled = arrival + timedelta(days=2), 2, False
        await self.say(
            way, CREATE, entity,
            {"propertyId": "P1", "roomTypeId": "RT1", "checkIn": arrival.isoformat(), "checkOut": departure.isoformat(),
             "adults": adults, "guest": {"lastName": entity}},
        )  # fmt: skip
        for _ in range(self._dice.randrange(3) if changes is None else changes):
            departure, adults = departure + timedelta(days=1), adults % 4 + 1
            await self.say(way, UPDATE, entity, {"checkOut": departure.isoformat(), "adults": adults})
        if changes is None and self._dice.random() < 0.3:
            cancelled = True
            await self.say(way, CANCEL, entity, {})
        self.stays[entity] = Stay(arrival.isoformat(), departure.isoformat(), adults, cancelled)

    async def push(self, currency: str | None = "EUR", *, priced: bool = False) -> None:
        """Minimum stay and price for some nights of one room; later ones may take earlier ones along.

        No value comes twice: one that the nights have already would be found done, without a call, by a look-up after a kill.
        """
        room = self._dice.choice(tuple(ROOMS))
        first = FIRST_NIGHT + timedelta(days=self._dice.randrange(20))
        nights = [first + timedelta(days=n) for n in range(self._dice.randint(1, 5))]
        values: dict[str, int] = {}
        number = next(_numbers)
        if self._dice.random() < 0.8:
            values["minStay"] = 1 + number % 300
        if priced or not values or self._dice.random() < 0.5:
            values["price"] = 100 * (50 + number % 1000)
        period = {"first": nights[0].isoformat(), "last": nights[-1].isoformat(), **values}
        async with self._rooms[room]:
            data = {"propertyId": "P1", "roomTypeId": room, "periods": [period], "currency": currency}
            await self.say("exchange" if room == "RT1" else "outbox", AVAILABILITY, room, data)
            for night in nights:
                wanted = self.nights[room].setdefault(night.isoformat(), {})
                wanted |= {"minStay": values["minStay"]} if "minStay" in values else {}
                wanted |= {"price1": values["price"] / 100} if "price" in values else {}

    async def say(self, way: str, type_: str, entity: str, data: dict[str, Any]) -> None:
        """Returns when the broker confirmed it, or its outbox row is committed."""
        key = f"{entity}-{next(_numbers)}"
        if type_ != AVAILABILITY:
            data = {"reservationId": entity, **data}
        event_id = str(uuid7())
        if way == "exchange" and self._exchange:
            core = self._ground.core
            await insist(lambda: core.publish(type_, entity, COMPANY, data, key, event_id=event_id), AMQP_AWAY)
        else:
            statement = (
                "INSERT INTO outbox (company_id, event_type, subject, payload, idempotency_key)"
                " VALUES ($1, $2, $3, $4::jsonb, $5)"
            )
            values = (COMPANY, type_, entity, orjson.dumps(data).decode(), key)
            await insist(lambda: self._ground.execute(statement, *values))
        self.said.append(Said(key, entity, type_))

    # ------------------------------------------------------------------ errands: what only seldom happens by itself

    async def errand(self, name: str) -> None:
        """Brings about the step that `needs` this."""
        await getattr(self, f"_errand_{name}")()

    async def _errand_hints(self) -> None:
        await self.hint()

    async def _errand_availability(self) -> None:
        await self.push()

    async def _errand_superseded(self) -> None:
        """Pushes that wait for one that is under way, and go out with the newest of them."""
        self._ground.slow("POST /inventory/rooms/calendar", 0.5, 2)
        for _ in range(4):
            await self.push()

    async def _errand_parts(self) -> None:
        """The same of prices that no one command says together: the older part goes out, and ends, ahead of the newest."""
        self._ground.slow("POST /inventory/rooms/calendar", 0.5, 2)
        for currency in ("EUR", None) * 3:  # None: the connection's own, which is the same
            await self.push(currency, priced=True)

    async def _errand_pull(self) -> None:
        """A guest books, no webhook tells of it, and a pull is due: that of a scheduler that is dead has no lease any more. It is
        due until one has ended that began later: who lists the bookings just now may have passed by this one."""
        self._pulled = True
        arrival = date(2027, 1, 1) + timedelta(days=self._dice.randrange(300))
        stay = {"arrival": arrival.isoformat(), "departure": (arrival + timedelta(days=3)).isoformat()}
        booked = self._ground.world.sim.account.book(
            {"roomId": ROOMS["RT1"], **stay, "lastName": "Pull", "numAdult": 2}
        )
        assert booked.id is not None
        self.at_vendor.add(booked.id)
        pulling = self._booked_at is not None
        self._booked_at = datetime.now(UTC)  # the database's clock, too, is this machine's
        while not pulling:
            since = self._booked_at
            due = await self._ground.execute(DUE, CONNECTION, COMPANY, since) == "INSERT 0 1"
            if not due and since == self._booked_at:
                self._booked_at = None
                return
            await asyncio.sleep(0.3)

    async def _errand_job(self) -> None:
        """An operator has some facts repeated, two at a time: of bookings that the vendor can be asked about."""
        async with self._ground.pool.acquire() as connection:
            found = await connection.fetch(
                "SELECT id FROM channel_events WHERE entity_external_id = ANY ($1) AND status = 'done' AND replay_of IS NULL"
                " ORDER BY seq DESC LIMIT 4",
                [str(id_) for id_ in self.at_vendor],
            )
            if found:
                ids = tuple(row["id"] for row in found)
                filter_ = {"selection": Selection(ids=ids).document(), "again": False}
                job = NewJob("replay", filter_, "faults", len(ids), rate=4.0)
                self.jobs[await jobs.add(connection, job)] = frozenset(ids)
        if not found:
            await self.hint()

    async def _errand_outbox(self) -> None:
        await self.story("outbox")

    async def _errand_token(self) -> None:
        """The vendor forgets the tokens: the next call renews. It keeps what is new, or was not used yet, and all of them while
        something open has used an attempt: a call that was refused with one, and is with the next, waits for ten seconds, and
        the third attempt is the last. To forget what it gave some seconds ago is not sound nevertheless: that may cost one."""
        self.vendor_sound = False
        async with self._ground.pool.acquire() as connection:
            tried = await connection.fetchval(
                "SELECT count(*) FROM channel_events"
                " WHERE attempts > 0 AND status IN ('received', 'processing', 'retrying')"
            )
        access = self._ground.world.sim.account.access
        since = access.clock() - YOUNG
        access.tokens = {
            text: token
            for text, token in access.tokens.items()
            if tried or token.last_used == token.created or token.created > since
        }
        await self.hint()

    async def _errand_doubt(self) -> None:
        """A create that is done and not answered: its next attempt looks it up."""
        self._fault(FaultKind.TIMEOUT_AFTER_COMMIT, "POST /bookings", close=True)
        await self.story()

    async def _errand_due(self) -> None:
        """A call that fails, and is due again in a second."""
        self._fault(FaultKind.UNAVAILABLE, "POST /bookings", commit=False)
        await self.story()

    async def _errand_unpublished(self) -> None:
        """What a router leaves behind that died after it recorded a command: a row, and no message."""
        await self._leave("received_at = clock_timestamp() - interval '3 s'")

    async def _errand_stale(self) -> None:
        """What a lost message leaves behind after a minute."""
        await self._leave("published_at = clock_timestamp() - interval '61 s'")

    async def _leave(self, state: str) -> None:
        entity, key, event_id = f"B-{next(_numbers)}", f"left-{next(_numbers)}", uuid7()
        data = {
            "reservationId": entity, "propertyId": "P1", "roomTypeId": "RT1", "checkIn": "2027-03-01",
            "checkOut": "2027-03-04", "adults": 2, "guest": {"lastName": entity},
        }  # fmt: skip
        event = Event(id=str(event_id), source="/core-pms", type=CREATE, subject=entity, companyid=COMPANY,
                      idempotencykey=key, data=data)  # fmt: skip
        cipher = await self._ground.cipher()
        row = command_row(event_id, COMPANY, event, cipher.seal)

        async def leave() -> None:
            async with self._ground.pool.acquire() as connection, connection.transaction():
                await insert_commands(connection, [row])
                await connection.execute(f"UPDATE channel_events SET {state} WHERE id = $1", event_id)  # noqa: S608

        await leave()
        self._stories.append(entity)
        self.said.append(Said(key, entity, CREATE))
        self.stays[entity] = Stay("2027-03-01", "2027-03-04", 2, cancelled=False)

    async def _errand_untold(self) -> None:
        """What a worker leaves behind that died between the broker's confirm and its mark."""
        await self._ground.execute(
            "INSERT INTO core_batches (id, event_ids, created_at) SELECT gen_random_uuid(), ARRAY[id],"
            " clock_timestamp() - interval '3 s' FROM core_events ORDER BY created_at DESC LIMIT 3"
        )

    async def _errand_letters(self) -> None:
        """A wake-up that the broker gave up: its row is settled, or open and woken again."""
        async with self._ground.pool.acquire() as connection:
            row = await connection.fetchrow("SELECT id, event_type FROM channel_events ORDER BY seq DESC LIMIT 1")
        if row is not None:
            body = encode(Event(id=str(row["id"]), type=row["event_type"], companyid=COMPANY))
            await self._ground.publish(DEAD_LETTERS, dlq("beds24"), body, CONTENT_TYPE)

    async def _errand_junk(self) -> None:
        """A message that nobody can read."""
        self.letters += 1
        body = b"{no event " + uuid7().bytes  # the same twice would be one letter
        await self._ground.publish(EVENTS, "beds24.booking.junk", body, "text/plain")

    def _fault(self, kind: FaultKind, operation: str, **more: Any) -> None:
        self.vendor_sound = False
        faults = self._ground.world.sim.faults
        # What nobody has met yet hits the next one: more would pile up while a circuit is open, and keep it so.
        if not any(fault.kind is kind and fault.operation == operation for fault in faults.pending):
            faults.add(Fault(kind, operation=operation, **more))


def vendors_stay(booking: dict[str, Any]) -> Stay:
    return Stay(booking["arrival"], booking["departure"], booking["numAdult"], booking["status"] == "cancelled")
