"""One private Postgres and RabbitMQ for the run; a fresh database and a fresh vhost for each test that asks."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
from hypothesis import settings

from ops.stack import local
from store import migrate
from tests.fleet import World

if TYPE_CHECKING:
    from ops.stack.local import Stack

ROOT = Path(__file__).resolve().parents[1]
settings.register_profile("staybus", deadline=None)  # no verdict on a machine that has much else to do
settings.load_profile("staybus")
TEMPLATE = f"staybus_template_{secrets.token_hex(3)}"  # of this run: a given server may hold an older one


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    os.environ.setdefault("STAYBUS_RUNTIME", str(ROOT / ".staybus/runtime"))
    folder = tmp_path_factory.mktemp("stack", numbered=True)
    started = local.start(folder, print, durable=False)
    yield started
    local.delete(folder, print)


@pytest.hookimpl(trylast=True)  # when the processes of the run are gone
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where the run was told to stop, and they were not, they ended without a word to their servers."""
    if session.config.getoption("numprocesses", None):
        for lock in session.config._tmp_path_factory.getbasetemp().glob("popen-*/*/lock"):
            local.delete(lock.parent, print)


@pytest.fixture
async def database_url(stack: Stack) -> AsyncIterator[str]:
    """A migrated, empty database of this test's own: a copy, which takes a tenth of a migration."""
    name = f"test_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(stack.database_url)
    if not await owner.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", TEMPLATE):
        await owner.execute(f"CREATE DATABASE {TEMPLATE}")
        await migrate.upgrade(_database(stack.database_url, TEMPLATE))
    await owner.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    await owner.close()
    yield _database(stack.database_url, name)
    owner = await asyncpg.connect(stack.database_url)
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    """For our own servers only: to read whom one trusts for TLS takes longer than most requests."""
    with httpx.Client(trust_env=False, verify=False) as client:  # noqa: S501 - our own servers
        yield client


@pytest.fixture
def amqp_url(stack: Stack, http: httpx.Client) -> Iterator[str]:
    """A vhost of this test's own, empty."""
    if stack.amqp_admin_url is None:
        pytest.fail("tests make a vhost each: STAYBUS_AMQP_URL needs a broker of ours, or leave it unset")
    vhost = f"test-{secrets.token_hex(6)}"
    http.put(f"{stack.amqp_admin_url}/vhosts/{vhost}").raise_for_status()
    yield urlunsplit(urlsplit(stack.amqp_url)._replace(path=f"/{vhost}"))
    http.delete(f"{stack.amqp_admin_url}/vhosts/{vhost}").raise_for_status()


@pytest.fixture
async def world(database_url: str, amqp_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A company with a Beds24 connection, the vendor's simulator, and the fleet ready to start."""
    async with AsyncExitStack() as resources:
        yield await World.build(database_url, amqp_url, tmp_path, resources)


def _database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
