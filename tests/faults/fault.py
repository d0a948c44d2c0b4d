"""One fault that is no death of a process: what it is called, what it does, and what the oracle may expect of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.faults.load import Load
from tests.fleet import PROCESSES

if TYPE_CHECKING:
    from tests.faults.ground import Ground, Verdict

Act = Callable[["Ground", Load], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """act returns when the fault is over.

    kind        broker, database, vendor, clock or stop
    hurt        a call may be answered badly or by nobody: then it counts as an attempt
    unroutable  messages that this leaves in `pms.unroutable`; None: any number
    plans       what a process is started with for it (tests.faults.crashing)
    exchange    False: commands come by outbox only, because what lies in the queue of the router is lost with it
    """

    kind: str
    title: str
    act: Act
    hurt: bool = False
    unroutable: int | None = 0
    exchange: bool = True
    plans: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.title}"


async def endure(ground: Ground, fault: Fault, seed: int, *, pace: float = 1.0) -> Verdict:
    load = Load(ground, random.Random(seed), exchange=fault.exchange)
    stop = asyncio.Event()
    for name, plan in fault.plans:
        ground.begin(name, plan)
        await ground.world.wait_ready(name, 60)
    async with asyncio.TaskGroup() as pumping:
        pumping.create_task(load.run(stop, pace=pace))
        await asyncio.sleep(0.7)  # the load is under way
        await fault.act(ground, load)
        await asyncio.sleep(0.3)
        for name in PROCESSES:
            code = ground.world.processes[name].poll()
            if code is not None:
                load.problems.append(f"{name} ended with {code}: {ground.world.log(name)[-600:]}")
            await ground.ensure(name)
        stop.set()
    return await ground.judge(load, unhurt=not fault.hurt, unroutable=fault.unroutable)
