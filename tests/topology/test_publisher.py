import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiormq import Channel
from aiormq.abc import AbstractChannel
from pamqp import commands
from pamqp.frame import marshal

from tests.topology.conftest import ready_in, until
from tests.topology.tcp_proxy import TcpProxy
from topology.apply import apply
from topology.burst import Outgoing
from topology.declared import EVENTS, VendorRoutes
from topology.declared import topology as declare
from topology.link import LinkState
from topology.publisher import FaultKind, Publisher

SMALL = declare([VendorRoutes("beds24", ("beds24.#",))])
JSON = "application/cloudevents+json"


def _message(key: str = "beds24.booking.modified", body: bytes = b"{}", **more: Any) -> Outgoing:
    return Outgoing(key, body, JSON, **more)


def _kinds(faults: list[Any]) -> list[FaultKind | None]:
    return [fault and fault.kind for fault in faults]


@asynccontextmanager
async def _publisher(url: str, **more: Any) -> AsyncIterator[Publisher]:
    publisher = Publisher(url, name="test publisher", backoff=lambda _: 0.05, **more)
    await publisher.start(wait=10)
    try:
        yield publisher
    finally:
        await publisher.stop()


async def test_confirmed_messages_are_in_the_queue_as_they_should_be(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    async with _publisher(amqp_url) as publisher:
        assert publisher.ready
        one = _message(body=b"1", correlation_id="an-id", headers={"h": "v"})
        assert await publisher.publish_all([one, _message(body=b"2", type="given")]) == [None, None]
        assert await publisher.publish_all([_message(body=b"3")]) == [None]
        assert await publisher.publish_all([]) == []
    found = {}
    for _ in range(3):
        message = await channel.basic_get("beds24.inbound", no_ack=True)
        found[message.body] = message.header.properties
    assert found[b"1"].message_type == "beds24.booking.modified"
    assert found[b"2"].message_type == "given"
    assert (found[b"1"].correlation_id, found[b"1"].headers["h"]) == ("an-id", "v")
    assert {(properties.delivery_mode, properties.content_type) for properties in found.values()} == {(2, JSON)}
    assert len({properties.message_id for properties in found.values()}) == 3


async def test_a_key_that_nobody_binds_is_kept(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    async with _publisher(amqp_url) as publisher:
        assert await publisher.publish_all([_message("nobody.binds")]) == [None]
    assert (await channel.queue_declare("pms.unroutable", passive=True)).message_count == 1


async def test_what_nobody_need_hear_is_confirmed_though_nobody_listens(
    amqp_url: str, channel: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    async with _publisher(amqp_url) as publisher:
        unheard = [_message("core.a", mandatory=mandatory) for mandatory in (False, True)]
        assert _kinds(await publisher.publish_all(unheard)) == [None, FaultKind.UNROUTABLE]
    assert await ready_in(channel, "pms.unroutable") == 0


async def test_results_are_each_messages_own_and_in_order(amqp_url: str, channel: AbstractChannel) -> None:
    """No alternate exchange here, one queue that is full, and keys that do not fit: only those fail."""
    await channel.exchange_declare("bare", exchange_type="topic", durable=True)
    for name, arguments in (("full", {"x-max-length": 1, "x-overflow": "reject-publish"}), ("wide", {})):
        await channel.queue_declare(name, durable=True, arguments=arguments)
        await channel.queue_bind(name, "bare", name)
    async with _publisher(amqp_url, exchange="bare", in_flight=3) as publisher:
        assert await publisher.publish_all([_message("full")]) == [None]
        keys = ["wide", "nobody", "full", "k" * 256, "wide", "nobody"] * 5
        faults = await publisher.publish_all([_message(key) for key in keys])
        expected = [None, FaultKind.UNROUTABLE, FaultKind.REFUSED, FaultKind.INVALID, None, FaultKind.UNROUTABLE] * 5
        assert _kinds(faults) == expected
        assert publisher.ready


async def test_a_missing_exchange_is_a_fault_and_the_publisher_recovers(
    amqp_url: str, channel: AbstractChannel
) -> None:
    async with _publisher(amqp_url) as publisher:
        assert set(_kinds(await publisher.publish_all([_message()] * 5))) <= {FaultKind.LOST, FaultKind.NOT_CONNECTED}
        await apply(amqp_url, SMALL)
        await until(lambda: publisher.ready)
        assert await publisher.publish_all([_message()]) == [None]


async def test_away_from_the_beginning_it_refuses_at_once_and_connects_later(proxied_url: str, proxy: TcpProxy) -> None:
    proxy.cut(refuse=True)
    states: list[LinkState] = []
    publisher = Publisher(proxied_url, name="test", backoff=lambda _: 0.05, on_state=states.append)
    await publisher.start()
    try:
        assert not publisher.ready
        assert _kinds(await publisher.publish_all([_message()] * 2)) == [FaultKind.NOT_CONNECTED] * 2
        proxy.accept()
        await apply(proxied_url, SMALL)
        await until(lambda: publisher.ready)
        assert await publisher.publish_all([_message()]) == [None]
        await until(lambda: states == [LinkState.UP])
    finally:
        await publisher.stop()
    assert states == [LinkState.UP, LinkState.DOWN]


async def test_a_connection_cut_with_confirms_pending_fails_those_and_comes_back(
    proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(proxied_url, SMALL)
    async with _publisher(proxied_url) as publisher:
        proxy.pause()
        pending = asyncio.create_task(publisher.publish_all([_message(body=b"%d" % n) for n in range(300)]))
        await until(publisher._slots.locked)
        proxy.cut()
        async with asyncio.timeout(5):
            faults = await pending
        assert set(_kinds(faults)) == {FaultKind.LOST, FaultKind.NOT_CONNECTED}
        proxy.resume()
        await until(lambda: publisher.ready)
        assert await publisher.publish_all([_message()] * 10) == [None] * 10
    assert (await channel.queue_declare("beds24.inbound", passive=True)).message_count == 10


async def test_every_confirmed_message_is_there_through_many_cuts(
    proxied_url: str, proxy: TcpProxy, channel: AbstractChannel
) -> None:
    await apply(proxied_url, SMALL)
    confirmed: set[bytes] = set()
    async with _publisher(proxied_url) as publisher:
        for turn in range(8):
            await until(lambda: publisher.ready)
            bodies = [b"%d-%d" % (turn, n) for n in range(400)]
            publishing = asyncio.create_task(publisher.publish_all([_message(body=body) for body in bodies]))
            before = len(confirmed)
            await asyncio.sleep(0.002 * turn)  # a different moment each time
            proxy.cut()
            faults = await publishing
            confirmed |= {body for body, fault in zip(bodies, faults, strict=True) if fault is None}
            assert len(confirmed) >= before
        while await publisher.publish_all([_message(body=b"last")]) != [None]:  # the last cut may not be noticed yet
            await until(lambda: publisher.ready)
    found = set()
    while (message := await channel.basic_get("beds24.inbound", no_ack=True)).delivery_tag is not None:
        found.add(message.body)
    assert confirmed <= found


async def test_silence_is_a_timeout_and_then_another_connection(proxied_url: str, proxy: TcpProxy) -> None:
    await apply(proxied_url, SMALL)
    async with _publisher(proxied_url, confirm_timeout=0.3) as publisher:
        accepted = proxy.accepted
        proxy.pause()
        assert _kinds(await publisher.publish_all([_message()])) == [FaultKind.TIMEOUT]
        assert _kinds(await publisher.publish_all([_message()])) == [FaultKind.NOT_CONNECTED]
        proxy.resume()
        await until(lambda: publisher.ready)
        assert proxy.accepted > accepted
        assert await publisher.publish_all([_message()]) == [None]


async def test_a_channel_with_very_many_that_are_never_answered_is_given_up(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands for them would stay for as long as the connection lives."""
    await apply(amqp_url, SMALL)
    monkeypatch.setattr("topology.publisher.UNANSWERED", 3)
    confirm = Channel._confirm_delivery
    monkeypatch.setattr(
        Channel, "_confirm_delivery", lambda self, tag, frame: tag % 2 == 0 and confirm(self, tag, frame)
    )
    states: list[LinkState] = []
    async with _publisher(amqp_url, confirm_timeout=0.2, on_state=states.append) as publisher:
        for _ in range(4):
            assert states == [LinkState.UP]
            assert _kinds(await publisher.publish_all([_message()] * 2)) == [FaultKind.TIMEOUT, None]
        await until(lambda: states == [LinkState.UP, LinkState.DOWN, LinkState.UP])
        assert _kinds(await publisher.publish_all([_message()] * 2)) == [FaultKind.TIMEOUT, None]


async def test_blocked_refuses_at_once_and_unblocked_publishes(proxied_url: str, proxy: TcpProxy) -> None:
    await apply(proxied_url, SMALL)
    states: list[LinkState] = []
    async with _publisher(proxied_url, on_state=states.append) as publisher:
        proxy.tell_clients(marshal(commands.Connection.Blocked("low on memory"), 0))
        await until(lambda: publisher.blocked)
        assert not publisher.ready
        assert _kinds(await publisher.publish_all([_message()])) == [FaultKind.BLOCKED]
        await until(lambda: states[-1:] == [LinkState.BLOCKED])
        proxy.tell_clients(marshal(commands.Connection.Unblocked(), 0))
        await until(lambda: publisher.ready)
        assert await publisher.publish_all([_message()]) == [None]
        await until(lambda: states[-1:] == [LinkState.UP])


@pytest.mark.parametrize("count", [1, 5])
async def test_a_cancelled_caller_is_cancelled_and_nothing_else(proxied_url: str, proxy: TcpProxy, count: int) -> None:
    await apply(proxied_url, SMALL)
    async with _publisher(proxied_url) as publisher:
        proxy.pause()
        other = asyncio.create_task(publisher.publish_all([_message()]))
        pending = asyncio.create_task(publisher.publish_all([_message()] * count))
        await until(lambda: publisher._slots._value == 200 - 1 - count)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        proxy.resume()
        assert await other == [None]
        assert await publisher.publish_all([_message()]) == [None]


async def test_stop_lets_what_is_in_flight_be_confirmed(proxied_url: str, proxy: TcpProxy) -> None:
    await apply(proxied_url, SMALL)
    async with _publisher(proxied_url) as publisher:
        proxy.pause()
        pending = asyncio.create_task(publisher.publish_all([_message()] * 20))
        await until(lambda: publisher._slots._value == 180)
        stopping = asyncio.create_task(publisher.stop())
        await until(lambda: not publisher.ready)
        assert _kinds(await publisher.publish_all([_message()])) == [FaultKind.NOT_CONNECTED]
        proxy.resume()
        await stopping
        assert await pending == [None] * 20


async def test_the_password_is_in_no_log(proxied_url: str, proxy: TcpProxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = proxied_url.replace("guest:guest@", "guest:s3cret-word@")
    publisher = Publisher(url, name="test", backoff=lambda _: 0.05)
    await publisher.start()
    await until(lambda: proxy.accepted >= 2)
    await publisher.stop()
    assert "no link to" in caplog.text
    assert "s3cret-word" not in caplog.text
    assert EVENTS not in caplog.text


async def test_operators_see_the_name(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with _publisher(amqp_url) as publisher:
        connection = publisher._link._connection
        assert connection is not None
        assert connection.transport is not None
        raw: Any = connection.transport.connection
        assert raw._client_properties(**raw._Connection__client_properties)["connection_name"] == "test publisher"


def test_a_private_authority_needs_its_file() -> None:
    with pytest.raises(OSError, match="No such file"):
        Publisher("amqps://localhost", name="test", ca_file="/nowhere/ca.pem")
