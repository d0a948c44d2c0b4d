"""An idle relay sleeps, and is there at once for what is committed, for a retry whose time has come, and for a stop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from adapters.registry import adapters
from ops.parts import declared
from store import session
from store.bell import Bell
from store.directory import Directory
from store.pool import open_pool
from tests.topology.tcp_proxy import TcpProxy
from topology.apply import apply
from topology.publisher import Publisher
from workers.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from store.pool import Connection

LONG = 3600.0  # seconds; whatever waits so long fails the test
ROW = "INSERT INTO outbox (company_id, event_type, payload) VALUES ('nobody', 'pms.booking.update', '{}')"


class Rings:
    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._more.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(15):
            while self.count < count:
                self._more.clear()
                await self._more.wait()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@asynccontextmanager
async def listening(database_url: str, rings: Callable[[], None], *, look: float = 2.0) -> AsyncIterator[None]:
    bell = Bell(database_url, "test", rings, look=look)
    await bell.start()
    try:
        yield
    finally:
        await bell.stop()


async def test_a_commit_rings_and_what_is_rolled_back_does_not(database_url: str, db: Any) -> None:
    rings = Rings()
    async with listening(database_url, rings):
        assert rings.count == 1  # what was written before
        transaction = db.transaction()
        await transaction.start()
        await db.execute(ROW)
        await transaction.rollback()
        async with db.transaction():
            await db.execute(ROW)
            await db.execute(ROW)
        await rings.wait(2)
        await db.execute(ROW)
        await rings.wait(3)
    assert rings.count == 3


async def test_who_may_only_insert_rings_too(database_url: str, db: Any) -> None:
    rings = Rings()
    async with listening(database_url, rings):
        await db.execute("SET ROLE staybus_api")
        await db.execute("SELECT set_config('staybus.company_id', 'nobody', false)")
        await db.execute(ROW)
        await rings.wait(2)


async def test_a_session_that_was_ended_listens_again(database_url: str, db: Any) -> None:
    rings = Rings()
    async with listening(database_url, rings):
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'staybus test bell'"
        assert await db.fetchval(ended)
        await rings.wait(2)  # it is back, and looks for what it did not hear of
        await db.execute(ROW)
        await rings.wait(3)


async def test_a_network_that_went_silent_is_noticed(
    database_url: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER", 0.2)
    parts = urlsplit(database_url)
    rings = Rings()
    async with TcpProxy(parts.hostname or "", parts.port or 5432) as proxy:
        place = f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}"
        async with listening(urlunsplit(parts._replace(netloc=place)), rings, look=0.05):
            proxy.pause()
            async with asyncio.timeout(15):
                while proxy.accepted < 2:
                    await asyncio.sleep(0.01)
            proxy.resume()
            await rings.wait(2)
            await db.execute(ROW)
            await rings.wait(3)


async def test_a_session_that_falls_silent_as_it_begins_is_begun_anew(
    database_url: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for it would hear no bell, and be taken for dead, until the network says that it is gone."""
    rings = Rings()
    silent = asyncio.Event()

    class Silenced(Bell):
        async def begin(self, connection: Connection) -> None:
            if rings.count == 1 and not silent.is_set():
                silent.set()
                await asyncio.Event().wait()
            await super().begin(connection)

    bell = Silenced(database_url, "test", rings)
    await bell.start()
    try:
        monkeypatch.setattr(session, "OPENING", 0.5)
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'staybus test bell'"
        )
        await rings.wait(2)
        assert silent.is_set()
    finally:
        await bell.stop()


class Watched(Relay):
    """Says when it goes to sleep for long."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.looks = 0
        self.asleep = asyncio.Event()

    async def _round(self) -> float:
        self.looks += 1
        rest = await super()._round()
        if rest == LONG:
            self.asleep.set()
        return rest


@asynccontextmanager
async def running(database_url: str, amqp_url: str, pause: float = 0.1) -> AsyncIterator[Watched]:
    """A relay that while it finds nothing would not look again for an hour."""
    await apply(amqp_url, declared(adapters()))
    pool = await open_pool(database_url, name="test")
    publisher = Publisher(amqp_url, name="test")
    await publisher.start(wait=10)
    stop = asyncio.Event()

    async def nobody(_: object) -> dict[str, int]:
        return {}

    relay = Watched(pool, Directory(pool, None), publisher, nobody, pause=pause, idle=LONG)  # type: ignore[arg-type] - opens nothing sealed
    task = asyncio.create_task(relay.run(stop))
    try:
        yield relay
    finally:
        stop.set()
        await asyncio.wait_for(task, 15)
        await publisher.stop()
        await pool.close()


async def until_one(db: Any, query: str, *given: object) -> None:
    async with asyncio.timeout(15):
        while not await db.fetchval(query, *given):
            await asyncio.sleep(0.01)


async def test_an_idle_relay_takes_a_row_when_the_bell_rings(database_url: str, amqp_url: str, db: Any) -> None:
    taken = "SELECT count(*) = $1 FROM outbox WHERE taken_at IS NOT NULL AND error IS NOT NULL"
    async with running(database_url, amqp_url) as relay, listening(database_url, relay.ring):
        for row in (1, 2, 3):  # of the second on it can know only by the bell
            async with asyncio.timeout(15):
                await relay.asleep.wait()
            relay.asleep.clear()
            await db.execute(ROW)
            await until_one(db, taken, row)


async def test_a_row_that_somebody_holds_locked_is_passed_over_and_neither_stops_the_relay_nor_keeps_it_awake(
    database_url: str, amqp_url: str, db: Any
) -> None:
    held = await db.fetchval(f"{ROW} RETURNING id")
    taken = "SELECT count(*) = 1 FROM outbox WHERE taken_at IS NOT NULL AND (id = $1) = $2"
    async with AsyncExitStack() as resources:
        holder = await asyncpg.connect(database_url)
        resources.push_async_callback(holder.close)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT FROM outbox FOR UPDATE")
        relay = await resources.enter_async_context(running(database_url, amqp_url))
        await resources.enter_async_context(listening(database_url, relay.ring))
        async with asyncio.timeout(15):
            await relay.asleep.wait()
        await db.execute(ROW)
        await until_one(db, taken, held, False)
        assert not await db.fetchval(taken, held, True)
        await transaction.rollback()
        relay.ring()
        await until_one(db, taken, held, True)


async def test_many_rings_do_not_hurry_a_relay_that_has_work(database_url: str, amqp_url: str, db: Any) -> None:
    async with running(database_url, amqp_url, pause=LONG / 2) as relay:
        async with asyncio.timeout(15):
            await relay.asleep.wait()
        await db.execute(ROW)
        relay.ring()
        await until_one(db, "SELECT count(*) = $1 FROM outbox WHERE taken_at IS NOT NULL", 1)
        for _ in range(20):  # while it rests; each of these would take longer than to look once more
            relay.ring()
            await db.execute(ROW)
        assert relay.looks == 2


async def test_an_idle_relay_sleeps_no_longer_than_to_the_next_retry(database_url: str, amqp_url: str, db: Any) -> None:
    await db.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '')")
    await db.execute(
        "INSERT INTO connections (id, company_id, vendor, name) VALUES ('beds24-acme', 'acme', 'beds24', 'x')"
    )
    await db.execute(
        "INSERT INTO channel_events (id, company_id, connection_id, direction, event_type, idempotency_key, payload, status,"
        " next_attempt_at) VALUES (gen_random_uuid(), 'acme', 'beds24-acme', 'inbound', 'beds24.booking.modified', 'k', '{}',"
        " 'retrying', now() + interval '1 second')"
    )
    async with running(database_url, amqp_url):
        await until_one(
            db, "SELECT count(*) FROM channel_events WHERE status = 'received' AND published_at IS NOT NULL"
        )
