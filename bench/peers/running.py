"""A peer, started: its database, its vhost, one web process and one worker command."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from bench.measure import Target
from bench.session import HERE, children, fresh, server_roots
from ops.stack.ports import free_port

from . import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ops.stack.local import Stack

_WEB = ("-m", "uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")
_CELERY = ("-m", "celery", "-A", "bench.peers.celery_app:celery", "worker")
_SETTLED = "SELECT idempotency_key, extract(epoch FROM processed_at)::float8 FROM channel_events WHERE status = 'done'"


@dataclass(frozen=True, slots=True)
class Peer:
    """title: for people; app: module and name of the ASGI application; worker: arguments of this Python"""

    title: str
    app: str
    worker: tuple[str, ...]


PEERS = {
    "faststream": Peer("FastStream", "bench.peers.faststream_app:app", ("-m", "bench.peers.faststream_app")),
    "celery": Peer(
        "Celery",
        "bench.peers.celery_app:app",
        (*_CELERY, "--pool", "prefork", "--concurrency", "4", "--without-gossip", "--without-mingle", "-l", "WARNING"),
    ),
    "handwritten": Peer("aio-pika", "bench.peers.handwritten:app", ("-m", "bench.peers.handwritten")),
}


@asynccontextmanager
async def running(
    name: str, stack: Stack, folder: Path, queue_type: str = "quorum", python: Path = HERE
) -> AsyncIterator[Target]:
    """folder: for its logs; queue_type: quorum or classic; python: of the environment it runs in. raises EndedError"""
    peer = PEERS[name]
    secret = secrets.token_urlsafe(24)
    async with (
        fresh(stack, name) as (database_url, amqp_url),
        children(
            folder / "logs",
            python,
            PEER_DATABASE_URL=database_url,
            PEER_AMQP_URL=amqp_url,
            PEER_SECRET=secret,
            PEER_QUEUE_TYPE=queue_type,
        ) as started,
    ):
        await _create_tables(database_url)
        port = free_port()
        web = started.start(f"{name}-web", [*_WEB, "--port", str(port), peer.app])
        worker = started.start(f"{name}-worker", peer.worker)
        await started.ready(port, "/", {404})
        yield Target(
            name=name,
            database_url=database_url,
            port=port,
            path="/webhook",
            secret=secret,
            roots={"web": [web], "worker": [worker]} | server_roots(stack),
            settled=_SETTLED,
            stored="SELECT count(*) FROM bookings",
            logs=started.logs,
        )


async def _create_tables(database_url: str) -> None:
    database = await asyncpg.connect(database_url)
    try:
        await database.execute(work.SCHEMA)
    finally:
        await database.close()
