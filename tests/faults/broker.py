"""What befalls RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aio_pika
from aiormq.abc import AbstractChannel

from adapters.registry import adapters
from ops.parts import declared
from ops.stack.rabbitmq import RabbitNode
from schemas.event import CONTENT_TYPE
from simulators import core_pms
from tests.faults.fault import Fault
from topology.apply import apply
from topology.declared import EVENTS, ROUTER_QUEUE, inbound_queue, outbound_queue

if TYPE_CHECKING:
    from tests.faults.ground import Ground
    from tests.faults.load import Load

INBOUND, OUTBOUND = inbound_queue("beds24"), outbound_queue("beds24")
YOUNG = 1.5  # seconds: a quorum queue whose broker is killed within a second of its declaration is lost


async def ctl(ground: Ground, *words: str) -> str:
    node = ground.stack.rabbitmq
    assert isinstance(node, RabbitNode), "these faults need a node of our own, not a container"
    return await asyncio.to_thread(node.ctl, *words)


async def stop_and_start(ground: Ground, load: Load) -> None:
    server = ground.stack.rabbitmq
    assert server is not None
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.start)


async def kill(ground: Ground, load: Load) -> None:
    server = ground.stack.rabbitmq
    assert server is not None
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def app_stopped(ground: Ground, load: Load) -> None:
    """The node lives and refuses, as in an upgrade."""
    await ctl(ground, "stop_app")
    await ctl(ground, "start_app")


async def connections_closed(ground: Ground, load: Load) -> None:
    await ctl(ground, "close_all_connections", "fault suite")


async def one_connection_closed(ground: Ground, load: Load) -> None:
    listed = await ctl(ground, "-q", "list_connections", "pid", "vhost")
    vhost = urlsplit(ground.amqp_url).path.removeprefix("/") or "/"
    pids = [line.split()[0] for line in listed.splitlines() if line.endswith(vhost) and line.startswith("<")]
    for pid in pids[::3]:
        await ctl(ground, "close_connection", pid, "fault suite")


async def channels_killed(ground: Ground, load: Load) -> None:
    """The processes in the broker that are the channels."""
    await ctl(ground, "eval", "[exit(Pid, kill) || Pid <- rabbit_channel:list_local()].")


async def channel_closed_for_its_silence(ground: Ground, load: Load) -> None:
    """A delivery that is not acknowledged in time closes its channel: here after a second, and the vendor takes three."""
    before = (await ctl(ground, "eval", "application:get_env(rabbit, consumer_timeout).")).strip()
    await ctl(ground, "eval", "application:set_env(rabbit, consumer_timeout, 1000).")
    await ctl(ground, "eval", "application:set_env(rabbit, channel_tick_interval, 500).")
    await ctl(ground, "close_all_connections", "fault suite")
    ground.slow("POST /bookings", 3.0, 4)
    await asyncio.sleep(5)
    usual = before.removeprefix("{ok,").removesuffix("}")
    await ctl(ground, "eval", f"application:set_env(rabbit, consumer_timeout, {usual}).")
    await ctl(ground, "eval", "application:set_env(rabbit, channel_tick_interval, 60000).")
    await ctl(ground, "close_all_connections", "fault suite")


async def channel_closed_for_a_missing_exchange(ground: Ground, load: Load) -> None:
    """With the exchange go the bindings of whoever listens, and nobody but the listener can bind again: it does, while all
    are held up, or what is told in between would be told to nobody."""
    async with _channel(ground) as channel:
        await channel.exchange_delete(EVENTS)
        await asyncio.sleep(1)
        ground.amqp.pause()
        try:
            await _apply(ground)
            await channel.queue_bind(core_pms.QUEUE, EVENTS, core_pms.BINDING)
        finally:
            ground.amqp.resume()


async def memory_alarm(ground: Ground, load: Load) -> None:
    await ctl(ground, "set_vm_memory_high_watermark", "0.0000001")
    await asyncio.sleep(2)
    await ctl(ground, "set_vm_memory_high_watermark", "0.3")


async def disk_alarm(ground: Ground, load: Load) -> None:
    await ctl(ground, "set_disk_free_limit", "900000000000000")
    await asyncio.sleep(2)
    await ctl(ground, "set_disk_free_limit", "200MB")


def queue_deleted(queue: str) -> Callable[[Ground, Load], Awaitable[None]]:
    """The broker cancels its consumers; `topology apply` declares it anew."""

    async def act(ground: Ground, load: Load) -> None:
        async with _channel(ground) as channel:
            await channel.queue_delete(queue)
        await asyncio.sleep(0.5)
        await _apply(ground)
        await asyncio.sleep(YOUNG)

    return act


def queue_purged(queue: str) -> Callable[[Ground, Load], Awaitable[None]]:
    async def act(ground: Ground, load: Load) -> None:
        for _ in range(20):
            async with _channel(ground) as channel:
                await channel.queue_purge(queue)
            await asyncio.sleep(0.05)

    return act


async def queue_full(ground: Ground, load: Load) -> None:
    """It refuses what is published."""
    vhost = urlsplit(ground.amqp_url).path.removeprefix("/") or "/"
    await ctl(
        ground,
        "set_policy",
        "-p",
        vhost,
        "full",
        f"^({INBOUND}|{OUTBOUND})$",
        '{"max-length": 0}',
        "--apply-to",
        "queues",
    )
    await asyncio.sleep(2)
    await ctl(ground, "clear_policy", "-p", vhost, "full")


async def unroutable(ground: Ground, load: Load) -> None:
    await ground.publish(EVENTS, "nobody.binds.this", b"{}", CONTENT_TYPE)


async def network_cut(ground: Ground, load: Load) -> None:
    for _ in range(3):
        ground.amqp.cut()
        await asyncio.sleep(0.5)


async def network_refuses(ground: Ground, load: Load) -> None:
    ground.amqp.cut(refuse=True)
    await asyncio.sleep(2)
    ground.amqp.accept()


async def network_silent(ground: Ground, load: Load) -> None:
    ground.amqp.pause()
    await asyncio.sleep(3)
    ground.amqp.resume()


async def network_silent_for_longer_than_a_confirm_may_take(ground: Ground, load: Load) -> None:
    ground.amqp.pause()
    await asyncio.sleep(13)
    ground.amqp.resume()


class _channel:  # noqa: N801 - used like a function
    """The test's own channel, past the proxy."""

    def __init__(self, ground: Ground) -> None:
        self._url = ground.amqp_url

    async def __aenter__(self) -> AbstractChannel:
        self._connection = await aio_pika.connect(self._url)
        channel = await self._connection.channel()
        return await channel.get_underlay_channel()

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def _apply(ground: Ground) -> None:
    await apply(ground.amqp_url, declared(adapters()))


FAULTS = (
    Fault("broker", "stop-start", stop_and_start),
    Fault("broker", "kill", kill),
    Fault("broker", "app-stopped", app_stopped),
    Fault("broker", "connections-closed", connections_closed),
    Fault("broker", "some-connections-closed", one_connection_closed),
    Fault("broker", "channels-killed", channels_killed),
    Fault("broker", "channel-timeout", channel_closed_for_its_silence),
    Fault("broker", "exchange-deleted", channel_closed_for_a_missing_exchange, unroutable=None, exchange=False),
    Fault("broker", "memory-alarm", memory_alarm),
    Fault("broker", "disk-alarm", disk_alarm),
    Fault("broker", "inbound-queue-deleted", queue_deleted(INBOUND), unroutable=None),
    Fault("broker", "outbound-queue-deleted", queue_deleted(OUTBOUND), unroutable=None),
    Fault("broker", "router-queue-deleted", queue_deleted(ROUTER_QUEUE), unroutable=None, exchange=False),
    Fault("broker", "inbound-queue-purged", queue_purged(INBOUND)),
    Fault("broker", "outbound-queue-purged", queue_purged(OUTBOUND)),
    Fault("broker", "queue-full", queue_full),
    Fault("broker", "unroutable", unroutable, unroutable=1),
    Fault("broker", "network-cut", network_cut),
    Fault("broker", "network-refuses", network_refuses),
    Fault("broker", "network-silent", network_silent),
    Fault("broker", "network-silent-long", network_silent_for_longer_than_a_confirm_may_take),
)
