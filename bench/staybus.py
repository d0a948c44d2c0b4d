"""staybus under load: the whole product, its four processes, on the local stack."""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from adapters.registry import adapters
from ops.parts import declared
from ops.stack.ports import free_port
from schemas.connection import Connection
from store import connections, migrate
from store.seal import KeyFile
from topology.apply import apply

from .measure import Target
from .session import children, fresh, server_roots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ops.stack.local import Stack

CONNECTION = "bench-beds24"
PROCESSES = ("ingress", "inbound", "outbound", "scheduler")
_MAIN = "import sys; from ops.fleet import run; from ops.settings import load; run(sys.argv[1], load())"
_SETTLED = (
    "SELECT entity_external_id || '-' || (payload->'booking'->>'modifiedTime'), extract(epoch FROM processed_at)::float8"
    " FROM channel_events WHERE processed_at IS NOT NULL"
)


@asynccontextmanager
async def fleet(stack: Stack, folder: Path) -> AsyncIterator[Target]:
    """The running product. folder: for its key and its logs. raises EndedError"""
    key_file = folder / "key"
    if not key_file.exists():
        KeyFile.create(key_file)
    async with fresh(stack, "staybus") as (database_url, amqp_url):
        secret = await _seed(database_url, amqp_url, KeyFile.read(key_file))
        ports: dict[str, int] = {}
        for process in PROCESSES:
            ports[process] = free_port(set(ports.values()))
        async with children(
            folder / "logs",
            STAYBUS_DATABASE_URL=database_url,
            STAYBUS_AMQP_URL=amqp_url,
            STAYBUS_KEY_FILE=str(key_file),
            **{f"STAYBUS_{process.upper()}_PORT": str(port) for process, port in ports.items()},
        ) as running:
            roots = {process: [running.start(f"staybus-{process}", ["-c", _MAIN, process])] for process in PROCESSES}
            for port in ports.values():
                await running.ready(port, "/readyz", {200})
            yield Target(
                name="staybus",
                database_url=database_url,
                port=ports["ingress"],
                path=f"/webhooks/beds24/{CONNECTION}",
                secret=secret,
                roots=roots | server_roots(stack),
                settled=_SETTLED,
                stored="SELECT count(*) FROM int_reservations",
                logs=running.logs,
            )


async def _seed(database_url: str, amqp_url: str, keys: KeyFile) -> str:
    """Schema, topology, a company with a Beds24 connection. Answers the webhooks' secret."""
    await migrate.upgrade(database_url)
    await apply(amqp_url, declared(adapters()))
    secret = secrets.token_urlsafe(24)
    data_key = keys.new_data_key()
    database = await asyncpg.connect(database_url)
    try:
        await connections.add_company(database, "bench", "Bench", data_key)
        config = {"currency": "EUR", "webhook_auth": "hmac"}
        await connections.add_connection(database, CONNECTION, "bench", "beds24", "Bench", None, config)
        of = Connection(CONNECTION, "bench", "beds24", "Bench")
        sealed = keys.cipher("bench", data_key).seal_bytes(secret.encode())
        await connections.put_secret(database, of, "webhook_secret", sealed)
    finally:
        await database.close()
    return secret
