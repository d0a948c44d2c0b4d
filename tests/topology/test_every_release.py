"""What staybus leans on and brokers differ in: the same on RabbitMQ 3.10, 4.0 and 4.3."""

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import httpx
import pytest
from aiormq.abc import AbstractChannel

from tests.topology.conftest import Inbox, until, until_ready
from tests.topology.tcp_proxy import TcpProxy
from topology.apply import NotPermitted, apply, check, diff
from topology.consumer import Consumer
from topology.declared import EVENTS, ROUTER_QUEUE, VendorRoutes
from topology.declared import topology as declare

if TYPE_CHECKING:
    from ops.stack.local import Stack

SMALL = declare([VendorRoutes("beds24", ("beds24.#",))])


@pytest.fixture
def worker_url(stack: "Stack", amqp_url: str) -> Iterator[str]:
    """A user who may read everything, write to one exchange and configure nothing."""
    parts = urlsplit(amqp_url)
    user = f"worker-{secrets.token_hex(4)}"
    rights = {"configure": "^$", "write": r"^pms\.events$", "read": ".*"}
    with httpx.Client(base_url=stack.amqp_admin_url or "", trust_env=False) as admin:
        admin.put(f"/users/{user}", json={"password": "word", "tags": ""}).raise_for_status()
        admin.put(f"/permissions/{parts.path[1:]}/{user}", json=rights).raise_for_status()
        yield urlunsplit(parts._replace(netloc=f"{user}:word@{parts.hostname}:{parts.port}"))
        admin.delete(f"/users/{user}").raise_for_status()


async def test_a_process_needs_no_more_than_to_read_and_to_write_to_one_exchange(
    amqp_url: str, worker_url: str, channel: AbstractChannel
) -> None:
    """4.3 answers a passive declare only to who has some right on that queue or exchange; to read is enough."""
    await apply(amqp_url, SMALL)
    assert await check(worker_url, SMALL) == []
    with pytest.raises(NotPermitted):
        await diff(worker_url, SMALL)
    inbox = Inbox()
    consumer = Consumer(worker_url, "beds24.inbound", inbox, prefetch=5, name="test")
    await consumer.start(5)
    async with await aio_pika.connect(worker_url) as connection:
        events = await (await connection.channel()).get_exchange(EVENTS, ensure=False)
        await events.publish(aio_pika.Message(b"x"), "beds24.a")
    consumer.settle(await inbox.next())
    await consumer.stop()
    await until_ready(channel, "beds24.inbound", 0)


async def test_one_consumer_at_a_time_has_the_routers_queue_and_the_next_goes_on_in_order(
    amqp_url: str, proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    first, second = Inbox(), Inbox()
    active = Consumer(proxied_url, ROUTER_QUEUE, first, prefetch=10, name="active")
    await active.start(5)
    waiting = Consumer(amqp_url, ROUTER_QUEUE, second, prefetch=10, name="waiting")
    await waiting.start(5)
    assert waiting.consuming
    for number in range(5):
        await channel.basic_publish(b"%d" % number, exchange=EVENTS, routing_key="pms.a", mandatory=True)
    taken = await first.take(5)
    active.settle(taken[0])
    await until(lambda: active.in_hand == 4)
    assert second.all == []
    assert await diff(amqp_url, SMALL) == []

    proxy.cut(refuse=True)

    assert [incoming.body for incoming in await second.take(4)] == [b"1", b"2", b"3", b"4"]
    assert {incoming.delivery_count for incoming in second.all} == {1}
    for incoming in second.all:
        waiting.settle(incoming)
    await until_ready(channel, ROUTER_QUEUE, 0)
    await waiting.stop()
    await active.stop()
