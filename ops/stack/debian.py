"""RabbitMQ of another Debian release than the machine's, in a root file system of its own.

The release's packages are unpacked and none of their scripts run: no service is set up, no account is made, and no root is
needed for it. apt checks them against Debian's signatures.
"""

import os
import shutil
import tempfile
from pathlib import Path

from ops.stack.errors import StackError
from ops.stack.packages import Apt, run
from ops.stack.processes import Report, locked
from ops.stack.rabbitmq import RabbitProgram, version_of
from ops.stack.root import HOME, SEARCH, require_entry

RELEASES = {"trixie": "rabbitmq4", "sid": "rabbitmq4-sid"}
"""Releases with a RabbitMQ 4 (trixie 4.0, sid the newest that Debian has), and the folder of each one's root."""

_WANTED = ("rabbitmq-server", "?essential")  # the second is what every package takes for granted: libc, a shell, sed
_MIRROR = "http://deb.debian.org/debian"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "unshare": "util-linux", "chroot": "coreutils"}


def build(folder: Path, release: str, report: Report) -> Path:
    """A root with RabbitMQ of `release` under `folder`, made unless it is there. returns the root; raises StackError"""
    root = folder.resolve() / RELEASES[release]
    with locked(root.with_suffix(".lock"), report):
        if not _servers(root):
            _require_tools()
            _unpack(root, release, report)
    report(f"RabbitMQ {version_of(_servers(root)[-1])} is in {root}")
    return root


def program_in(root: Path) -> RabbitProgram:
    """RabbitMQ in a root that `build` or debootstrap has made. raises StackError where there is none, or no way in"""
    found = _servers(root)
    if not found:
        raise StackError(f"no RabbitMQ is in {root}; run: make rabbitmq4")
    require_entry(root)
    return RabbitProgram(Path("/") / found[-1].relative_to(root), SEARCH, version=version_of(found[-1]), root=root)


def _servers(root: Path) -> list[Path]:
    return sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))


def _require_tools() -> None:
    search = f"{os.environ.get('PATH', os.defpath)}:{SEARCH}"
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=search) is None:
            raise StackError(f"{tool} is not on this machine; it is in the package {package} of Debian and Ubuntu")
    if not _KEYS.exists():
        raise StackError(f"{_KEYS} is not on this machine; run: sudo apt-get install {_KEYS.stem}")


def _unpack(root: Path, release: str, report: Report) -> None:
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{root.name}-", dir=root.parent) as work:
        apt = Apt.of_release(Path(work), f"deb [signed-by={_KEYS}] {_MIRROR} {release} main")
        report(f"reading what Debian {release} has")
        apt.update()
        report("downloading RabbitMQ and all that it needs (about 75 MB)")
        packages = apt.download(_WANTED)
        report(f"unpacking {len(packages)} packages (about 220 MB)")
        draft = Path(work) / "root"
        # First the one with the links that make /bin the same as /usr/bin.
        for package in sorted(packages, key=lambda package: not package.name.startswith("base-files_")):
            run(["dpkg", "-x", str(package), str(draft)])
        if not _servers(draft):
            raise StackError(f"the package rabbitmq-server of Debian {release} holds no rabbitmq_server-*/sbin")
        _furnish(draft)
        draft.rename(root)


def _furnish(root: Path) -> None:
    """What the packages' scripts would have written, as far as a broker asks for it."""
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / HOME.relative_to("/")).mkdir()
    root.chmod(0o755)
