"""Publishing that is known to have arrived: persistent, each message confirmed by the broker or reported.

A fault is a value and not an exception, because the caller's answer is always the same: leave the row unpublished, the relay
publishes it later. A fault never proves that a message did not arrive; a doubled one is harmless, the row decides.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from aiormq import Channel
from aiormq.abc import AbstractChannel
from aiormq.exceptions import DeliveryError, PublishError
from pamqp.exceptions import PAMQPException

from topology.burst import Outgoing, Ticket, send
from topology.declared import EVENTS
from topology.link import Backoff, Link, LinkState, jittered_backoff

CHUNK = 100
"""Messages in one write: enough to spread its cost, few enough that the confirms of the first are not waited for by many."""


UNANSWERED = 10_000
"""Messages that a channel keeps a place for because the broker has said nothing of them: many more than are in flight. A queue
without a quorum may never answer, and nobody else ends the channel."""


class FaultKind(StrEnum):
    NOT_CONNECTED = "not_connected"
    """Nothing was sent."""
    BLOCKED = "blocked"
    """Nothing was sent: the broker has an alarm and reads no publishes."""
    LOST = "lost"
    """Connection or channel went away before the confirm; it may have arrived."""
    TIMEOUT = "timeout"
    """No confirm in time; it may have arrived."""
    REFUSED = "refused"
    """The broker said no (nack): a queue is full, or failed."""
    UNROUTABLE = "unroutable"
    """No queue for this key, and no alternate exchange."""
    INVALID = "invalid"
    """This message can never be sent: its key, headers or ids do not fit the protocol."""


@dataclass(frozen=True, slots=True)
class PublishFault:
    """Why a message is not known to have arrived; `detail` is for the log and holds nothing of the body."""

    kind: FaultKind
    detail: str = ""


class Publisher:
    """Confirmed, persistent publishes over one supervised connection of its own.

    Of its own, because under a memory or disk alarm the broker stops reading a connection that publishes, acks included.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        exchange: str = EVENTS,
        confirm_timeout: float = 10.0,
        in_flight: int = 200,
        ca_file: str | None = None,
        on_state: Callable[[LinkState], None] | None = None,
        backoff: Backoff = jittered_backoff,
    ) -> None:
        """`confirm_timeout` in seconds for each message; `in_flight` bounds the unconfirmed ones over all callers."""
        self._exchange = exchange
        self._confirm_timeout = confirm_timeout
        self._slots = asyncio.Semaphore(in_flight)
        self._turn = asyncio.Lock()  # slots are taken by one at a time, or two that hold half of theirs wait for ever
        self._chunk = min(CHUNK, in_flight)
        self._channel: Channel | None = None
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._confirmed_at = 0.0
        self._link = Link(
            url,
            name=name,
            furnish=self._use,
            on_lost=self._unuse,
            on_state=on_state,
            confirms=True,
            ca_file=ca_file,
            backoff=backoff,
        )

    @property
    def ready(self) -> bool:
        """Whether a publish would be tried now."""
        return self._refusal() is None

    @property
    def blocked(self) -> bool:
        return self._link.blocked

    @property
    def state(self) -> LinkState:
        return self._link.state

    async def start(self, wait: float = 0) -> None:
        """Connect, waiting at most `wait` seconds for it; keeps trying in the background while the broker is away."""
        await self._link.start(wait)

    async def stop(self) -> None:
        """Refuse new publishes, let those in flight be confirmed or time out, then close."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._confirm_timeout):
                await self._idle.wait()
        await self._link.stop()

    async def publish_all(self, messages: Sequence[Outgoing]) -> list[PublishFault | None]:
        """Publish, and wait for the broker's word on each. One result a message, in order; None is confirmed.

        Never raises for broker trouble: only CancelledError, when the caller itself is cancelled. Refuses at once while not
        connected or blocked, so that nobody waits for the broker.
        """
        refusal = self._refusal()
        if refusal is not None:
            return [refusal] * len(messages)
        self._calls += 1
        self._idle.clear()
        try:
            size = self._chunk
            chunks = [messages[start : start + size] for start in range(0, len(messages), size)]
            if len(chunks) == 1:  # no task of its own: the usual case
                return await self._publish(chunks[0])
            return list(itertools.chain.from_iterable(await asyncio.gather(*map(self._publish, chunks))))
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _use(self, channel: AbstractChannel) -> None:
        # The abstract class does not know of basic_publish(wait=), which is half of the reason to use the raw channel.
        self._channel = cast("Channel", channel)

    def _unuse(self) -> None:
        self._channel = None

    def _refusal(self) -> PublishFault | None:
        if self._stopping:
            return PublishFault(FaultKind.NOT_CONNECTED, "stopping")
        if not self._link.connected:
            return PublishFault(FaultKind.NOT_CONNECTED, self._link.failure)
        return PublishFault(FaultKind.BLOCKED) if self._link.blocked else None

    async def _publish(self, messages: Sequence[Outgoing]) -> list[PublishFault | None]:
        """One write for all of them, then the wait for the last of their confirms."""
        taken = 0
        try:
            async with self._turn:
                for _ in messages:
                    await self._slots.acquire()
                    taken += 1
            channel = self._channel
            # Looked at again: the link may have gone while these waited for their slots.
            if channel is None or not self._link.connected:
                return [PublishFault(FaultKind.NOT_CONNECTED)] * len(messages)
            sent_at = asyncio.get_running_loop().time()
            try:
                burst = await send(channel, self._exchange, messages)
            except Exception as error:  # noqa: BLE001 - a channel that just closed raises what it likes; callers get values
                return [self._fault(error, sent_at)] * len(messages)
            why_not = await burst.answered(self._confirm_timeout)
            if any(isinstance(ticket, Ticket) and ticket.confirmed for ticket in burst.tickets):
                self._confirmed_at = asyncio.get_running_loop().time()
            if channel is self._channel and len(channel.confirmations) > UNANSWERED:
                self._link.drop(f"more than {UNANSWERED} messages were never answered")
            return [self._outcome(ticket, why_not, sent_at) for ticket in burst.tickets]
        finally:
            for _ in range(taken):
                self._slots.release()

    def _outcome(
        self, ticket: Ticket | Exception, why_not: BaseException | None, sent_at: float
    ) -> PublishFault | None:
        """why_not: what stands against those that the broker said nothing about"""
        if isinstance(ticket, Exception):
            return self._fault(ticket, sent_at)
        if ticket.confirmed:
            return None
        if ticket.error is None and isinstance(why_not, asyncio.CancelledError):
            return PublishFault(FaultKind.LOST, "the connection was dropped")
        return self._fault(ticket.error or why_not or TimeoutError(), sent_at)

    def _fault(self, error: BaseException, sent_at: float) -> PublishFault:
        match error:
            case PublishError():
                return PublishFault(FaultKind.UNROUTABLE, str(error.frame.name))
            case DeliveryError():
                return PublishFault(FaultKind.REFUSED, str(error))
            case TimeoutError():
                # One queue without a quorum must not cost the others their connection; but with no confirm at all since
                # this was sent, it is the connection (heartbeats would take half a minute to say so).
                if self._confirmed_at < sent_at and not self._link.blocked:
                    self._link.drop(f"no confirm within {self._confirm_timeout:g} s")
                return PublishFault(FaultKind.TIMEOUT, f"no confirm within {self._confirm_timeout:g} s")
            case ValueError() | TypeError() | PAMQPException():
                return PublishFault(FaultKind.INVALID, f"{type(error).__name__}: {error}")
            case _:
                return PublishFault(FaultKind.LOST, f"{type(error).__name__}: {error}")
