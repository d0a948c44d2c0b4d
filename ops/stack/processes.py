"""Server processes that outlive the command that started them, found again without mistaking a recycled pid.

A server is started by a shell that exits at once, so it belongs to init and never becomes a zombie of ours. It is known by
its pid and the moment the kernel started it (clock ticks since boot, and the boot), which no clock change alters.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil

from ops.stack.errors import StackError

Report = Callable[[str], None]

_POLL_SECONDS = 0.03
_LOG_LIMIT_BYTES = 10_000_000
_LAUNCH = '"$@" >&2 & echo $!'  # standard error is the log; standard output carries only the pid


@dataclass(frozen=True, slots=True)
class Account:
    """The Unix account a server runs under."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process, told apart from a later one with the same pid by `started`."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessMark | None":
        started = _started(pid)
        return None if started is None else cls(pid, started)

    @property
    def alive(self) -> bool:
        return _started(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if it is still that one."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Wait until the process has ended; false when it has not in that time."""
        return until(lambda: not self.alive, seconds)

    def end(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn, waiting its seconds, until the process has ended."""
        for number, seconds in steps:
            self.send(number)
            if self.wait_gone(seconds):
                return
        raise StackError(f"process {self.pid} does not end, not even by SIGKILL")

    def children(self) -> list["ProcessMark"]:
        """Its descendants at this moment."""
        try:
            found = psutil.Process(self.pid).children(recursive=True) if self.alive else []
        except psutil.Error:
            return []
        return [mark for mark in (ProcessMark.of(child.pid) for child in found) if mark]


def spawn(
    command: Sequence[str | Path], *, environment: Mapping[str, str], log: Path, account: Account | None = None
) -> ProcessMark:
    """Start a server in a session of its own, its output appended to `log`; `account` when it must not run as us."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".old.log"))
    with log.open("ab") as output:
        launched = subprocess.run(
            ["/bin/sh", "-c", _LAUNCH, "sh", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            cwd="/",
            start_new_session=True,
            umask=0o077,
            check=True,
            **identity(account),
        )
    mark = ProcessMark.of(int(launched.stdout))
    if mark is None:
        raise StackError(f"{Path(command[0]).name} ended at once\n{tail(log)}")
    return mark


class Identity(TypedDict, total=False):
    """Arguments of `subprocess.run`."""

    user: int
    group: int
    extra_groups: list[int]


def identity(account: Account | None) -> Identity:
    """The arguments that make the child run as `account`; none when it runs as us."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; false when it does not within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def tail(log: Path, lines: int = 25, start: int = 0) -> str:
    """The last lines of a log from byte `start`, for an error text."""
    try:
        with log.open("rb") as source:
            source.seek(start)
            text = source.read().decode(errors="replace")
    except OSError:
        return f"(no log at {log})"
    return "\n".join([f"--- {log}", *text.splitlines()[-lines:]])


@contextlib.contextmanager
def locked(file: Path, report: Report, timeout: float = 300) -> Iterator[None]:
    """Hold an exclusive lock on `file`; others in the same folder wait for it, at most `timeout` seconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        if not _try_lock(handle.fileno()):
            report(f"waiting for another command that works in {file.parent} …")
            if not until(lambda: _try_lock(handle.fileno()), timeout):
                raise StackError(f"another command has held {file} for {timeout:.0f} s; end it and try again")
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _started(pid: int) -> str | None:
    """When the kernel started the process; None when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_without_proc(pid)
    return None if fields[0] in (b"Z", b"X") else f"{boot}:{fields[19].decode()}"


def _started_without_proc(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None
