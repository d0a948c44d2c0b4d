"""How many messages wait in each queue: by passive declares, which are current (the management API lags)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from aiormq.exceptions import AMQPError, ChannelClosed

from .link import connect, disconnect, is_open, losses_as_errors, tls_context

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from aio_pika.abc import AbstractChannel, AbstractConnection


ANSWER = 10.0
"""Seconds for all answers to one question. A queue that came up broken takes 65 to say so."""


class Depths:
    """Asks over a connection of its own, which an alarm does not block. It is made at the first question and kept, with its
    channel: to make both costs more than to ask, and in a scheduler it would come every few seconds, in the way of events.
    """

    def __init__(self, url: str, *, name: str, ca_file: str | None = None) -> None:
        """name: of the connection, for the broker's operators"""
        self._url = url
        self._name = name
        self._tls = tls_context(ca_file)
        self._turn = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, queues: Iterable[str]) -> dict[str, int]:
        """Messages ready in each; queues that are missing are left out.

        raises  OSError when the broker is away, goes away meanwhile, or does not answer
        """
        async with self._turn:
            if self._connection is not None and not is_open(self._connection):
                await self._close()
            try:
                async with asyncio.timeout(ANSWER):
                    with losses_as_errors():
                        ready = {queue: await self._ready(queue) for queue in queues}
            except BaseException as error:
                # Also when cancelled: an answer that nobody waited for would be the next question's.
                await self._close()
                # RuntimeError comes from channels whose connection has just gone.
                if isinstance(error, AMQPError | RuntimeError):
                    raise ConnectionError(type(error).__name__) from error
                raise
        return {queue: count for queue, count in ready.items() if count is not None}

    async def close(self) -> None:
        async with self._turn:
            await self._close()

    async def _ready(self, queue: str) -> int | None:
        if self._connection is None:
            self._connection = await connect(self._url, name=self._name, tls=self._tls)
        if self._channel is None:
            self._channel = await self._connection.channel()
        try:
            answer = await (await self._channel.get_underlay_channel()).queue_declare(queue, passive=True)
        except ChannelClosed:
            self._channel = None  # asking for a queue that is missing closes it
            return None
        return answer.message_count or 0

    async def _close(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await disconnect(connection)
