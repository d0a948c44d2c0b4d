"""HTTP as it comes over a connection, where uvicorn's own way would cost a system call more, a body, or memory."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._protocol = protocol

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # uvicorn feeds nothing else
        # Nothing is copied, and nothing begins inside another: all that is in it may ask for an upgrade.
        parser, rest = self, memoryview(data)
        while True:
            try:
                super(_Parser, parser).feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._protocol.asks_for_upgrade():
                    raise
                rest = rest[upgrade.args[0] :]
            else:
                return
            parser = self._protocol.begin_without_upgrade()


class Protocol(HttpToolsProtocol):
    """RFC 9110, 7.8: whoever does not know the other protocol may go on as if nobody had asked for it. Java's client asks for h2c
    with every request over plain HTTP.
    """

    _head = 0  # bytes that came since the last ones of a body, or the end of a request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)

    def asks_for_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def begin_without_upgrade(self) -> _Parser:
        """returns one that has read this request's head as if it asked for none"""
        version = self.parser.get_http_version().encode()
        head = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = parser = _Parser(self)
        parser.feed_data(b"\r\n".join([*head, b"", b""]))
        return parser

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
