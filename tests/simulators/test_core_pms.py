"""The core PMS on the other side of the bus."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import aio_pika
import orjson
import pytest

from simulators.core_pms import CorePms, Heard, heard


def event(type_: str, event_id: str = "e1", **more: object) -> dict[str, object]:
    return {"specversion": "1.0", "id": event_id, "source": "/staybus", "type": type_, **more}


def test_single_and_batch_messages_are_read() -> None:
    one = heard(orjson.dumps(event("core.job.x", subject="s", companyid="acme", data={"a": 1})))
    assert (one[0].subject, one[0].company, one[0].data) == ("s", "acme", {"a": 1})
    assert len(heard(orjson.dumps([event("a", "1"), event("a", "2")]))) == 2


def test_lines_for_people_have_no_guest_data() -> None:
    data = {"status": "confirmed", "checkIn": "2026-12-01", "guest": {"lastName": "Berg"}, "email": "b@example.com"}
    told = Heard("e", "core.reservation.upserted", "beds24/1", "acme", data, {})
    assert told.line() == "core.reservation.upserted beds24/1 company=acme status=confirmed checkIn=2026-12-01"


@pytest.fixture
async def channel(amqp_url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        yield await connection.channel()


@pytest.fixture
async def names(channel: aio_pika.abc.AbstractChannel) -> AsyncIterator[tuple[str, str]]:
    """An exchange and a queue name of this test alone: the broker may be in use."""
    mark = uuid.uuid4().hex[:8]
    exchange = await channel.declare_exchange(f"test.events.{mark}", aio_pika.ExchangeType.TOPIC, durable=True)
    yield exchange.name, f"test.core.{mark}"
    await channel.queue_delete(f"test.core.{mark}")
    await exchange.delete()


async def test_it_hears_core_events_and_counts_repeats(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, names: tuple[str, str]
) -> None:
    exchange = await channel.get_exchange(names[0])
    async with CorePms(amqp_url, exchange=names[0], queue=names[1]) as core:
        for event_id in ("1", "2", "2"):
            body = orjson.dumps(event("core.reservation.upserted", event_id, subject=event_id))
            await exchange.publish(aio_pika.Message(body), "core.reservation.upserted")
        await exchange.publish(aio_pika.Message(b"not json"), "core.reservation.upserted")
        await exchange.publish(aio_pika.Message(orjson.dumps(event("core.end", "3"))), "core.end")
        await core.wait_for(lambda e: e.type == "core.end")
        assert (core.duplicates, core.malformed) == ({"2": 2}, 1)
        assert len(core.of("core.reservation.upserted", "2")) == 2
        with pytest.raises(TimeoutError):
            await core.wait_for(lambda e: e.type == "core.never", timeout=0.01)


async def test_commands_are_cloudevents_persistent_and_routed_by_type(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, names: tuple[str, str]
) -> None:
    inbox = await channel.declare_queue(exclusive=True)
    await inbox.bind(names[0], "pms.#")
    async with CorePms(amqp_url, exchange=names[0], queue=names[1]) as core:
        event_id = await core.publish("pms.booking.cancel", "booking/1", "acme", {"id": 1}, "cancel-1")
        message = await inbox.get(timeout=5)
        with pytest.raises(aio_pika.exceptions.DeliveryError):
            await core.publish("nobody.listens", "x", "acme", {}, "k")
    assert message is not None
    await message.ack()
    body = orjson.loads(message.body)
    assert body.pop("time").endswith("Z")
    assert body == {
        "specversion": "1.0",
        "id": event_id,
        "source": "/core-pms",
        "type": "pms.booking.cancel",
        "subject": "booking/1",
        "companyid": "acme",
        "idempotencykey": "cancel-1",
        "datacontenttype": "application/json",
        "data": {"id": 1},
    }
    assert (message.type, message.routing_key) == ("pms.booking.cancel", "pms.booking.cancel")
    assert message.content_type == "application/cloudevents+json"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_it_listens_again_after_its_queue_was_deleted(
    amqp_url: str, channel: aio_pika.abc.AbstractChannel, names: tuple[str, str]
) -> None:
    """The loss that a robust connection sleeps through."""
    exchange = await channel.get_exchange(names[0])
    async with CorePms(amqp_url, exchange=names[0], queue=names[1]) as core:
        await channel.queue_delete(names[1])
        body = orjson.dumps(event("core.back", "1"))
        while not core.events:
            message = aio_pika.Message(body)
            try:
                await exchange.publish(message, "core.back", mandatory=True)
                await core.wait_for(lambda e: e.type == "core.back", timeout=0.2)
            except (TimeoutError, aio_pika.exceptions.DeliveryError):
                continue
    assert core.events[0].type == "core.back"
