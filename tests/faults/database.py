"""What befalls Postgres."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg

from tests.faults.fault import Fault
from tests.faults.load import AWAY, insist
from tests.faults.outside import begin_again

if TYPE_CHECKING:
    from tests.faults.ground import Ground
    from tests.faults.load import Load

_OURS = "datname = $1 AND application_name LIKE 'staybus%'"
_TABLES = ("channel_events", "core_events", "webhook_log")
_ANSWERS = {
    "ingress": ["ingress.webhooks:record"],
    "inbound": [
        "workers.inbound:store.load",
        "workers.inbound:InboundStage._apply",
        "workers.inbound:InboundStage._commit",
        "workers.hints:store.lease",
    ],
    "outbound": [
        "workers.router:RouterStage._commit",
        "workers.delivery:store.claim",
        "workers.delivery:DeliveryStage._resolve_and_note",
        "workers.delivery:DeliveryStage._commit",
    ],
}


async def stop_and_start(ground: Ground, load: Load) -> None:
    server = ground.stack.postgres
    assert server is not None
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)


async def kill(ground: Ground, load: Load) -> None:
    server = ground.stack.postgres
    assert server is not None
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def immediate_stop(ground: Ground, load: Load) -> None:
    """The server ends at once and recovers from its write-ahead log."""
    server = ground.stack.postgres
    assert server is not None
    for mark in server.processes:
        mark.send(signal.SIGQUIT)
        await asyncio.to_thread(mark.wait_gone, 10)
    await asyncio.to_thread(server.start)


async def backend_killed(ground: Ground, load: Load) -> None:
    """One session's process dies; the server then ends all the others and recovers."""
    async with _admin(ground) as admin:
        pid = await admin.fetchval(f"SELECT pid FROM pg_stat_activity WHERE {_OURS} LIMIT 1", _name(ground))  # noqa: S608
    os.kill(pid, signal.SIGKILL)
    await insist(lambda: ground.execute("SELECT 1"))


async def sessions_ended(ground: Ground, load: Load) -> None:
    for _ in range(3):
        await _cut(ground)
        await asyncio.sleep(0.5)


async def some_sessions_ended(ground: Ground, load: Load) -> None:
    async with _admin(ground) as admin:
        for _ in range(15):
            await admin.execute(
                f"SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE {_OURS}"  # noqa: S608
                " ORDER BY random() LIMIT 2) s",
                _name(ground),
            )
            await asyncio.sleep(0.1)


async def statements_cancelled(ground: Ground, load: Load) -> None:
    async with _admin(ground) as admin:
        for _ in range(100):
            await admin.execute(
                f"SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE {_OURS} AND state = 'active'",  # noqa: S608
                _name(ground),
            )
            await asyncio.sleep(0.02)


async def no_connections_left(ground: Ground, load: Load) -> None:
    """Somebody else holds every one that the server gives, and ours are cut."""
    held: list[asyncpg.Connection[asyncpg.Record]] = []
    async with _admin(ground) as admin:
        try:
            for attempt in range(3):
                with suppress(*AWAY):
                    while len(held) < 300:
                        held.append(await asyncpg.connect(_elsewhere(ground)))
                if attempt < 2:
                    await _end_ours(admin, ground)
            await asyncio.sleep(1.5)
        finally:
            for connection in held:
                connection.terminate()


async def nobody_let_in(ground: Ground, load: Load) -> None:
    """As while the database is restored, or taken out of service."""
    async with _admin(ground) as admin:
        await admin.execute(f"ALTER DATABASE {_name(ground)} ALLOW_CONNECTIONS false")
        try:
            await _end_ours(admin, ground)
            await asyncio.sleep(1.5)
        finally:
            await admin.execute(f"ALTER DATABASE {_name(ground)} ALLOW_CONNECTIONS true")


async def pool_waits(ground: Ground, load: Load) -> None:
    """Every session of ours waits for a table's lock, so that their pools are empty."""
    async with ground.pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE channel_events IN EXCLUSIVE MODE")
        await asyncio.sleep(3)


async def lock_timeouts(ground: Ground, load: Load) -> None:
    async with _setting(ground, "lock_timeout", "100ms"):
        await pool_waits(ground, load)


async def read_only(ground: Ground, load: Load) -> None:
    """As a primary that was made a standby."""
    async with _setting(ground, "default_transaction_read_only", "on"):
        await asyncio.sleep(2)


def raising(code: str, share: float = 0.6) -> Callable[[Ground, Load], Awaitable[None]]:
    """Most writes of two seconds fail with this SQLSTATE."""

    async def act(ground: Ground, load: Load) -> None:
        body = f"BEGIN IF random() < {share} THEN RAISE EXCEPTION 'fault suite' USING ERRCODE = '{code}'; END IF; RETURN NULL; END"
        async with _trigger(ground, body, "AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT"):
            await asyncio.sleep(2)

    return act


async def slow_commit(ground: Ground, load: Load) -> None:
    """COMMIT itself takes 0.3 s."""
    body = (
        "BEGIN IF current_setting('faults.slept', true) IS DISTINCT FROM txid_current()::text THEN"
        " PERFORM set_config('faults.slept', txid_current()::text, true); PERFORM pg_sleep(0.3); END IF; RETURN NULL; END"
    )
    when = "AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
    async with _trigger(ground, body, when, constraint=True):
        await asyncio.sleep(4)


async def deadlock(ground: Ground, load: Load) -> None:
    """A real one: a worker that settles a batch has written a row and waits for another, which we hold while we want the first."""
    newest = (
        "SELECT id FROM channel_events WHERE direction = 'inbound' AND status = 'received' ORDER BY id DESC LIMIT 1"
        " FOR UPDATE SKIP LOCKED"
    )
    for _ in range(3):
        ground.signal("inbound", signal.SIGSTOP)  # so that what comes now is one batch
        try:
            await load.history(4, 2)
            async with ground.pool.acquire() as connection:
                await connection.execute("SET deadlock_timeout = '20s'")  # so that the other is the victim
                transaction = connection.transaction()
                await transaction.start()
                try:
                    held = await connection.fetchval(newest)
                    ground.signal("inbound", signal.SIGCONT)
                    await _until_somebody_waits(ground)
                    with suppress(*AWAY):
                        await connection.execute(
                            "SELECT FROM channel_events WHERE direction = 'inbound' AND id <> $1 AND id > $2 FOR UPDATE",
                            held,
                            _of_this_minute(held),
                        )
                finally:
                    with suppress(*AWAY):
                        await transaction.rollback()
                    await connection.execute("RESET deadlock_timeout")
        finally:
            ground.signal("inbound", signal.SIGCONT)


def _of_this_minute(id_: UUID) -> UUID:
    """The smallest id of a minute before this one: ids tell their milliseconds."""
    return UUID(int=max(0, id_.int - (60_000 << 80)))


async def network_cut(ground: Ground, load: Load) -> None:
    for _ in range(3):
        ground.database.cut()
        await asyncio.sleep(0.5)


async def network_refuses(ground: Ground, load: Load) -> None:
    ground.database.cut(refuse=True)
    await asyncio.sleep(2)
    ground.database.accept()


async def network_silent(ground: Ground, load: Load) -> None:
    ground.database.pause()
    await asyncio.sleep(3)
    ground.database.resume()


async def _until_somebody_waits(ground: Ground) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(5), _admin(ground) as admin:
            while not await admin.fetchval(
                f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS} AND wait_event_type = 'Lock'",  # noqa: S608
                _name(ground),
            ):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def _trigger(ground: Ground, body: str, when: str, *, constraint: bool = False) -> AsyncIterator[None]:
    kind = "CONSTRAINT TRIGGER" if constraint else "TRIGGER"
    async with _admin(ground, _name(ground)) as admin:
        await admin.execute(
            f"CREATE OR REPLACE FUNCTION faults_now() RETURNS trigger LANGUAGE plpgsql AS $f$ {body}; $f$"
        )
        for table in _TABLES:
            await _patiently(
                admin, f"CREATE {kind} faults_now {when.format(table=table)} EXECUTE FUNCTION faults_now()"
            )
        try:
            yield
        finally:
            for table in _TABLES:
                await _patiently(admin, f"DROP TRIGGER faults_now ON {table}")


async def _patiently(admin: asyncpg.Connection[asyncpg.Record], statement: str) -> None:
    """A change of a busy table may be the victim of a deadlock itself."""
    await insist(lambda: admin.execute(statement), (asyncpg.exceptions.DeadlockDetectedError,))


@asynccontextmanager
async def _setting(ground: Ground, name: str, value: str) -> AsyncIterator[None]:
    """For every new session; those that are there are ended, before and after."""
    async with _admin(ground) as admin:
        await admin.execute(f"ALTER DATABASE {_name(ground)} SET {name} = '{value}'")
        await _end_ours(admin, ground)
        try:
            yield
        finally:
            await admin.execute(f"ALTER DATABASE {_name(ground)} RESET {name}")
            await _end_ours(admin, ground)
            await ground.pool.expire_connections()


async def _cut(ground: Ground) -> None:
    async with _admin(ground) as admin:
        await _end_ours(admin, ground)


async def _end_ours(admin: asyncpg.Connection[asyncpg.Record], ground: Ground) -> None:
    await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}", _name(ground))  # noqa: S608


async def answers_lost(ground: Ground, load: Load) -> None:
    """What was committed, and its process does not know. That it is the process's own is found out at once, not when its
    lease ends: it would be one attempt more."""
    for _ in range(3):
        load.begin(load.story)
        load.begin(load.hint)
        load.begin(load.push)
        await asyncio.sleep(0.7)
    for name in _ANSWERS:
        await begin_again(ground, load, name)


@asynccontextmanager
async def _admin(ground: Ground, database: str = "postgres") -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(_elsewhere(ground, database))
    try:
        yield connection
    finally:
        connection.terminate()


def _elsewhere(ground: Ground, database: str = "postgres") -> str:
    return urlunsplit(urlsplit(ground.database_url)._replace(path=f"/{database}"))


def _name(ground: Ground) -> str:
    return urlsplit(ground.database_url).path.removeprefix("/")


FAULTS = (
    Fault("database", "stop-start", stop_and_start),
    Fault("database", "kill", kill),
    Fault("database", "immediate-stop", immediate_stop),
    Fault("database", "backend-killed", backend_killed),
    Fault("database", "sessions-ended", sessions_ended),
    Fault("database", "some-sessions-ended", some_sessions_ended),
    Fault("database", "statements-cancelled", statements_cancelled),
    Fault("database", "no-connections-left", no_connections_left),
    Fault("database", "nobody-let-in", nobody_let_in),
    Fault("database", "pool-waits", pool_waits),
    Fault("database", "lock-timeouts", lock_timeouts),
    Fault("database", "read-only", read_only),
    Fault("database", "disk-full", raising("53100")),
    Fault("database", "out-of-memory", raising("53200")),
    Fault("database", "deadlocks-raised", raising("40P01")),
    Fault("database", "serialization", raising("40001")),
    Fault("database", "io-error", raising("58030")),
    Fault("database", "slow-commit", slow_commit),
    Fault("database", "deadlock", deadlock),
    Fault("database", "network-cut", network_cut),
    Fault("database", "network-refuses", network_refuses),
    Fault("database", "network-silent", network_silent),
    Fault(
        "database",
        "answers-lost",
        answers_lost,
        plans=tuple((name, {"unanswered": _ANSWERS[name]}) for name in _ANSWERS),
    ),
)
