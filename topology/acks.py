"""A publisher's acks that came together, as one multiple-ack.

The broker confirms what goes to no queue message by message, and the library takes about 15 us of CPU to read one frame: of all
that a result costs, a tenth. Here a run of acks in which no tag is missing becomes the one frame that the protocol has for it
(basic.ack with `multiple`: all up to this tag). Everything else is handed on as it came, in its order.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any

from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError

if TYPE_CHECKING:
    from yarl import URL

# Of the protocol (https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 2.3.5): type, channel and size of the payload open
# a frame, one byte ends it; a method's payload begins with its class and its number.
_FRAME = Struct(">BHI")
_METHOD = Struct(">I")
_CONFIRM = Struct(">7xIQBx")  # a whole frame of basic.ack or basic.nack: method, tag and bits of it
_MULTIPLE_ACK = Struct(">BHIIQBB")
_ACK, _NACK, _SELECT_OK = (number << 16 | method for number, method in ((60, 80), (60, 120), (85, 11)))
_A_METHOD, _SIZE, _MULTIPLE, _END = 1, _CONFIRM.size - _FRAME.size - 1, 1, 0xCE

AHEAD = 10_000  # answers beyond one that is missing, many more than are in flight: it may never come


@dataclass(slots=True)
class _Run:
    """Acks of one channel, one behind the other; tag: the highest."""

    channel: int
    tag: int = 0
    bits: int = 0


class Acks:
    """One connection's. Channels count from their confirm.select on."""

    def __init__(self) -> None:
        self._rest = b""  # of a frame whose end is not here yet
        self._answered: dict[int, int] = {}  # by channel: this tag and all below have had their answer
        self._ahead: dict[int, set[int]] = {}  # tags beyond that have, too

    def merged(self, data: bytes) -> bytes:
        """What to read in place of what came."""
        data = self._rest + data if self._rest else data
        out: list[bytes] = []
        copied = at = 0
        run: _Run | None = None
        while len(data) - at >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(data, at)
            end = at + _FRAME.size + size + 1
            if end > len(data):
                break
            if kind == _A_METHOD:
                if size == _SIZE:
                    method, tag, bits = _CONFIRM.unpack_from(data, at)
                    if method == _ACK and self._reaches(channel, tag, bits):
                        if run is None or run.channel != channel:
                            out += _written(run), data[copied:at]
                            run = _Run(channel)
                        # One alone stays what it is; it has no others to speak for.
                        run.bits = _MULTIPLE if run.tag else bits
                        run.tag = max(run.tag, tag)
                        copied = at = end
                        continue
                    if method == _NACK:
                        self._reaches(channel, tag, bits)
                elif size == _METHOD.size and _METHOD.unpack_from(data, at + _FRAME.size)[0] == _SELECT_OK:
                    self._answered[channel], self._ahead[channel] = 0, set()
            if run is not None:
                out.append(_written(run))
                run = None
            at = end
        out += _written(run), data[copied:at]
        self._rest = data[at:]
        return b"".join(out)

    def left(self) -> bytes:
        """What never became a frame."""
        rest, self._rest = self._rest, b""
        return rest

    def _reaches(self, channel: int, tag: int, bits: int) -> bool:
        """Notes the answer. Whether all up to this tag have one now, so that nothing is claimed by saying so."""
        answered = self._answered.get(channel)
        if answered is None:
            return False
        ahead = self._ahead[channel]
        if bits & _MULTIPLE:
            answered = max(answered, tag)
            ahead -= {early for early in ahead if early <= answered}
        elif tag == answered + 1:
            answered = tag
        else:
            ahead.add(tag)
            if len(ahead) > AHEAD:  # nothing of this channel can become fewer frames any more
                del self._answered[channel], self._ahead[channel]
            return False
        while answered + 1 in ahead:
            answered += 1
            ahead.remove(answered)
        self._answered[channel] = answered
        return True


def _written(run: _Run | None) -> bytes:
    return _MULTIPLE_ACK.pack(_A_METHOD, run.channel, _SIZE, _ACK, run.tag, run.bits, _END) if run else b""


class _Reader(asyncio.StreamReader):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._acks = Acks()

    def feed_data(self, data: Any) -> None:
        super().feed_data(self._acks.merged(data))

    def feed_eof(self) -> None:
        if rest := self._acks.left():
            super().feed_data(rest)
        super().feed_eof()


class Transport(TransportFactory):
    """As the library's own, TCP or TLS as the URL says, with that reader."""

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """raises AMQPConnectionError"""
        tls = kwargs.pop("ssl_context_provider")
        loop = asyncio.get_running_loop()
        reader = _Reader(loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            kwargs |= {
                "host": url.host,
                "port": url.port,
                "ssl": await tls.get_context() if url.scheme == "amqps" else None,
            }
            transport, _ = await loop.create_connection(lambda: protocol, **kwargs)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
