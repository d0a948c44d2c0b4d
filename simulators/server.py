"""Run an ASGI app as a real HTTP server inside the running event loop: `async with SimServer(app) as sim: sim.url`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

DROP = "staybus.drop"
"""ASGI extension: `scope["extensions"][DROP]()` cuts this request's connection, as a crashing peer does."""


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers (the loop belongs to others), and an event instead of polling."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit as error:  # uvicorn's word for "the app refused to start"; here it would end the test run
            raise RuntimeError("the simulator refused to start") from error
        self.up.set()


class SimServer:
    """Serves on 127.0.0.1, port 0 meaning a free one. Leaving cuts what still hangs, so withheld answers cannot block."""

    def __init__(self, app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._app = app
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        config = uvicorn.Config(
            self._with_drop, log_level="warning", access_log=False, lifespan="on", ws="none", interface="asgi3"
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait({self._task, up}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            up.cancel()
            self._socket.close()
            await self._task  # raises what kept it from starting
            raise RuntimeError("the simulator's server ended before it was up")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None or self._task is None:
            return
        self.cut_all()
        self._server.should_exit = True
        await self._task

    def cut_all(self) -> None:
        """Cut every open connection now, without an answer."""
        self._cut(None)

    def _cut(self, client: tuple[str, int] | None) -> None:
        if self._server is None:
            return
        for connection in list(self._server.server_state.connections):
            peer = connection.transport.get_extra_info("peername") or ()
            if client is None or tuple(peer[:2]) == client:
                connection.transport.abort()

    async def _with_drop(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            client = scope["client"]
            scope.setdefault("extensions", {})[DROP] = lambda: self._cut((client[0], client[1]))
        await self._app(scope, receive, send)
