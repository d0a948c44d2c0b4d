"""How many messages wait in each queue: by passive declares, which are current (the management API lags)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiormq.exceptions import AMQPError, ChannelClosed

from .link import connect, losses_as_errors, tls_context

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aio_pika.abc import AbstractConnection


async def depths(url: str, queues: Iterable[str], *, ca_file: str | None = None) -> dict[str, int]:
    """Messages ready; queues that are missing are left out. By a connection of its own, which an alarm does not block.

    raises  OSError when the broker is away, or goes away meanwhile
    """
    try:
        connection = await connect(url, name="staybus depths", tls=tls_context(ca_file))
        try:
            with losses_as_errors():
                ready = {queue: await _ready(connection, queue) for queue in queues}
        finally:
            await connection.close()
    except (AMQPError, RuntimeError) as error:  # the latter from channels whose connection has just gone
        raise ConnectionError(type(error).__name__) from error
    return {queue: count for queue, count in ready.items() if count is not None}


async def _ready(connection: AbstractConnection, queue: str) -> int | None:
    """Of a channel of its own: asking for a queue that is missing closes it."""
    channel = await connection.channel()
    try:
        declared = await channel.get_underlay_channel()
        answer = await declared.queue_declare(queue, passive=True)
    except ChannelClosed:
        return None
    await channel.close()
    return answer.message_count or 0
