"""The local stack for real: servers are started, killed and stopped."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aio_pika
import asyncpg
import httpx
import psutil
import pytest

from ops.stack import local, places, ports
from ops.stack.processes import ProcessMark

CHECKOUT = Path(__file__).parents[2]
RUNTIME = Path(os.environ.get("STAYBUS_RUNTIME") or CHECKOUT / ".staybus/runtime")


def silent(_line: str) -> None:
    pass


@pytest.fixture(scope="module", autouse=True)
def private_servers() -> Iterator[None]:
    """No server given by the environment or by Docker: this module is about the private ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*local.DATABASE_VARIABLES, *local.AMQP_VARIABLES):
            patch.delenv(name, raising=False)
        patch.setenv("STAYBUS_RUNTIME", str(RUNTIME))
        patch.setattr(local, "engine_answers", lambda: False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stack") / "one"
    yield folder
    local.delete(folder, silent)


@pytest.fixture
def stack(folder: Path) -> local.Stack:
    return local.start(folder, silent)


def query(stack: local.Stack, sql: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(stack.database_url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def publish(stack: local.Stack, queue: str, body: bytes) -> None:
    async def send() -> None:
        async with await aio_pika.connect(stack.amqp_url) as connection:
            channel = await connection.channel(publisher_confirms=True)
            await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
            message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, queue)

    asyncio.run(send())


def take(stack: local.Stack, queue: str) -> bytes:
    async def receive() -> bytes:
        async with await aio_pika.connect(stack.amqp_url) as connection:
            channel = await connection.channel()
            held = await channel.get_queue(queue)
            message = await held.get(timeout=10)
            assert message is not None
            await message.ack()
            return message.body

    return asyncio.run(receive())


def test_both_servers_answer_with_the_promised_settings(stack: local.Stack) -> None:
    settings = ("fsync", "synchronous_commit", "max_connections", "TimeZone", "server_encoding")
    assert [query(stack, f"show {name}") for name in settings] == ["on", "on", "200", "UTC", "UTF8"]
    assert query(stack, "select current_database()") == "staybus"
    publish(stack, "greetings", b"hello")
    assert take(stack, "greetings") == b"hello"


def test_virtual_hosts_are_made_and_removed_through_the_management_api(stack: local.Stack) -> None:
    assert stack.amqp_admin_url
    with httpx.Client(trust_env=False) as client:
        assert client.put(f"{stack.amqp_admin_url}/vhosts/of-a-test").status_code == 201
        assert (
            client.get(f"{stack.amqp_admin_url}/queues/of-a-test?disable_stats=true&enable_queue_totals=true").json()
            == []
        )
        assert client.delete(f"{stack.amqp_admin_url}/vhosts/of-a-test").status_code == 204


def test_a_server_is_reachable_from_this_machine_only(stack: local.Stack) -> None:
    connections = [found for pid in stack.pids for found in psutil.Process(pid).net_connections()]
    listening = {found.laddr.ip for found in connections if found.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1"}


def test_starting_again_reuses_what_runs(folder: Path, stack: local.Stack) -> None:
    lines: list[str] = []
    with ThreadPoolExecutor(3) as threads:
        again = list(threads.map(lambda _: local.start(folder, lines.append), range(3)))
    assert {other.pids for other in again} == {stack.pids}
    assert [line for line in lines if "waiting" not in line] == []
    found = local.running(folder)
    assert found is not None
    assert (found.database_url, found.amqp_url) == (stack.database_url, stack.amqp_url)


def test_killed_servers_come_back_on_the_same_ports_with_their_data(folder: Path, stack: local.Stack) -> None:
    query(stack, "create table kept as select 42 as answer")
    publish(stack, "kept", b"still here")
    time.sleep(1.5)  # RabbitMQ loses a quorum queue that it is killed within a second of declaring (3.10 and 4.0)
    killed = stack.pids
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    recovered = local.start(folder, silent)
    assert not set(recovered.pids) & set(killed)
    assert (recovered.database_url, recovered.amqp_url) == (stack.database_url, stack.amqp_url)
    assert query(recovered, "select answer from kept") == 42
    assert take(recovered, "kept") == b"still here"


def test_a_second_folder_lives_beside_the_first_and_leaves_nothing(folder: Path, stack: local.Stack) -> None:
    other_folder = folder.with_name("two words")
    other = local.start(other_folder, silent)
    assert len(other.pids) == len(stack.pids) == 3
    query(other, "create table only_here ()")
    assert query(stack, "select to_regclass('only_here')") is None
    assert other.postgres
    assert other.rabbitmq
    data = other.postgres.data
    marks = [mark for pid in other.pids if (mark := ProcessMark.of(pid))]
    marks += [child for mark in marks for child in mark.children()]
    local.stop(other_folder, silent)
    assert not [mark for mark in marks if mark.alive]
    assert local.running(other_folder) is None
    assert ports.is_free(other.postgres.port)
    local.delete(other_folder, silent)
    assert data is not None
    assert not data.exists()
    assert query(stack, "select 1") == 1


def test_postgres_never_runs_as_root(stack: local.Stack) -> None:
    assert stack.postgres
    assert Path(f"/proc/{stack.postgres.processes[0].pid}").stat().st_uid != 0


def test_a_recycled_pid_is_not_taken_for_our_server() -> None:
    ours = ProcessMark.of(os.getpid())
    assert ours is not None
    assert ours.alive
    stale = ProcessMark(os.getpid(), "another boot:1")
    assert not stale.alive
    stale.end((signal.SIGKILL, 1.0))  # signals nobody


@pytest.mark.parametrize("password", ["hidden-word", "hidden/word", "hidden?word", "hidden#word"])
@pytest.mark.parametrize("name", ["STAYBUS_DATABASE_URL", "DATABASE_URL", "STAYBUS_AMQP_URL", "RABBITMQ_URL"])
def test_a_given_server_that_is_down_is_named_without_its_password(
    name: str, password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = "postgresql" if "DATABASE" in name else "amqp"
    monkeypatch.setenv(name, f"{scheme}://someone:{password}@127.0.0.1:{ports.free_port()}/place")
    with pytest.raises(local.StackError, match=f"{name} names .* does not answer") as caught:
        local.start(tmp_path / "unused", silent)
    assert "hidden" not in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


def test_given_servers_are_used_and_nothing_is_started(
    stack: local.Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAYBUS_DATABASE_URL", stack.database_url.replace("postgresql:", "postgresql+asyncpg:"))
    monkeypatch.setenv("STAYBUS_AMQP_URL", stack.amqp_url)
    given = local.start(tmp_path / "given", silent)
    assert (given.database_url, given.amqp_url, given.pids) == (stack.database_url, stack.amqp_url, ())


STORY_OF_AN_ORDINARY_USER = """
import os, signal, sys
from pathlib import Path
from ops.stack import local
local.engine_answers = lambda: False
folder = Path(sys.argv[1])
stack = local.start(folder, print)
assert len(stack.pids) == 3, stack.pids
assert {os.stat(f"/proc/{pid}").st_uid for pid in stack.pids} == {os.geteuid()}
stack.postgres.kill()
assert local.running(folder) is None
stack.postgres.start()
assert local.running(folder).database_url == stack.database_url
local.delete(folder, print)
assert not stack.pids
"""


def linked(source: Path, target: Path) -> None:
    """A copy by hard links where the file system allows it."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link, symlinks=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests are already run by an ordinary user")
def test_an_ordinary_user_can_do_the_same(stack: local.Stack) -> None:
    user = pwd.getpwnam("nobody")
    account = places.server_account()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [Path(sys.executable), *(Path(base) / version for base in ("/usr/bin", "/usr/local/bin"))]
    python = next((python for python in candidates if places.runs(account, python)), None)
    if python is None:
        pytest.skip(f"no {version} on this machine that an ordinary user could run")
    with tempfile.TemporaryDirectory(prefix="staybus-test-") as base:
        home = Path(base)
        home.chmod(0o755)
        linked(CHECKOUT / "ops", home / "code/ops")
        linked(Path(sysconfig.get_path("purelib")), home / "site")
        linked(RUNTIME / "rabbitmq", home / "runtime/rabbitmq")
        (home / "stack").mkdir()
        for folder in (home / "stack", home / "runtime"):
            os.chown(folder, user.pw_uid, user.pw_gid)
        done = subprocess.run(
            [str(python), "-c", STORY_OF_AN_ORDINARY_USER, str(home / "stack/own")],
            env={
                "PATH": os.defpath,
                "PYTHONPATH": f"{home / 'code'}:{home / 'site'}",
                "STAYBUS_RUNTIME": str(home / "runtime"),
            },
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd=home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
