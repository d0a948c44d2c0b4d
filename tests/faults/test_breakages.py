"""The oracle over real processes: a fleet of which one step is deliberately wrong must not pass."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.faults.breakages import BREAKAGES
from tests.faults.ground import Ground
from tests.faults.load import Load
from tests.faults.steps import POINTS

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

Scene = Callable[[Ground, Load, str], Awaitable[None]]


async def histories(ground: Ground, load: Load, broken: str) -> None:
    ground.begin("inbound", {"broken": broken})
    await load.history(8, 4)


async def backwards(ground: Ground, load: Load, broken: str) -> None:
    """One by one: what comes in one batch is put in order before it comes to the fence."""
    ground.begin("inbound", {"broken": broken})
    await load.backwards()


async def stories(ground: Ground, load: Load, broken: str) -> None:
    ground.begin("outbound", {"broken": broken})
    ground.slow("POST /bookings", 0.4, 20)
    await asyncio.gather(*(load.story("exchange", changes=2) for _ in range(5)))


async def one_story(ground: Ground, load: Load, broken: str) -> None:
    ground.begin("outbound", {"broken": broken})
    await load.story("exchange", changes=0)
    await ground.rest(load, 20)


async def echoes(ground: Ground, load: Load, broken: str) -> None:
    ground.begin("inbound", {"broken": broken})
    await load.story("exchange", changes=1)
    await ground.rest(load, 20)
    await load.echoes()


async def a_job(ground: Ground, load: Load, broken: str) -> None:
    ground.begin("scheduler", {"broken": broken})
    await load.hint()
    await ground.rest(load, 20)
    await load.errand("job")


def killed_at(point: str, act: Callable[[Load], Awaitable[None]], *, again: bool = False) -> Scene:
    """again: broken after the kill, too"""

    async def scene(ground: Ground, load: Load, broken: str) -> None:
        where = next(each for each in POINTS if each.name == point)
        load.begin(lambda: act(load))
        assert await ground.kill_at(where, 1, load, broken=broken)
        ground.begin(where.step.process, {"broken": broken} if again else None)
        await load.finish()

    return scene


async def overtaken(ground: Ground, load: Load, broken: str) -> None:
    """A call takes longer than it takes to find its worker dead, which it is not."""
    ground.world.extra["vendor_timeout"] = 20.0
    try:
        ground.begin("outbound", {"broken": broken})
    finally:
        ground.world.extra["vendor_timeout"] = 4.0
    ground.slow("POST /bookings", 9.0, 1)
    calls = len(ground.journal)
    await load.story("exchange", changes=0)
    async with asyncio.timeout(60):
        while len(ground.journal) == calls or ground.journal.under_way:
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)  # its answer comes to whoever asked first


SCENES: dict[str, tuple[Scene, str]] = {
    "forgets_a_status": (histories, "(skipped) has 1 results"),
    "tells_twice": (histories, "has 2 results"),
    "tells_before_the_commit": (histories, "was heard and is not stored"),
    "tells_another_state": (histories, "was told as"),
    "lets_echoes_through": (echoes, "is an echo of our own write"),
    "forgets_names": (one_story, "state: names of"),
    "has_no_fence": (backwards, "state: booking"),
    "acks_first": (killed_at("outbound.adopt.before", lambda load: load.story("exchange")), "lost: command"),
    "answers_first": (killed_at("ingress.insert.before", lambda load: load.history()), "lost: accepted"),
    "has_no_lanes": (stories, "pms.booking.update"),
    "leaves_one_out": (a_job, "jobs: "),
    "does_not_ask": (
        killed_at("outbound.create.after", lambda load: load.story("exchange"), again=True),
        "repeated: pms.booking.create",
    ),
    "settles_without_the_lease": (overtaken, "has 2 results"),
    "seems_dead": (overtaken, ""),
}


def test_every_breakage_has_its_scene() -> None:
    assert SCENES.keys() == BREAKAGES.keys()


@pytest.mark.parametrize("broken", SCENES)
async def test_the_oracle_finds_a_breakage(ground: Ground, broken: str) -> None:
    scene, words = SCENES[broken]
    load = Load(ground, random.Random(4))
    await scene(ground, load, broken)
    # Most breakages never come to rest; what is taken over needs six seconds for it, and more on a busy machine.
    verdict = await ground.judge(load, patience=30 if broken in {"does_not_ask", "seems_dead"} else 6)
    for process in ("ingress", "inbound", "outbound", "scheduler"):
        await ground.ensure(process)
    if words:
        assert any(words in violation for violation in verdict.violations), verdict.violations
    else:
        assert verdict.violations == []
