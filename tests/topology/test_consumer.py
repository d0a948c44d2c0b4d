import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiormq.abc import AbstractChannel

from tests.topology.conftest import Inbox, ready_in, until, until_ready
from tests.topology.odd_frames import give_up
from tests.topology.tcp_proxy import TcpProxy
from topology.apply import apply
from topology.consumer import Consumer, Incoming
from topology.declared import EVENTS, VendorRoutes
from topology.declared import topology as declare

SMALL = declare([VendorRoutes("beds24", ("beds24.#",))])
QUEUE = "beds24.inbound"
KEY = "beds24.booking.modified"


async def _publish(channel: AbstractChannel, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await channel.basic_publish(b"%d" % number, exchange=EVENTS, routing_key=KEY, mandatory=True)


@asynccontextmanager
async def _consumer(url: str, inbox: Any, **more: Any) -> AsyncIterator[Consumer]:
    more = {"prefetch": 50, "name": "test consumer", "backoff": lambda _: 0.05, **more}
    consumer = Consumer(url, QUEUE, inbox, **more)
    await consumer.start(wait=10)
    try:
        yield consumer
    finally:
        await consumer.stop()


async def test_deliveries_carry_what_was_published_and_settled_ones_are_gone(
    amqp_url: str, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox) as consumer:
        assert consumer.consuming
        await _publish(channel, 3)
        taken = await inbox.take(3)
        assert [incoming.body for incoming in taken] == [b"0", b"1", b"2"]
        assert {(incoming.routing_key, incoming.redelivered, incoming.delivery_count or 0) for incoming in taken} == {
            (KEY, False, 0)
        }
        assert consumer.in_hand == 3
        for incoming in taken:
            consumer.settle(incoming)
        assert consumer.in_hand == 0
    assert not consumer.consuming
    await until_ready(channel, QUEUE, 0)


async def test_the_window_is_refilled_though_the_oldest_delivery_is_slow(
    amqp_url: str, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox, prefetch=5) as consumer:
        await _publish(channel, 25)
        slow = await inbox.next()
        for _ in range(24):
            consumer.settle(await inbox.next(timeout=5))
        assert consumer.in_hand == 1
        consumer.settle(slow)
    await until_ready(channel, QUEUE, 0)


async def test_out_of_order_settling_by_many_tasks_acks_everything_once(
    amqp_url: str, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox, prefetch=100) as consumer:
        await _publish(channel, 500)
        for _ in range(5):
            taken = await inbox.take(100)
            for incoming in sorted(taken, key=lambda one: (one.tag * 7919) % 101):
                consumer.settle(incoming)
                await asyncio.sleep(0)
        assert consumer.consuming, "a wrong tag would have closed the channel"
    assert len(inbox.all) == 500
    assert await ready_in(channel, QUEUE) == 0


async def test_redeliveries_are_counted(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox) as consumer:
        await _publish(channel, 1)
        first = await inbox.next()
        consumer.give_back(first)
        second = await inbox.next()
        assert second.redelivered
        consumer.give_back(second)
        third = await inbox.next()
        assert (second.delivery_count, third.delivery_count) == (1, 2)
        consumer.settle(third)
    await until_ready(channel, QUEUE, 0)


async def test_what_the_broker_gives_up_reaches_the_dead_letters_of_the_vendor(
    amqp_url: str, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    await _publish(channel, 5)
    for _ in range(5):
        await give_up(channel, QUEUE)
    await until_ready(channel, "beds24.dlq", 5)
    dead = await channel.basic_get("beds24.dlq", no_ack=True)
    facts: Any = (dead.header.properties.headers or {})["x-death"]
    assert (facts[0]["queue"], facts[0]["reason"]) == (QUEUE, "rejected")


async def test_it_consumes_again_once_a_deleted_queue_is_back(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    lost = asyncio.Event()
    async with _consumer(amqp_url, inbox, on_lost=lost.set) as consumer:
        await _publish(channel, 1)
        old = await inbox.next()
        await channel.queue_delete(QUEUE)
        await asyncio.wait_for(lost.wait(), 10)
        assert not consumer.consuming
        await apply(amqp_url, SMALL)
        await until(lambda: consumer.consuming)
        await _publish(channel, 1, first=1)
        new = await inbox.next()
        assert new.body == b"1"
        assert new.generation > old.generation
        consumer.settle(old)
        assert consumer.in_hand == 1, "a verdict on a delivery of a lost channel changes nothing"
        consumer.settle(new)
    await until_ready(channel, QUEUE, 0)


async def test_a_queue_that_is_missing_at_the_start_is_consumed_once_it_is_declared(amqp_url: str) -> None:
    inbox = Inbox()
    losses: list[int] = []
    consumer = Consumer(
        amqp_url, QUEUE, inbox, prefetch=5, name="test", backoff=lambda _: 0.05, on_lost=lambda: losses.append(1)
    )
    await consumer.start(wait=0.3)
    assert not consumer.consuming
    await apply(amqp_url, SMALL)
    await until(lambda: consumer.consuming)
    assert not losses
    await consumer.stop()


async def test_deliveries_of_a_cut_connection_come_again_and_their_old_verdicts_do_nothing(
    proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(proxied_url, SMALL)
    inbox = Inbox()
    async with _consumer(proxied_url, inbox) as consumer:
        await _publish(channel, 20)
        old = await inbox.take(20)
        proxy.cut()
        for incoming in old[:5]:
            consumer.settle(incoming)
        again = await inbox.take(20)
        assert {incoming.body for incoming in again} == {incoming.body for incoming in old}
        assert all(incoming.redelivered for incoming in again)
        for incoming in old:
            consumer.give_back(incoming)
        assert consumer.in_hand == 20
        for incoming in again:
            consumer.settle(incoming)
    assert await ready_in(channel, QUEUE) == 0
    assert len(inbox.all) == 40


async def test_nothing_is_lost_through_many_cuts(proxied_url: str, proxy: TcpProxy, channel: AbstractChannel) -> None:
    await apply(proxied_url, SMALL)
    done: set[bytes] = set()
    consumer: Consumer

    def work(incoming: Incoming) -> None:
        done.add(incoming.body)
        consumer.settle(incoming)

    async with _consumer(proxied_url, work, prefetch=20) as consumer:
        for turn in range(6):
            await _publish(channel, 50, first=turn * 50)
            proxy.cut()
            await until(lambda: consumer.consuming)
        await until(lambda: len(done) == 300)


async def test_a_network_that_goes_silent_and_returns_needs_nothing(
    proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(proxied_url, SMALL)
    inbox = Inbox()
    async with _consumer(proxied_url, inbox) as consumer:
        proxy.pause()
        await _publish(channel, 5)
        proxy.resume()
        for incoming in await inbox.take(5):
            consumer.settle(incoming)
        assert proxy.accepted == 2, "apply's connection and one of the consumer"
    await until_ready(channel, QUEUE, 0)


async def test_paused_it_takes_nothing_keeps_what_it_has_and_resumes(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox) as consumer:
        await _publish(channel, 2)
        first, second = await inbox.take(2)
        await consumer.pause()
        assert not consumer.consuming
        assert consumer.connected
        await _publish(channel, 3, first=2)
        await until_ready(channel, QUEUE, 3)
        consumer.settle(first)
        consumer.give_back(second)
        await until_ready(channel, QUEUE, 4)
        assert len(inbox.all) == 2
        await consumer.resume()
        assert consumer.consuming
        for incoming in await inbox.take(4):
            consumer.settle(incoming)
    await until_ready(channel, QUEUE, 0)


async def test_paused_it_stays_so_over_a_lost_connection(
    proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(proxied_url, SMALL)
    inbox = Inbox()
    async with _consumer(proxied_url, inbox) as consumer:
        await consumer.pause()
        accepted = proxy.accepted
        proxy.cut()
        await until(lambda: proxy.accepted > accepted and consumer.connected)
        assert not consumer.consuming
        await _publish(channel, 1)
        await consumer.resume()
        consumer.settle(await inbox.next())


async def test_a_handler_that_raises_gives_its_delivery_back(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()

    def careless(incoming: Incoming) -> None:
        if not incoming.redelivered:
            raise LookupError("a bug")
        inbox(incoming)

    async with _consumer(amqp_url, careless) as consumer:
        await _publish(channel, 1)
        consumer.settle(await inbox.next())
    await until_ready(channel, QUEUE, 0)


async def test_a_delivery_is_settled_once_whatever_is_said_later(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox) as consumer:
        await _publish(channel, 2)
        first, second = await inbox.take(2)
        for _ in range(2):
            consumer.settle(first)
            consumer.give_back(first)
        consumer.settle(second)
        await _publish(channel, 1, first=2)
        consumer.settle(await inbox.next())
        assert consumer.consuming
    assert await ready_in(channel, QUEUE) == 0


async def test_stop_under_load_loses_nothing_and_repeats_nothing_that_was_done(
    amqp_url: str, channel: AbstractChannel
) -> None:
    """Ten workers one after the other on one queue, each stopped in the middle of its work."""
    await apply(amqp_url, SMALL)
    await _publish(channel, 400)
    done: list[bytes] = []
    for _ in range(10):
        inbox = Inbox()
        async with _consumer(amqp_url, inbox, prefetch=40) as consumer:
            for incoming in await inbox.take(20):
                done.append(incoming.body)
                consumer.settle(incoming)
            await consumer.stop_consuming()
            taken = len(inbox.all)
            in_hand = inbox.all[20:25]
            for incoming in in_hand:
                done.append(incoming.body)
                consumer.settle(incoming)
            assert len(inbox.all) == taken, "nothing is delivered after stop_consuming"
    assert len(set(done)) == len(done), "what was settled before the stop is never delivered again"
    await until_ready(channel, QUEUE, 400 - len(done))


async def test_no_ack_of_a_scattered_window_is_lost_by_the_close_that_follows(
    amqp_url: str, channel: AbstractChannel
) -> None:
    """Every second delivery of a large window settled in the last moment: far more frames than the broker takes at once."""
    await apply(amqp_url, SMALL)
    await _publish(channel, 300)
    inbox = Inbox()
    async with _consumer(amqp_url, inbox, prefetch=300) as consumer:
        taken = await inbox.take(300)
        await consumer.stop_consuming()
        for incoming in taken[1::2]:
            consumer.settle(incoming)
    await until_ready(channel, QUEUE, 150)
    left = {(await channel.basic_get(QUEUE, no_ack=True)).body for _ in range(150)}
    assert left == {incoming.body for incoming in taken[0::2]}


async def test_stop_while_the_broker_is_away_ends(proxied_url: str, proxy: TcpProxy) -> None:
    await apply(proxied_url, SMALL)
    consumer = Consumer(proxied_url, QUEUE, Inbox(), prefetch=5, name="test")
    await consumer.start(wait=10)
    proxy.cut(refuse=True)
    async with asyncio.timeout(15):
        await consumer.stop()
    await consumer.stop()
    assert not consumer.consuming


async def test_stop_before_start_is_harmless(amqp_url: str) -> None:
    await Consumer(amqp_url, QUEUE, Inbox(), prefetch=5, name="test").stop()
