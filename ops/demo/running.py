"""`staybus up`: everything on this machine, in the foreground until Ctrl-C. `staybus down`: ends what an `up` has left."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import asyncpg
import httpx
from rich.table import Table
from rich.text import Text

from adapters.registry import adapters
from ops.parts import declared
from ops.settings import Settings
from ops.stack import health, local
from ops.stack.errors import StackError
from ops.stack.processes import ProcessMark
from store import migrate
from store.pool import is_outage
from store.seal import SealError
from topology.apply import TopologyError, apply

from .children import GRACE, Child, ChildEndedError, Children, free_or
from .examples import Place, commands, sample_webhook
from .interrupts import interruptible, undisturbed
from .seed import SeedError, Tenant, admin_key, key_file, next_booking, seed, write_private
from .stage import Stage
from .tail import Tail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ops.stack.local import Stack

TENANT = Tenant()
SIMULATOR_PORT = 8024
PAUSE = 0.3  # seconds between two looks at what was settled
_FAULTS = (StackError, TopologyError, SeedError, SealError, ChildEndedError, OSError, asyncpg.PostgresError)


def up(folder: Path) -> int:
    """0 when it was ended by a signal, or runs already; 1 when it could not start or one of the processes died."""
    stage = Stage()
    with interruptible(), _alone(folder) as alone:
        if not alone:
            _say_running(folder, stage)
            return 0
        try:
            _end_leftovers(folder, stage)
            return _run(folder, stage)
        except _FAULTS as error:
            stage.console.print(f"\n{error}", style="red", markup=False)
            stage.report(f"logs: {_logs(folder)}/")
            return 1
        except (KeyboardInterrupt, asyncio.CancelledError):
            stage.console.print("stopped; the data is kept, `staybus up` goes on with it")
            return 0
        finally:
            _state_file(folder).unlink(missing_ok=True)


def down(folder: Path) -> int:
    """Ends an `up` that runs, else the processes and servers that one left behind; the data stays."""
    stage = Stage()
    state = _read(folder)
    mark = _mark(state.get("up"))
    found = mark is not None and mark.alive
    if mark is not None and mark.alive:
        stage.report(f"ending `up` (process {mark.pid})")
        # It ends its processes (at most their grace), then RabbitMQ and Postgres.
        mark.send(signal.SIGTERM)
        if not mark.wait_gone(GRACE + 60):
            stage.report("it does not end: killing it")
            mark.end((signal.SIGKILL, 5.0))
    found |= _end_leftovers(folder, stage)
    stack = _stack(folder)
    if stack.exists():
        said: list[str] = []
        local.stop(stack, said.append)
        for line in said:
            stage.report(line)
        found |= bool(said)
    stage.report("stopped; the data is kept" if found else "nothing of `staybus up` runs here")
    return 0


# ------------------------------------------------------------------------------------------------ up


def _run(folder: Path, stage: Stage) -> int:
    stage.heading("staybus up")
    state = {"up": _own_mark(), "started": time.time()}
    _write(folder, state)
    try:
        stack = local.start(_stack(folder), stage.report)
        ports = free_or(_preferred())
        with Children(_logs(folder)) as children:
            asyncio.run(_serve(folder, stage, stack, children, ports, state))
    finally:
        with undisturbed():
            stage.console.print()
            local.stop(_stack(folder), stage.report)
    return 0


async def _serve(
    folder: Path, stage: Stage, stack: Stack, children: Children, ports: dict[str, int], state: dict[str, Any]
) -> None:
    key = key_file(folder / "key")
    with stage.step("database schema and queues"):
        await migrate.upgrade(stack.database_url)
        await apply(stack.amqp_url, declared(adapters()))
    with stage.step("Beds24's simulator"):
        booking = await next_booking(stack.database_url)
        words = [str(ports["simulator"]), str(booking + 1)]
        children.start("simulator", "ops.demo.simulator", words, {}, ports["simulator"], "/")
        _write(folder, _with(state, children))
        await children.ready()
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        simulator = children["simulator"]
        place = await _seed(folder, stack, key, http, simulator, booking, ports)
        with stage.step("ingress, inbound, outbound, scheduler"):
            children.start_fleet(database_url=stack.database_url, amqp_url=stack.amqp_url, key_file=key, chosen=ports)
            _write(folder, _with(state, children))
            await children.ready()
        _write(folder, _with(state, children) | {"urls": _urls(stack, children)})
        _show(stage, stack, children, place)
    await _follow(stage, stack.database_url, children)


async def _seed(
    folder: Path,
    stack: Stack,
    key: Path,
    http: httpx.AsyncClient,
    simulator: Child,
    booking: int,
    ports: dict[str, int],
) -> Place:
    """Data, and the files that the printed commands read."""
    own = folder / "up"
    ingress = f"http://127.0.0.1:{ports['ingress']}"
    place = Place(
        ingress=ingress,
        simulator=simulator.url,
        tenant=TENANT,
        body=own / "booking.json",
        webhook_secret=own / "webhook-secret",
        admin_key=own / "admin-key",
    )
    invite = (await http.post(f"{simulator.url}/_sim/invite-code")).json()["code"]
    secret = await seed(stack.database_url, key, TENANT, simulator=simulator.url, invite_code=invite)
    kept = place.admin_key.read_text().strip() if place.admin_key.exists() else ""
    write_private(place.webhook_secret, secret)
    write_private(place.admin_key, await admin_key(stack.database_url, None, "staybus up", kept))
    place.body.write_bytes(sample_webhook(booking))
    target = {"url": f"{ingress}/webhooks/beds24/{TENANT.connection}", "secret": secret}
    (await http.post(f"{simulator.url}/_sim/webhook-target", json=target)).raise_for_status()
    return place


async def _follow(stage: Stage, database_url: str, children: Children) -> None:
    """Tells what is settled, until a signal. raises ChildEndedError"""
    stage.heading("What happens from now on (Ctrl-C ends everything, the data is kept)")
    db: asyncpg.Connection[asyncpg.Record] | None = None
    tail, away = Tail(), False
    try:
        while True:
            children.check()
            try:
                if db is None:
                    db = await asyncpg.connect(database_url, timeout=5)
                    if not away:
                        await tail.begin(db)
                    away = False
                for line in await tail.lines(db):
                    stage.console.print(line, soft_wrap=True)
            except Exception as error:
                if not is_outage(error):
                    raise
                if not away:
                    stage.console.print("the database is away; the processes wait for it", style="red")
                away, db = True, None
            await asyncio.sleep(PAUSE)
    finally:
        if db is not None:
            db.terminate()


# ------------------------------------------------------------------------------------------------ what is shown


def _show(stage: Stage, stack: Stack, children: Children, place: Place) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    for name, url in _urls(stack, children).items():
        table.add_row(Text(f"  {name}", "bold"), Text(url))
    stage.heading("It runs")
    stage.console.print(table)
    stage.heading("To paste in another terminal, in this folder")
    for what, command in commands(place):
        stage.console.print(Text(f"\n  {what}:", "dim"))
        stage.console.print(Text(command), soft_wrap=True)
    if shutil.which("openssl") is None:
        stage.report("(openssl is not installed here; `staybus send-webhook beds24 beds24-acme` signs without it)")


def _urls(stack: Stack, children: Children) -> dict[str, str]:
    workers = ("inbound", "outbound", "scheduler")
    urls = {
        "ingress": f"{children['ingress'].url} (/healthz /readyz /metrics)",
        **{name: f"{children[name].url}/metrics" for name in workers},
        "Beds24 simulator": f"{children['simulator'].url}/",
        "Postgres": health.address(stack.database_url),
        "RabbitMQ": health.address(stack.amqp_url),
    }
    if stack.amqp_admin_url is not None:
        parts = urlsplit(stack.amqp_admin_url)
        login = f"{unquote(parts.username or '')} / {unquote(parts.password or '')}"
        urls["RabbitMQ's own page"] = f"http://{parts.hostname}:{parts.port}/ (login {login})"
    return urls


def _say_running(folder: Path, stage: Stage) -> None:
    state = _read(folder)
    pid = (state.get("up") or {}).get("pid", "?")
    stage.report(f"staybus runs already in {folder} (process {pid}); `staybus down` ends it")
    for name, url in (state.get("urls") or {}).items():
        stage.report(f"{name:20} {url}")


# ------------------------------------------------------------------------------------------------ between commands


def _preferred() -> dict[str, int]:
    """The usual ports, so that addresses stay the same where they can."""
    usual = Settings.model_fields
    fleet = {name: int(usual[f"{name}_port"].default) for name in ("ingress", "inbound", "outbound", "scheduler")}
    return {**fleet, "simulator": SIMULATOR_PORT}


def _stack(folder: Path) -> Path:
    return folder / "stack"


def _logs(folder: Path) -> Path:
    return folder / "up" / "logs"


def _state_file(folder: Path) -> Path:
    return folder / "up.json"


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """The lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _end_leftovers(folder: Path, stage: Stage) -> bool:
    """Processes of an `up` that was killed: known by pid and the moment of their start."""
    marks = {name: _mark(found) for name, found in (_read(folder).get("children") or {}).items()}
    living = {name: mark for name, mark in marks.items() if mark is not None and mark.alive}
    for name, mark in living.items():
        stage.report(f"ending {name} (process {mark.pid}), left by an earlier `up`")
        mark.send(signal.SIGTERM)
    for mark in living.values():
        if not mark.wait_gone(GRACE):
            mark.end((signal.SIGKILL, 5.0))
    _state_file(folder).unlink(missing_ok=True)
    return bool(living)


def _with(state: dict[str, Any], children: Children) -> dict[str, Any]:
    return {**state, "children": {name: asdict(mark) for name, mark in children.marks().items()}}


def _own_mark() -> dict[str, Any]:
    mark = ProcessMark.of(os.getpid())
    return asdict(mark) if mark else {}


def _mark(found: Any) -> ProcessMark | None:
    try:
        return ProcessMark(**found)
    except TypeError:
        return None


def _read(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(_state_file(folder).read_text())
        if isinstance(found, dict):
            return found
    return {}


def _write(folder: Path, state: dict[str, Any]) -> None:
    """In one step, so that nobody reads half of it."""
    file = _state_file(folder)
    draft = file.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(state, indent=1))
    draft.replace(file)
