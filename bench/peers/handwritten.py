"""Starlette and aio-pika alone, as one writes it by hand: one message an event, as many at once as the prefetch lets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aio_pika
import uvloop
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from bench.peers import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractIncomingMessage, AbstractQueue
    from starlette.requests import Request


async def declare(channel: AbstractChannel) -> tuple[AbstractExchange, AbstractQueue]:
    exchange = await channel.declare_exchange(work.EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
    queue = await channel.declare_queue(work.QUEUE, durable=True, arguments={"x-queue-type": work.QUEUE_TYPE})
    await queue.bind(exchange, work.BINDING)
    return exchange, queue


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    connection = await aio_pika.connect_robust(work.AMQP_URL)
    async with connection, await work.open_pool() as app.state.pool:
        app.state.exchange, _ = await declare(await connection.channel(publisher_confirms=True))
        yield


async def webhook(request: Request) -> Response:
    body = await request.body()
    if not work.genuine(body, request.headers.get(work.SIGNATURE)):
        return Response(status_code=401)
    key, state = request.headers[work.KEY], request.app.state
    if await state.pool.fetchval(work.RECORD, key, body.decode()) is not None:
        message = aio_pika.Message(
            body,
            message_id=key,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await state.exchange.publish(message, work.ROUTING_KEY)
    return Response(status_code=202)


app = Starlette(routes=[Route("/webhook", webhook, methods=["POST"])], lifespan=lifespan)


async def consume() -> None:
    connection = await aio_pika.connect_robust(work.AMQP_URL)
    async with connection, await work.open_pool() as pool:
        channel = await connection.channel()
        await channel.set_qos(work.PREFETCH)
        _, queue = await declare(channel)

        async def handle(message: AbstractIncomingMessage) -> None:
            async with message.process(requeue=True):
                await work.settle(pool, work.Webhook.model_validate_json(message.body))

        await queue.consume(handle)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(consume())
