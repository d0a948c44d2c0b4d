import asyncio
import logging
import socket
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands
from pamqp.frame import marshal

import topology.apply
from tests.topology.conftest import until
from tests.topology.tcp_proxy import TcpProxy
from topology.apply import (
    BrokerUnavailable,
    Difference,
    DifferenceKind,
    TopologyDiffers,
    apply,
    check,
    definitions,
    diff,
)
from topology.declared import EVENTS, VendorRoutes, lands_in
from topology.declared import topology as declare
from topology.model import Exchange, Queue, Topology

SMALL = declare([VendorRoutes("beds24", ("beds24.#",))], ["notify_cleaner"])


def _names(differences: list[Difference]) -> set[tuple[DifferenceKind, str]]:
    return {(difference.kind, difference.name) for difference in differences}


async def test_apply_creates_everything_once_and_then_nothing(amqp_url: str) -> None:
    missing = {
        *((DifferenceKind.MISSING_EXCHANGE, exchange.name) for exchange in SMALL.exchanges),
        *((DifferenceKind.MISSING_QUEUE, queue.name) for queue in SMALL.queues),
    }
    assert _names(await check(amqp_url, SMALL)) == missing
    assert _names(await diff(amqp_url, SMALL)) == missing

    did = await apply(amqp_url, SMALL)

    assert set(did) == {
        *(f"created exchange {exchange.name}" for exchange in SMALL.exchanges),
        *(f"created queue {queue.name}" for queue in SMALL.queues),
    }
    assert await apply(amqp_url, SMALL) == []
    assert await diff(amqp_url, SMALL) == []
    assert await check(amqp_url, SMALL) == []


async def test_the_broker_routes_as_the_pure_function_says(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    for key in (
        "beds24.booking.modified",
        "notify_cleaner",
        "pms.x",
        "deliver.beds24.pms.x",
        "core.a",
        "nobody.binds",
        "",
    ):
        await channel.basic_publish(b"x", exchange=EVENTS, routing_key=key)
        for queue in SMALL.queues:
            found = (await channel.queue_purge(queue.name)).message_count
            assert found == (queue.name in lands_in(SMALL, key)), (key, queue.name)


async def test_what_is_deleted_is_seen_and_made_again(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    await channel.queue_delete("beds24.dlq")
    await channel.exchange_delete("pms.unroutable")
    gone = {(DifferenceKind.MISSING_QUEUE, "beds24.dlq"), (DifferenceKind.MISSING_EXCHANGE, "pms.unroutable")}
    assert _names(await check(amqp_url, SMALL)) == gone
    assert set(await apply(amqp_url, SMALL)) == {"created queue beds24.dlq", "created exchange pms.unroutable"}
    await channel.basic_publish(b"x", exchange=EVENTS, routing_key="nobody.binds", mandatory=True)
    assert (await channel.queue_declare("pms.unroutable", passive=True)).message_count == 1


async def test_other_arguments_are_reported_in_the_brokers_words_and_never_changed(
    amqp_url: str, channel: AbstractChannel
) -> None:
    wanted = next(queue for queue in SMALL.queues if queue.name == "beds24.inbound")
    await channel.queue_declare(wanted.name, durable=True, arguments={**wanted.arguments, "x-delivery-limit": 7})
    await channel.exchange_declare(EVENTS, exchange_type="direct", durable=True)

    assert (DifferenceKind.MISSING_QUEUE, "beds24.inbound") not in _names(await check(amqp_url, SMALL))
    found = {difference.name: difference for difference in await diff(amqp_url, SMALL)}
    assert found["beds24.inbound"].kind is DifferenceKind.DIFFERING_QUEUE
    assert "x-delivery-limit" in found["beds24.inbound"].detail
    assert found[EVENTS].kind is DifferenceKind.DIFFERING_EXCHANGE

    with pytest.raises(TopologyDiffers, match=r"beds24\.inbound.*\n(.*\n)*.*versioned name") as refused:
        await apply(amqp_url, SMALL)
    assert _names(list(refused.value.differences)) == {
        (DifferenceKind.DIFFERING_QUEUE, "beds24.inbound"),
        (DifferenceKind.DIFFERING_EXCHANGE, EVENTS),
    }
    assert (DifferenceKind.MISSING_QUEUE, "beds24.dlq") in _names(await check(amqp_url, SMALL)), "nothing was done"


async def test_looking_takes_no_message_and_counts_no_return(amqp_url: str, channel: AbstractChannel) -> None:
    await apply(amqp_url, SMALL)
    await channel.basic_publish(b"x", exchange=EVENTS, routing_key="beds24.a", mandatory=True)
    for _ in range(3):
        assert await diff(amqp_url, SMALL) == []
    found = await channel.basic_get("beds24.inbound", no_ack=True)
    assert found.body == b"x"
    assert not found.redelivered


async def test_definitions_describe_the_same_topology(amqp_url: str, channel: AbstractChannel) -> None:
    """Declared from the definitions alone, the broker has nothing that differs, and routes the same."""
    written: dict[str, Any] = definitions(SMALL, "some-vhost")
    for exchange in written["exchanges"]:
        await channel.exchange_declare(
            exchange["name"],
            exchange_type=exchange["type"],
            durable=exchange["durable"],
            arguments=exchange["arguments"],
        )
    for queue in written["queues"]:
        await channel.queue_declare(queue["name"], durable=queue["durable"], arguments=queue["arguments"])
    for binding in written["bindings"]:
        bind = {"queue": channel.queue_bind, "exchange": channel.exchange_bind}[binding["destination_type"]]
        await bind(binding["destination"], binding["source"], binding["routing_key"])
    assert await diff(amqp_url, SMALL) == []
    assert len(written["bindings"]) == len(SMALL.bindings)
    assert {entry["vhost"] for part in written.values() for entry in part} == {"some-vhost"}


async def test_a_queue_that_takes_no_message_is_replaced(
    amqp_url: str, channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken queue declares as if well, and is silent when asked for a message: that answer alone is put in here.

    Making one for real needs a kill -9 of the broker within a second of the declaration.
    """
    await apply(amqp_url, SMALL)
    ask = topology.apply._take_nothing

    def silent_once(queue: Queue) -> Any:
        async def hang(_: AbstractChannel) -> None:
            monkeypatch.setattr(topology.apply, "_take_nothing", ask)
            await asyncio.Event().wait()

        return hang if queue.name == "beds24.inbound" else ask(queue)

    monkeypatch.setattr(topology.apply, "PROBE", 0.5)
    monkeypatch.setattr(topology.apply, "_take_nothing", silent_once)
    assert _names(await diff(amqp_url, SMALL)) == {(DifferenceKind.BROKEN_QUEUE, "beds24.inbound")}

    monkeypatch.setattr(topology.apply, "_take_nothing", silent_once)
    assert await apply(amqp_url, SMALL, replace_broken=False) == ["left broken queue beds24.inbound"]

    monkeypatch.setattr(topology.apply, "_take_nothing", silent_once)
    assert await apply(amqp_url, SMALL) == ["replaced broken queue beds24.inbound"]
    await channel.basic_publish(b"x", exchange=EVENTS, routing_key="beds24.a", mandatory=True)
    assert (await channel.queue_declare("beds24.inbound", passive=True)).message_count == 1


async def test_an_internal_error_closes_the_connection_and_means_a_broken_queue(
    proxied_url: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(proxied_url, SMALL)
    ask = topology.apply._take_nothing

    def fatal(queue: Queue) -> Any:
        async def wait(channel: AbstractChannel) -> None:
            proxy.tell_clients(marshal(commands.Connection.Close(541, "INTERNAL_ERROR", 0, 0), 0))
            await channel.basic_get(queue.name)

        return wait if queue.name == "pms.dlq" else ask(queue)

    monkeypatch.setattr(topology.apply, "_take_nothing", fatal)
    assert [str(found) for found in await diff(proxied_url, SMALL)] == ["broken queue pms.dlq: INTERNAL_ERROR"]


async def test_a_broker_that_is_away_is_a_typed_error_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"amqp://guest:s3cret-word@127.0.0.1:{unused.getsockname()[1]}/v"
        for question in (check, diff, apply):
            with pytest.raises(BrokerUnavailable) as away:
                await question(url, SMALL)
            assert "s3cret-word" not in str(away.value)
    assert "s3cret-word" not in caplog.text


async def test_refused_credentials_do_not_appear_either(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    parts = urlsplit(amqp_url)
    url = f"amqp://nobody:s3cret-word@{parts.hostname}:{parts.port}{parts.path}"
    with pytest.raises(BrokerUnavailable) as away:
        await check(url, SMALL)
    assert "s3cret-word" not in str(away.value)
    assert "s3cret-word" not in caplog.text


async def test_a_virtual_host_that_is_not_there_is_told_in_words(amqp_url: str) -> None:
    url = urlunsplit(urlsplit(amqp_url)._replace(path="/nowhere"))
    for question in (check, diff, apply):
        with pytest.raises(BrokerUnavailable, match=r"/nowhere: .*there is no such virtual host, or .* this user$"):
            await question(url, SMALL)


async def test_a_broker_that_goes_away_in_the_middle_is_the_same_error(proxied_url: str, proxy: TcpProxy) -> None:
    many = Topology(tuple(Exchange(f"x{number}", "direct") for number in range(500)), (), ())
    applying = asyncio.create_task(apply(proxied_url, many))
    await until(lambda: proxy.accepted)
    proxy.cut(refuse=True)
    with pytest.raises(BrokerUnavailable):
        await applying
