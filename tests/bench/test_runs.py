"""What the benchmarks measure does the work, and is ended with them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psutil
import pytest

from bench import measure, payloads
from bench.measure import Target, UnprovenError
from bench.peers.running import running
from bench.session import Children, EndedError, children, run
from bench.staybus import fleet

if TYPE_CHECKING:
    from ops.stack.local import Stack

COUNT = 60
SLEEP = ["-c", "import time; time.sleep(120)"]


@pytest.fixture
async def handwritten(stack: Stack, tmp_path: Path) -> AsyncIterator[Target]:
    async with running("handwritten", stack, tmp_path, "quorum") as target:
        yield target


async def test_staybus_does_the_work_and_every_event_is_found_again(stack: Stack, tmp_path: Path) -> None:
    async with fleet(stack, tmp_path) as target:
        await measure.prove(target, 5_000_000)
        burst = await measure.burst(target, COUNT, 0)
        steady = await measure.steady(target, 100.0, COUNT / 100, 10_000_000)
    for result in (burst, steady):
        assert (result.accepted, result.done) == (COUNT, COUNT)
    assert (
        set(burst.cpu) == set(burst.memory) == {"ingress", "inbound", "outbound", "scheduler", "postgres", "rabbitmq"}
    )


async def test_a_peer_does_the_same_work(handwritten: Target) -> None:
    await measure.prove(handwritten, 5_000_000)
    result = await measure.burst(handwritten, COUNT, 0)
    assert (result.accepted, result.done) == (COUNT, COUNT)
    expected = payloads.booking(COUNT - 1)
    database = await asyncpg.connect(handwritten.database_url)
    row = await database.fetchrow("SELECT * FROM bookings WHERE booking_id = $1", expected["id"])
    await database.close()
    assert row is not None
    assert (row["guest_name"], row["price_cents"]) == (f"Ana-Sofía {expected['lastName']}", 123_450)
    assert row["arrival"].isoformat() == expected["arrival"]
    assert row["event_key"] == payloads.key(expected)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"secret": "another"}, "to a webhook that comes twice"),
        ({"path": "/elsewhere"}, "to a wrong signature"),
        ({"stored": "SELECT count(*) FROM channel_events WHERE status = 'skipped'"}, "has stored 0 bookings"),
    ],
)
async def test_who_does_not_do_the_work_is_not_measured(
    handwritten: Target, change: dict[str, str], fault: str
) -> None:
    with pytest.raises(UnprovenError, match=fault):
        await measure.prove(replace(handwritten, **change), 5_000_000)


async def test_events_that_are_not_found_again_count_as_lost(handwritten: Target) -> None:
    half = replace(handwritten, settled=f"{handwritten.settled} AND id % 2 = 0")
    result = await measure.burst(half, COUNT, 0)
    assert (result.accepted, result.done) == (COUNT, COUNT // 2)


def test_ctrl_c_ends_what_was_started(tmp_path: Path) -> None:
    pids: list[int] = []

    async def told_in_the_middle() -> None:
        async with children(tmp_path) as started:
            pids.extend(started.start(name, SLEEP) for name in ("one", "two"))
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run(told_in_the_middle())
    assert not any(map(_lives, pids))


async def test_children_of_children_are_ended_too(tmp_path: Path) -> None:
    parent = f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, *{SLEEP}]).pid, flush=True); time.sleep(120)"
    async with children(tmp_path) as started:
        started.start("parent", ["-c", parent])
        pid = await _said(started, "parent")
    async with asyncio.timeout(30):  # it was sent SIGKILL; the kernel may take its time
        while _lives(pid):
            await asyncio.sleep(0.02)


async def test_a_process_that_ends_by_itself_is_named(tmp_path: Path) -> None:
    async with children(tmp_path) as started:
        started.start("weak", ["-c", "raise SystemExit(3)"])
        with pytest.raises(EndedError, match=r"weak ended by itself, see .*weak\.log"):
            await started.ready(1, "/", {200})


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _said(started: Children, name: str) -> int:
    async with asyncio.timeout(30):
        while not (text := (started.logs / f"{name}.log").read_text()).endswith("\n"):
            await asyncio.sleep(0.02)
    return int(text)
