"""RabbitMQ and Erlang from the distribution's packages, unpacked into a folder: nothing on the machine is changed.

apt computes what is missing, downloads it and checks it against the distribution's signatures; `dpkg -x` unpacks. Works for
root and for ordinary users (with apt lists of their own where the machine's are missing or stale).
"""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ops.stack.errors import StackError
from ops.stack.processes import Report, locked
from ops.stack.rabbitmq import RabbitProgram, version_of

_STATUS = Path("/var/lib/dpkg/status")
_APT_SECONDS = 600
_WANTED = ("rabbitmq-server",)
_WHAT_TO_RUN = """\
RabbitMQ is not here and could not be fetched. One of these helps:
  - sudo apt-get update && sudo apt-get install rabbitmq-server     (or your distribution's package of that name)
  - start a Docker engine
  - set STAYBUS_AMQP_URL=amqp://user:password@host:5672/ to a RabbitMQ that runs"""


def unpacked_program(runtime: Path, report: Report) -> RabbitProgram:
    """RabbitMQ unpacked under `runtime`; downloaded at the first call (about 35 MB, 60 MB unpacked)."""
    root = runtime / "rabbitmq"
    with locked(runtime / "lock", report):
        if not _servers(root):
            _unpack(root, report)
    server = _servers(root)[-1]
    libraries = [str(folder) for pattern in ("usr/lib/*-linux-*", "lib/*-linux-*") for folder in root.glob(pattern)]
    path = os.pathsep.join(
        [str(root / "usr/lib/erlang/bin"), str(root / "usr/bin"), os.environ.get("PATH", os.defpath)]
    )
    return RabbitProgram(server, path, os.pathsep.join(libraries), version_of(server))


def _servers(root: Path) -> list[Path]:
    return sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))


def _unpack(root: Path, report: Report) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise StackError(f"{_WHAT_TO_RUN}\n({tool} is not on this machine)")
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", dir=root.parent) as work:
        draft = Path(work) / "root"
        for package in _downloaded(Path(work), report):
            run(["dpkg", "-x", str(package), str(draft)])
        if not _servers(draft):
            raise StackError(f"{_WHAT_TO_RUN}\n(the package rabbitmq-server holds no rabbitmq_server-*/sbin)")
        _make_movable(draft / "usr/lib/erlang")
        draft.chmod(0o755)
        report(f"unpacked RabbitMQ {version_of(_servers(draft)[-1])}")
        draft.rename(root)


def _downloaded(work: Path, report: Report) -> list[Path]:
    """Download all that is needed; when the lists do not allow it, update them once and try again."""
    machine, private = Apt.of_machine(work), Apt.with_private_lists(work)
    report("downloading RabbitMQ from the distribution (about 35 MB)")
    try:
        return machine.download(_WANTED)
    except StackError:
        refreshed = machine if os.geteuid() == 0 else private
    report("updating the package lists")
    try:
        refreshed.update()
    except StackError as error:  # one dead source among several must not stop us
        report(f"apt-get update complained: {str(error).splitlines()[-1]}")
    try:
        return refreshed.download(_WANTED)
    except StackError as error:
        raise StackError(f"{_WHAT_TO_RUN}\n({error})") from error


@dataclass(frozen=True, slots=True)
class Apt:
    """apt-get with its options, downloading into `folder`. Its methods raise StackError with apt's words."""

    options: tuple[str, ...]
    folder: Path

    @classmethod
    def of_machine(cls, work: Path) -> "Apt":
        """The machine's lists; root's sandbox account could not write into our folder."""
        return cls(
            ("-qq", "-o", "APT::Sandbox::User=root", "-o", f"Dir::State::status={_status_without_erlang(work)}"), work
        )

    @classmethod
    def with_private_lists(cls, work: Path) -> "Apt":
        """Lists and cache of our own under `work`, for a user who may not write the machine's."""
        for folder in ("apt/lists/partial", "apt/cache/archives/partial"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        machine = cls.of_machine(work)
        own = (
            "-o",
            f"Dir::State={work}/apt",
            "-o",
            f"Dir::State::Lists={work}/apt/lists",
            "-o",
            f"Dir::Cache={work}/apt/cache",
        )
        hooks = ("-o", "APT::Update::Post-Invoke::=", "-o", "APT::Update::Post-Invoke-Success::=")
        return cls((*own, *machine.options, *hooks), work)

    @classmethod
    def of_release(cls, work: Path, source: str) -> "Apt":
        """Nothing installed, and one line of a sources.list: neither lists, pins nor packages of this machine count."""
        for folder in ("etc", "apt/lists/partial", "apt/cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        (work / "etc/sources.list").write_text(f"{source}\n")
        (work / "status").touch()
        places = {
            "Dir::Etc": f"{work}/etc",
            "Dir::State": f"{work}/apt",
            "Dir::State::status": f"{work}/status",
            "Dir::Cache": f"{work}/apt/cache",
            "APT::Sandbox::User": "root",
            "APT::Default-Release": "",
            "APT::Update::Post-Invoke::": "",
            "APT::Update::Post-Invoke-Success::": "",
            "Acquire::Languages": "none",
        }
        return cls(("-qq", *(word for name, value in places.items() for word in ("-o", f"{name}={value}"))), work)

    def update(self) -> None:
        run(["apt-get", *self.options, "update"])

    def download(self, wanted: tuple[str, ...]) -> list[Path]:
        """The wanted packages and all that they need and is not installed."""
        names = self._missing(wanted)
        run(["apt-get", *self.options, "download", *names], cwd=self.folder)
        found = sorted(self.folder.glob("*.deb"))
        if len(found) < len(names):
            raise StackError(f"apt-get downloaded {len(found)} of {len(names)} packages")
        return found

    def _missing(self, wanted: tuple[str, ...]) -> list[str]:
        plan = run(["apt-get", *self.options, "-s", "install", "--no-install-recommends", *wanted])
        names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        if "rabbitmq-server" not in names:
            raise StackError("apt-get plans no rabbitmq-server")
        return names


def _status_without_erlang(work: Path) -> Path:
    """The machine's list of installed packages less Erlang and RabbitMQ, which must come from one place."""
    copy = work / "status"
    try:
        stanzas = _STATUS.read_text(errors="replace").split("\n\n")
    except OSError as error:
        raise StackError(f"{_WHAT_TO_RUN}\n({error})") from error
    kept = (stanza for stanza in stanzas if not re.match(r"\s*Package: (erlang-|rabbitmq-server\b)", stanza))
    copy.write_text("\n\n".join(kept))
    return copy


def _make_movable(erlang: Path) -> None:
    """Debian writes /usr/lib/erlang into its start scripts; let them find the folder they are in."""
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        if script.is_symlink() or not script.read_bytes().startswith(b"#!"):
            continue
        up = "/.." if script.parent.parent == erlang else "/../.."
        here = f'ROOTDIR="$(cd "$(dirname "$(readlink -f "$0")"){up}" && pwd)"'
        text = re.sub(r"ROOTDIR=/usr/lib/erlang\b", lambda _match, line=here: line, script.read_text())  # type: ignore[misc]
        script.write_text(text)


def run(command: list[str], cwd: Path | None = None) -> str:
    """What the command prints. raises StackError with what it says instead"""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            timeout=_APT_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StackError(f"{command[0]} failed: {error}") from error
    if done.returncode != 0:
        raise StackError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout
