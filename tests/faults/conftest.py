"""A stack of these tests' own: they kill it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ops.stack import local
from tests.faults.ground import Ground, database_of_its_own
from tests.fleet import World

if TYPE_CHECKING:
    from ops.stack.local import Stack

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    os.environ.setdefault("STAYBUS_RUNTIME", str(ROOT / ".staybus/runtime"))
    started = local.start(tmp_path_factory.mktemp("faults"), print)
    if started.postgres is None or started.rabbitmq is None:
        pytest.skip("fault tests kill servers of their own: unset STAYBUS_DATABASE_URL and STAYBUS_AMQP_URL")
    yield started
    local.delete(started.folder, print)


@pytest.fixture
async def world(stack: Stack, database_url: str, amqp_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """Each process apart, so that it can be killed."""
    async with AsyncExitStack() as resources:
        built = await World.build(database_url, amqp_url, tmp_path, resources)
        built.apart = True
        yield built


@pytest.fixture(scope="module")
async def ground(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """One fleet for many tests: each leaves it idle, with every process up."""
    database_url, amqp_url = await database_of_its_own(stack)
    async with Ground.open(stack, database_url, amqp_url, tmp_path_factory.mktemp("ground")) as ground:
        yield ground
