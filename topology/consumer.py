"""Consuming that survives any loss, and acknowledges what is settled in as few frames as is correct.

The handler only takes over (it is called from the protocol's reader, and what runs there is cancelled with its channel); the
work is done by tasks of the worker, which says `settle` or `give_back` for each delivery when it has finished. Those two never
wait: a task a channel sends what the ledger allows, everything that was settled in one turn of the event loop at once.

Nothing is rejected: what cannot be worked at is the worker's to keep. RabbitMQ 3.10 dead-letters no more, until it is restarted,
once it has to write into an `x-death` header that somebody else made up.

A delivery belongs to the channel that it came on, its generation. After a loss the broker delivers everything unsettled again,
so verdicts on deliveries of an older generation mean nothing, and are ignored.

Order of a worker's stop: `stop_consuming()`, then finish what is in hand, then `stop()`: acks, give back the rest, close.
Where the order of the queue counts: finish, then `leave()`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import AMQPError

from topology.ledger import AckLedger, Settlement, Verdict
from topology.link import Backoff, Link, LinkState, jittered_backoff, losses_as_errors

log = logging.getLogger(__name__)

HOLE_PATIENCE = 0.02
"""Seconds that acks beyond an unsettled delivery wait for it, before they go out singly: longer than a settled batch takes to
come back from the database, short against the time in which a prefetch window is worked off."""

ANSWER = 10.0
"""Seconds for the broker to answer a consume, cancel or QoS. A queue that came up broken takes 65 s to say so."""


@dataclass(slots=True)
class Incoming:
    """One delivery.

    type             AMQP `type`
    redelivered      it was delivered before, to anybody
    delivery_count   how often it came back to its queue, if the queue counts (quorum); None otherwise, and the first time
    tag, generation  which delivery on which channel; for the consumer only
    """

    body: bytes
    content_type: str | None
    routing_key: str
    type: str | None
    correlation_id: str | None
    headers: dict[str, Any]
    redelivered: bool
    delivery_count: int | None
    tag: int
    generation: int


class Consumer:
    """Consumes one queue over one supervised connection of its own.

    Consumes again, within seconds, after anything: connection lost, broker restarted, channel closed, consumer cancelled by
    the broker, queue deleted and declared again. Meanwhile `consuming` is False: that is the worker's liveness.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        handler: Callable[[Incoming], None],
        *,
        prefetch: int,
        name: str,
        ca_file: str | None = None,
        on_lost: Callable[[], None] | None = None,
        on_state: Callable[[LinkState], None] | None = None,
        backoff: Backoff = jittered_backoff,
    ) -> None:
        """`prefetch`: unsettled deliveries at most. `on_lost`: everything in hand will be delivered again."""
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._told_lost = on_lost
        self._wanted = True
        self._generation = 0
        self._session: _Session | None = None
        self._turn = asyncio.Lock()
        self._link = Link(
            url,
            name=name,
            furnish=self._furnish,
            on_lost=self._on_lost,
            on_state=on_state,
            ca_file=ca_file,
            backoff=backoff,
        )

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def consuming(self) -> bool:
        """Whether the broker would deliver to us now."""
        return self._link.connected and self._session is not None and self._session.consumer_tag is not None

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def state(self) -> LinkState:
        return self._link.state

    @property
    def in_hand(self) -> int:
        """Deliveries that were handed over and have no verdict yet."""
        return len(self._session.ledger) if self._session else 0

    async def start(self, wait: float = 0) -> None:
        """Begin to consume, waiting at most `wait` seconds for it; keeps trying in the background."""
        await self._link.start(wait)

    def settle(self, incoming: Incoming) -> None:
        """Done with: acknowledge it as soon as the ledger allows."""
        self._decide(incoming, Verdict.ACK)

    def give_back(self, incoming: Incoming) -> None:
        """Back to the queue, for any consumer. By nack, which 4.3 does not count as a return."""
        self._decide(incoming, Verdict.REQUEUE)

    async def pause(self) -> None:
        """Take no more deliveries until `resume`; those in hand stay, and may be settled or given back meanwhile."""
        self._wanted = False
        async with self._turn:
            await self._cancel()

    async def resume(self) -> None:
        self._wanted = True
        async with self._turn:
            session = self._session
            if session is None or session.consumer_tag is not None or not self._link.connected:
                return  # the link consumes when it is built again
            try:
                with losses_as_errors():
                    await self._consume(session)
            except (AMQPError, OSError, RuntimeError) as error:
                self._link.drop(f"cannot consume {self._queue}: {error}")

    async def stop_consuming(self) -> None:
        """First step of a stop. Nothing is delivered after it returns."""
        await self.pause()

    async def stop(self) -> None:
        """Last step: send the acks, give back what has no verdict, close channel and connection."""
        await self.stop_consuming()
        session = self._session
        if session is not None:
            await session.finish()
        await self._link.stop()

    async def leave(self) -> None:
        """In place of `stop_consuming` and `stop`, for the single active consumer of a queue whose order counts: sends the acks
        and closes. What has no verdict returns to its place before the next consumer begins; after a cancel that one would
        begin with what comes behind, while this one still holds what is in front.
        """
        session = self._session
        if session is not None:
            await session.finish(give_back=False)
        await self._link.stop()

    def _decide(self, incoming: Incoming, verdict: Verdict) -> None:
        session = self._session
        if session is not None and session.generation == incoming.generation:
            session.decide(incoming.tag, verdict)

    async def _furnish(self, channel: AbstractChannel) -> None:
        await channel.basic_qos(prefetch_count=self._prefetch, timeout=ANSWER)
        async with self._turn:
            self._generation += 1
            # Before the consume: its first deliveries come ahead of its answer.
            self._session = session = _Session(self._generation, self._queue, channel, self._link.drop)
            session.begin()
            try:
                if self._wanted:
                    await self._consume(session)
            except BaseException:
                self._on_lost()
                raise

    async def _consume(self, session: "_Session") -> None:
        handler = self._handler
        generation = session.generation
        ledger = session.ledger

        async def hand_over(message: DeliveredMessage) -> None:
            delivery = message.delivery
            properties = message.header.properties
            headers = properties.headers or {}
            # 4.3 counts apart what was given back by nack, which is no delivery to it: all that came back is here.
            returns = headers.get("x-acquired-count", headers.get("x-delivery-count"))
            incoming = Incoming(
                body=message.body,
                content_type=properties.content_type,
                routing_key=delivery.routing_key,  # type: ignore[union-attr,arg-type]  # only Basic.Deliver comes here
                type=properties.message_type,
                correlation_id=properties.correlation_id,
                headers=headers,
                redelivered=delivery.redelivered,  # type: ignore[union-attr]
                delivery_count=returns if isinstance(returns, int) else None,
                tag=delivery.delivery_tag,  # type: ignore[union-attr,arg-type]
                generation=generation,
            )
            session.used = True
            ledger.deliver(incoming.tag)
            try:
                handler(incoming)
            except Exception:
                # Not held for ever: the delivery limit brings it to the dead letters.
                log.exception("the handler of %s failed to take a delivery over; given back", self._queue)
                session.decide(incoming.tag, Verdict.REQUEUE)

        answer = await session.channel.basic_consume(self._queue, hand_over, timeout=ANSWER)
        session.consumer_tag = answer.consumer_tag

    async def _cancel(self) -> None:
        session = self._session
        if session is None or session.consumer_tag is None:
            return
        consumer_tag, session.consumer_tag = session.consumer_tag, None
        try:
            with losses_as_errors():
                await session.channel.basic_cancel(consumer_tag, timeout=ANSWER)
        except (AMQPError, OSError, RuntimeError) as error:
            # Without an answer it may still deliver: a new channel, on which nothing is consumed, makes sure.
            self._link.drop(f"cannot cancel the consumer of {self._queue}: {error}")

    def _on_lost(self) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        session.abandon()
        if session.used and self._told_lost is not None:
            self._told_lost()


@dataclass(slots=True, eq=False)
class _Session:
    """One channel's deliveries, and the task that alone sends their verdicts, so that they leave in the ledger's order."""

    generation: int
    queue: str
    channel: AbstractChannel
    drop: Callable[[str], None]
    consumer_tag: str | None = None
    used: bool = False
    ledger: AckLedger = field(default_factory=AckLedger)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: bool = False
    _gives_back: bool = True
    _hole_is_old: bool = False
    _timer: asyncio.TimerHandle | None = None
    _sender: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._sender = asyncio.create_task(self._send_verdicts(), name=f"acks of generation {self.generation}")

    def decide(self, tag: int, verdict: Verdict) -> None:
        if self.ledger.settle(tag, verdict):
            self._news.set()

    async def finish(self, *, give_back: bool = True) -> None:
        """Give back what has no verdict, unless the end of the channel shall, and send everything."""
        self._ending = True
        self._gives_back = give_back
        self._news.set()
        if self._sender is not None:
            await asyncio.wait({self._sender}, timeout=ANSWER)
        self.abandon()

    def abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sender is not None:
            self._sender.cancel()

    async def _send_verdicts(self) -> None:
        try:
            with losses_as_errors():
                await self._send_until_ending()
        except Exception as error:  # noqa: BLE001 - a sender that ends in silence leaves the worker with a full window for ever
            # Mostly the channel is gone and the link knows; then this does nothing.
            self.drop(f"verdicts cannot be sent: {error!r}")

    async def _send_until_ending(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._ending:
                return await self._send_last()
            beyond_hole, self._hole_is_old = self._hole_is_old, False
            for settlement in self.ledger.take(beyond_hole=beyond_hole):
                await self._send(settlement)
            if self.ledger.waiting and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(HOLE_PATIENCE, self._lose_patience)

    async def _send_last(self) -> None:
        """Acks first, then everything else back, none of them left behind in the broker.

        Each frame is a command to a quorum queue. While 32 of a channel are not yet written to disk, the broker keeps further
        ones in the channel, and closing the channel forgets those: what was acked came again (seen on 3.10 with a slow disk).
        A transaction holds the frames back instead, and makes one command of all its acks and one of all that goes back. (What
        left before it, and stays behind so, comes again and is found settled.)
        """
        last = self.ledger.take(beyond_hole=True)
        for tag in self.ledger.unsettled if self._gives_back else ():
            self.ledger.settle(tag, Verdict.REQUEUE)
        last += self.ledger.take(beyond_hole=True)
        if not last:
            return
        await self.channel.tx_select(timeout=ANSWER)
        for settlement in last:
            await self._send(settlement)
        await self.channel.tx_commit(timeout=ANSWER)

    def _lose_patience(self) -> None:
        self._timer = None
        self._hole_is_old = True
        self._news.set()

    async def _send(self, settlement: Settlement) -> None:
        match settlement.verdict:
            case Verdict.ACK:
                await self.channel.basic_ack(settlement.tag, multiple=settlement.multiple, wait=False)
            case Verdict.REQUEUE:
                await self.channel.basic_nack(settlement.tag, multiple=settlement.multiple, requeue=True, wait=False)
