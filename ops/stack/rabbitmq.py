"""A private RabbitMQ node: own ports, own name, own epmd, own data folder, everything on 127.0.0.1.

The program is the machine's `rabbitmq-server`, or the distribution's package unpacked by `ops.stack.packages`, or that of
another Debian release in a root of its own (`ops.stack.debian`), where the data folder of a node is at `ops.stack.root.HOME`.
"""

import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ops.stack import health, ports, state
from ops.stack.errors import StackError
from ops.stack.processes import ProcessMark, Report, spawn, tail, until
from ops.stack.root import HOME, inside

_PORTS = ("amqp", "management", "distribution", "epmd")
_START_SECONDS = 90
_CTL_SECONDS = 60
_STOP_STEPS = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0))  # RabbitMQ stops in order on SIGTERM


@dataclass(frozen=True, slots=True)
class RabbitProgram:
    """Where RabbitMQ and Erlang are: on this machine, or as seen in `root`."""

    server: Path
    path: str
    libraries: str = ""
    version: str = ""
    root: Path | None = None

    def home(self, folder: Path) -> Path:
        """Where the program finds that folder of ours."""
        return HOME if self.root else folder

    def command(self, words: Sequence[str | Path], folder: Path) -> Sequence[str | Path]:
        """How to run `words` where the program is, with that folder at hand."""
        return inside(self.root, folder, words) if self.root else words


class RabbitNode:
    """The node of one folder. Every method may be repeated; `restart`, `stop` and `kill` keep ports and data."""

    def __init__(
        self,
        folder: Path,
        program: Callable[[Path | None], RabbitProgram],
        report: Report = lambda _line: None,
        root: Path | None = None,
    ) -> None:
        """`program` finds the one in a root, or this machine's for None; `root` is the wanted one, if any is."""
        self.folder = folder
        self.log = folder / "rabbitmq.log"
        self._file = folder / "server.json"
        self._program = program
        self._report = report
        self._wanted_root = root

    @property
    def known(self) -> bool:
        """Whether this folder has a node."""
        return self._file.exists()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def admin_url(self) -> str:
        """The base of the management API, credentials included."""
        return f"http://guest:guest@127.0.0.1:{state.read(self._file).ports['management']}/api"

    @property
    def port(self) -> int:
        return state.read(self._file).ports["amqp"]

    @property
    def processes(self) -> list[ProcessMark]:
        """The beam and the epmd, those that live."""
        return [mark for mark in state.read(self._file).processes.values() if mark.alive]

    def healthy(self) -> bool:
        """Whether both recorded processes live, and the node accepts AMQP and answers its management API."""
        return len(self.processes) == 2 and self._answers()

    def start(self) -> None:
        """Start it unless it answers already; durable queues of a crashed node come back."""
        root = self._root()
        until(lambda: len(self.processes) < 2 or self._answers(), 10)
        if self.healthy():
            return
        if self.processes:
            self._report("RabbitMQ does not answer: restarting it")
            self.stop()
        program = self._program(root)
        self.folder.mkdir(parents=True, exist_ok=True)
        held = state.read(self._file)
        chosen = ports.keep_or_replace(held.ports, _PORTS)
        facts = {"root": str(root or "")}
        state.write(self._file, replace(held, ports=chosen, processes={}, facts=facts))
        self._report(f"starting RabbitMQ {program.version} on 127.0.0.1:{chosen['amqp']}".replace("  ", " "))
        self._configure(program, chosen)
        self._run(program, chosen)

    def stop(self) -> None:
        """End it in order, data kept: first the node, then its epmd."""
        held = state.read(self._file)
        beam, epmd = held.processes.get("beam"), held.processes.get("epmd")
        if beam is not None and beam.alive:
            self._report("stopping RabbitMQ")
            children = beam.children()
            beam.end(*_STOP_STEPS)
            _end_helpers(children)
        if epmd is not None:
            epmd.end(*_STOP_STEPS)
        if held.processes:
            state.write(self._file, replace(held, processes={}))

    def kill(self) -> None:
        """SIGKILL the Erlang machine, as a crash would; `start` recovers."""
        beam = state.read(self._file).processes.get("beam")
        if beam is not None:
            children = beam.children()
            beam.end((signal.SIGKILL, 5.0))
            _end_helpers(children)
        self.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def delete(self) -> None:
        """End it at once and remove its data."""
        self.kill()
        if self._file.exists():
            shutil.rmtree(self.folder)

    def ctl(self, *words: str) -> str:
        """What `rabbitmqctl` says to these words, as in ctl("set_vm_memory_high_watermark", "0.4"). raises StackError"""
        program = self._program(self._root())
        command = program.command([program.server.with_name("rabbitmqctl"), *words], self.folder)
        environment = self._environment(program, state.read(self._file).ports)
        try:
            done = subprocess.run(
                list(command),
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=_CTL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StackError(f"rabbitmqctl {' '.join(words)}: no end within {_CTL_SECONDS} s") from error
        if done.returncode != 0:
            raise StackError(f"rabbitmqctl {' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _root(self) -> Path | None:
        """The root that this node began with, since another release could not read its data; a new one takes the wanted."""
        if not self.known:
            return self._wanted_root
        first = state.read(self._file).facts.get("root")
        began = Path(first) if first else None
        if self._wanted_root not in {None, began}:
            raise StackError(
                f"the RabbitMQ of {self.folder.parent} began as {began or 'that of this machine'}, and {self._wanted_root}"
                " cannot read its data. Use another folder, or remove its data:"
                f" python -m ops.stack down --delete --folder {self.folder.parent}"
            )
        return began

    def _answers(self) -> bool:
        held = state.read(self._file)
        return (
            all(ports.is_open(held.ports[name]) for name in ("amqp", "management"))
            and health.amqp_problem(self.url) is None
            and health.management_answers(self.admin_url)
        )

    def _configure(self, program: RabbitProgram, chosen: dict[str, int]) -> None:
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.folder / "environment.conf").write_text("# keeps the machine's own rabbitmq-env.conf from being read\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"""\
listeners.tcp.1 = 127.0.0.1:{chosen["amqp"]}
management.tcp.ip = 127.0.0.1
management.tcp.port = {chosen["management"]}
management_agent.disable_metrics_collector = true
vm_memory_high_watermark.relative = 0.3
disk_free_limit.absolute = 200MB
raft.wal_max_size_bytes = 67108864
log.file = {program.home(self.folder)}/node.log
log.file.level = info
log.console = false
"""
        )

    def _environment(self, program: RabbitProgram, chosen: dict[str, int]) -> dict[str, str]:
        name = hashlib.sha256(str(self.folder).encode()).hexdigest()[:10]
        home = program.home(self.folder)
        return {
            "PATH": program.path,
            "LD_LIBRARY_PATH": program.libraries,
            "LANG": "C.UTF-8",
            "HOME": str(home),  # the Erlang cookie
            "ERL_EPMD_PORT": str(chosen["epmd"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RUNNING_UNDER_SYSTEMD": "true",  # the start script then becomes the Erlang machine: one pid, ours
            "RABBITMQ_NODENAME": f"staybus-{name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(chosen["amqp"]),
            "RABBITMQ_DIST_PORT": str(chosen["distribution"]),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "environment.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _run(self, program: RabbitProgram, chosen: dict[str, int]) -> None:
        try:
            self._run_both(program, chosen)
        except BaseException:
            self.kill()
            raise

    def _run_both(self, program: RabbitProgram, chosen: dict[str, int]) -> None:
        environment = self._environment(program, chosen)
        before = self.log.stat().st_size if self.log.exists() else 0
        epmd = self._spawn("epmd", program.command([_epmd(program), "-address", "127.0.0.1"], self.folder), environment)
        if not until(lambda: not epmd.alive or ports.is_open(chosen["epmd"]), 10) or not epmd.alive:
            raise StackError(f"Erlang's epmd did not start\n{tail(self.log, start=before)}")
        beam = self._spawn("beam", program.command([program.server], self.folder), environment)
        if not until(lambda: not beam.alive or self._answers(), _START_SECONDS) or not beam.alive:
            what = f"did not answer within {_START_SECONDS} s" if beam.alive else "ended while starting"
            logs = f"{tail(self.log, start=before)}\n{tail(self.folder / 'node.log')}"
            raise StackError(f"RabbitMQ {what}\n{logs}")

    def _spawn(self, name: str, command: Sequence[str | Path], environment: dict[str, str]) -> ProcessMark:
        mark = spawn(command, environment=environment, log=self.log)
        held = state.read(self._file)
        state.write(self._file, replace(held, processes={**held.processes, name: mark}))
        return mark


def installed_program() -> RabbitProgram | None:
    """RabbitMQ as the machine has it; None when it has none."""
    path = os.environ.get("PATH", os.defpath)
    search = os.pathsep.join([path, "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
    if shutil.which("erl", path=search) is None:
        return None
    # Debian's and Red Hat's /usr/sbin/rabbitmq-server insists on the account rabbitmq; the script behind it does not.
    behind = sorted(Path("/usr/lib/rabbitmq").glob("lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    found = str(behind[-1]) if behind else shutil.which("rabbitmq-server", path=search)
    return None if found is None else RabbitProgram(Path(found), search, version=version_of(Path(found)))


def version_of(server: Path) -> str:
    """3.10.8 from …/rabbitmq_server-3.10.8/sbin/rabbitmq-server; empty when the folder does not tell."""
    home = next((parent.name for parent in server.resolve().parents if parent.name.startswith("rabbitmq_server-")), "")
    return home.removeprefix("rabbitmq_server-")


def _epmd(program: RabbitProgram) -> str:
    """epmd stands beside erl; some packages link only erl into the search path, but Debian's both."""
    if program.root:
        return "epmd"
    found = shutil.which("epmd", path=program.path)
    if found:
        return found
    erl = shutil.which("erl", path=program.path)
    beside = sorted(Path(erl).resolve().parent.parent.glob("erts-*/bin/epmd")) if erl else []
    if not beside:
        raise StackError("Erlang's epmd is not found beside erl; install the distribution's package erlang-base")
    return str(beside[-1])


def _end_helpers(children: list[ProcessMark]) -> None:
    """The Erlang machine's helpers end by themselves once it is gone; make sure."""
    if not until(lambda: not any(child.alive for child in children), 3):
        for child in children:
            child.end((signal.SIGKILL, 5.0))
