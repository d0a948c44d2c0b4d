"""The fleet of real processes that schedules are played on: started once, on a database and a vhost of its own."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from ops.parts import inbound_attempts, open_parts
from simulators.core_pms import CorePms, Heard
from tests.faults.ground import QUEUES, database_of_its_own
from tests.faults.nursery import Nursery
from tests.fleet import World
from topology.depth import Depths
from workers.pull import Puller

from .schedule import StuckError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from ops.stack.local import Stack

PATIENCE = 60.0  # seconds in which everything comes to rest, or never does: a takeover takes six of them
VENDOR_TIMEOUT = 2.0  # seconds that the fleet waits for an answer


@dataclass
class Fleet:
    """puller: an operator's; heard: by company, as the core hears it; reached: what came to pass, how often"""

    world: World
    core: CorePms
    pool: asyncpg.Pool[asyncpg.Record]
    puller: Puller
    heard: defaultdict[str, list[Heard]]
    reached: Counter[str] = field(default_factory=Counter)
    _turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @classmethod
    @asynccontextmanager
    async def open(cls, stack: Stack, folder: Path) -> AsyncIterator[Fleet]:
        """Every process up."""
        heard: defaultdict[str, list[Heard]] = defaultdict(list)
        database_url, amqp_url = await database_of_its_own(stack)
        async with AsyncExitStack() as resources:
            world = await World.build(database_url, amqp_url, folder, resources)
            world.apart = True
            world.spawner = resources.enter_context(Nursery(folder)).start
            world.extra |= {"vendor_timeout": VENDOR_TIMEOUT, "pull_interval": 0}  # who is pulled when, schedules say
            pool = await asyncpg.create_pool(database_url, min_size=0, max_size=10)
            resources.push_async_callback(pool.close)
            core = CorePms(amqp_url, on_event=lambda event: heard[event.company or ""].append(event))
            await resources.enter_async_context(core)
            parts = await resources.enter_async_context(open_parts("operator", world.settings()))
            puller = Puller(
                parts.pool, parts.directory, parts.sessions, parts.governor, inbound_attempts(parts.adapters), None,
                overlap=timedelta(minutes=10), random=random.random, now=parts.now,
            )  # fmt: skip
            try:
                await world.start()
                yield cls(world, core, pool, puller, heard)
            finally:
                for name in list(world.processes):
                    world.kill(name)

    async def begin_anew(self, name: str, *, kill: bool) -> None:
        """Killed, or told to stop; then started again. Nobody is killed again before it is up."""
        async with self._turns[name]:
            self.reached[f"{name} {'killed' if kill else 'stopped'}"] += 1
            if kill:
                self.world.kill(name)
                # Who died while it renewed a token keeps the others waiting for a minute: it passes.
                await self.pool.execute("UPDATE connections SET renewing_until = NULL")
            else:
                await asyncio.to_thread(self.world.stop, name)
            await self.world.start(name)

    async def left_over(self) -> list[str]:
        """What no schedule looks at: messages that nobody takes, letters of nobody, results that nobody was told."""

        async def left() -> list[str]:
            async with Depths(self.world.amqp_url, name="what is left") as depths:
                waiting = await depths.ask(QUEUES)
            untold = await self.pool.fetchval("SELECT count(*) FROM core_batches")
            letters = await self.pool.fetchval("SELECT count(*) FROM dead_letters WHERE company_id IS NULL")
            counts = {**waiting, "batches of results": untold, "letters of no company": letters}
            return [f"{what}: {count}" for what, count in counts.items() if count]

        try:
            await until_nothing_is(left, patience=10)
        except StuckError as error:
            return [str(error)]
        return []


async def until_nothing_is(
    left: Callable[[], Awaitable[list[str]]],
    patience: float = PATIENCE,
    a_minute_passes: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """a_minute_passes: called every four seconds. raises StuckError, with what is left"""
    began = time.monotonic()
    minutes = 1
    while found := await left():
        waited = time.monotonic() - began
        if waited > patience:
            raise StuckError("; ".join(found[:10]))
        if a_minute_passes is not None and waited > 4 * minutes:
            minutes += 1
            await a_minute_passes()
        await asyncio.sleep(0.05)  # nothing announces a row
