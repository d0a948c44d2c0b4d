"""The one place that builds the parts of a process from its settings."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.port import actions
from adapters.registry import adapters as load_adapters
from adapters.transport import HttpTransport
from store.clock import Clock
from store.directory import Directory
from store.ingest import mark_published
from store.marks import Marks
from store.pool import WORKER_ROLE, open_pool
from store.results import told
from store.seal import KeyFile
from telemetry import metrics
from topology.declared import VendorRoutes, topology
from topology.link import LinkState
from topology.publisher import Publisher
from topology.retry import POLICIES
from workers.governor import Governor
from workers.sessions import Sessions, Tokens
from workers.tell import Teller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from adapters.port import Adapter
    from store.pool import Pool, Warm
    from topology.model import Topology

    from .settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What every process of the fleet stands on."""

    name: str
    settings: Settings
    pool: Pool
    directory: Directory
    adapters: Mapping[str, Adapter]
    publisher: Publisher
    marks: Marks
    teller: Teller
    sessions: Sessions
    governor: Governor
    worker: str  # this process, in leases and history
    random: Callable[[], float]
    now: Callable[[], datetime]  # by the database's clock


_PROCESS = f"{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(3)}"  # pids come again, this does not


def worker_name(process: str) -> str:
    """This process, in leases and history."""
    return f"{process}@{_PROCESS}"


def declared(adapters: Mapping[str, Adapter]) -> Topology:
    """The topology that the installed adapters ask for."""
    routes = [VendorRoutes(name, adapter.manifest.inbound) for name, adapter in sorted(adapters.items())]
    return topology(routes, sorted(actions(adapters)))


def state_gauges(link: str) -> Callable[[LinkState], None]:
    def tell(state: LinkState) -> None:
        metrics.BROKER_CONNECTED.labels(link).set(state is not LinkState.DOWN)
        metrics.BROKER_BLOCKED.labels(link).set(state is LinkState.BLOCKED)

    return tell


@asynccontextmanager
async def open_parts(
    name: str,
    settings: Settings,
    *,
    pool_size: int = 6,
    warm: Warm | None = None,
) -> AsyncIterator[Parts]:
    """Opens in order and closes in the reverse one. warm: see open_pool

    raises  SealError, and what asyncpg raises when the database cannot be reached
    """
    async with AsyncExitStack() as stack:
        keys = KeyFile.read(settings.key_file)
        pool = await open_pool(settings.database_url, role=WORKER_ROLE, name=name, size=pool_size, warm=warm)
        stack.push_async_callback(pool.close)
        clock = await Clock.of(pool)
        stack.callback(asyncio.create_task(clock.keep(), name="clock").cancel)
        adapters = load_adapters()
        directory = Directory(pool, keys)
        transport = HttpTransport(total=settings.vendor_timeout, on_response=_observe_vendor)
        stack.push_async_callback(transport.close)
        publisher = Publisher(
            settings.amqp_url,
            name=f"staybus {name} publisher",
            ca_file=settings.amqp_ca_file,
            on_state=state_gauges("publisher"),
        )
        await publisher.start(wait=5)
        stack.push_async_callback(publisher.stop)
        marks = Marks(pool, mark_published)
        stack.push_async_callback(marks.stop)
        teller = Teller(publisher, Marks(pool, told))
        stack.push_async_callback(teller.stop)
        tokens: dict[str, Tokens] = {
            vendor: Tokens(pool, transport.for_vendor(vendor), now=clock, worker=worker_name(name))
            for vendor in adapters
        }
        sessions = Sessions(dict(adapters), transport.for_vendor, tokens.__getitem__, clock)
        stack.push_async_callback(sessions.stop, settings.grace)
        yield Parts(
            name=name,
            settings=settings,
            pool=pool,
            directory=directory,
            adapters=adapters,
            publisher=publisher,
            marks=marks,
            teller=teller,
            sessions=sessions,
            governor=Governor(pool, random=random.random, now=clock),
            worker=worker_name(name),
            random=random.random,
            now=clock,
        )


def inbound_attempts(adapters: Mapping[str, Adapter]) -> dict[str, int]:
    """vendor → attempts in all of an inbound event"""
    return {name: POLICIES[adapter.manifest.retry_policy].attempts for name, adapter in adapters.items()}


def _observe_vendor(vendor: str, operation: str, status: str, seconds: float) -> None:
    metrics.VENDOR_REQUESTS.labels(vendor, operation, status).observe(seconds)
