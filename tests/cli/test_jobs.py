"""Bulk work from the command line: when it becomes a job, how it is watched, stopped and left alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapters.registry import adapters
from store.pool import WORKER_ROLE, open_pool
from workers.jobs import Jobs

from .conftest import audited, status_of

if TYPE_CHECKING:
    from .conftest import Cli, Db, Fail

STAYBUS = str(Path(sys.executable).parent / "staybus")


@pytest.fixture
async def scheduler(database_url: str) -> AsyncIterator[None]:
    """A scheduler's loop for jobs, and nothing else of it."""
    pool = await open_pool(database_url, role=WORKER_ROLE, name="test", size=2)
    stop = asyncio.Event()
    loop = asyncio.create_task(Jobs(pool, adapters(), pause=0.05, batch=2).run(stop))
    yield
    stop.set()
    await loop
    await pool.close()


async def end(db: Db, status: str) -> None:
    """What a worker would do with everything that was requeued."""
    await db.execute("UPDATE channel_events SET status = $1 WHERE status = 'received'", status)
    await db.execute(
        "UPDATE dead_letters d SET status = CASE WHEN $1 = 'failed' THEN 'pending' ELSE 'resolved' END"
        " WHERE status = 'retrying'",
        status,
    )


async def test_a_requeue_as_a_job(acme: Cli, failed: Fail, db: Db, scheduler: None) -> None:
    ids = [(await failed())[0] for _ in range(5)]
    await failed(error="bug")
    told = await acme("dlq", "requeue", "--error", "unmapped", "--job", "--note", "mapped", "--yes", "--json")
    job = told.document
    assert (job["status"], job["total"], job["done"], job["left"], job["under_way"]) == ("done", 5, 5, 0, 5)
    assert {await status_of(db, id_) for id_ in ids} == {"received"}
    assert "job.add" in await audited(db)
    listed = (await acme("jobs", "list", "--json")).document
    assert [(one["id"], one["kind"], one["note"]) for one in listed] == [(job["id"], "requeue", "mapped")]
    assert (await acme("jobs", "list", "--status", "failed", "--json")).document == []
    assert "came_through" in (await acme("jobs", "show", job["id"])).out
    assert "requeued 5 of 5" in (await acme("jobs", "follow", job["id"])).out


async def test_many_are_a_job_without_being_asked_for(
    acme: Cli, failed: Fail, db: Db, scheduler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.cli.dlq.JOB_FROM", 2)
    for _ in range(3):
        await failed()
    told = await acme("dlq", "abandon", "--all", "--reason", "noise", "--yes")
    assert "abandoned 3 of 3" in told.out
    assert await db.fetchval("SELECT count(*) FROM dead_letters WHERE status = 'abandoned' AND notes = 'noise'") == 3


async def test_a_canary_that_comes_through_lets_the_rest_go(acme: Cli, failed: Fail, db: Db, scheduler: None) -> None:
    ids = [(await failed())[0] for _ in range(6)]
    running = asyncio.create_task(acme("dlq", "requeue", "--all", "--canary", "2", "--yes"))
    while await db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'") < 2:
        await asyncio.sleep(0.02)
    assert [await status_of(db, id_) for id_ in ids] == ["received"] * 2 + ["failed"] * 4  # the oldest
    await end(db, "done")
    told = await running
    assert "requeued 6 of 6" in told.out
    assert "2 go first" in told.err


async def test_a_canary_that_fails_leaves_the_rest_and_says_why(
    acme: Cli, failed: Fail, db: Db, scheduler: None
) -> None:
    ids = [(await failed())[0] for _ in range(4)]
    running = asyncio.create_task(acme("dlq", "requeue", "--all", "--canary", "2", "--yes", code=1))
    while await db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'") < 2:
        await asyncio.sleep(0.02)
    await end(db, "failed")
    told = await running
    assert "canary: 0 of 2 came through" in told.err
    assert "reservation: R1 is not mapped" in told.out
    assert [await status_of(db, id_) for id_ in ids] == ["failed"] * 4
    assert await db.fetchval("SELECT count(*) FROM dead_letters WHERE status = 'pending'") == 4
    await acme("jobs", "follow", str(await db.fetchval("SELECT id FROM operator_jobs")), code=1)


async def test_a_job_is_left_alone_and_cancelled(acme: Cli, failed: Fail, db: Db) -> None:
    """No scheduler is there, so nothing of it is done."""
    id_, letter = await failed()
    told = await acme("dlq", "requeue", str(letter), "--detach")
    job = told.out.strip()
    assert f"staybus jobs follow {job}" in told.err
    assert "cancelled" in (await acme("jobs", "cancel", job)).out
    assert "has ended already (cancelled)" in (await acme("jobs", "cancel", job, code=1)).err
    assert "cancelled by cli:" in (await acme("jobs", "follow", job, code=1)).err
    assert await status_of(db, id_) == "failed"
    assert (await audited(db))[-2:] == ["job.add", "job.cancel"]
    for command in ("show", "cancel", "follow"):
        assert "not known" in (await acme("jobs", command, str(letter), code=1)).err


async def test_ctrl_c_leaves_the_job_running(acme: Cli, failed: Fail, db: Db) -> None:
    await failed()
    process = await asyncio.create_subprocess_exec(
        *(STAYBUS, "dlq", "requeue", "--all", "--yes", "--job"), env=acme.environment(), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"1 in all" in await asyncio.wait_for(process.stderr.readline(), 30)
    # It looks at the job from now on.
    while not await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'staybus cli'"):
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = (await asyncio.wait_for(process.stderr.read(), 30)).decode()
    assert await process.wait() == 130
    assert "the job goes on" in told
    assert "staybus jobs cancel" in told
    assert "Traceback" not in told
    assert await db.fetchval("SELECT status FROM operator_jobs") == "waiting"


async def test_a_canary_is_no_more_than_there_is(acme: Cli, failed: Fail, scheduler: None, db: Db) -> None:
    await failed()
    running = asyncio.create_task(acme("dlq", "requeue", "--all", "--yes", "--canary", "5"))
    while not await db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'"):
        await asyncio.sleep(0.02)
    await end(db, "done")
    assert "1 in all; 1 go first" in (await running).err


async def test_what_cannot_be_meant_is_a_usage_error(acme: Cli, failed: Fail) -> None:
    await failed()
    requeue, replay = ("dlq", "requeue", "--all", "--yes"), ("events", "replay", "--from", "1h", "--yes")
    for words in (
        (*requeue, "--limit", str(10**20)),
        (*replay, "--limit", str(10**20)),
        (*requeue, "--canary-share", "0.5"),
    ):
        await acme(*words, code=2)


async def test_letters_are_found_by_their_owner(acme: Cli, failed: Fail, db: Db) -> None:
    await failed()
    await db.execute("UPDATE dead_letters SET owner = 'pipeline'")
    await failed()
    for owner in ("pipeline", "tenant"):
        rows: list[Any] = (await acme("dlq", "list", "--owner", owner, "--json")).document
        assert [row["owner"] for row in rows] == [owner]
        assert len((await acme("dlq", "stats", "--owner", owner, "--json")).document) == 1
        assert len((await acme("dlq", "requeue", "--owner", owner, "--dry-run", "--json")).document) == 1
    await acme("dlq", "list", "--owner", "nobody", code=2)
