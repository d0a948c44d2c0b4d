"""The processes: ingress, inbound, outbound, scheduler. Each runs until SIGTERM and leaves nothing half done."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import uvloop
from starlette.applications import Starlette

from adapters.port import actions
from ingress.admin import Admin
from ingress.app import create_app, health_routes
from ingress.fairness import Shares
from ingress.webhooks import Webhooks
from store import inbound as store_inbound
from store import ingest, schema
from store.bell import Bell
from store.pool import API_ROLE, open_pool
from store.presence import Presence
from store.retention import Keep
from telemetry import logs, metrics
from topology.announce import WakeUp, announce
from topology.apply import BrokerUnavailable, check
from topology.consumer import Consumer
from topology.declared import ROUTER_QUEUE, UNROUTABLE, dlq, inbound_queue, outbound_queue
from topology.depth import Depths
from topology.retry import POLICIES
from workers.delivery import DeliveryStage
from workers.inbound import InboundStage
from workers.intake import Intake, Stage
from workers.jobs import Jobs
from workers.malformed import keep_malformed
from workers.pull import Puller, Pulls, pulled_vendors
from workers.recorder import Recorder
from workers.relay import Relay
from workers.retention import Retention
from workers.router import RouterStage
from workers.strays import Strays
from workers.takeover import Takeover
from workers.turns import Turns
from workers.upkeep import Upkeep

from .parts import declared, inbound_attempts, open_parts, state_gauges, worker_name
from .serving import serving, stop_signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence

    from adapters.port import Adapter
    from store.pool import Warm

    from .parts import Parts
    from .settings import Settings

_log = logging.getLogger(__name__)

LAST_WORD = 10.0  # seconds of a stop, beyond its grace, to settle what was done and to say goodbye
ANSWER = 2.0  # seconds that the database has for the question whether it is there
NOT_CONSUMING = 60.0  # seconds without consuming after which a worker calls itself dead
LINGER = 0.003  # seconds; a batch costs about 2 ms of CPU, whatever is in it
DELIVERIES = 4  # batches of one vendor's deliveries that are leased at once


class NotReadyError(Exception):
    """What must be done before a process can start."""


def run(process: str, settings: Settings) -> None:
    """Runs one process until it is told to stop. raises NotReadyError and what the parts raise"""
    logs.configure(process, settings.log_level)
    # What is loaded now stays; and what a batch makes is freed by counting, so the collector need not look so often: a tenth
    # of a busy process's time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)

    async def until_told() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.of_loop)
        await PROCESSES[process](settings, stop_signal(settings.grace + LAST_WORD))

    uvloop.run(until_told())


async def ingress(settings: Settings, stop: asyncio.Event) -> None:
    await _check_schema(settings)
    async with open_parts("ingress", settings, warm=ingest.warm) as parts, AsyncExitStack() as stack:
        await _check_topology(parts)
        api = await open_pool(settings.database_url, role=API_ROLE, name="ingress api", size=4)
        stack.push_async_callback(api.close)
        webhooks = Webhooks(
            parts.pool, parts.directory, parts.adapters, parts.publisher, Shares(), inbound_attempts(parts.adapters)
        )
        stack.push_async_callback(webhooks.stop)
        app = create_app(webhooks, Admin(parts.pool, api), _readiness(parts))
        async with serving(app, settings.host, settings.ingress_port, grace=settings.grace) as port:
            _log.info("ingress ready", extra=logs.about(host=settings.host, port=port))
            await stop.wait()


async def inbound(settings: Settings, stop: asyncio.Event) -> None:
    async with (
        _present("inbound", settings),
        _worker("inbound", settings, settings.inbound_port, store_inbound.warm) as (parts, consume),
    ):
        stage = inbound_stage(parts)
        for vendor, adapter in parts.adapters.items():
            if adapter.manifest.inbound:
                await consume(inbound_queue(vendor), stage, 2)
        await stop.wait()


async def outbound(settings: Settings, stop: asyncio.Event) -> None:
    async with (
        _present("outbound", settings),
        _worker("outbound", settings, settings.outbound_port) as (parts, consume),
    ):
        router = RouterStage(
            parts.pool,
            parts.directory,
            parts.adapters,
            parts.publisher,
            parts.marks,
            parts.teller,
            POLICIES,
            now=parts.now,
        )
        await consume(ROUTER_QUEUE, router, 1)  # one at a time: commands about one entity keep their order
        turns, strays = Turns(), Strays(parts.pool, worker=parts.worker)
        for vendor, adapter in parts.adapters.items():
            if adapter.manifest.commands or adapter.manifest.actions:
                await consume(outbound_queue(vendor), delivery_stage(parts, adapter, turns, strays), DELIVERIES)
        await _watch([asyncio.create_task(strays.run(), name="strays")], stop)


async def scheduler(settings: Settings, stop: asyncio.Event) -> None:
    await _check_schema(settings)
    async with (
        _present("scheduler", settings),  # it renews tokens
        open_parts("scheduler", settings) as parts,
        AsyncExitStack() as stack,
    ):
        await _check_topology(parts)
        consumers: list[Consumer] = []
        queues = [queue.name for queue in declared(parts.adapters).queues]
        tasks = []
        for queue in sorted({dlq("pms"), *(dlq(vendor) for vendor in parts.adapters)}):
            recorder = Recorder(parts.pool, parts.directory, parts.publisher, queue, now=parts.now)
            consumer = Consumer(
                settings.amqp_url,
                queue,
                recorder.take,
                prefetch=20,
                name=f"staybus scheduler {queue}",
                ca_file=settings.amqp_ca_file,
                on_lost=recorder.forget,
                on_state=state_gauges(queue),
            )
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            consumers.append(consumer)
            tasks.append(asyncio.create_task(recorder.run(consumer), name=f"recorder {queue}"))

        depths = Depths(settings.amqp_url, name="staybus scheduler depths", ca_file=settings.amqp_ca_file)
        stack.push_async_callback(depths.close)

        async def waiting(asked: Iterable[str] = (*queues, UNROUTABLE)) -> dict[str, int]:
            return await depths.ask(asked)

        relay = Relay(parts.pool, parts.directory, parts.publisher, waiting, actions=actions(parts.adapters))
        bell = Bell(settings.database_url, "scheduler", relay.ring)
        await bell.start()
        stack.push_async_callback(bell.stop)
        takeover = Takeover(parts.pool)
        retention = Retention(parts.pool, Keep.of_days(settings.retention_days, settings.dead_letter_retention_days))

        async def wake(wakes: Sequence[WakeUp]) -> None:
            parts.marks.add(await announce(parts.publisher, wakes))

        pulls = Pulls(
            parts.pool,
            Puller(
                parts.pool,
                parts.directory,
                parts.sessions,
                parts.governor,
                inbound_attempts(parts.adapters),
                wake,
                overlap=timedelta(seconds=settings.pull_overlap),
                random=parts.random,
                now=parts.now,
            ),
            pulled_vendors(parts.adapters),
            worker=parts.worker,
            every=settings.pull_interval,
        )
        upkeep = Upkeep(parts.pool, parts.directory, parts.sessions, waiting)
        tasks += [
            asyncio.create_task(relay.run(stop), name="relay"),
            asyncio.create_task(upkeep.run(stop), name="upkeep"),
            asyncio.create_task(takeover.run(stop), name="takeover"),
            asyncio.create_task(Jobs(parts.pool, parts.adapters).run(stop), name="jobs"),
            asyncio.create_task(pulls.run(stop), name="pulls"),
            asyncio.create_task(retention.run(stop), name="retention"),
        ]
        app = Starlette(routes=health_routes(_readiness(parts), _liveness(consumers)))
        async with serving(app, settings.host, settings.scheduler_port, grace=1):
            _log.info("scheduler ready")
            await _watch(tasks, stop)


PROCESSES: dict[str, Callable[[Settings, asyncio.Event], Coroutine[None, None, None]]] = {
    "ingress": ingress,
    "inbound": inbound,
    "outbound": outbound,
    "scheduler": scheduler,
}


# ------------------------------------------------------------------------------------------------ shared


def inbound_stage(parts: Parts) -> InboundStage:
    return InboundStage(
        parts.pool,
        parts.directory,
        parts.sessions,
        parts.governor,
        parts.teller,
        POLICIES,
        worker=parts.worker,
        random=parts.random,
        now=parts.now,
    )


def delivery_stage(parts: Parts, adapter: Adapter, turns: Turns, strays: Strays) -> DeliveryStage:
    return DeliveryStage(
        parts.pool,
        parts.directory,
        parts.sessions,
        parts.governor,
        parts.publisher,
        parts.marks,
        parts.teller,
        POLICIES,
        worker=parts.worker,
        random=parts.random,
        now=parts.now,
        turns=turns,
        strays=strays,
        calls_at_once=adapter.manifest.calls_at_once,
    )


@asynccontextmanager
async def _present(name: str, settings: Settings) -> AsyncIterator[None]:
    """For as long as this process may hold leases, until after the last one was settled or given back."""
    presence = Presence(settings.database_url, worker_name(name))
    await presence.start()
    try:
        yield
    finally:
        await presence.stop()


@asynccontextmanager
async def _worker(
    name: str, settings: Settings, port: int, warm: Warm | None = None
) -> AsyncIterator[tuple[Parts, Callable[[str, Stage, int], Awaitable[None]]]]:
    """A consuming process. The order of its stop: take no more, finish what is in hand, ack, close."""
    await _check_schema(settings)
    consumers: list[Consumer] = []
    intakes: list[Intake] = []
    async with open_parts(name, settings, warm=warm) as parts:
        await _check_topology(parts)

        async def consume(queue: str, stage: Stage, flights: int) -> None:
            keep = partial(keep_malformed, parts.pool, parts.directory, queue)
            intake = Intake(stage, queue=queue, keep=keep, flights=flights, linger=LINGER)
            consumer = Consumer(
                settings.amqp_url,
                queue,
                intake.take,
                prefetch=settings.prefetch,
                name=f"staybus {name} {queue}",
                ca_file=settings.amqp_ca_file,
                on_lost=intake.forget,
                on_state=state_gauges(queue),
            )
            intake.attach(consumer)
            intakes.append(intake)
            consumers.append(consumer)
            await consumer.start(wait=5)

        app = Starlette(routes=health_routes(_readiness(parts), _liveness(consumers)))
        async with serving(app, settings.host, port, grace=1):
            try:
                yield parts, consume
            finally:
                end = time.monotonic() + settings.grace
                await asyncio.gather(
                    *(_wind_up(*pair, settings.grace) for pair in zip(consumers, intakes, strict=True))
                )
                await parts.teller.stop()
                await asyncio.gather(*(consumer.stop() for consumer in consumers))
                await parts.sessions.stop(max(0.0, end - time.monotonic()))  # within the same grace


async def _wind_up(consumer: Consumer, intake: Intake, grace: float) -> None:
    """The router's queue has another consumer at once, and an order: what is not begun must be back before that one begins."""
    if consumer.queue == ROUTER_QUEUE:
        await intake.drain(grace, give_back=False)
        await consumer.leave()
    else:
        await consumer.stop_consuming()
        await intake.drain(grace)


async def _watch(tasks: list[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Until stop; a task that dies takes its process with it, so that somebody notices."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
    for task in (*tasks, stopping):
        task.cancel()
    await asyncio.gather(*tasks, stopping, return_exceptions=True)
    for task in done:
        if task is not stopping and not task.cancelled() and (error := task.exception()):
            raise error


async def _check_schema(settings: Settings) -> None:
    found = await schema.status(settings.database_url)
    if not found.up_to_date:
        raise NotReadyError(
            f"the database is at schema version {found.current or 'none'}, this staybus needs {found.head}: "
            "run `staybus db upgrade`"
        )


async def _check_topology(parts: Parts) -> None:
    """A broker that is away is waited for; one that has other queues than ours is not worked with."""
    try:
        differences = await check(
            parts.settings.amqp_url, declared(parts.adapters), ca_file=parts.settings.amqp_ca_file
        )
    except BrokerUnavailable as error:
        _log.warning("broker away at the start; trying on", extra=logs.about(reason=str(error)))
        return
    if differences:
        listed = "; ".join(str(difference) for difference in differences)
        raise NotReadyError(f"the broker's topology differs ({listed}): run `staybus topology apply`")


def _readiness(parts: Parts) -> Callable[[], Awaitable[dict[str, bool]]]:
    asked: asyncio.Future[list[object]] | None = None  # one question at a time: who is silent is not asked for more

    async def database() -> bool:
        nonlocal asked
        if asked is None or asked.done():
            asked = asyncio.gather(parts.pool.fetchval("SELECT 1"), return_exceptions=True)
        await asyncio.wait({asked}, timeout=ANSWER)  # and not ended here: its session would wait for that, too
        return asked.done() and asked.result() == [1]

    async def ready() -> dict[str, bool]:
        return {"database": await database(), "broker": parts.publisher.ready}

    return ready


def _liveness(consumers: list[Consumer]) -> Callable[[], bool]:
    """Alive is who consumes; a short loss (a broker's restart) is no death, however long ago somebody asked before it."""
    missed: float | None = None  # the first look of those that found one not consuming

    def alive() -> bool:
        nonlocal missed
        for consumer in consumers:
            metrics.CONSUMING.labels(consumer.queue).set(consumer.consuming)
        if all(consumer.consuming for consumer in consumers):
            missed = None
        elif missed is None:
            missed = time.monotonic()
        return missed is None or time.monotonic() - missed < NOT_CONSUMING

    return alive
