"""Commands in another root file system than the machine's.

Each enters it in a mount namespace of its own, which ends with the last process in it: so no mount is ever left behind, however
a server ends. Root may do that; so may ordinary users, where the kernel lets them make user namespaces.
"""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ops.stack.errors import StackError

HOME = Path("/staybus")
"""Where a command in there finds the one folder of the machine that it is given."""

SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""The search path, in there and for the tools that lead there."""

# The process that is started becomes the command: its pid is the server's.
_ENTER = """\
root=$1 home=$2
shift 2
mkdir -p "$root/proc" "$root/dev" "$root$HOME_INSIDE"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$home" "$root$HOME_INSIDE"
exec chroot "$root" "$@"
""".replace("$HOME_INSIDE", str(HOME))


def inside(root: Path, home: Path, command: Sequence[str | Path]) -> list[str | Path]:
    """The command line that runs `command` in the root, with the machine's folder `home` at HOME."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [
        *("unshare", *as_root, "--mount", "--propagation", "private"),
        *("/bin/sh", "-ec", _ENTER, "sh", root, home),
        *command,
    ]


def require_entry(root: Path) -> None:
    """Go in and out once. raises StackError where this machine or this account cannot"""
    with tempfile.TemporaryDirectory(prefix="staybus-") as home:
        command = inside(root, Path(home), ["true"])
        try:
            done = subprocess.run(command, env={"PATH": SEARCH}, capture_output=True, text=True, check=False)
        except OSError as error:
            raise StackError(_refusal(root, f"{error.strerror}: {error.filename}")) from error
    if done.returncode != 0:
        raise StackError(_refusal(root, done.stderr.strip()))


def _refusal(root: Path, why: str) -> str:
    who = "" if os.geteuid() == 0 else "; run this as root"
    return f"programs in {root} need mounts of their own, and those cannot be made here{who}\n({why})"
