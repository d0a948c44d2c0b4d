"""Queue lengths, asked over one connection that is kept."""

import gc

import pytest
from aiormq.abc import AbstractChannel

from tests.topology.conftest import until, until_ready
from tests.topology.tcp_proxy import TcpProxy
from topology.depth import Depths
from topology.link import is_open


async def test_missing_queues_are_left_out_and_the_connection_is_kept(
    channel: AbstractChannel, proxied_url: str, proxy: TcpProxy
) -> None:
    await channel.queue_declare("long", durable=True)
    await channel.queue_declare("empty", durable=True)
    for _ in range(3):
        await channel.basic_publish(b"", routing_key="long")
    await until_ready(channel, "long", 3)
    async with Depths(proxied_url, name="test") as depths:
        for _ in range(3):
            assert await depths.ask(["long", "gone", "empty", "gone too"]) == {"long": 3, "empty": 0}
        assert await depths.ask([]) == {}
    assert proxy.accepted == 1


async def test_a_broker_that_goes_away_is_an_oserror_and_comes_back(
    channel: AbstractChannel, proxied_url: str, proxy: TcpProxy
) -> None:
    await channel.queue_declare("empty", durable=True)
    async with Depths(proxied_url, name="test") as depths:
        assert await depths.ask(["empty"]) == {"empty": 0}
        proxy.cut(refuse=True)
        for _ in range(2):
            with pytest.raises(OSError, match=r"."):
                await depths.ask(["empty"])
        proxy.accept()
        assert await depths.ask(["empty"]) == {"empty": 0}
    gc.collect()  # a connection that was not closed complains now


async def test_a_connection_lost_between_two_questions_costs_neither(
    channel: AbstractChannel, proxied_url: str, proxy: TcpProxy
) -> None:
    await channel.queue_declare("empty", durable=True)
    async with Depths(proxied_url, name="test") as depths:
        assert await depths.ask(["empty"]) == {"empty": 0}
        kept = depths._connection
        assert kept is not None
        proxy.cut()
        await until(lambda: not is_open(kept))
        assert await depths.ask(["empty"]) == {"empty": 0}


async def test_who_does_not_answer_is_not_waited_for(
    channel: AbstractChannel, proxied_url: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await channel.queue_declare("empty", durable=True)
    async with Depths(proxied_url, name="test") as depths:
        assert await depths.ask(["empty"]) == {"empty": 0}
        monkeypatch.setattr("topology.depth.ANSWER", 0.2)
        proxy.pause()
        with pytest.raises(TimeoutError):
            await depths.ask(["empty"])
        proxy.resume()
        monkeypatch.undo()
        assert await depths.ask(["empty"]) == {"empty": 0}
