"""A fresh vhost for every test, and what the tests of publisher and consumer share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest
from aiormq.abc import AbstractChannel

from tests.topology.tcp_proxy import TcpProxy
from topology.consumer import Incoming


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[TcpProxy]:
    parts = urlsplit(amqp_url)
    async with TcpProxy(parts.hostname or "", parts.port or 5672) as proxy:
        yield proxy


@pytest.fixture
def proxied_url(amqp_url: str, proxy: TcpProxy) -> str:
    parts = urlsplit(amqp_url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}"))


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """The test's own channel to the broker, past everything under test."""
    connection = await aio_pika.connect(amqp_url)
    pika_channel = await connection.channel()
    yield await pika_channel.get_underlay_channel()
    await connection.close()


async def until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def ready_in(channel: AbstractChannel, queue: str) -> int:
    """Messages ready for delivery; a passive declare is current, other counts lag."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def until_ready(channel: AbstractChannel, queue: str, count: int, timeout: float = 10) -> None:
    async with asyncio.timeout(timeout):
        while await ready_in(channel, queue) != count:
            await asyncio.sleep(0.02)


class Inbox:
    """A handler that only keeps what it is handed."""

    def __init__(self) -> None:
        self.all: list[Incoming] = []
        self._new: asyncio.Queue[Incoming] = asyncio.Queue()

    def __call__(self, incoming: Incoming) -> None:
        self.all.append(incoming)
        self._new.put_nowait(incoming)

    async def next(self, timeout: float = 15) -> Incoming:
        async with asyncio.timeout(timeout):
            return await self._new.get()

    async def take(self, count: int) -> list[Incoming]:
        return [await self.next() for _ in range(count)]
