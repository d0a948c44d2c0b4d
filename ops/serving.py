"""Serving HTTP from a process that has its own idea of signals and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import uvicorn

from .protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp


_log = logging.getLogger(__name__)

TICKS = 10  # of uvicorn's in a second: at every tenth it sets the date


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """raises OSError, where uvicorn would end the process, whatever else that has in hand"""
        try:
            await super().startup(sockets)
        except SystemExit as error:
            raise OSError(f"cannot serve on {self.config.host}:{self.config.port}: is the port taken?") from error

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process decides what a signal means (below), not its HTTP part."""
        yield

    async def main_loop(self) -> None:
        """Looks once a second, which the date in its answers needs, and not ten times: each look wakes a process that rests,
        and a processor that an event waits for. Who stops it is heard at once.
        """
        counter = 0
        while not await self.on_tick(counter):
            counter += TICKS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()


@asynccontextmanager
async def serving(app: ASGIApp, host: str, port: int, *, grace: float = 10.0) -> AsyncIterator[int]:
    """Serves until the block ends, then lets requests under way finish for `grace` seconds. yields the port

    raises  OSError when the port is taken
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="none",
        http=Protocol,
        ws="none",
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # nobody here asks who the caller's caller was
        timeout_graceful_shutdown=max(1, int(grace)),
        timeout_keep_alive=75,
        backlog=2048,
    )
    server = _Server(config)
    sock = config.bind_socket() if port == 0 else None
    task = asyncio.create_task(server.serve(sockets=[sock] if sock else None))
    try:
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.stop()
        with contextlib.suppress(OSError):
            await task


def stop_signal(within: float) -> asyncio.Event:
    """Set by SIGTERM or SIGINT. A second one ends the process at once, and so does the end of so many seconds: a database or broker
    that fell silent is waited for by whoever uses it. Each step of theirs may be the last.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        # Not by the signal itself: the first process of a container is spared what it does not handle.
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        loop.call_later(within, _end_late, 128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _end_late(code: int) -> None:
    _log.error("not stopped in time: ends as it is")
    os._exit(code)
