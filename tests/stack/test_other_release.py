"""A RabbitMQ in a root file system of its own: made by `make rabbitmq4`, entered by mounts that nobody else sees."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ops.stack import debian, local
from ops.stack.errors import StackError
from ops.stack.processes import ProcessMark, spawn, until
from ops.stack.rabbitmq import RabbitNode, RabbitProgram
from ops.stack.root import HOME, SEARCH, inside, require_entry
from tests.stack.test_local_stack import publish, silent, take

CHECKOUT = Path(__file__).parents[2]
ROOT = Path(os.environ.get("STAYBUS_RABBITMQ_ROOT") or CHECKOUT / ".staybus/rabbitmq4").resolve()


@pytest.fixture(autouse=True)
def private_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*local.DATABASE_VARIABLES, *local.AMQP_VARIABLES, "STAYBUS_RABBITMQ_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(local, "engine_answers", lambda: False)


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """A root with a shell, sleep and true, and what they are linked with."""
    root = tmp_path / "a root"
    for name in ("sh", "sleep", "true"):
        program = shutil.which(name)
        assert program
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        needed = [word for word in linked.split() if word.startswith("/")]
        for source in (Path(program), *map(Path, needed)):
            target = root / (f"bin/{name}" if source == Path(program) else source.relative_to("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source.resolve(), target)
    return root


@pytest.fixture
def entry(tiny_root: Path) -> None:
    try:
        require_entry(tiny_root)
    except StackError as error:
        pytest.skip(str(error))


def mounts() -> str:
    return Path("/proc/self/mounts").read_text()


@pytest.mark.usefixtures("entry")
def test_a_server_in_a_root_is_one_process_with_its_folder_and_leaves_no_mount(tiny_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "of the node"
    folder.mkdir()
    before = mounts()
    story = f"echo $$ > {HOME}/pid; test -e /dev/null && test -e /proc/$$ && test ! -e {tmp_path}; echo $? > {HOME}/seen; exec sleep 60"
    mark = spawn(inside(tiny_root, folder, ["sh", "-c", story]), environment={"PATH": SEARCH}, log=tmp_path / "log")
    try:
        assert until((folder / "seen").exists, 10), (tmp_path / "log").read_text()
        assert until(lambda: (folder / "seen").read_text() != "", 10)
        assert (folder / "seen").read_text() == "0\n"
        assert (
            folder / "pid"
        ).read_text() == f"{mark.pid}\n"  # the pid that is killed is the server's, not a wrapper's
        assert mounts() == before
    finally:
        mark.end((signal.SIGKILL, 5.0))
    assert mounts() == before
    shutil.rmtree(tiny_root)  # nothing is mounted on it: "resource busy" otherwise
    assert Path("/dev/null").exists()


def test_an_account_that_may_not_mount_is_told(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = tmp_path / "bin/unshare"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2; exit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr("ops.stack.root.SEARCH", str(refusing.parent))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        StackError, match=r"cannot be made here; run this as root\n\(unshare failed: Operation not perm"
    ):
        require_entry(tiny_root)
    refusing.unlink()
    with pytest.raises(StackError, match=r"No such file or directory: unshare"):
        require_entry(tiny_root)


def test_a_root_without_rabbitmq_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAYBUS_DATABASE_URL", "unused")
    monkeypatch.setattr(local.health, "postgres_problem", lambda _url: None)
    monkeypatch.setenv("STAYBUS_RABBITMQ_ROOT", str(tmp_path / "nothing"))
    with pytest.raises(StackError, match=r"no RabbitMQ is in .*nothing; run: make rabbitmq4"):
        local.start(tmp_path / "stack", silent)


def test_a_node_keeps_the_root_it_began_with(tmp_path: Path) -> None:
    """Without the setting it starts from there again; with another it refuses, since that could not read its data."""
    asked: list[Path | None] = []

    def program(root: Path | None) -> RabbitProgram:
        asked.append(root)
        return RabbitProgram(tmp_path / "ends at once", os.defpath, root=root)

    folder = tmp_path / "stack/rabbitmq"
    for wanted in (tmp_path / "one", None, tmp_path / "one"):
        with pytest.raises(StackError):
            RabbitNode(folder, program, root=wanted).start()
    assert asked == [tmp_path / "one"] * 3
    with pytest.raises(StackError, match=r"began as .*one, and .*two cannot read its data.*down --delete --folder"):
        RabbitNode(folder, program, root=tmp_path / "two").start()
    usual = tmp_path / "other/rabbitmq"
    with pytest.raises(StackError):
        RabbitNode(usual, program).start()
    with pytest.raises(StackError, match=r"began as that of this machine"):
        RabbitNode(usual, program, root=tmp_path / "one").start()
    assert asked[3:] == [None]


def test_a_root_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "rabbitmq4/usr/lib/rabbitmq/lib/rabbitmq_server-4.0.5/sbin").mkdir(parents=True)
    (tmp_path / "rabbitmq4/usr/lib/rabbitmq/lib/rabbitmq_server-4.0.5/sbin/rabbitmq-server").touch()
    lines: list[str] = []
    root = debian.build(tmp_path, "trixie", lines.append)
    assert lines == [f"RabbitMQ 4.0.5 is in {root}"]


@contextmanager
def started(folder: Path) -> Iterator[local.Stack]:
    try:
        yield local.start(folder, silent)
    finally:
        local.delete(folder, silent)


@pytest.mark.skipif(not ROOT.is_dir(), reason="there is none; `make rabbitmq4` makes one (75 MB to download)")
def test_a_rabbitmq_4_starts_dies_and_comes_back_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mounts()
    monkeypatch.setenv("STAYBUS_RABBITMQ_ROOT", str(ROOT))
    with started(tmp_path / "stack") as stack:
        node = stack.rabbitmq
        assert isinstance(node, RabbitNode)
        assert node.ctl("version").startswith("4.")
        monkeypatch.delenv("STAYBUS_RABBITMQ_ROOT")  # a later command need not know it
        publish(stack, "kept", b"still here")
        time.sleep(1.5)  # a quorum queue is lost when its broker is killed within a second of the declaration
        for end in (node.kill, node.stop):
            marks = [known for mark in node.processes for known in (mark, *mark.children())]
            end()
            assert not [mark for mark in marks if mark.alive]
            assert local.running(stack.folder) is None
            local.start(stack.folder, silent)
        assert take(stack, "kept") == b"still here"
        with pytest.raises(StackError, match="rabbitmqctl no_such_word"):
            node.ctl("no_such_word")
        alive = [ProcessMark.of(pid) for pid in stack.pids]
    assert not [mark for mark in alive if mark and mark.alive]
    assert mounts() == before
