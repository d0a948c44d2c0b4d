"""Where the demo works: a private stack, deleted afterwards; of given servers a database and a vhost of its own if it may."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg
import httpx

from ops.stack import health, local

from .interrupts import undisturbed
from .seed import Tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ops.stack.processes import Report

_MANAGEMENT = {"amqp": ("http", 15672), "amqps": ("https", 15671)}


@dataclass(frozen=True, slots=True)
class Ground:
    """left_queue: the core PMS's own, to delete at the end; None where it vanishes with the broker or vhost"""

    database_url: str = field(repr=False)
    amqp_url: str = field(repr=False)
    tenant: Tenant
    left_queue: str | None


@contextmanager
def ground(folder: Path, report: Report) -> Iterator[Ground]:
    """raises StackError"""
    with ExitStack() as cleaning:
        _later(cleaning, lambda: local.delete(folder, _silent))
        local.delete(folder, _silent)  # what a demo that was killed outright has left
        stack = local.start(folder, report)
        mark = secrets.token_hex(3)
        database_url, amqp_url = stack.database_url, stack.amqp_url
        tenant, left_queue = Tenant(), None
        if stack.postgres is None:
            own = _own_database(database_url, f"staybus_demo_{mark}")
            if own is None:
                tenant = Tenant(f"acme-demo-{mark}", f"beds24-acme-demo-{mark}")
                report(f"may not create a database at {health.address(database_url)}: using it as it is,")
                report(f"the rows of company {tenant.company} stay there; stop any staybus that works on it")
            else:
                report(f"own database {health.address(own)}, dropped at the end")
                _later(cleaning, lambda given=database_url, made=own: _drop(given, made))  # type: ignore[misc]
                database_url = own
        if stack.rabbitmq is None:
            found = _own_vhost(amqp_url, f"staybus-demo-{mark}")
            if found is None:
                left_queue = f"core-pms.demo-{mark}"
                report(f"may not create a vhost at {health.address(amqp_url)}: using it as it is,")
                report("exchanges and queues of staybus stay there; stop any staybus that works on it")
            else:
                vhost_url, amqp_url = found
                report(f"own vhost {health.address(amqp_url)}, deleted at the end")
                _later(cleaning, lambda: _delete(vhost_url))
        yield Ground(database_url, amqp_url, tenant, left_queue)


def _later(cleaning: ExitStack, act: Callable[[], object]) -> None:
    def clean() -> None:
        with undisturbed():
            act()

    cleaning.callback(clean)


def _own_database(given: str, name: str) -> str | None:
    async def make() -> None:
        db = await asyncpg.connect(given)
        try:
            await db.execute(f'CREATE DATABASE "{name}"')
        finally:
            await db.close()

    try:
        asyncio.run(make())
    except asyncpg.PostgresError:
        return None
    return urlunsplit(urlsplit(given)._replace(path=f"/{name}"))


def _drop(given: str, made: str) -> None:
    async def drop() -> None:
        db = await asyncpg.connect(given)
        try:
            await db.execute(f'DROP DATABASE "{urlsplit(made).path[1:]}" WITH (FORCE)')
        finally:
            await db.close()

    with suppress(OSError, asyncpg.PostgresError):
        asyncio.run(drop())


def _own_vhost(given: str, name: str) -> tuple[str, str] | None:
    """(its address at the management API, its AMQP URL); None where that API is not at its usual port or says no."""
    parts = urlsplit(given)
    scheme, port = _MANAGEMENT.get(parts.scheme, ("http", 15672))
    login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
    vhost_url = f"{scheme}://{login}@{parts.hostname}:{port}/api/vhosts/{name}"
    user = quote(unquote(parts.username or "guest"), safe="")
    rights = f"{scheme}://{login}@{parts.hostname}:{port}/api/permissions/{name}/{user}"
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    amqp_url = urlunsplit(parts._replace(path=f"/{name}"))
    with httpx.Client(timeout=5, trust_env=False) as http:
        try:
            if not http.put(vhost_url).is_success:
                return None
            http.put(rights, json=everything)
        except httpx.HTTPError:
            return None
        if health.amqp_problem(amqp_url) is None:
            return vhost_url, amqp_url
        with suppress(httpx.HTTPError):
            http.delete(vhost_url)
    return None


def _delete(vhost_url: str) -> None:
    with suppress(httpx.HTTPError):
        httpx.delete(vhost_url, timeout=10, trust_env=False)


def _silent(_line: str) -> None:
    pass
