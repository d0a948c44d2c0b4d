"""How a command ends that is broken off: by Ctrl-C, or because database or broker went away."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest

from ops.cli.output import Refused
from ops.cli.session import reaching_database
from ops.settings import Settings
from tests.topology.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from .conftest import Cli, Db, Fail

STAYBUS = str(Path(sys.executable).parent / "staybus")
WAITING = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'staybus cli' AND wait_event_type = 'Lock'"""


async def begun(acme: Cli, *words: str, **env: str) -> Process:
    return await asyncio.create_subprocess_exec(
        STAYBUS, *words, env={**acme.environment(), **env}, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def ended(process: Process, within: float) -> tuple[int, str]:
    """Its exit code, and what it said on stderr."""
    assert process.stderr is not None
    told = (await asyncio.wait_for(process.stderr.read(), within)).decode()
    assert "Traceback" not in told
    return await process.wait(), told


@asynccontextmanager
async def proxied(database_url: str) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy before the database, and the URL through it."""
    url = urlsplit(database_url)
    assert url.hostname
    assert url.port
    async with TcpProxy(url.hostname, url.port) as proxy:
        yield proxy, database_url.replace(f"{url.hostname}:{url.port}", f"127.0.0.1:{proxy.port}")


async def until(db: Db, true: str) -> None:
    async with asyncio.timeout(30):
        while not await db.fetchval(true):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def in_the_middle(acme: Cli, failed: Fail, db: Db, database_url: str) -> AsyncIterator[tuple[Process, TcpProxy]]:
    """A requeue that waits for the row of the second of two letters, which somebody has locked."""
    await failed()
    _, letter = await failed()
    locker = await asyncpg.connect(database_url)
    async with proxied(database_url) as (proxy, through), locker.transaction():
        await locker.execute("SELECT FROM dead_letters WHERE id = $1 FOR UPDATE", letter)
        process = await begun(acme, "dlq", "requeue", "--all", "--yes", "--rate", "1", STAYBUS_DATABASE_URL=through)
        await until(db, WAITING)
        yield process, proxy
    await locker.close()


async def test_ctrl_c_ends_within_seconds_also_where_the_database_fell_silent(
    acme: Cli, failed: Fail, db: Db, database_url: str
) -> None:
    async with in_the_middle(acme, failed, db, database_url) as (process, proxy):
        proxy.pause()
        process.send_signal(signal.SIGINT)
        code, told = await ended(process, 15)  # a rollback, or a close, would have waited for 30 s and more
    assert code == 130
    assert told == "requeue: broken off after 1 of 2; what was done stays done\n"


async def test_a_database_that_goes_away_in_the_middle_is_told_in_a_line(
    acme: Cli, failed: Fail, db: Db, database_url: str
) -> None:
    async with in_the_middle(acme, failed, db, database_url) as (process, proxy):
        proxy.cut(refuse=True)
        code, told = await ended(process, 30)
    assert code == 1
    how_far, why = told.splitlines()
    assert "broken off after 1 of 2" in how_far
    assert "went away in the middle" in why


async def test_who_follows_a_job_hears_that_it_goes_on_where_the_database_does_not(
    acme: Cli, failed: Fail, db: Db, database_url: str
) -> None:
    await failed()
    await acme("dlq", "requeue", "--all", "--yes", "--job", "--detach")
    # Nothing carries it out; but of one that waits, whoever follows hears after a while that nobody has begun it.
    job = str(await db.fetchval("UPDATE operator_jobs SET status = 'running' RETURNING id"))
    locker = await asyncpg.connect(database_url)
    async with proxied(database_url) as (proxy, through), locker.transaction():
        await locker.execute("LOCK TABLE operator_jobs")  # its look waits, and can be seen to
        process = await begun(acme, "jobs", "follow", job, STAYBUS_DATABASE_URL=through)
        await until(db, WAITING)
        proxy.cut(refuse=True)
        code, told = await ended(process, 30)
    await locker.close()
    assert code == 1
    what, why = told.splitlines()
    assert f"the job goes on. Follow it: staybus jobs follow {job}" in what
    assert "the database" in why


async def test_ctrl_c_at_a_question_is_no_answer(acme: Cli, failed: Fail, db: Db) -> None:
    await failed()
    process = await begun(acme, "dlq", "requeue", "--all")
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readuntil(b"[y/N]"), 30)
    process.send_signal(signal.SIGINT)
    code, told = await ended(process, 15)
    assert code == 130
    assert "--yes" not in told
    assert await db.fetchval("SELECT status FROM dead_letters") == "pending"


async def test_who_cannot_publish_says_why_in_a_line(acme: Cli, amqp_url: str) -> None:
    url = urlsplit(amqp_url)
    wrong = url._replace(netloc=f"somebody:secret@{url.hostname}:{url.port}").geturl()
    words = ("publish", "pms.booking.cancel", "--company", "acme", "--data", '{"reservationId": "R1"}')
    code, told = await ended(await begun(acme, *words, STAYBUS_AMQP_URL=wrong), 30)
    assert code == 1
    (line,) = told.splitlines()
    assert "ACCESS_REFUSED" in line
    assert "--outbox" in line
    assert "secret" not in line


FOUND = Settings(database_url="postgresql://somebody:secret@127.0.0.1:5/db", amqp_url="amqp://127.0.0.1")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("got result for unknown protocol state 3"),  # killed in the middle of a handshake
        asyncpg.exceptions.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
    ],
)
def test_what_the_loss_of_a_database_raises_names_the_server(error: Exception) -> None:
    with pytest.raises(Refused, match=r"^the database at 127\.0\.0\.1:5/db "), reaching_database(FOUND):
        raise error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), FileNotFoundError(2, "no such file", "patch.json"), asyncpg.InterfaceError("no such argument")],
)
def test_what_is_no_loss_of_a_database_is_told_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), reaching_database(FOUND):
        raise error
