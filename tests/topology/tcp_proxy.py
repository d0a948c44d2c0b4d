"""A TCP proxy on loopback with faults: cut connections, hold all bytes back, refuse new ones, put bytes into the answer."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class TcpProxy:
    """`async with TcpProxy(host, port) as proxy:` then connect to 127.0.0.1:`proxy.port`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._flows: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.accepted = 0
        """Connections since the start."""

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)

    def cut(self, *, refuse: bool = False) -> None:
        """Reset every connection; with `refuse` also the new ones, until `accept`."""
        self._refusing = refuse
        for writer in self._writers:
            writer.transport.abort()

    def accept(self) -> None:
        self._refusing = False

    def pause(self) -> None:
        """Hold all bytes of both directions back, on connections that stay open: a network that went silent."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def tell_clients(self, answer: bytes) -> None:
        """Send bytes to every client as if they came from the target. Only between two messages of its own, so in silence."""
        for writer in self._clients:
            writer.write(answer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        self._clients.add(writer)
        flows = {
            asyncio.create_task(self._flow(reader, far_writer)),
            asyncio.create_task(self._flow(far_reader, writer)),
        }
        self._flows |= flows
        await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, far_writer):
            end.transport.abort()
        self._writers -= {writer, far_writer}
        self._clients.discard(writer)
        await asyncio.wait(flows)
        self._flows -= flows

    async def _flow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
