"""Operators' jobs: each letter once, whatever happens to the scheduler; the rate, the canary, the cancel are kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from adapters.registry import adapters
from store import dead_letters, jobs
from store.dead_letters import Filter
from store.jobs import NewJob
from store.pool import WORKER_ROLE, open_pool
from workers.bulk import Letters
from workers.jobs import Jobs

if TYPE_CHECKING:
    from uuid import UUID

    from store.pool import Connection, Pool
    from tests.fleet import World

LETTERS = """
WITH event AS (
    INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type,
        entity_internal_id, idempotency_key, payload, status, attempts, error_class, last_error, lane, lane_policy)
    SELECT gen_random_uuid(), 'acme', 'beds24-acme', gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'reservation',
           'R' || n, gen_random_uuid(), '{}', 'failed', 1, 'rejected', 'no', 'reservation:' || gen_random_uuid() || '@beds24-acme',
           'hold'
    FROM generate_series(1, $1) n
    RETURNING id, seq
)
INSERT INTO dead_letters (id, event_id, company_id, connection_id, vendor, operation, error_class, error_code, error_message,
    fingerprint, attempts, owner)
SELECT (lpad(to_hex(seq), 32, '0'))::uuid, id, 'acme', 'beds24-acme', 'beds24', 'pms.booking.cancel', 'rejected', 'x', 'no', $2,
       1, 'tenant'
FROM event
"""


async def seed(db: Connection) -> None:
    await db.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '') ON CONFLICT DO NOTHING")
    await db.execute(
        "INSERT INTO connections (id, company_id, vendor, name) VALUES ('beds24-acme', 'acme', 'beds24', 'x')"
        " ON CONFLICT DO NOTHING"
    )


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    await seed(connection)
    yield connection
    await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, role=WORKER_ROLE, name="test", size=4)
    yield pool
    await pool.close()


def scheduler(pool: Pool, batch: int = 4) -> Jobs:
    return Jobs(pool, adapters(), pause=0.02, batch=batch)


async def ask(db: Connection, kind: str = "requeue", fingerprint: str = "f", **options: Any) -> UUID:
    """A job for all open letters of this cause that there are now."""
    wanted = Filter(
        "pending" if kind == "requeue" else None, fingerprint=fingerprint, until=await dead_letters.newest(db)
    )
    total = sum(row["letters"] for row in await dead_letters.kinds(db, wanted))
    return await jobs.add(db, NewJob(kind, Letters(wanted).document(), "cli:test", total, **options))


async def run(pool: Pool, id_: UUID, batch: int = 4) -> jobs.Job:
    """Until it has ended."""
    one = scheduler(pool, batch)
    while True:
        await one.step()
        async with pool.acquire() as db:
            job = await jobs.show(db, id_)
        assert job is not None
        if job.finished_at is not None:
            return job


async def statuses(db: Connection) -> list[str]:
    return [row["status"] for row in await db.fetch("SELECT status FROM channel_events ORDER BY seq")]


async def audited(db: Connection) -> Counter[str]:
    rows = await db.fetch("SELECT target FROM audit_log WHERE action LIKE 'dead_letter.%'")
    return Counter(row["target"] for row in rows)


async def test_each_letter_goes_once_and_with_a_fresh_budget(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 10, "f")
    await db.execute(LETTERS, 3, "other")
    job = await run(pool, await ask(db, note="mapped"))
    assert (job.status, job.total, job.done, job.failed) == ("done", 10, 10, 0)
    assert Counter(await statuses(db)) == {"received": 10, "failed": 3}
    assert set((await audited(db)).values()) == {1}
    row = await db.fetchrow(
        "SELECT e.attempts, e.job_id, d.status, d.notes, d.resolved_by FROM channel_events e JOIN dead_letters d ON d.event_id = e.id"
        " WHERE e.status = 'received'"
    )
    assert tuple(row) == (0, job.id, "retrying", "mapped", "cli:test")
    assert await jobs.outcome(db, job.id) == jobs.Outcome(0, 0, 10)


async def test_what_comes_after_it_was_asked_for_and_what_runs_already_is_left(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 5, "f")
    id_ = await ask(db)
    await db.execute(LETTERS, 5, "f")
    await db.execute("UPDATE channel_events SET status = 'processing' WHERE seq = 3")
    job = await run(pool, id_)
    assert (job.done, job.failed) == (4, 1)
    assert await statuses(db) == ["received", "received", "processing", "received", "received", *["failed"] * 5]


async def test_what_fails_again_behind_it_is_not_requeued_again(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 10, "f")
    id_ = await ask(db)
    await scheduler(pool).step()
    await db.execute("UPDATE channel_events SET status = 'failed' WHERE status = 'received'")
    await db.execute("UPDATE dead_letters SET status = 'pending' WHERE status = 'retrying'")
    job = await run(pool, id_)
    assert (job.done, job.failed) == (10, 0)
    assert await statuses(db) == ["failed"] * 4 + ["received"] * 6
    assert set((await audited(db)).values()) == {1}
    assert await jobs.outcome(db, id_) == jobs.Outcome(0, 4, 6)


async def test_a_batch_that_does_not_commit_is_done_again_as_a_whole(
    pool: Pool, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between what a batch changes and its commit: nothing of it is there, the cursor neither."""
    await db.execute(LETTERS, 6, "f")
    id_ = await ask(db)
    assert await scheduler(pool).step()

    async def dies(*_args: Any, **_options: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr("store.jobs.advance", dies)
        with pytest.raises(ConnectionResetError):
            await scheduler(pool).step()
    assert (await statuses(db)).count("received") == 4
    job = await run(pool, id_)
    assert (job.status, job.done) == ("done", 6)
    assert set((await audited(db)).values()) == {1}


async def test_several_schedulers_share_the_jobs(pool: Pool, db: Any) -> None:
    ids = []
    for cause in "abc":
        await db.execute(LETTERS, 20, cause)
        ids.append(await ask(db, fingerprint=cause))
    await asyncio.gather(*(run(pool, id_, batch=3) for id_ in ids))
    assert set(await statuses(db)) == {"received"}
    found = await audited(db)
    assert (len(found), set(found.values())) == (60, {1})


async def test_a_job_that_waits_for_a_locked_row_lets_the_others_have_their_turn(database_url: str, db: Any) -> None:
    """And is gone on with once the row is free."""
    for cause in ("locked", "free"):
        await db.execute(LETTERS, 1, cause)
    locked, free = [await ask(db, fingerprint=cause) for cause in ("locked", "free")]
    impatient = await open_pool(database_url, role=WORKER_ROLE, name="test", size=2, command_timeout=0.5)
    async with db.transaction():
        await db.execute("SELECT FROM channel_events WHERE seq = 1 FOR UPDATE")
        with pytest.raises(TimeoutError):
            await scheduler(impatient).step()
        assert (await run(impatient, free)).done == 1
    waiting = await jobs.show(db, locked)
    assert waiting is not None
    assert waiting.last_error == "TimeoutError: a batch came to no end, and is tried again"
    await db.execute("UPDATE operator_jobs SET next_at = now() WHERE id = $1", locked)
    ended = await run(impatient, locked)
    assert (ended.done, ended.last_error) == (1, None)
    await impatient.close()


async def test_the_rate_is_kept_by_all_schedulers_together(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 5, "f")
    await ask(db, rate=0.01)
    assert await scheduler(pool).step()
    assert not await scheduler(pool).step()  # for 100 seconds
    assert (await statuses(db)).count("received") == 1
    await db.execute("UPDATE operator_jobs SET next_at = now()")
    assert await scheduler(pool).step()
    assert (await statuses(db)).count("received") == 2


async def test_a_job_is_cancelled_between_two_batches(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 10, "f")
    id_ = await ask(db)
    await scheduler(pool).step()
    assert await jobs.cancel(db, id_, "cli:other")
    assert not await jobs.cancel(db, id_, "cli:other")
    assert not await scheduler(pool).step()
    job = await jobs.show(db, id_)
    assert job is not None
    assert (job.status, job.done, job.last_error) == ("cancelled", 4, "cancelled by cli:other")
    assert (await statuses(db)).count("received") == 4


async def test_at_most_so_many_the_oldest_first(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 10, "f")
    job = await run(pool, await ask(db, most=6))
    assert (job.status, job.done) == ("done", 6)
    assert await statuses(db) == ["received"] * 6 + ["failed"] * 4


@pytest.mark.parametrize(
    ("share", "fails", "status", "requeued"),
    [(1.0, 0, "done", 12), (1.0, 1, "failed", 5), (0.8, 1, "done", 12), (0.8, 2, "failed", 5)],
)
async def test_the_canary_decides_about_the_rest(
    pool: Pool, db: Any, share: float, fails: int, status: str, requeued: int
) -> None:
    await db.execute(LETTERS, 12, "f")
    id_ = await ask(db, canary=5, canary_share=share)
    for _ in range(5):  # it waits for their ends, however often somebody looks
        await scheduler(pool).step()
        await db.execute("UPDATE operator_jobs SET next_at = now()")
    assert await statuses(db) == ["received"] * 5 + ["failed"] * 7
    assert await db.fetchval("SELECT status FROM operator_jobs") == "canary"
    await db.execute("UPDATE channel_events SET status = 'done' WHERE status = 'received'")
    await db.execute("UPDATE channel_events SET status = 'failed' WHERE seq <= $1", fails)
    await db.execute(
        "UPDATE dead_letters d SET status = 'pending', error_message = 'again' FROM channel_events e"
        " WHERE e.id = d.event_id AND e.seq <= $1",
        fails,
    )
    job = await run(pool, id_)
    assert (job.status, job.done) == (status, requeued)
    if status == "failed":
        assert job.last_error == f"canary: {5 - fails} of 5 came through, so the rest was left as it is"
    assert [row["letters"] for row in await jobs.reasons(db, id_)] == ([fails] if fails else [])


DELIVERIES = """
WITH command AS (
    UPDATE channel_events SET status = 'done' WHERE status = 'received' AND job_id = $1 RETURNING id
), delivery AS (
    INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
        status, attempts, lane, lane_policy)
    SELECT gen_random_uuid(), 'acme', 'beds24-acme', id, 'outbound', 'pms.booking.create', gen_random_uuid(), '{}', $2, 1,
           'of:' || id, 'hold'
    FROM command RETURNING id
)
INSERT INTO dead_letters (id, event_id, company_id, operation, error_class, error_message, fingerprint, attempts, owner)
SELECT gen_random_uuid(), id, 'acme', 'pms.booking.create', 'rejected', 'no such room', 'g', 1, 'tenant'
FROM delivery WHERE $2 = 'failed'
"""
COMMANDS = LETTERS.replace("'beds24-acme', gen_random_uuid(), 'outbound'", "NULL, NULL, 'outbound'")


@pytest.mark.parametrize(("ends", "status", "requeued"), [("done", "done", 6), ("failed", "failed", 2)])
async def test_the_canary_of_commands_waits_for_their_deliveries_and_fails_with_them(
    pool: Pool, db: Any, ends: str, status: str, requeued: int
) -> None:
    await db.execute(COMMANDS, 6, "f")
    id_ = await ask(db, canary=2)
    await scheduler(pool).step()
    await db.execute(DELIVERIES, id_, "received")
    for _ in range(3):
        await scheduler(pool).step()
        await db.execute("UPDATE operator_jobs SET next_at = now()")
    assert await jobs.outcome(db, id_) == jobs.Outcome(0, 0, 2)
    assert await db.fetchval("SELECT status FROM operator_jobs") == "canary"
    await db.execute("DELETE FROM channel_events WHERE parent_id IS NOT NULL")
    await db.execute("UPDATE channel_events SET status = 'received' WHERE status = 'done'")
    await db.execute(DELIVERIES, id_, ends)
    job = await run(pool, id_)
    assert (job.status, job.done) == (status, requeued)
    reasons = [(row["letters"], row["error"]) for row in await jobs.reasons(db, id_)]
    assert reasons == ([(2, "no such room")] if ends == "failed" else [])


async def test_a_canary_does_not_wait_for_what_a_failed_delivery_holds(pool: Pool, db: Any) -> None:
    """A create and the update behind it: the update's delivery ends no sooner than somebody mends the create's."""
    await db.execute(COMMANDS, 4, "f")
    id_ = await ask(db, canary=2)
    await scheduler(pool).step()
    await db.execute(DELIVERIES, id_, "received")
    await db.execute("UPDATE channel_events SET lane = 'same' WHERE parent_id IS NOT NULL")
    head = await db.fetchval("SELECT min(seq) FROM channel_events WHERE lane = 'same'")
    await db.execute("UPDATE channel_events SET status = 'failed' WHERE seq = $1", head)
    job = await run(pool, id_)
    assert (job.status, job.last_error) == (
        "failed",
        "canary: 0 of 2 came through, so the rest was left as it is",
    )


async def test_an_abandoned_head_lets_its_lane_go_on(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 1, "f")
    lane = await db.fetchval("SELECT lane FROM channel_events")
    await db.execute(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
               lane, lane_policy, published_at)
           VALUES (gen_random_uuid(), 'acme', 'beds24-acme', gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'next', '{}',
               $1, 'hold', now())""",
        lane,
    )
    job = await run(pool, await ask(db, "abandon", note="the season is over"))
    assert (job.status, job.done) == ("done", 1)
    assert await statuses(db) == ["abandoned", "retrying"]
    assert await db.fetchval("SELECT next_attempt_at <= now() FROM channel_events WHERE status = 'retrying'")
    assert await db.fetchval("SELECT notes FROM dead_letters WHERE status = 'abandoned'") == "the season is over"


async def test_a_job_of_named_letters_goes_on_past_one_that_is_gone(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 10, "f")
    ids = tuple(row["id"] for row in await db.fetch("SELECT id FROM dead_letters"))
    await db.execute("DELETE FROM dead_letters WHERE id = $1", ids[1])
    id_ = await jobs.add(db, NewJob("requeue", Letters(ids=ids).document(), "cli:test", 10))
    job = await run(pool, id_)
    assert (job.status, job.done) == ("done", 9)
    assert await statuses(db) == ["received", "failed", *["received"] * 8]


async def test_a_job_that_cannot_be_done_fails_alone(pool: Pool, db: Any) -> None:
    await db.execute(LETTERS, 2, "f")
    broken = await jobs.add(
        db, NewJob("replay", {"selection": {"statuses": ["done"], "guest": "Jane Roe"}}, "cli:test", 1)
    )
    right = await ask(db)
    job = await run(pool, right)
    assert job.status == "done"
    failed = await run(pool, broken)
    assert failed.status == "failed"
    assert "Jane Roe" not in str(failed.last_error)


async def test_a_scheduler_that_is_killed_repeats_nothing(world: World) -> None:
    await world.db.execute(LETTERS.replace("beds24-acme", "nowhere"), 300, "f")
    world.apart = True
    id_ = await ask(world.db, rate=100)
    for until in (20, 90, 180, 10_000):
        await world.start("scheduler", ready=False)
        await world.until(
            "SELECT done >= $2 OR finished_at IS NOT NULL FROM operator_jobs WHERE id = $1", id_, until, timeout=60
        )
        world.kill("scheduler")
    job = await jobs.show(world.db, id_)
    assert job is not None
    assert (job.status, job.done, job.failed) == ("done", 300, 0)
    found = await audited(world.db)
    assert (len(found), set(found.values())) == (300, {1})
    assert await statuses(world.db) == ["received"] * 300
