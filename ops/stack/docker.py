"""RabbitMQ in a container, where a Docker engine answers. The engine is spoken to through its own command line."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from ops.stack import health, places, ports, state
from ops.stack.errors import StackError
from ops.stack.processes import ProcessMark, Report, until

IMAGE = "rabbitmq:4-management"
_START_SECONDS = 120


def engine_answers() -> bool:
    """Whether a Docker engine on this machine answers (a remote one would not listen on our loopback)."""
    if shutil.which("docker") is None or os.environ.get("DOCKER_HOST", "unix:").startswith(("tcp:", "ssh:")):
        return False
    try:
        return _docker("version", "--format", "{{.Server.Version}}", timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class RabbitContainer:
    """The container of one folder, with the same verbs as `RabbitNode`; its data lives in the container."""

    processes: tuple[ProcessMark, ...] = ()  # they belong to the engine

    def __init__(self, folder: Path, report: Report = lambda _line: None) -> None:
        self.folder = folder
        self.name = f"staybus-{places.key(folder)}"
        self._file = folder / "container.json"
        self._report = report

    @property
    def known(self) -> bool:
        """Whether this folder has a container."""
        return self._file.exists()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def admin_url(self) -> str:
        return f"http://guest:guest@127.0.0.1:{state.read(self._file).ports['management']}/api"

    @property
    def port(self) -> int:
        return state.read(self._file).ports["amqp"]

    def healthy(self) -> bool:
        return self.known and health.amqp_problem(self.url) is None and health.management_answers(self.admin_url)

    def start(self) -> None:
        """Create the container, or start the one this folder has."""
        if self.healthy():
            return
        if not self.known or _docker("start", self.name).returncode != 0:
            self._create()
        if not until(self.healthy, _START_SECONDS):
            shown = _docker("logs", "--tail", "25", self.name)
            raise StackError(
                f"RabbitMQ in Docker did not answer within {_START_SECONDS} s\n{shown.stdout}{shown.stderr}"
            )

    def stop(self) -> None:
        if self.known:
            self._report("stopping the RabbitMQ container")
            _docker("stop", self.name)

    def kill(self) -> None:
        """SIGKILL what runs in the container."""
        if self.known:
            _docker("kill", self.name)

    def restart(self) -> None:
        self.stop()
        self.start()

    def delete(self) -> None:
        if self.known:
            _docker("rm", "--force", "--volumes", self.name)
            shutil.rmtree(self.folder)

    def _create(self) -> None:
        held = state.read(self._file)
        chosen = ports.keep_or_replace(held.ports, ("amqp", "management"))
        self._report(f"starting RabbitMQ in Docker ({IMAGE}) on 127.0.0.1:{chosen['amqp']}")
        _docker("rm", "--force", "--volumes", self.name)
        publish = ("-p", f"127.0.0.1:{chosen['amqp']}:5672", "-p", f"127.0.0.1:{chosen['management']}:15672")
        made = _docker("run", "--detach", "--name", self.name, "--hostname", "staybus", *publish, IMAGE)
        if made.returncode != 0:
            raise StackError(f"Docker could not run {IMAGE}: {made.stderr.strip()}")
        state.write(self._file, replace(held, ports=chosen))


def _docker(*words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    command = ["docker", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
