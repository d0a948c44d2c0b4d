"""UUIDv7 (RFC 9562): time-ordered, so that new rows land at the right edge of their index.

What is made here is of the database driver's own subclass of `uuid.UUID`, as what it reads is: made, written as text and hashed
at a fraction of the cost.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from struct import Struct

from asyncpg.pgproto.pgproto import UUID

_POOL = 4096  # bytes of randomness fetched at a time: a system call an id would cost more than the rest of it
_HALVES = Struct(">QQ")
_random = b""
_used = 0


def uuid7() -> uuid.UUID:
    """After the milliseconds their parts, a quarter of a microsecond each: what one process makes is in the order of its making."""
    global _random, _used  # noqa: PLW0603 - a buffer, of one thread
    if _used + 8 > len(_random):
        _random, _used = os.urandom(_POOL), 0
    tail = _random[_used : _used + 8]
    _used += 8
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    high = milliseconds << 16 | 0x7000 | rest * 4096 // 1_000_000
    return UUID(_HALVES.pack(high, 0x2 << 62 | int.from_bytes(tail, "big") >> 2))


def read_uuid(text: str) -> uuid.UUID | None:
    """None where it is no UUID."""
    try:
        return UUID(text)
    except ValueError:
        return None


def derived(origin: uuid.UUID, name: str) -> uuid.UUID:
    """Always the same for the same two (RFC 9562, version 8), with the time of its origin, so that it lands beside it."""
    return _stamped(origin.bytes[:6] + hashlib.sha256(origin.bytes + name.encode()).digest()[:10], 8)


def named(space: uuid.UUID, name: str) -> uuid.UUID:
    """As `uuid.uuid5`."""
    return _stamped(hashlib.sha1(space.bytes + name.encode(), usedforsecurity=False).digest()[:16], 5)


def _stamped(value: bytes, version: int) -> uuid.UUID:
    high, low = _HALVES.unpack(value)
    return UUID(_HALVES.pack(high & ~0xF000 | version << 12, low & ~(0x3 << 62) | 0x2 << 62))
