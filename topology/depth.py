"""How many messages wait in each queue: by passive declares, which are current (the management API lags)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError

from .link import connect, losses_as_errors, tls_context

if TYPE_CHECKING:
    from collections.abc import Iterable


async def depths(url: str, queues: Iterable[str], *, ca_file: str | None = None) -> dict[str, int]:
    """Queues that are missing are left out. raises OSError, AMQPError when the broker is away"""
    connection = await connect(url, name="staybus depths", tls=tls_context(ca_file))
    found: dict[str, int] = {}
    try:
        for queue in queues:
            channel = await connection.channel()
            try:
                with losses_as_errors():
                    declared = await channel.get_underlay_channel()
                    answer = await declared.queue_declare(queue, passive=True)
                found[queue] = answer.message_count or 0
                await channel.close()
            except AMQPError:
                continue
    finally:
        await connection.close()
    return found
