"""One run: webhooks sent to something that takes them, until all are settled, and what that cost."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson

from . import payloads
from .load import Answers, Order
from .machine import Cost, cost, memory, snapshot

CLEAN = 0.05  # the share of the machine that others may take before a run is left out
SERVERS = frozenset({"postgres", "rabbitmq"})  # many processes, dear to look at: not while load runs
_ROOT = Path(__file__).parents[1]


class UnprovenError(Exception):
    """What is to be measured does not do the work, or a run broke off; the text says what and where to look."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that takes webhooks and settles them.

    secret    of the signature
    roots     name of a kind of process → pids, whose cost counts with that of their descendants
    settled   a query for (fact as `payloads.key` names it, when it was settled in seconds since 1970)
    stored    a query for the number of bookings that settling has written
    logs      where its processes write
    """

    name: str
    database_url: str
    port: int
    path: str
    secret: str
    roots: dict[str, list[int]]
    settled: str
    stored: str
    logs: Path


@dataclass(frozen=True, slots=True)
class Result:
    """One run.

    rate          what was asked for, events a second; 0: as fast as it went
    accepted      answered 202; done: settled
    ingest_rate   answered a second; done_rate: settled a second, from the first request to the last settled event
    ack, latency  p50 and p99 in seconds from when a request was sent or due, to its answer and to its settling
    cpu, load     us an event, by kind of process and of the load generator
    memory        MiB of each process by kind, when the kind held most; of the servers after the run
    foreign       the share of the machine that other programs took
    """

    name: str
    rate: float
    count: int
    accepted: int
    done: int
    ingest_rate: float
    done_rate: float
    ack: tuple[float, float]
    latency: tuple[float, float]
    cpu: dict[str, float]
    load: float
    memory: dict[str, list[float]] = field(default_factory=dict)
    foreign: float = 0.0

    @property
    def clean(self) -> bool:
        return self.foreign <= CLEAN


async def burst(target: Target, count: int, first: int, *, full: bool = False, connections: int = 64) -> Result:
    """Closed loop: every connection sends its next request when the last is answered."""
    return await _run(
        target, "burst", Order(target.port, target.path, target.secret, count, first, connections, full=full)
    )


async def steady(target: Target, rate: float, seconds: float, first: int, *, full: bool = False) -> Result:
    """Open loop: requests are due at fixed times, `rate` a second."""
    count = max(1, int(rate * seconds))
    order = Order(target.port, target.path, target.secret, count, first, rate=rate, full=full)
    return await _run(target, f"{rate:,.0f}/s", order)


async def prove(target: Target, number: int, patience: float = 60.0) -> None:
    """That a wrong signature is refused, and that a webhook that comes twice is recorded once, settled and applied.

    number   of a payload that is used for nothing else
    raises   UnprovenError
    """
    headers, body = payloads.signed(number, target.secret.encode())
    other, _ = payloads.signed(number, b"not the secret")
    database = await asyncpg.connect(target.database_url)
    try:
        before = await database.fetchval(target.stored)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{target.port}") as http:
            refused = (await http.post(target.path, headers=other, content=body)).status_code
            answers = [(await http.post(target.path, headers=headers, content=body)).status_code for _ in range(2)]
        _expect(target, refused in {401, 403}, f"answers {refused} to a wrong signature")
        _expect(
            target, answers[0] == 202 and answers[1] in {200, 202}, f"answers {answers} to a webhook that comes twice"
        )
        done = await _wait_done(database, 1, patience)
        rows = await database.fetchval("SELECT count(*) FROM channel_events")
        stored = await database.fetchval(target.stored)
        _expect(target, done == 1, f"has settled nothing after {patience:.0f} s")
        _expect(target, rows == 1, f"has {rows} rows for one event")
        _expect(target, stored == before + 1, f"has stored {stored - before} bookings from one")
    finally:
        await database.close()


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _run(target: Target, name: str, order: Order) -> Result:
    database = await asyncpg.connect(target.database_url)
    try:
        known = await _done(database)
        # What the run before has left in the page cache would be written in the middle of this one, all at once.
        await asyncio.to_thread(os.sync)
        before = snapshot(target.roots)
        # Not at fixed rates: to look at a process's memory stops it for a moment, and four are stopped longer than two.
        watch = asyncio.create_task(_most_memory(target)) if not order.rate else None
        try:
            answers = await send(order)
            await _wait_done(database, known + answers.statuses.get("202", 0))
        finally:
            if watch is not None:
                watch.cancel()
        spent = cost(before, snapshot(target.roots))
        held = await watch if watch is not None else {}
        held |= {kind: memory(target.roots[kind]) for kind in SERVERS & target.roots.keys()}
        settled = {row[0]: row[1] for row in await database.fetch(target.settled)}
    finally:
        await database.close()
    return _result(target, name, order, answers, settled, spent, held)


async def send(order: Order) -> Answers:
    """Runs the load generator in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="staybus-load-") as folder:
        out = Path(folder) / secrets.token_hex(4)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.load"), stdin=asyncio.subprocess.PIPE, cwd=_ROOT, start_new_session=True
        )
        try:
            await process.communicate(orjson.dumps(asdict(order) | {"out": str(out)}))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise UnprovenError("the load generator broke off: no answer in time")
        return Answers(**orjson.loads(out.read_bytes()))


async def _most_memory(target: Target) -> dict[str, list[float]]:
    """What each kind held when it held most, looked at once a second until cancelled."""
    most: dict[str, list[float]] = {}
    with suppress(asyncio.CancelledError):
        while True:
            for kind, pids in target.roots.items():
                if kind not in SERVERS:
                    most[kind] = max(most.get(kind, []), memory(pids), key=sum)
            await asyncio.sleep(1)
    return most


async def _done(database: asyncpg.Connection[Any]) -> int:
    return int(await database.fetchval("SELECT count(*) FROM channel_events WHERE processed_at IS NOT NULL"))


async def _wait_done(database: asyncpg.Connection[Any], wanted: int, idle: float = 30.0) -> int:
    """Events settled in all, when `wanted` are or nothing moves for `idle` seconds."""
    seen, moved = -1, time.monotonic()
    while True:
        done = await _done(database)
        if done >= wanted:
            return done
        if done != seen:
            seen, moved = done, time.monotonic()
        elif time.monotonic() - moved > idle:
            return done
        await asyncio.sleep(0.3)


def _expect(target: Target, holds: bool, fault: str) -> None:
    if not holds:
        raise UnprovenError(f"{target.name} {fault}; see {target.logs}")


def _result(
    target: Target,
    name: str,
    order: Order,
    answers: Answers,
    settled: dict[str, float],
    spent: Cost,
    held: dict[str, list[float]],
) -> Result:
    ends = [settled.get(payloads.key(payloads.booking(order.first + n))) for n in range(order.count)]
    latencies = [end - sent for end, sent in zip(ends, answers.sent, strict=True) if end is not None]
    _expect(target, bool(latencies), f"has settled none of {order.count} events")
    acks = [end - sent for end, sent in zip(answers.answered, answers.sent, strict=True) if end]
    begin = min(answers.sent)
    return Result(
        name=name,
        rate=order.rate,
        count=order.count,
        accepted=answers.statuses.get("202", 0),
        done=len(latencies),
        ingest_rate=order.count / (max(answers.answered) - begin),
        done_rate=len(latencies) / (max(end for end in ends if end is not None) - begin),
        ack=(quantile(acks, 0.5), quantile(acks, 0.99)),
        latency=(quantile(latencies, 0.5), quantile(latencies, 0.99)),
        cpu={kind: seconds / order.count * 1e6 for kind, seconds in spent.cpu.items()},
        load=spent.load / order.count * 1e6,
        memory=held,
        foreign=spent.foreign,
    )
