"""staybus under load: the whole product, its four processes, on the local stack."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import orjson

from adapters.registry import adapters
from ops.parts import declared
from schemas.connection import Connection
from store import connections, migrate
from store.seal import KeyFile
from topology.apply import apply

from .load import Answers, Order
from .machine import Cost, cost, memory, snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ops.stack.local import Stack

CONNECTION = "bench-beds24"
PATH = f"/webhooks/beds24/{CONNECTION}"
PROCESSES = ("ingress", "inbound", "outbound", "scheduler")
_MAIN = "import sys; from ops.fleet import run; from ops.settings import load; run(sys.argv[1], load())"


@dataclass(frozen=True, slots=True)
class Result:
    """rates in events a second, latencies in seconds (from when a request was sent or due), cpu in us an event"""

    name: str
    count: int
    accepted: int
    done: int
    ingest_rate: float
    done_rate: float
    ack: tuple[float, float]
    latency: tuple[float, float]
    cpu: dict[str, float]
    memory: dict[str, float]
    foreign: float


class Fleet:
    """The running product. `roots` are the processes whose cost is counted."""

    def __init__(self, database_url: str, port: int, secret: str, roots: dict[str, list[int]]) -> None:
        self.database_url = database_url
        self.port = port
        self.secret = secret
        self.roots = roots

    async def burst(self, count: int, first: int, *, full: bool = False, connections: int = 64) -> Result:
        return await self._run("burst", Order(self.port, PATH, self.secret, count, first, connections, full=full))

    async def steady(self, rate: float, seconds: float, first: int, *, full: bool = False) -> Result:
        order = Order(self.port, PATH, self.secret, int(rate * seconds), first, rate=rate, full=full)
        return await self._run(f"{rate:,.0f}/s", order)

    async def _run(self, name: str, order: Order) -> Result:
        database = await asyncpg.connect(self.database_url)
        try:
            known = await database.fetchval("SELECT count(*) FROM channel_events")
            last_id = await database.fetchval("SELECT max(id::text)::uuid FROM channel_events")
            before = snapshot(self.roots)
            answers = await asyncio.to_thread(send, order)
            done = await _wait_done(database, known + order.count)
            spent = cost(before, snapshot(self.roots))
            finished = await _finished(database, last_id)
        finally:
            await database.close()
        held = {process: memory(pids) for process, pids in self.roots.items()}
        return _result(name, order, answers, done - known, finished, spent, held)


def send(order: Order) -> Answers:
    """Runs the load generator in a process of its own."""
    out = Path(f"/tmp/staybus-load-{os.getpid()}-{secrets.token_hex(4)}.json")  # noqa: S108 - removed below
    command = [sys.executable, "-m", "bench.load"]
    given = orjson.dumps(asdict(order) | {"out": str(out)})
    try:
        subprocess.run(command, input=given, check=True, cwd=Path(__file__).parents[1])
        return Answers(**orjson.loads(out.read_bytes()))
    finally:
        out.unlink(missing_ok=True)


@asynccontextmanager
async def fleet(stack: Stack, folder: Path) -> AsyncIterator[Fleet]:
    """A database and a vhost of its own, the four processes, stopped and removed at the end."""
    name = f"bench_{secrets.token_hex(4)}"
    owner = await asyncpg.connect(stack.database_url)
    await owner.execute(f"CREATE DATABASE {name}")
    database_url = urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
    amqp_url = stack.amqp_url
    if stack.amqp_admin_url is not None:
        amqp_url = urlunsplit(urlsplit(stack.amqp_url)._replace(path=f"/{name}"))
        await _vhost(stack.amqp_admin_url, "PUT", name)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        secret, port = await _seed(database_url, amqp_url, folder)
        for process in PROCESSES:
            processes[process] = _start(process, database_url, amqp_url, folder, port)
        await _ready(port)
        roots = {process: [running.pid] for process, running in processes.items()}
        if stack.postgres is not None:
            roots["postgres"] = [mark.pid for mark in stack.postgres.processes]
        if stack.rabbitmq is not None:
            roots["rabbitmq"] = [mark.pid for mark in stack.rabbitmq.processes]
        yield Fleet(database_url, port, secret, roots)
    finally:
        for running in processes.values():
            running.terminate()
        for running in processes.values():
            await asyncio.to_thread(running.wait, 40)
        await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await owner.close()
        if stack.amqp_admin_url is not None:
            await _vhost(stack.amqp_admin_url, "DELETE", name)


async def _seed(database_url: str, amqp_url: str, folder: Path) -> tuple[str, int]:
    await migrate.upgrade(database_url)
    await apply(amqp_url, declared(adapters()))
    key_file = folder / "key"
    if not key_file.exists():
        KeyFile.create(key_file)
    keys = KeyFile.read(key_file)
    secret = secrets.token_urlsafe(24)
    database = await asyncpg.connect(database_url)
    data_key = keys.new_data_key()
    await connections.add_company(database, "bench", "Bench", data_key)
    config = {"currency": "EUR", "webhook_auth": "hmac"}
    await connections.add_connection(database, CONNECTION, "bench", "beds24", "Bench", None, config)
    of = Connection(CONNECTION, "bench", "beds24", "Bench")
    await connections.put_secret(
        database, of, "webhook_secret", keys.cipher("bench", data_key).seal_bytes(secret.encode())
    )
    await database.close()
    return secret, 20_000 + secrets.randbelow(11_000)


def _start(process: str, database_url: str, amqp_url: str, folder: Path, port: int) -> subprocess.Popen[bytes]:
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("STAYBUS_")},
        "STAYBUS_DATABASE_URL": database_url,
        "STAYBUS_AMQP_URL": amqp_url,
        "STAYBUS_KEY_FILE": str(folder / "key"),
        "STAYBUS_INGRESS_PORT": str(port),
        "STAYBUS_INBOUND_PORT": str(port + 1),
        "STAYBUS_OUTBOUND_PORT": str(port + 2),
        "STAYBUS_SCHEDULER_PORT": str(port + 3),
    }
    with (folder / f"{process}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", _MAIN, process], env=env, stdout=log, stderr=log)


async def _ready(port: int) -> None:
    async with httpx.AsyncClient() as http, asyncio.timeout(60):
        for number in range(len(PROCESSES)):
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{port + number}/readyz")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)


async def _vhost(admin_url: str, method: str, name: str) -> None:
    async with httpx.AsyncClient() as http:
        (await http.request(method, f"{admin_url}/vhosts/{name}", timeout=30)).raise_for_status()


async def _wait_done(database: asyncpg.Connection[Any], wanted: int, idle: float = 30.0) -> int:
    """Events settled in all, when `wanted` are or nothing moves for `idle` seconds."""
    seen, moved = -1, time.monotonic()
    while True:
        done = int(await database.fetchval("SELECT count(*) FROM channel_events WHERE processed_at IS NOT NULL"))
        if done >= wanted:
            return done
        if done != seen:
            seen, moved = done, time.monotonic()
        elif time.monotonic() - moved > idle:
            return done
        await asyncio.sleep(0.3)


async def _finished(database: asyncpg.Connection[Any], after: Any) -> dict[str, float]:
    """booking and its modification → when it was settled"""
    rows = await database.fetch(
        "SELECT entity_external_id || (payload->'booking'->>'modifiedTime') AS fact,"
        " extract(epoch FROM processed_at)::float8 AS at FROM channel_events"
        " WHERE processed_at IS NOT NULL AND ($1::uuid IS NULL OR id > $1)",
        after,
    )
    return {row["fact"]: row["at"] for row in rows}


def _result(
    name: str,
    order: Order,
    answers: Answers,
    done: int,
    finished: dict[str, float],
    spent: Cost,
    held: dict[str, float],
) -> Result:
    from .payloads import booking  # noqa: PLC0415 - the generator's, not needed while load runs

    facts = (booking(order.first + n) for n in range(order.count))
    at = [finished.get(f"{fact['id']}{fact['modifiedTime']}") for fact in facts]
    latencies = [end - sent for end, sent in zip(at, answers.sent, strict=True) if end is not None]
    acks = [end - sent for end, sent in zip(answers.answered, answers.sent, strict=True) if end]
    begin = min(answers.sent)
    return Result(
        name=name,
        count=order.count,
        accepted=answers.statuses.get("202", 0),
        done=done,
        ingest_rate=order.count / (max(answers.answered) - begin),
        done_rate=len(latencies) / (max(end for end in at if end is not None) - begin),
        ack=(quantile(acks, 0.5), quantile(acks, 0.99)),
        latency=(quantile(latencies, 0.5), quantile(latencies, 0.99)),
        cpu={process: seconds / order.count * 1e6 for process, seconds in spent.cpu.items()},
        memory=held,
        foreign=spent.foreign,
    )


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
