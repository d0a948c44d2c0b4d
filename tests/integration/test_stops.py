"""A process says how it is, and stops when it is told to, whoever does not answer it."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import pytest
from starlette.applications import Starlette

from ops import fleet
from ops.serving import serving
from tests.fleet import World
from tests.topology.tcp_proxy import TcpProxy


async def test_a_database_that_fell_silent_is_told_of_and_keeps_no_process(world: World) -> None:
    """It neither answers nor closes a connection."""
    server = urlsplit(world.database_url)
    async with TcpProxy(str(server.hostname), server.port or 5432) as proxy:
        user = server.netloc.rpartition("@")[0]
        world.database_url = urlunsplit(server._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
        world.apart = True
        world.extra["grace"] = 0.5
        await world.start("ingress")
        proxy.pause()
        for _ in range(2):
            asked = await world.http.get(world.url("ingress", "/readyz"), timeout=5)
            assert (asked.status_code, asked.json()["database"]) == (503, False)
        began = time.monotonic()
        code = await asyncio.to_thread(world.stop, "ingress")
        assert time.monotonic() - began < fleet.LAST_WORD + 10
        assert code == 128 + signal.SIGTERM
        assert "not stopped in time" in world.log("ingress")
        proxy.resume()


async def test_a_second_signal_ends_it_at_once(world: World) -> None:
    world.apart = True
    await world.start("scheduler")
    scheduler = world.processes["scheduler"]
    scheduler.send_signal(signal.SIGSTOP)  # so that both are there before it looks at one
    scheduler.terminate()
    scheduler.send_signal(signal.SIGINT)
    scheduler.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(world.processes.pop("scheduler").wait, 20) in {
        128 + signal.SIGINT,
        128 + signal.SIGTERM,
    }


async def test_a_port_that_is_taken_is_told_of_and_ends_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: is the port taken"):
            async with serving(Starlette(), "127.0.0.1", port):
                raise AssertionError("it serves")


@dataclass
class Queue:
    consuming: bool = True
    queue: str = "q"


def test_who_was_seldom_asked_is_not_dead_of_a_short_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(fleet.time, "monotonic", lambda: now)
    queue = Queue()
    alive = fleet._liveness([queue])  # type: ignore[list-item]
    now += 600
    queue.consuming = False
    assert alive()
    now += fleet.NOT_CONSUMING - 1
    assert alive()
    now += 1
    assert not alive()
    queue.consuming = True
    assert alive()
