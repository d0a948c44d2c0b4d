"""Many messages in one write, on the channel of the library as it is.

The library's own publish takes lock, deadline, task, future and write for each message: 80 to 130 us of CPU. Done for a group
these cost about 5 us a message, and the broker confirms the group with a few multiple-acks. What is used of the channel are its
public members: its delivery tags count what was written under its lock, its confirmations are resolved by its reader. What
stands there for a message is a ticket of its burst; the burst as a whole is what somebody waits for.
"""

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812 - an exception, named as one

from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError
from pamqp.commands import Basic
from pamqp.encode import field_table, short_string
from pamqp.exceptions import PAMQPException
from pamqp.frame import marshal

PERSISTENT = b"\x02"

# Of the protocol (https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 2.3.5 and 4.2.6): type, channel and size open a frame;
# a header's payload is class, weight, size of the body and one bit for each property that follows, in the order of the table.
_FRAME = Struct(">BHI")
_HEADER = Struct(">HHQH")
_CONTENT, _BODY, _END = 2, 3, b"\xce"
_BASIC = 60
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _CORRELATION_ID, _MESSAGE_ID, _TYPE = (
    1 << bit for bit in (15, 13, 12, 10, 7, 5)
)
_ALWAYS = _CONTENT_TYPE | _DELIVERY_MODE | _MESSAGE_ID | _TYPE

_PREFIX = os.urandom(9).hex()
_message_ids = (f"{_PREFIX}-{number}" for number in itertools.count())
_Unwritable = (ValueError, TypeError, StructError, PAMQPException)


@dataclass(slots=True)
class Outgoing:
    """One message.

    content_type     application/cloudevents+json | application/cloudevents-batch+json
    correlation_id   id of a single event
    type             AMQP `type`; the routing key unless given (a delivery's wake-up differs)
    mandatory        no queue for it is a fault; else it is confirmed all the same
    """

    routing_key: str
    body: bytes
    content_type: str
    correlation_id: str | None = None
    headers: Mapping[str, str] | None = None
    type: str | None = None
    mandatory: bool = True


class Ticket:
    """What stands in the channel's confirmations for one message: the few things that its reader asks of a future."""

    __slots__ = ("_answered", "_burst", "error")

    def __init__(self, burst: "Burst") -> None:
        self._burst = burst
        self._answered = False
        self.error: BaseException | None = None

    @property
    def confirmed(self) -> bool:
        return self._answered and self.error is None

    def done(self) -> bool:
        return self._answered or self._burst.over

    def cancelled(self) -> bool:
        return not self._answered

    def set_result(self, _frame: object) -> None:
        self._answered = True
        self._burst.count()

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        self.set_result(None)


class Burst:
    """Messages that were written together.

    tickets   one a message, in order; an exception in its place: why that message could not be written
    """

    def __init__(self, channel: AbstractChannel) -> None:
        self.tickets: list[Ticket | Exception] = []
        self._channel = channel
        self._ids: list[str] = []
        self._left = 0
        self._all: asyncio.Future[None] = channel.create_future()  # the channel's end is this one's, too

    @property
    def over(self) -> bool:
        """Nobody waits any more."""
        return self._all.done()

    def expect(self, message_id: str) -> None:
        """The next delivery tag's confirm. By its message id the broker's return, should one come, is matched."""
        ticket = Ticket(self)
        channel = self._channel
        channel.delivery_tag += 1  # type: ignore[attr-defined] # of the only implementation
        channel.confirmations[channel.delivery_tag] = ticket  # type: ignore[attr-defined]
        channel.message_id_delivery_tag[message_id] = channel.delivery_tag  # type: ignore[attr-defined]
        self._ids.append(message_id)
        self.tickets.append(ticket)
        self._left += 1

    def count(self) -> None:
        """One more was answered."""
        self._left -= 1
        if not self._left and not self._all.done():
            self._all.set_result(None)

    async def answered(self, timeout: float) -> BaseException | None:
        """Waits for the broker's word on all of them. returns why there is none on those that have none"""
        known: dict[str, int] = self._channel.message_id_delivery_tag  # type: ignore[attr-defined]
        try:
            if self._left:
                await asyncio.wait([self._all], timeout=timeout)
            if self._all.cancelled():
                return asyncio.CancelledError()
            return self._all.exception() if self._all.done() else TimeoutError()
        finally:
            self._all.cancel()
            for message_id in self._ids:
                known.pop(message_id, None)


async def send(channel: AbstractChannel, exchange: str, messages: Sequence[Outgoing]) -> Burst:
    """Write all of these, persistent.

    raises  ChannelInvalidStateError, when nothing was written because the channel is closed
    """
    frames: list[bytes] = []
    written: list[str | Exception] = []  # message ids, or why not
    for message in messages:
        message_id = next(_message_ids)
        try:
            frames += _frames(channel, exchange, message, message_id)
        except _Unwritable as error:
            written.append(error)
        else:
            written.append(message_id)
    async with channel.lock:  # type: ignore[attr-defined]
        if channel.is_closed:
            raise ChannelInvalidStateError("the channel is closed")
        if frames:
            # No wait for the socket's drain: the publisher bounds what is in flight.
            await channel.write_queue.put(ChannelFrame(payload=b"".join(frames), should_close=False))  # type: ignore[attr-defined]
        # Nothing can run between the put and this: whoever is cancelled while it waits has written nothing and counted
        # nothing, and no confirm comes before it is expected.
        burst = Burst(channel)
        for entry in written:
            if isinstance(entry, Exception):
                burst.tickets.append(entry)
            else:
                burst.expect(entry)
        return burst


def _frames(channel: AbstractChannel, exchange: str, message: Outgoing, message_id: str) -> list[bytes]:
    """raises one of _Unwritable when the message does not fit the protocol"""
    number, body = channel.number, message.body
    limit: int = channel.max_content_size  # type: ignore[attr-defined]
    flags, headers, correlation_id = _ALWAYS, b"", b""
    if message.headers:
        flags |= _HEADERS
        headers = field_table(dict(message.headers))
    if message.correlation_id is not None:
        flags |= _CORRELATION_ID
        correlation_id = short_string(message.correlation_id)
    content = b"".join((
        _HEADER.pack(_BASIC, 0, len(body), flags), _word(message.content_type), headers, PERSISTENT, correlation_id,
        short_string(message_id), _word(message.type or message.routing_key),
    ))  # fmt: skip
    frames = [
        _publish_frame(exchange, message.routing_key, message.mandatory, number),
        _FRAME.pack(_CONTENT, number, len(content)), content, _END,
    ]  # fmt: skip
    for start in range(0, len(body), limit):
        part = body[start : start + limit]
        frames += (_FRAME.pack(_BODY, number, len(part)), part, _END)
    return frames


@lru_cache(maxsize=1024)
def _word(text: str) -> bytes:
    return short_string(text)


@lru_cache(maxsize=1024)
def _publish_frame(exchange: str, routing_key: str, mandatory: bool, channel_number: int) -> bytes:
    """The same for every message of a kind."""
    if len(routing_key.encode()) > 255:
        raise ValueError("the routing key is longer than 255 bytes")
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), channel_number)
