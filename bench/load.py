"""The load generator, a process of its own: `python -m bench.load` with its order as JSON on standard input.

Closed loop (rate 0): each connection sends its next request when the answer to the last is there. Open loop: requests are
due at fixed times, and latency counts from when they were due, so that a stall is not hidden by sending less.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson
import uvloop

from . import payloads


@dataclass(frozen=True, slots=True)
class Order:
    """rate in requests a second, 0: as fast as answered; first: number of the first payload"""

    port: int
    path: str
    secret: str
    count: int
    first: int = 0
    connections: int = 64
    rate: float = 0.0
    full: bool = False
    timeout: float = 300.0
    out: str = ""


@dataclass(slots=True)
class Answers:
    """Times are time.time() in seconds, by request."""

    sent: list[float]
    answered: list[float]
    statuses: dict[str, int] = field(default_factory=dict)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._number = -1
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, number: int) -> None:
        self._number = number
        if self._transport is not None:
            self._transport.write(self._load.requests[number])

    def data_received(self, data: bytes) -> None:
        """An answer counts when it is whole: the head may come before the body."""
        self._buffer += data
        head, gap, rest = self._buffer.partition(b"\r\n\r\n")
        if gap and self._number >= 0 and len(rest) >= _content_length(head):
            self._buffer = b""
            number, self._number = self._number, -1
            self._load.answered(self, number, head[9:12].decode())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._number >= 0:
            number, self._number = self._number, -1
            self._load.answered(None, number, "lost")


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class _Load:
    def __init__(self, order: Order) -> None:
        secret = order.secret.encode()
        self.order = order
        self.requests = [
            payloads.request(order.first + n, order.path, secret, full=order.full) for n in range(order.count)
        ]
        self.sent = [0.0] * order.count
        self.times = [0.0] * order.count
        self.statuses: Counter[str] = Counter()
        self.left = order.count
        self.next = 0
        self.idle: deque[_Connection] = deque()
        self.due: deque[int] = deque()
        self.done = asyncio.Event()

    def answered(self, connection: _Connection | None, number: int, status: str) -> None:
        self.times[number] = time.time()
        self.statuses[status] += 1
        self.left -= 1
        if self.left == 0:
            self.done.set()
        elif connection is not None:
            self.feed(connection)

    def feed(self, connection: _Connection) -> None:
        if self.order.rate:
            if self.due:
                connection.send(self.due.popleft())
            else:
                self.idle.append(connection)
        elif self.next < self.order.count:
            number, self.next = self.next, self.next + 1
            self.sent[number] = time.time()
            connection.send(number)

    async def run(self) -> Answers:
        loop, order = asyncio.get_running_loop(), self.order
        made = [
            (await loop.create_connection(lambda: _Connection(self), "127.0.0.1", order.port))[1]
            for _ in range(order.connections)
        ]
        for connection in made:
            self.feed(connection)
        if order.rate:
            begin = time.time() + 0.05
            for number in range(order.count):
                at = begin + number / order.rate
                wait = at - time.time()
                if wait > 0:
                    await asyncio.sleep(wait)
                self.sent[number] = at
                if self.idle:
                    self.idle.popleft().send(number)
                else:
                    self.due.append(number)
        await asyncio.wait_for(self.done.wait(), order.timeout)
        return Answers(self.sent, self.times, dict(self.statuses))


def main() -> None:
    order = Order(**orjson.loads(sys.stdin.buffer.read()))
    answers = uvloop.run(_Load(order).run())
    Path(order.out).write_bytes(orjson.dumps(asdict(answers)))


if __name__ == "__main__":
    main()
