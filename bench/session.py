"""What a benchmark has to itself: servers, a database and a vhost, child processes. All of it is gone at the end."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
from rich.console import Console

from ops.stack import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterator, Mapping, Sequence

    from ops.stack.local import Stack

T = TypeVar("T")

HERE = Path(sys.executable)

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def screen() -> Console:
    """Where progress and tables go. Wide in a file, where a cut column would be gone."""
    return Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)


@contextmanager
def servers(folder: Path, *, keep: bool, say: Callable[[str], None]) -> Iterator[Stack]:
    """The stack of the folder, removed at the end unless kept. raises StackError"""
    for number in _ENDINGS:
        signal.signal(number, signal.default_int_handler)
    try:
        yield local.start(folder, say)
    finally:
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave half of it
        if not keep:
            local.delete(folder, say)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it; the first Ctrl-C, SIGTERM or hang-up cancels it, and its clean-up is not disturbed by more of them.

    raises   KeyboardInterrupt when it was ended so
    """

    async def until_told() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        told = asyncio.Event()

        def end() -> None:
            if task is not None and not told.is_set():
                told.set()
                task.cancel()

        for number in _ENDINGS:
            loop.add_signal_handler(number, end)
        try:
            return await work
        except asyncio.CancelledError:
            if told.is_set():
                raise KeyboardInterrupt from None
            raise

    return asyncio.run(until_told())


@asynccontextmanager
async def fresh(stack: Stack, name: str) -> AsyncIterator[tuple[str, str]]:
    """URLs of a new database and a new vhost; of the given vhost where the broker is not ours to make one in."""
    name = f"bench_{name}_{secrets.token_hex(4)}"
    owner = await asyncpg.connect(stack.database_url)
    await owner.execute(f"CREATE DATABASE {name}")
    try:
        if stack.amqp_admin_url is not None:
            await _vhost(stack.amqp_admin_url, "PUT", name)
        try:
            await owner.execute("CHECKPOINT")  # what came before is not written while this is measured
            yield _inside(stack.database_url, name), _inside(stack.amqp_url, name if stack.amqp_admin_url else None)
        finally:
            if stack.amqp_admin_url is not None:
                await _vhost(stack.amqp_admin_url, "DELETE", name)
    finally:
        await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await owner.close()


class EndedError(Exception):
    """A child process ended, or was not ready in time; the text names its log."""


class Children:
    """Child processes, each the leader of a session of its own: Ctrl-C reaches them only through us."""

    def __init__(self, logs: Path, given: Mapping[str, str], python: Path) -> None:
        """given: their environment, besides ours without what names staybus"""
        self.logs = logs
        self._python = python
        self._given = given
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str], **more: str) -> int:
        """Runs the command with the Python, its output in a log of that name; more: its environment. Answers the pid."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STAYBUS_")}
        with (self.logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                [self._python, *command],
                env={**kept, **self._given, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = child
        return child.pid

    def check(self) -> None:
        """raises EndedError when one of them has ended"""
        for name, child in self._running.items():
            if child.poll() is not None:
                raise EndedError(f"{name} ended by itself, see {self.logs / name}.log")

    async def ready(self, port: int, path: str, statuses: Container[int], patience: float = 60.0) -> None:
        """Waits until the port answers with one of these statuses. raises EndedError"""
        deadline = time.monotonic() + patience
        async with httpx.AsyncClient() as http:
            while time.monotonic() < deadline:
                self.check()
                with suppress(httpx.TransportError):
                    if (await http.get(f"http://127.0.0.1:{port}{path}")).status_code in statuses:
                        return
                await asyncio.sleep(0.05)
        raise EndedError(f"nothing is ready on port {port} after {patience:.0f} s, see {self.logs}")

    async def stop(self) -> None:
        """Asks all to end, then makes what is left of their sessions end."""
        for child in self._running.values():
            child.terminate()
        for child in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, 40)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await asyncio.to_thread(child.wait)
        self._running.clear()


@asynccontextmanager
async def children(logs: Path, python: Path = HERE, **given: str) -> AsyncIterator[Children]:
    """Stopped at the end, whatever happens. python: whose environment they run in; ours when it is not given"""
    logs.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing else runs yet
    running = Children(logs, given, python)
    try:
        yield running
    finally:
        await running.stop()


def server_roots(stack: Stack) -> dict[str, list[int]]:
    """kind → pids of the servers that are ours: a given server's cost is not known"""
    owned = {"postgres": stack.postgres, "rabbitmq": stack.rabbitmq}
    return {kind: [mark.pid for mark in server.processes] for kind, server in owned.items() if server is not None}


def _inside(url: str, name: str | None) -> str:
    return url if name is None else urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def _vhost(admin_url: str, method: str, name: str) -> None:
    async with httpx.AsyncClient() as http:
        (await http.request(method, f"{admin_url}/vhosts/{name}", timeout=30)).raise_for_status()
