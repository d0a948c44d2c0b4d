"""What befalls the vendor's answers, the clocks, and the processes that are told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from simulators.beds24 import faults as vendor
from simulators.beds24.faults import FaultKind
from tests.faults.fault import Fault

if TYPE_CHECKING:
    from tests.faults.ground import Ground
    from tests.faults.load import Load

GRACE = 25.0  # the default of the setting


def answering(
    kind: FaultKind, operation: str = "POST /bookings", **more: Any
) -> Callable[[Ground, Load], Awaitable[None]]:
    """Four answers of the vendor, one after the other, so that none is the third about one thing."""

    async def act(ground: Ground, load: Load) -> None:
        load.vendor_sound = False
        for _ in range(4):
            ground.world.sim.faults.add(vendor.Fault(kind, operation=operation, **more))
            load.begin(load.hint if operation == "GET /bookings" else load.story)
            await asyncio.sleep(1.3)

    return act


def clock_jumps(process: str) -> Callable[[Ground, Load], Awaitable[None]]:
    """An hour on or back, and right again two seconds later, while retries wait."""

    async def act(ground: Ground, load: Load) -> None:
        load.vendor_sound = False
        ground.world.sim.faults.add(vendor.Fault(FaultKind.UNAVAILABLE, operation="POST /bookings", commit=False))
        ground.signal(process, signal.SIGUSR1)
        load.begin(load.story)
        await asyncio.sleep(2)
        ground.signal(process, signal.SIGUSR1)

    return act


def stopped(process: str) -> Callable[[Ground, Load], Awaitable[None]]:
    """SIGTERM in the middle of calls that take a second: finished or given back, nothing done again, exit code 0."""

    async def act(ground: Ground, load: Load) -> None:
        for _ in range(2):
            ground.slow("POST /bookings", 0.7, 3)
            ground.slow("GET /bookings", 0.4, 1)
            await asyncio.sleep(0.5)
            await begin_again(ground, load, process)

    return act


async def begin_again(ground: Ground, load: Load, process: str) -> None:
    """Stopped as an operator stops it, and started with nothing in store for it."""
    running = ground.world.processes[process]
    ground.signal(process, signal.SIGTERM)
    if not await ground.died(process, GRACE + 10):
        load.problems.append(f"{process} did not stop within its grace")
        running.kill()
    if code := running.wait():
        load.problems.append(f"{process} stopped with {code}: {ground.world.log(process)[-600:]}")
    ground.begin(process)
    await ground.world.wait_ready(process, 60)


FAULTS = (
    Fault("vendor", "timeout-after-commit", answering(FaultKind.TIMEOUT_AFTER_COMMIT), hurt=True),
    Fault("vendor", "reset-after-commit", answering(FaultKind.TIMEOUT_AFTER_COMMIT, close=True), hurt=True),
    Fault("vendor", "reset-before-commit", answering(FaultKind.TIMEOUT_BEFORE_COMMIT, close=True), hurt=True),
    Fault("vendor", "half-answer", answering(FaultKind.CUT_JSON), hurt=True),
    Fault("vendor", "html-200", answering(FaultKind.HTML_200), hurt=True),
    Fault("vendor", "html-502", answering(FaultKind.HTML_502, commit=True), hurt=True),
    Fault("vendor", "500-before", answering(FaultKind.SERVER_ERROR, commit=False), hurt=True),
    Fault("vendor", "500-after", answering(FaultKind.SERVER_ERROR, commit=True), hurt=True),
    Fault("vendor", "503", answering(FaultKind.UNAVAILABLE, commit=False), hurt=True),
    Fault("vendor", "429", answering(FaultKind.RATE_LIMITED, seconds=1), hurt=True),
    Fault("vendor", "expired-token", answering(FaultKind.EXPIRED_TOKEN), hurt=True),
    Fault("vendor", "fetch-reset", answering(FaultKind.TIMEOUT_BEFORE_COMMIT, "GET /bookings", close=True), hurt=True),
    Fault("vendor", "fetch-html", answering(FaultKind.HTML_200, "GET /bookings"), hurt=True),
    Fault("vendor", "fetch-half", answering(FaultKind.CUT_JSON, "GET /bookings"), hurt=True),
    *(Fault("stop", process, stopped(process)) for process in ("ingress", "inbound", "outbound", "scheduler")),
    *(
        Fault(
            "clock",
            f"{process}{hours:+d}h",
            clock_jumps(process),
            hurt=True,
            plans=((process, {"clock": 3600.0 * hours}),),
        )
        for process in ("ingress", "inbound", "outbound", "scheduler")
        for hours in (-1, 1)
    ),
)
