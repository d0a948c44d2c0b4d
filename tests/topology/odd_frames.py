"""Messages as no library of ours writes them, written byte by byte; any broker passes them on."""

from struct import pack

from aiormq.abc import AbstractChannel, ChannelFrame

from schemas.event import CONTENT_TYPE
from topology.declared import EVENTS

_NANOSECONDS = 1_700_000_000 * 10**9
_TYPE, _HEADERS, _MODE, _MESSAGE_ID, _TIMESTAMP = (
    0x8000,
    0x2000,
    0x1000,
    0x0080,
    0x0040,
)  # in the order in which they come


def short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def long(text: bytes) -> bytes:
    return pack(">I", len(text)) + text


def table(name: bytes, value: bytes) -> bytes:
    return long(short(name) + value)


def nested(levels: int) -> bytes:
    """Arrays in arrays, as a value of a table."""
    value = b""
    for _ in range(levels):
        value = b"A" + long(value)
    return value


PLAIN = (0, b"", b"")
_PROPERTIES = {
    # (flags, headers, what comes behind the delivery mode)
    "timestamp in ns": (_TIMESTAMP, b"", pack(">Q", _NANOSECONDS)),
    "timestamp in us": (_TIMESTAMP, b"", pack(">Q", _NANOSECONDS // 1000)),
    "timestamp beyond all": (_TIMESTAMP, b"", pack(">Q", 2**64 - 1)),
    "message_id in latin-1": (_MESSAGE_ID, b"", short(b"caf\xe9")),
    "header with a time in ns": (_HEADERS, table(b"sent", b"T" + pack(">Q", _NANOSECONDS)), b""),
    "header named in latin-1": (_HEADERS, table(b"caf\xe9", b"S" + long(b"x")), b""),
    "header in a table, named so": (_HEADERS, table(b"a", b"F" + table(b"caf\xe9", b"S" + long(b"x"))), b""),
    "header nested too deep": (_HEADERS, table(b"a", nested(2000)), b""),
}
ODD = {name: (b"plain", properties) for name, properties in _PROPERTIES.items()} | {
    "routing key in latin-1": (b"caf\xe9", PLAIN)
}
"""By name: the last word of the routing key, and the properties."""

HOSTILE_DEATHS = {
    "a text": b"S" + long(b"x"),
    "a number": b"I" + pack(">i", 7),
    "a list of texts": b"A" + long(b"S" + long(b"x")),
    "a list of a table without members": b"A" + long(b"F" + long(b"")),
    "a table nested too deep": b"A" + long(b"F" + table(b"queue", nested(300))),
}
"""Values of a header `x-death` as no broker writes it, by what they are. 3.10 dead-letters no more once it has met one."""


def with_death(value: bytes) -> tuple[int, bytes, bytes]:
    """Properties with this header `x-death`."""
    return _HEADERS, table(b"x-death", value), b""


async def give_up(channel: AbstractChannel, queue: str) -> None:
    """Has the broker take the next message of a queue that nobody consumes to the dead letters, as at the delivery limit."""
    message = await channel.basic_get(queue)
    await channel.basic_nack(message.delivery.delivery_tag, requeue=False)  # type: ignore[union-attr,arg-type]


def header_frame(channel: int, size: int, properties: tuple[int, bytes, bytes]) -> bytes:
    flags, headers, rest = properties
    content = short(CONTENT_TYPE.encode()) + headers + b"\x02" + rest
    return _frame(2, channel, pack(">HHQH", 60, 0, size, _TYPE | _MODE | flags) + content)


def publish_frame(channel: int, key: bytes, exchange: str = EVENTS) -> bytes:
    return _frame(1, channel, pack(">HHH", 60, 40, 0) + short(exchange.encode()) + short(key) + b"\x00")


async def publish(
    channel: AbstractChannel,
    body: bytes,
    key: bytes,
    properties: tuple[int, bytes, bytes] = PLAIN,
    exchange: str = EVENTS,
) -> None:
    """On a channel without confirms, which would count other publishes than the broker."""
    number = channel.number
    frames = (
        publish_frame(number, key, exchange) + header_frame(number, len(body), properties) + _frame(3, number, body)
    )
    await channel.write_queue.put(ChannelFrame(payload=frames, should_close=False))  # type: ignore[attr-defined]
    await channel.basic_qos(prefetch_count=1)  # its answer says that the broker has read what was written before


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"
