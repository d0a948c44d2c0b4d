"""Where an unprivileged account can reach files, when we are root in a checkout that only root may enter."""

import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ops.stack.errors import StackError
from ops.stack.processes import Account, identity

_UNPRIVILEGED = ("nobody", "postgres", "daemon")


def server_account() -> Account | None:
    """The account for a server that refuses to run as root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        account = Account(name, entry.pw_uid, entry.pw_gid)
        if entry.pw_uid != 0 and _succeeds(["/bin/sh", "-c", ":"], account):
            return account
    raise StackError(
        "Postgres does not run as root, and no unprivileged account can be used here.\n"
        "Run this as an ordinary user, or set STAYBUS_DATABASE_URL to a Postgres that runs."
    )


def reaches(account: Account | None, folder: Path) -> bool:
    """Whether the account may enter the folder."""
    return account is None or _succeeds(["/bin/sh", "-c", 'cd -- "$0"', str(folder)], account)


def runs(account: Account | None, program: Path) -> bool:
    """Whether the account can execute the program (reached, executable, its libraries found)."""
    return _succeeds([str(program), "--version"], account)


def temporary_folder(name: str, account: Account | None) -> Path:
    """A folder of ours that `account` may enter and nobody else may write, in a temporary folder of the machine."""
    for base in _temporary_bases():
        folder = base / f"staybus-{os.geteuid()}-{name}"
        if not reaches(account, base) or not _made_ours(folder):
            continue
        if reaches(account, folder):
            return folder
    raise StackError(
        f"no temporary folder that the account {account.name if account else 'of this user'} can enter; "
        "set TMPDIR to one, or set STAYBUS_DATABASE_URL to a Postgres that runs"
    )


def readable_copy(trees: list[Path], programs: list[str], account: Account | None, name: str) -> Path:
    """The first tree itself when the account can run `programs` in it, else its copy in a temporary folder.

    The other trees are copied beside it, for programs that look for their libraries there.
    """
    if all(runs(account, trees[0] / program) for program in programs):
        return trees[0]
    folder = temporary_folder(name, account)
    copy = folder / "copy"
    if not copy.exists():
        draft = folder / f"draft-{os.getpid()}"
        for tree in trees:
            shutil.copytree(tree, draft / tree.name, symlinks=True)
        _open_to_all(draft)
        try:
            draft.rename(copy)
        except OSError:  # another command was faster
            shutil.rmtree(draft)
    for program in programs:
        if not runs(account, copy / trees[0].name / program):
            raise StackError(
                f"{copy / trees[0].name / program} does not run as {account.name if account else 'this user'}; set TMPDIR "
                "to a folder from which programs may run, or set STAYBUS_DATABASE_URL to a Postgres that runs"
            )
    return copy / trees[0].name


def key(path: Path) -> str:
    """A short name for a path, the same each time."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:10]


def give(path: Path, account: Account | None) -> None:
    """Make the account the owner of one folder."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _temporary_bases() -> Iterator[Path]:
    yield from dict.fromkeys(Path(base) for base in (tempfile.gettempdir(), "/tmp", "/var/tmp"))  # noqa: S108 - _made_ours


def _made_ours(folder: Path) -> bool:
    """Create the folder, or accept it only when it is a real folder that belongs to us and only we may write."""
    try:
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _open_to_all(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _succeeds(command: list[str], account: Account | None) -> bool:
    try:
        finished = subprocess.run(command, capture_output=True, cwd="/", timeout=30, check=False, **identity(account))
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return finished.returncode == 0
