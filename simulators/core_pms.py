"""A tiny core PMS: the service on the other side of staybus. It listens to `core.#` and publishes commands.

Written as a foreign service would write it: plain aio-pika, its own queue, nothing of staybus imported. Losing the
connection is survived by building everything anew (a robust connection can idle for ever on a replaced queue);
deliveries may come twice, and `duplicates` counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import aio_pika
import orjson
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

EXCHANGE = "pms.events"
QUEUE = "core-pms.inbox"
BINDING = "core.#"
SOURCE = "/core-pms"
DELIVERY_LIMIT = 1_000_000  # never unset: RabbitMQ 4 would drop the 21st delivery
CONTENT_TYPE = "application/cloudevents+json"
CONFIRM_TIMEOUT = 10.0  # seconds
RECONNECT_AFTER = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class Heard:
    """One event as staybus told it."""

    id: str
    type: str
    subject: str | None
    company: str | None
    data: Any
    attributes: dict[str, Any]
    """every CloudEvents attribute but `data`"""

    def line(self) -> str:
        """For people: what happened to what, without guest data."""
        told = self.data if isinstance(self.data, dict) else {}
        facts = [f"{name}={told[name]}" for name in SHOWN if isinstance(told.get(name), str | int)]
        return " ".join((self.type, self.subject or "-", f"company={self.company or '-'}", *facts))


SHOWN = ("status", "checkIn", "checkOut", "check_in", "check_out", "version", "reason", "error_class")
"""Members of `data` that are printed: none of them can hold a name or an address."""


def heard(body: bytes) -> list[Heard]:
    """The events of a message: one event, or a batch."""
    told = orjson.loads(body)
    return [
        Heard(
            id=event["id"],
            type=event["type"],
            subject=event.get("subject"),
            company=event.get("companyid"),
            data=event.get("data"),
            attributes={name: value for name, value in event.items() if name != "data"},
        )
        for event in (told if isinstance(told, list) else [told])
    ]


class CorePms:
    """`async with CorePms(url) as core:` listens from then on.

    events     everything heard, in order, duplicates included
    seen       how often each event id came
    malformed  messages that were no CloudEvents; acknowledged, since nobody would read them better later
    on_event   called for every event, e.g. to print it
    """

    def __init__(
        self,
        amqp_url: str,
        *,
        exchange: str = EXCHANGE,
        queue: str = QUEUE,
        binding: str = BINDING,
        on_event: Callable[[Heard], None] | None = None,
    ) -> None:
        self._url, self._exchange, self._queue, self._binding = amqp_url, exchange, queue, binding
        self._on_event = on_event
        self.events: list[Heard] = []
        self.seen: Counter[str] = Counter()
        self.malformed = 0
        self._news = asyncio.Condition()
        self._listening = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._publishing: tuple[AbstractConnection, AbstractChannel] | None = None
        self._publish_lock = asyncio.Lock()

    @property
    def duplicates(self) -> dict[str, int]:
        """Event id → how often, for those that came more than once."""
        return {event_id: times for event_id, times in self.seen.items() if times > 1}

    def of(self, type_: str, subject: str | None = None) -> list[Heard]:
        return [e for e in self.events if e.type == type_ and subject in {None, e.subject}]

    async def wait_for(self, predicate: Callable[[Heard], bool], timeout: float = 10.0) -> Heard:
        """The first event, heard already or to come, that satisfies the predicate.

        raises  TimeoutError after `timeout` seconds
        """
        looked = 0
        async with asyncio.timeout(timeout), self._news:
            while True:
                for event in self.events[looked:]:
                    if predicate(event):
                        return event
                looked = len(self.events)
                await self._news.wait()

    async def publish(
        self, type_: str, subject: str, company: str, data: Any, idempotency_key: str, *, event_id: str | None = None
    ) -> str:
        """Publish a command, confirmed by the broker; returns the event's id.

        raises  aio_pika.exceptions.DeliveryError (unroutable or refused), ConnectionError, TimeoutError: then the
                command may or may not be out, and publishing it again with the same key is safe
        """
        event_id = event_id or str(uuid.uuid4())
        event = {
            "specversion": "1.0",
            "id": event_id,
            "source": SOURCE,
            "type": type_,
            "subject": subject,
            "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "companyid": company,
            "idempotencykey": idempotency_key,
            "datacontenttype": "application/json",
            "data": data,
        }
        message = aio_pika.Message(
            orjson.dumps(event),
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            type=type_,
            correlation_id=event_id,
            message_id=str(uuid.uuid4()),  # returned messages are matched by it, so it is never the event's id
            app_id="core-pms",
        )
        exchange = await (await self._publish_channel()).get_exchange(self._exchange, ensure=False)
        await exchange.publish(message, routing_key=type_, mandatory=True, timeout=CONFIRM_TIMEOUT)
        return event_id

    async def __aenter__(self) -> Self:
        self._listener = asyncio.create_task(self._listen_for_ever())
        listening = asyncio.create_task(self._listening.wait())
        await asyncio.wait({self._listener, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            await self._listener  # raises why the first attempt failed
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        if self._publishing is not None:
            await self._publishing[0].close()
            self._publishing = None

    async def _listen_for_ever(self) -> None:
        """The first connection must succeed; later ones are retried until they do."""
        while True:
            try:
                await self._listen_until_lost()
            except (OSError, TimeoutError, aio_pika.exceptions.AMQPError):
                if not self._listening.is_set():
                    raise
            await asyncio.sleep(RECONNECT_AFTER)

    async def _listen_until_lost(self) -> None:
        lost = asyncio.Event()
        connection = await aio_pika.connect(self._url)
        try:
            channel = await connection.channel()
            connection.close_callbacks.add(lambda *_: lost.set())
            channel.close_callbacks.add(lambda *_: lost.set())
            await channel.set_qos(prefetch_count=200)
            queue = await channel.declare_queue(
                self._queue, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
            )
            await queue.bind(self._exchange, self._binding)
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda *_: lost.set())
            await queue.consume(self._take)
            self._listening.set()
            await lost.wait()
        finally:
            with contextlib.suppress(OSError, asyncio.CancelledError, aio_pika.exceptions.AMQPError):
                await connection.close()

    async def _take(self, message: AbstractIncomingMessage) -> None:
        try:
            events = heard(message.body)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.malformed += 1
            events = []
        async with self._news:
            for event in events:
                self.events.append(event)
                self.seen[event.id] += 1
                if self._on_event is not None:
                    self._on_event(event)
            self._news.notify_all()
        await message.ack()

    async def _publish_channel(self) -> AbstractChannel:
        """A connection of its own: a broker in alarm stops reading publishers, and acks must not wait for that."""
        async with self._publish_lock:
            if self._publishing is not None and not self._publishing[1].is_closed:
                return self._publishing[1]
            if self._publishing is not None:
                with contextlib.suppress(OSError, asyncio.CancelledError, aio_pika.exceptions.AMQPError):
                    await self._publishing[0].close()
            connection = await aio_pika.connect(self._url)
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            self._publishing = (connection, channel)
            return channel


def print_line(event: Heard) -> None:
    sys.stdout.write(event.line() + "\n")
    sys.stdout.flush()


async def run(amqp_url: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    async with CorePms(amqp_url, on_event=print_line):
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simulators.core_pms", description=__doc__)
    parser.add_argument("--amqp", required=True, metavar="URL", help="amqp://user:password@host:port/")
    asyncio.run(run(parser.parse_args().amqp))


if __name__ == "__main__":
    main()
