"""Serving HTTP from a process that has its own idea of signals and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp


_log = logging.getLogger(__name__)

TICKS = 10  # of uvicorn's in a second: at every tenth it sets the date
MAX_HEAD = 64 * 1024  # bytes of a request's head, or of its trailers: uvicorn keeps any number


class _Whole:
    """A transport that sends what was written in one turn of the loop at once: head and body of an answer are two writes of
    the server, and a system call each would be a twentieth of the ingress.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            data, self._held = b"".join(self._held), []
            self._transport.write(data)


class _Parser(httptools.HttpRequestParser):
    """Reads no body of a request that asks for an upgrade: its protocol hears where the head ended."""

    def __init__(self, protocol: _Protocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._protocol = protocol

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # uvicorn feeds nothing else
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._protocol.asks_for_upgrade():
                raise
            self._protocol.go_on_without_upgrade(data[upgrade.args[0] :])


class _Protocol(HttpToolsProtocol):
    """RFC 9110, 7.8: whoever does not know the other protocol may go on as if nobody had asked for it. Java's client asks for h2c
    with every request over plain HTTP.
    """

    _head = 0  # bytes that came since the last ones of a body, or the end of a request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)

    def asks_for_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def go_on_without_upgrade(self, rest: bytes) -> None:
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = _Parser(self)
        self.parser.feed_data(b"\r\n".join([*head, b"", rest]))

    def on_headers_complete(self) -> None:
        if not self.asks_for_upgrade():
            super().on_headers_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the class above it
        super().connection_made(cast("asyncio.Transport", _Whole(transport)))

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.asks_for_upgrade():
            self._head = 0
            super().on_message_complete()


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
        http=_Protocol,
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
