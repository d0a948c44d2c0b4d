"""FastAPI and FastStream: the handler takes the message as a model, the framework acks when it returns."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import uvloop
from fastapi import FastAPI, Request, Response
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, ExchangeType, QueueType, RabbitBroker, RabbitExchange, RabbitQueue

from bench.peers import work

# A logger of our own, which says warnings only: FastStream's would write two lines a message.
broker = RabbitBroker(
    work.AMQP_URL, default_channel=Channel(prefetch_count=work.PREFETCH), logger=logging.getLogger("bookings")
)
exchange = RabbitExchange(work.EXCHANGE, type=ExchangeType.TOPIC, durable=True)
queue = RabbitQueue(work.QUEUE, queue_type=QueueType(work.QUEUE_TYPE), durable=True, routing_key=work.BINDING)
service = FastStream(broker)
opened = SimpleNamespace()


@service.on_startup
async def open_pool() -> None:
    opened.pool = await work.open_pool()


@broker.subscriber(queue, exchange, ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(webhook: work.Webhook) -> None:
    await work.settle(opened.pool, webhook)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with await work.open_pool() as app.state.pool:
        await broker.connect()
        await broker.declare_exchange(exchange)
        declared = await broker.declare_queue(queue)
        await declared.bind(work.EXCHANGE, work.BINDING)
        yield
        await broker.stop()


app = FastAPI(lifespan=lifespan)


@app.post("/webhook")
async def webhook(request: Request) -> Response:
    body = await request.body()
    if not work.genuine(body, request.headers.get(work.SIGNATURE)):
        return Response(status_code=401)
    key = request.headers[work.KEY]
    if await request.app.state.pool.fetchval(work.RECORD, key, body.decode()) is not None:
        await broker.publish(
            body,
            exchange=exchange,
            routing_key=work.ROUTING_KEY,
            message_id=key,
            content_type="application/json",
            persist=True,
        )
    return Response(status_code=202)


if __name__ == "__main__":
    uvloop.run(service.run())
