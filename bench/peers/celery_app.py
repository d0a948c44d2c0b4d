"""FastAPI and Celery: prefork, late acks, confirmed publishes, psycopg in the workers."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import psycopg
from celery import Celery
from celery.signals import worker_process_init
from fastapi import FastAPI, Request, Response
from kombu import Exchange, Queue
from starlette.concurrency import run_in_threadpool

from bench.peers import work

queue = Queue(
    work.QUEUE,
    Exchange(work.EXCHANGE, type="topic", durable=True),
    routing_key=work.BINDING,
    durable=True,
    queue_arguments={"x-queue-type": work.QUEUE_TYPE},
)
celery = Celery("bookings", broker=work.AMQP_URL)
celery.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # without it a killed child loses what it had
    task_ignore_result=True,
    task_queues=[queue],
    task_default_queue=work.QUEUE,
    task_default_exchange=work.EXCHANGE,
    task_default_routing_key=work.ROUTING_KEY,
    worker_prefetch_multiplier=4,
)
opened = SimpleNamespace()
LOCK, UPSERT, FINISH = (re.sub(r"\$\d+", "%s", statement) for statement in (work.LOCK, work.UPSERT, work.FINISH))


@worker_process_init.connect
def connect(**_: object) -> None:
    opened.database = psycopg.connect(work.DATABASE_URL, autocommit=True)


@celery.task(name="handle")
def handle(body: str) -> None:
    webhook = work.Webhook.model_validate_json(body)
    with opened.database.transaction():
        found = opened.database.execute(LOCK, (webhook.key,)).fetchone()
        if found[0] == "done":
            return
        opened.database.execute(UPSERT, work.row(webhook))
        opened.database.execute(FINISH, (webhook.key,))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with await work.open_pool() as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/webhook")
async def webhook(request: Request) -> Response:
    body = await request.body()
    if not work.genuine(body, request.headers.get(work.SIGNATURE)):
        return Response(status_code=401)
    key, text = request.headers[work.KEY], body.decode()
    if await request.app.state.pool.fetchval(work.RECORD, key, text) is not None:
        await run_in_threadpool(handle.apply_async, (text,))
    return Response(status_code=202)
