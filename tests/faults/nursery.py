"""Starts the processes of the fleet by fork, from a process that has their libraries loaded and nothing of ours.

Five hundred deaths are five hundred starts, and three quarters of a start is reading libraries. The child is a process like
any other: its own pid, its own memory, all of our modules imported anew in it.

    {"name": "inbound", "environment": {…}, "log": "/tmp/x.log"}   a line to its standard input; the pid comes back
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Self

import orjson

OURS = (
    "adapters",
    "ingress",
    "migrations",
    "ops",
    "schemas",
    "simulators",
    "store",
    "telemetry",
    "tests",
    "topology",
    "workers",
)


class Child:
    """What `subprocess.Popen` offers, of a process that another one started. Its end is told by a file, which goes when it is read:
    a later process may have the same pid."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self._end = folder / f"exit-{pid}"
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            with contextlib.suppress(FileNotFoundError):
                self._code = int(self._end.read_text())
                self._end.unlink()
        return self._code

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """`with Nursery(folder) as nursery:` then nursery.start(…)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.faults.nursery", str(self._folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        process = self._running
        _pipe(process.stdin).close()
        process.wait(10)
        _pipe(process.stdout).close()

    def start(self, name: str, environment: dict[str, str], log: Path) -> Child:
        asked = {"name": name, "environment": environment, "log": str(log)}
        _pipe(self._running.stdin).write(orjson.dumps(asked) + b"\n")
        _pipe(self._running.stdin).flush()
        return Child(int(_pipe(self._running.stdout).readline()), self._folder)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


# ------------------------------------------------------------------------------------------------ the process itself


def serve(folder: Path) -> None:
    _preload()

    def bury(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                told = folder / f"exit-{pid}"
                told.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
                told.with_suffix(".new").rename(told)

    signal.signal(signal.SIGCHLD, bury)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the run, and the run ends its fleet
    for line in sys.stdin.buffer:
        asked = orjson.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(asked["name"], asked["environment"], asked["log"])
        print(pid, flush=True)


def _become(name: str, environment: dict[str, str], log: str) -> None:
    """The child from here on; never returns."""
    code = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["tests.faults.crashing", name]
        importlib.import_module("tests.faults.crashing").main()
        code = 0
    except BaseException:  # noqa: BLE001 - the last line of defence of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _preload() -> None:
    """Every library that a process of the fleet loads; which ones these are, a child finds out."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        importlib.import_module("tests.faults.crashing")
        with os.fdopen(writer, "w") as told:
            told.write("\n".join(sys.modules))
            told.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        names = told.read().split()
    os.waitpid(pid, 0)
    for name in names:
        if name.partition(".")[0] not in OURS and not name.startswith("_"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
