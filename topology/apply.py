"""Compare the broker with the declared topology, and make it so.

    check   passive questions only, so any worker may ask: what is missing?
    diff    needs the configure permission: what is missing, what differs, what is broken? Changes nothing.
    apply   declares what is missing, replaces what is broken, binds everything; safe to repeat; never changes what differs

Arguments can only be compared by declaring again, and a difference closes the channel: so each question has its own. Bindings
cannot be asked for at all over AMQP: `apply` makes all of them each time, and neither sees nor removes others.

Errors (TopologyError):
    BrokerUnavailable   nothing is known: not reached, refused us, or went away in the middle
    NotPermitted        this user may not configure
    TopologyDiffers     an exchange or queue exists with other arguments; nothing was changed
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionInternalError,
)

from topology.link import connect, disconnect, is_open, losses_as_errors, tls_context, where
from topology.model import Exchange, Queue, Topology

T = TypeVar("T")
Question = Callable[[AbstractChannel], Awaitable[T]]

ANSWER = 30.0
"""Seconds for an ordinary answer; deleting a broken quorum queue takes 5."""

PROBE = 10.0
"""Seconds in which a working quorum queue says that it is empty. One that came up broken stays silent for 65, then answers
INTERNAL_ERROR; one that only elects its leader after a restart is there within two."""


class TopologyError(Exception):
    pass


class BrokerUnavailable(TopologyError):  # noqa: N818 - named for what it means to the caller, as in the tree above
    pass


class NotPermitted(TopologyError):  # noqa: N818
    pass


class TopologyDiffers(TopologyError):  # noqa: N818
    """What exists has other arguments than declared, and the broker cannot change them in place."""

    def __init__(self, differences: Iterable["Difference"]) -> None:
        self.differences = tuple(differences)
        super().__init__(
            "\n".join(
                [
                    "the broker has other arguments than declared, and they cannot be changed in place:",
                    *(f"  {difference}" for difference in self.differences),
                    "Replace a queue under a versioned name (beds24.inbound.v2): declare and bind the new one, unbind the old,",
                    "let its consumers drain it, and delete it when its ready + unacked messages stay 0.",
                ]
            )
        )


class DifferenceKind(StrEnum):
    MISSING_EXCHANGE = "missing exchange"
    MISSING_QUEUE = "missing queue"
    DIFFERING_EXCHANGE = "differing exchange"
    DIFFERING_QUEUE = "differing queue"
    BROKEN_QUEUE = "broken queue"
    """It exists and takes no message: a broker killed within a second of a quorum queue's first declaration leaves it so."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`detail` is in the broker's own words."""

    kind: DifferenceKind
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f": {self.detail}" if self.detail else "")


async def check(url: str, topology: Topology, *, ca_file: str | None = None) -> list[Difference]:
    """What is missing, by passive declares: needs no permission to configure, and sees no difference in arguments.

    raises   BrokerUnavailable
    """
    async with _broker(url, ca_file) as broker:
        exchanges = [await _missing_exchange(broker, exchange) for exchange in topology.exchanges]
        queues = [await _missing_queue(broker, queue) for queue in topology.queues]
    return [difference for difference in (*exchanges, *queues) if difference]


async def diff(url: str, topology: Topology, *, ca_file: str | None = None) -> list[Difference]:
    """What is missing, differs or is broken. Changes nothing.

    raises   BrokerUnavailable, NotPermitted
    """
    async with _broker(url, ca_file) as broker:
        return await _differences(broker, topology)


async def apply(url: str, topology: Topology, *, replace_broken: bool = True, ca_file: str | None = None) -> list[str]:
    """Make the broker have everything declared. Safe to repeat. Returns what it did, a line each; bindings go unmentioned.

    replace_broken   delete and declare again the queues that take no message. Rows are the truth, so nothing is lost with
                     one; but in a cluster without a majority every queue looks so: pass False there
    raises           BrokerUnavailable, NotPermitted; TopologyDiffers before anything was changed
    """
    async with _broker(url, ca_file) as broker:
        found = await _differences(broker, topology)
        refused = {DifferenceKind.DIFFERING_EXCHANGE, DifferenceKind.DIFFERING_QUEUE}
        if any(difference.kind in refused for difference in found):
            raise TopologyDiffers(difference for difference in found if difference.kind in refused)
        kinds = {(_is_queue(difference.kind), difference.name): difference.kind for difference in found}
        done = []
        for exchange in topology.exchanges:
            await broker.ask(_declare_exchange(exchange))
            if (False, exchange.name) in kinds:
                done.append(f"created exchange {exchange.name}")
        for queue in topology.queues:
            broken = kinds.get((True, queue.name)) is DifferenceKind.BROKEN_QUEUE
            if broken and not replace_broken:
                done.append(f"left broken queue {queue.name}")
                continue
            if broken:
                await broker.ask(_delete_queue(queue))
            await broker.ask(_declare_queue(queue))
            if (True, queue.name) in kinds:
                done.append(f"{'replaced broken' if broken else 'created'} queue {queue.name}")
        await broker.ask(_bind_all(topology))
    return done


def definitions(topology: Topology, vhost: str = "/") -> dict[str, Any]:
    """RabbitMQ definitions, for a broker that imports them at boot or by its management API. The vhost must exist there."""
    return {
        "exchanges": [
            {
                "name": exchange.name,
                "vhost": vhost,
                "type": exchange.type,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(exchange.arguments),
            }
            for exchange in topology.exchanges
        ],
        "queues": [
            {
                "name": queue.name,
                "vhost": vhost,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(queue.arguments),
            }
            for queue in topology.queues
        ],
        "bindings": [
            {
                "source": binding.exchange,
                "vhost": vhost,
                "destination": binding.destination,
                "destination_type": binding.destination_type,
                "routing_key": binding.routing_key,
                "arguments": {},
            }
            for binding in topology.bindings
        ],
    }


class _Broker:
    """Asks one question a channel, on a connection that is replaced when an answer (INTERNAL_ERROR) has closed it."""

    def __init__(self, url: str, ca_file: str | None) -> None:
        self._url = url
        self._tls = tls_context(ca_file)
        self._connection: AbstractConnection | None = None

    async def ask(self, question: Question[T], timeout: float = ANSWER) -> T:
        """raises ChannelClosed and its kinds for the broker's answers; AMQPError, OSError, RuntimeError where it is gone."""
        with losses_as_errors():
            async with asyncio.timeout(timeout):
                connection = await self._open()
                channel = connection.channel(publisher_confirms=False)
                await channel.initialize()
                answer = await question(await channel.get_underlay_channel())
            await channel.close()
            return answer

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await disconnect(connection)

    async def _open(self) -> AbstractConnection:
        if self._connection is None or not is_open(self._connection):
            await self.close()
            self._connection = await connect(self._url, name="staybus topology", tls=self._tls)
        return self._connection


@asynccontextmanager
async def _broker(url: str, ca_file: str | None) -> AsyncIterator[_Broker]:
    broker = _Broker(url, ca_file)
    try:
        yield broker
    except ChannelAccessRefused as error:
        raise NotPermitted(f"{where(url)}: {error}") from error
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable(f"{where(url)}: {type(error).__name__}: {error}") from error
    finally:
        await broker.close()


async def _differences(broker: _Broker, topology: Topology) -> list[Difference]:
    exchanges = [await _compare_exchange(broker, exchange) for exchange in topology.exchanges]
    queues = [await _compare_queue(broker, queue) for queue in topology.queues]
    return [difference for difference in (*exchanges, *queues) if difference]


async def _compare_exchange(broker: _Broker, exchange: Exchange) -> Difference | None:
    missing = await _missing_exchange(broker, exchange)
    if missing is not None:
        return missing
    try:
        await broker.ask(_declare_exchange(exchange))
    except ChannelPreconditionFailed as error:
        return Difference(DifferenceKind.DIFFERING_EXCHANGE, exchange.name, str(error))
    return None


async def _compare_queue(broker: _Broker, queue: Queue) -> Difference | None:
    missing = await _missing_queue(broker, queue)
    if missing is not None:
        return missing
    try:
        await broker.ask(_declare_queue(queue))
        await _expect_answer(broker, queue)
    except (ChannelPreconditionFailed, ChannelLockedResource) as error:
        return Difference(DifferenceKind.DIFFERING_QUEUE, queue.name, str(error))
    except ConnectionInternalError as error:
        return Difference(DifferenceKind.BROKEN_QUEUE, queue.name, str(error))
    except TimeoutError:
        # Its channel hangs in the broker: the next question needs another connection.
        await broker.close()
        return Difference(DifferenceKind.BROKEN_QUEUE, queue.name, f"no answer within {PROBE:g} s")
    return None


async def _expect_answer(broker: _Broker, queue: Queue) -> None:
    try:
        await broker.ask(_take_nothing(queue), PROBE)
    except ChannelLockedResource:
        # A queue with a single active consumer gives messages to consumers only. It is its leader that says so: it works.
        if not queue.arguments.get("x-single-active-consumer"):
            raise


async def _missing_exchange(broker: _Broker, exchange: Exchange) -> Difference | None:
    try:
        await broker.ask(lambda channel: channel.exchange_declare(exchange.name, passive=True))
    except ChannelNotFoundEntity as error:
        return Difference(DifferenceKind.MISSING_EXCHANGE, exchange.name, str(error))
    return None


async def _missing_queue(broker: _Broker, queue: Queue) -> Difference | None:
    try:
        await broker.ask(lambda channel: channel.queue_declare(queue.name, passive=True))
    except ChannelNotFoundEntity as error:
        return Difference(DifferenceKind.MISSING_QUEUE, queue.name, str(error))
    except ConnectionInternalError as error:
        return Difference(DifferenceKind.BROKEN_QUEUE, queue.name, str(error))
    return None


def _is_queue(kind: DifferenceKind) -> bool:
    return kind not in {DifferenceKind.MISSING_EXCHANGE, DifferenceKind.DIFFERING_EXCHANGE}


def _declare_exchange(exchange: Exchange) -> Question[object]:
    return lambda channel: channel.exchange_declare(
        exchange.name, exchange_type=exchange.type, durable=True, arguments=dict(exchange.arguments)
    )


def _declare_queue(queue: Queue) -> Question[object]:
    return lambda channel: channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))


def _delete_queue(queue: Queue) -> Question[object]:
    return lambda channel: channel.queue_delete(queue.name)


def _take_nothing(queue: Queue) -> Question[None]:
    """Ask a queue that is empty and unused for a message: a broken one declares as if well, and is found by its silence alone."""

    async def question(channel: AbstractChannel) -> None:
        state = await channel.queue_declare(queue.name, passive=True)
        if state.message_count or state.consumer_count:
            return
        message = await channel.basic_get(queue.name)
        if message.delivery_tag is not None:  # it came in between
            await channel.basic_nack(message.delivery_tag, requeue=True)

    return question


def _bind_all(topology: Topology) -> Question[None]:
    async def question(channel: AbstractChannel) -> None:
        for binding in topology.bindings:
            bind = channel.queue_bind if binding.destination_type == "queue" else channel.exchange_bind
            await bind(binding.destination, binding.exchange, binding.routing_key)

    return question
