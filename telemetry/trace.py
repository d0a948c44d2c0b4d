"""W3C trace context: one id from the webhook to the vendor's answer (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import os
import re

_FORM = re.compile(r"^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")


def begin(received: str | None = None) -> str:
    """The caller's traceparent if it sent a valid one, else a new one."""
    if received is not None and _FORM.match(received):
        return received
    random = os.urandom(24).hex()
    return f"00-{random[:32]}-{random[32:]}-01"
