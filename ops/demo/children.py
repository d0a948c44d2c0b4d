"""The processes that the demo and `up` start, and that end with them: by SIGTERM, after the grace by SIGKILL."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx

import ops
from ops.stack import ports
from ops.stack.processes import ProcessMark, tail

from .interrupts import undisturbed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

FLEET = ("ingress", "inbound", "outbound", "scheduler")
WORK = 5  # seconds that a process of the fleet gets to finish what it has in hand
GRACE = 12.0  # seconds until SIGKILL; longer than WORK, since connections are closed after it
LOCAL = "127.0.0.1"


class ChildEndedError(Exception):
    """A process ended that should run on; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int
    ready: str  # path that answers 200 once it can be used

    @property
    def url(self) -> str:
        return f"http://{LOCAL}:{self.port}"


class Children:
    """`with Children(logs) as children:` and none of them outlives the block, however it ends.

    logs   folder; one file for each, appended to
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._all: dict[str, Child] = {}

    def __getitem__(self, name: str) -> Child:
        return self._all[name]

    def start(
        self, name: str, module: str, words: Sequence[str], env: Mapping[str, str], port: int, ready: str
    ) -> None:
        """Main thread only: the kernel counts the end of the starting thread as the parent's."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "ops.demo.child", str(os.getpid()), module, *words],
                env={**_surroundings(), **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C in the terminal is for us alone: a second signal would cut their end short
            )
            self._all[name] = Child(name, process, log, port, ready)

    def start_fleet(self, *, database_url: str, amqp_url: str, key_file: Path, chosen: Mapping[str, int]) -> None:
        env = {
            "STAYBUS_DATABASE_URL": database_url,
            "STAYBUS_AMQP_URL": amqp_url,
            "STAYBUS_KEY_FILE": str(key_file.resolve()),
            "STAYBUS_GRACE": str(WORK),
            **{f"STAYBUS_{name.upper()}_PORT": str(chosen[name]) for name in FLEET},
        }
        for name in FLEET:
            self.start(name, "ops.demo.child", [name], env, chosen[name], "/readyz")

    async def ready(self, timeout: float = 60) -> None:
        """raises ChildEndedError, TimeoutError with the name of who does not answer"""
        async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
            for child in self._all.values():
                deadline = time.monotonic() + timeout
                while not await _answers(http, child):
                    self.check()
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{child.name} was not ready within {timeout:g} s; its log: {child.log}")
                    await asyncio.sleep(0.05)

    def check(self) -> None:
        """raises ChildEndedError"""
        for child in self._all.values():
            if child.process.poll() is not None:
                raise ChildEndedError(
                    f"{child.name} ended by itself (code {child.process.returncode})\n{tail(child.log, 8)}"
                )

    def marks(self) -> dict[str, ProcessMark]:
        """Those that live."""
        found = {name: ProcessMark.of(child.process.pid) for name, child in self._all.items()}
        return {name: mark for name, mark in found.items() if mark}

    def logs(self) -> str:
        """All that they have written."""
        return "".join(child.log.read_text(errors="replace") for child in self._all.values())

    def stop(self) -> None:
        with undisturbed():
            for child in self._all.values():
                child.process.terminate()
            deadline = time.monotonic() + GRACE
            for child in self._all.values():
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()
            self._all.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_or(preferred: Mapping[str, int]) -> dict[str, int]:
    """For each name its preferred port if that is free, else any free one; 0 prefers none."""
    chosen: dict[str, int] = {}
    for name, port in preferred.items():
        taken = set(chosen.values())
        chosen[name] = port if port and port not in taken and ports.is_free(port) else ports.free_port(taken)
    return chosen


def _surroundings() -> dict[str, str]:
    """Our environment without settings that are meant for another staybus, and without a proxy for this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STAYBUS_")}
    direct = ",".join(filter(None, (kept.get("NO_PROXY") or kept.get("no_proxy"), LOCAL, "localhost")))
    # -P keeps a folder `ops` of the current directory from being taken for ours; so ours is named.
    ours = os.pathsep.join(filter(None, (str(Path(ops.__file__).parents[1]), kept.get("PYTHONPATH"))))
    return {**kept, "NO_PROXY": direct, "no_proxy": direct, "PYTHONPATH": ours, "PYTHONUNBUFFERED": "1"}


async def _answers(http: httpx.AsyncClient, child: Child) -> bool:
    try:
        return (await http.get(child.url + child.ready)).status_code == 200
    except httpx.TransportError:
        return False
