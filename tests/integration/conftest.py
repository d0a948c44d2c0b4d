"""What several files begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from simulators.core_pms import CorePms
from tests.fleet import PROCESSES, PROPERTY, ROOM, World


@pytest.fixture
def processes() -> tuple[str, ...]:
    """Of the fleet, those that `core` starts."""
    return PROCESSES


@pytest.fixture
async def core(world: World, processes: tuple[str, ...]) -> AsyncIterator[CorePms]:
    """The core beside a fleet that runs; one property and one room of its own are mapped."""
    await world.map("property", PROPERTY, "P1")
    await world.map("room_type", ROOM, "RT1")
    async with CorePms(world.amqp_url) as core:
        await world.start(*processes)
        yield core
