"""`staybus demo`: three scenes on a fresh stack, played by the real processes and judged by what is really there."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import time
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

import aio_pika
import asyncpg
import httpx

from adapters.registry import adapters
from ops.parts import declared
from ops.stack.errors import StackError
from simulators.beds24.app import Beds24, create_app
from simulators.beds24.state import Account
from simulators.beds24.webhooks import WebhookSender
from simulators.core_pms import QUEUE, CorePms
from simulators.server import SimServer
from store import migrate
from topology.apply import TopologyError, apply

from . import dead_letter, inbound, outbound
from .children import FLEET, ChildEndedError, Children, free_or
from .ground import Ground, ground
from .interrupts import interruptible, undisturbed
from .seed import admin_key, key_file, seed
from .stage import Stage
from .world import NotSeenError, World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from .stage import Scene

SCENES: tuple[tuple[str, str, Callable[[World, Scene], Awaitable[None]]], ...] = (
    (
        "Inbound: guests book at Beds24, its webhooks come to ingress",
        "new, change, cancel, duplicate, disorder, forgery; stored = Beds24's truth; core told; guests sealed",
        inbound.play,
    ),
    (
        "Outbound: the core PMS commands, Beds24 does",
        "create, update, availability by outbox, cancel; twice = once; lost answer looked up",
        outbound.play,
    ),
    (
        "Dead letters: Beds24 is broken, then repaired",
        "3 attempts, failed, shown with reason and history; requeued, done, resolved",
        dead_letter.play,
    ),
)


def demo(folder: Path) -> int:
    """0 when every check held. Deletes what it made; the logs stay when something failed."""
    stage = Stage()
    place = folder / "demo"
    logs = place / "logs"
    code = 1
    with interruptible():
        try:
            with _alone(folder, stage) as alone:
                if not alone:
                    return 1
                shutil.rmtree(logs, ignore_errors=True)
                code = 0 if _play(place, stage) else 1
        except (StackError, TopologyError, ChildEndedError, TimeoutError, OSError, asyncpg.PostgresError) as error:
            stage.console.print(f"\nthe demo could not go on: {error}", style="red", markup=False)
        except (KeyboardInterrupt, asyncio.CancelledError):
            stage.console.print("\nstopped; nothing is left running")
            code = 130
    with undisturbed():
        if code in {0, 130}:
            shutil.rmtree(place, ignore_errors=True)
        elif logs.exists():
            stage.console.print(f"logs: {_shown(logs)}/", markup=False)
    return code


def _play(place: Path, stage: Stage) -> bool:
    stage.heading("staybus demo: the whole gateway on this machine, against a simulated Beds24")
    with ground(place, stage.report) as own:
        began = time.monotonic()
        key = key_file(place / "key")
        with Children(place / "logs") as children:
            asyncio.run(_tell(own, key, children, stage))
            stage.heading("Result")
            right = stage.verdict(time.monotonic() - began)
            with stage.step("stopping the processes"):
                children.stop()
        stage.report("removing what the demo made")
    key.unlink()
    return right


async def _tell(own: Ground, key: Path, children: Children, stage: Stage) -> None:
    async with AsyncExitStack() as closing:
        world = await _set_up(own, key, children, stage, closing)
        for title, about, play in SCENES:
            scene = stage.scene(title, about)
            try:
                await play(world, scene)
            except (NotSeenError, httpx.HTTPError) as error:
                scene.check(False, "the scene was played to its end", f"{type(error).__name__}: {error}")
            except ChildEndedError as error:
                scene.check(False, "the scene was played to its end", str(error).partition("\n")[0])
                return  # the others would only wait for it


async def _set_up(own: Ground, key: Path, children: Children, stage: Stage, closing: AsyncExitStack) -> World:
    with stage.step("database schema"):
        await migrate.upgrade(own.database_url)
    topology = declared(adapters())
    with stage.step(f"{len(topology.exchanges)} exchanges, {len(topology.queues)} queues"):
        await apply(own.amqp_url, topology)
    with stage.step(f"company {own.tenant.company}, connection {own.tenant.connection}, mappings, keys"):
        http = await closing.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=20))
        account = Account()
        sender = WebhookSender(account, client=httpx.AsyncClient(trust_env=False, timeout=10))
        sim = Beds24(account, sender=sender)
        server = await closing.enter_async_context(SimServer(create_app(sim)))
        invite = (await http.post(f"{server.url}/_sim/invite-code")).json()["code"]
        secret = await seed(own.database_url, key, own.tenant, simulator=server.url, invite_code=invite)
        admin = await admin_key(own.database_url, own.tenant.company, "demo")
    with stage.step(f"the processes: {', '.join(FLEET)}"):
        ports = free_or(dict.fromkeys(FLEET, 0))
        children.start_fleet(database_url=own.database_url, amqp_url=own.amqp_url, key_file=key, chosen=ports)
        await children.ready()
    with stage.step("the core PMS listens to core.#; Beds24 knows where to send its webhooks"):
        if own.left_queue is not None:
            closing.push_async_callback(_delete_queue, own.amqp_url, own.left_queue)
        core = await closing.enter_async_context(CorePms(own.amqp_url, queue=own.left_queue or QUEUE))
        url = f"{children['ingress'].url}/webhooks/beds24/{own.tenant.connection}"
        (await http.post(f"{server.url}/_sim/webhook-target", json={"url": url, "secret": secret})).raise_for_status()
    db = await asyncpg.connect(own.database_url)
    closing.push_async_callback(db.close)
    return World(
        db=db,
        http=http,
        sim=sim,
        sim_url=server.url,
        core=core,
        children=children,
        tenant=own.tenant,
        admin={"Authorization": f"Bearer {admin}"},
    )


async def _delete_queue(amqp_url: str, name: str) -> None:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        await (await connection.channel()).queue_delete(name)


@contextmanager
def _alone(folder: Path, stage: Stage) -> Iterator[bool]:
    """Two demos in one folder would delete each other's servers. The lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stage.console.print(f"a demo runs already in {_shown(folder)}", markup=False)
            yield False
            return
        yield True


def _shown(path: Path) -> Path:
    """As short as it can be pasted."""
    here = path.resolve()
    return here.relative_to(path.cwd()) if here.is_relative_to(path.cwd()) else here
