"""Serving HTTP from a process that has its own idea of signals and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.applications import Starlette


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process decides what a signal means (below), not its HTTP part."""
        yield


@asynccontextmanager
async def serving(app: Starlette, host: str, port: int, *, grace: float = 10.0) -> AsyncIterator[int]:
    """Serves until the block ends, then lets requests under way finish for `grace` seconds. yields the port

    raises  OSError when the port is taken
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="none",
        http="httptools",
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
                raise OSError(f"cannot serve on {host}:{port}: is the port taken?")
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        with contextlib.suppress(SystemExit):
            await task


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop
