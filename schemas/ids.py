"""UUIDv7 (RFC 9562): time-ordered, so that new rows land at the right edge of their index."""

from __future__ import annotations

import hashlib
import os
import time
import uuid

_POOL = 4096  # bytes of randomness fetched at a time: a system call an id would cost more than the rest of it
_random = b""
_used = 0


def uuid7() -> uuid.UUID:
    global _random, _used  # noqa: PLW0603 - a buffer, of one thread
    if _used + 10 > len(_random):
        _random, _used = os.urandom(_POOL), 0
    tail = _random[_used : _used + 10]
    _used += 10
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(tail, "big")
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)


def derived(origin: uuid.UUID, name: str) -> uuid.UUID:
    """Always the same for the same two (RFC 9562, version 8), with the time of its origin, so that it lands beside it."""
    value = int.from_bytes(origin.bytes[:6] + hashlib.sha256(origin.bytes + name.encode()).digest()[:10], "big")
    value = (value & ~(0xF << 76)) | (0x8 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)
