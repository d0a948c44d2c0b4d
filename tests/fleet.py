"""The fleet around a vendor's simulator: its processes' own code, in this process or (for fault tests) in theirs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson

from adapters.registry import adapters
from ops import fleet
from ops.parts import declared
from ops.settings import Settings
from ops.stack.ports import is_free
from schemas.connection import Connection
from simulators.beds24.app import Beds24, create_app
from simulators.server import SimServer
from store import connections
from store.seal import KeyFile
from topology.apply import apply

COMPANY = "acme"
CONNECTION = "beds24-acme"
SECRET = "webhook-secret-of-the-tests"
PROPERTY, ROOM = "345754", "713992"  # the simulator's seed
PROCESSES = ("ingress", "inbound", "outbound", "scheduler")

_MAIN = "import sys; from ops.fleet import run; from ops.settings import load; run(sys.argv[1], load())"


@dataclass
class World:
    database_url: str
    amqp_url: str
    folder: Path
    db: asyncpg.Connection[asyncpg.Record]
    http: httpx.AsyncClient
    sim: Beds24
    sim_url: str
    keys: KeyFile
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    tasks: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    apart: bool = False  # each in a process of its own, so that it can be killed
    # Of those apart: who starts them (name, environment, log → a handle like Popen's), and their variables beside ours.
    spawner: Callable[[str, dict[str, str], Path], Any] | None = None
    program: str = _MAIN  # of those apart that we start ourselves
    environment: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    async def build(cls, database_url: str, amqp_url: str, folder: Path, resources: AsyncExitStack) -> World:
        key_file = folder / "key"
        KeyFile.create(key_file)
        keys = KeyFile.read(key_file)
        db = await asyncpg.connect(database_url)
        http = await resources.enter_async_context(httpx.AsyncClient(timeout=20, verify=False))  # noqa: S501 - our own servers
        sim = Beds24()
        server = await resources.enter_async_context(SimServer(create_app(sim)))
        await apply(amqp_url, declared(adapters()))
        world = cls(
            database_url, amqp_url, folder, db, http, sim, server.url, keys, {name: free_port() for name in PROCESSES}
        )
        resources.push_async_callback(world.close)
        await world._seed()
        return world

    async def _seed(self) -> None:
        data_key = self.keys.new_data_key()
        await connections.add_company(self.db, COMPANY, "Acme Stays", data_key)
        config = {"base_url": f"{self.sim_url}/api/v2", "currency": "EUR", "webhook_auth": "hmac"}
        await connections.add_connection(self.db, CONNECTION, COMPANY, "beds24", "Harbour Lofts", None, config)
        invite = self.sim.account.access.invite()
        await self.put_secret("webhook_secret", SECRET)
        await self.put_secret("invite_code", invite)

    @property
    def connection(self) -> Connection:
        return Connection(CONNECTION, COMPANY, "beds24", "Harbour Lofts")

    async def cipher(self) -> Any:
        wrapped = await self.db.fetchval("SELECT data_key FROM companies WHERE id = $1", COMPANY)
        return self.keys.cipher(COMPANY, wrapped)

    async def put_secret(self, name: str, value: str) -> None:
        cipher = await self.cipher()
        await connections.put_secret(self.db, self.connection, name, cipher.seal_bytes(value.encode()))

    async def map(self, entity_type: str, external_id: str, internal_id: str) -> None:
        await connections.add_mapping(self.db, self.connection, entity_type, external_id, internal_id)

    # ------------------------------------------------------------------ processes

    async def start(self, *names: str, ready: bool = True) -> None:
        for name in names or PROCESSES:
            if self.apart:
                self._spawn(name)
            else:
                stop = asyncio.Event()
                self.tasks[name] = asyncio.create_task(fleet.PROCESSES[name](self.settings(), stop), name=name), stop
        if ready:
            for name in names or PROCESSES:
                await self.wait_ready(name)

    def settings(self) -> Settings:
        return Settings(
            database_url=self.database_url,
            amqp_url=self.amqp_url,
            key_file=self.folder / "key",
            **{f"{name}_port": port for name, port in self.ports.items()},
            **self.extra,
        )

    def _spawn(self, name: str) -> None:
        settings = self.settings().model_dump(mode="json", exclude_none=True)
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("STAYBUS_")},
            **{f"STAYBUS_{key.upper()}": str(value) for key, value in settings.items()},
            **self.environment.get(name, {}),
        }
        path = self.folder / f"{name}.log"
        if self.spawner is not None:
            self.processes[name] = self.spawner(name, env, path)
            return
        with path.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-c", self.program, name], env=env, stdout=log, stderr=log
            )

    async def wait_ready(self, name: str, timeout: float = 30) -> None:
        async with asyncio.timeout(timeout):
            while True:
                await self._look_after(name)
                try:
                    if (await self.http.get(self.url(name, "/readyz"))).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)

    async def _look_after(self, name: str) -> None:
        """raises what a process of ours ended with: what it would have done is then not waited for"""
        if name in self.processes and self.processes[name].poll() is not None:
            raise AssertionError(f"{name} ended: {self.log(name)[-3000:]}")
        if name in self.tasks and self.tasks[name][0].done():
            await self.tasks[name][0]

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name: str, timeout: float = 40) -> int:
        process = self.processes.pop(name)
        process.terminate()
        return process.wait(timeout)

    async def stop_all(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            await asyncio.to_thread(process.wait, 40)
        self.processes.clear()
        for _, stop in self.tasks.values():
            stop.set()
        for task, _ in self.tasks.values():
            await task
        self.tasks.clear()

    async def close(self) -> None:
        await self.stop_all()
        await self.db.close()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    # ------------------------------------------------------------------ what a vendor does, and what came of it

    async def webhook(self, body: Any, **headers: str) -> httpx.Response:
        """A signed Beds24 webhook; body as JSON value, or bytes as they are."""
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        signature = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        return await self.http.post(
            self.url("ingress", f"/webhooks/beds24/{CONNECTION}"),
            content=raw,
            headers={"content-type": "application/json", "x-beds24-signature": f"sha256={signature}", **headers},
        )

    async def deliver(self, body: Any, timeout: float = 60) -> int:
        """As the vendor does: again until it is answered with success. returns 200 or 202"""
        async with asyncio.timeout(timeout):
            while True:
                try:
                    answer = await self.webhook(body)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if answer.status_code in {200, 202}:
                    return answer.status_code
                assert answer.status_code in {429, 503}, answer.text
                await asyncio.sleep(0.05)

    async def reconnect(self) -> None:
        """The test's own connection, after the database was killed."""
        self.db.terminate()
        async with asyncio.timeout(30):
            while True:
                try:
                    self.db = await asyncpg.connect(self.database_url)
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)
                else:
                    return

    async def until(self, sql: str, *args: Any, equals: Any = True, timeout: float = 30) -> None:
        """Waits until the query's value is `equals`; nothing announces a row."""
        value: Any = None
        try:
            async with asyncio.timeout(timeout):
                while (value := await self.db.fetchval(sql, *args)) != equals:
                    for name in (*self.processes, *self.tasks):
                        await self._look_after(name)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            rows = await self.db.fetch(
                "SELECT event_type, direction, status, attempts, last_error, count(*) FROM channel_events GROUP BY 1, 2, 3, 4, 5"
            )
            raise AssertionError(f"{sql} is {value!r}, not {equals!r}; events: {[tuple(r) for r in rows]}") from None

    async def two_seconds_pass(self) -> None:
        """The time after which the relay wakes what nobody announced: a requeue or a replay of what came just now."""
        await self.db.execute("UPDATE channel_events SET received_at = received_at - interval '2 seconds'")

    async def all_settled(self, timeout: float = 60) -> None:
        await self.until(
            "SELECT count(*) FROM channel_events WHERE status IN ('received', 'processing', 'retrying')",
            equals=0,
            timeout=timeout,
        )


def _ports() -> Iterator[int]:
    """Below those of our stacks (ops.stack.ports) and of outgoing connections. Each process of a test run has a part of its
    own, and goes round in it: what it found free is not taken before its server listens, neither by it nor by another."""
    own = 5_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = 10_000 + own * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    start = int.from_bytes(os.urandom(2), "big")  # beside another run, too
    while True:
        yield first + start % own
        start += 1


_PORTS = _ports()


def free_port() -> int:
    return next(filter(is_free, _PORTS))
