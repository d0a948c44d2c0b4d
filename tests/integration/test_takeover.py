"""A dead worker's deliveries are taken over; a living one's are not, whatever the database does."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from store import connections, inbound, relay
from store.ingest import mark_published
from store.outbound import WOKEN
from store.pool import open_pool
from store.presence import Presence
from tests.integration.test_relay_rows import COMMON, EXPIRED, STALE, insert, insert_delivery
from workers.strays import Strays
from workers.takeover import Takeover


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def pool(database_url: str):
    opened = await open_pool(database_url, name="test")
    yield opened
    await opened.close()


async def leases(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM channel_events WHERE lease_until > now()"))
    finally:
        await connection.close()


async def gone(database_url: str, worker: str) -> None:
    """The server notices the end of a session, and frees its lock, a moment later."""
    connection = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(10):
            while await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)", f"staybus presence {worker}"
            ):
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


async def test_the_dead_are_taken_over_after_the_patience_and_the_living_never(database_url: str, pool) -> None:
    living = Presence(database_url, "living")
    await living.start()
    await insert_delivery(database_url, worker="living", lease=120)
    await insert_delivery(database_url, worker="dead", lease=120)
    clock = Clock()
    takeover = Takeover(pool, patience=5, clock=clock)
    assert await takeover.look() == 0  # missed for the first time
    clock.now += 4.9
    assert await takeover.look() == 0
    clock.now += 0.2
    assert await takeover.look() == 1
    assert await leases(database_url) == 1
    clock.now += 60
    assert await takeover.look() == 0
    await living.stop()
    await gone(database_url, "living")
    assert await takeover.look() == 0
    clock.now += 6
    assert await takeover.look() == 1


async def test_what_only_the_dead_knew_of_is_woken_though_the_mark_of_its_first_wake_up_comes_late(
    database_url: str, pool
) -> None:
    expired = await insert_delivery(database_url, worker="dead", lease=120)
    turned_away = await insert(database_url, "received")
    owner = await asyncpg.connect(database_url)
    await connections.add_company(owner, "acme", "Acme", b"key")
    await connections.add_connection(owner, "beds24-acme", "acme", "beds24", "Acme", None, {})
    takeover = Takeover(pool, patience=0)
    assert await takeover.look() == 1
    assert [row.id for row in await relay.take_expired(owner, EXPIRED, 10)] == [expired]
    await mark_published(owner, [turned_away])
    found, _ = await relay.stale(owner, STALE, 10)
    await owner.close()
    assert [row.id for row in found] == [turned_away]


async def test_a_row_that_an_operator_holds_locked_keeps_no_other_from_its_takeover(database_url: str, pool) -> None:
    held = await insert_delivery(database_url, worker="dead", lease=120)
    free = await insert_delivery(database_url, worker="dead", lease=120)
    operator = await asyncpg.connect(database_url)
    takeover = Takeover(pool, patience=0)
    left = "SELECT array_agg(id) FROM channel_events WHERE lease_until > clock_timestamp()"
    async with operator.transaction():
        await operator.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", held)
        async with asyncio.timeout(5):
            assert await takeover.look() == 1
        assert await operator.fetchval(left) == [held]
    assert await takeover.look() == 1
    assert await operator.fetchval(left) is None
    await operator.close()
    assert held != free


async def test_what_waits_beside_a_lease_that_ran_out_is_woken_but_for_what_an_operator_holds_locked(
    database_url: str,
) -> None:
    """A worker hangs and keeps its lock: the newer command of a lane was turned away by it, and its message is done with."""
    owner, operator = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    await connections.add_company(owner, "acme", "Acme", b"key")
    await connections.add_connection(owner, "beds24-acme", "acme", "beds24", "Acme", None, {})
    expired = await insert_delivery(database_url, worker="hangs", lease=-1)
    newer, held = [await insert(database_url, "received", published_at="now()") for _ in range(2)]
    async with operator.transaction():
        await operator.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", held)
        async with asyncio.timeout(5):
            assert [row.id for row in await relay.take_expired(owner, EXPIRED, 10)] == [expired]
    found, _ = await relay.stale(owner, STALE, 10)
    assert [row.id for row in found] == [newer]
    await owner.close()
    await operator.close()


async def test_of_however_many_that_wait_beside_a_lease_that_ran_out_a_few_are_woken(database_url: str) -> None:
    """The relay's other looks wait for this one. Who has to turn some of them away looks for the rest in the table."""
    owner = await asyncpg.connect(database_url)
    await connections.add_company(owner, "acme", "Acme", b"key")
    await connections.add_connection(owner, "beds24-acme", "acme", "beds24", "Acme", None, {})
    expired = await insert_delivery(database_url, worker="hangs", lease=-1)
    await owner.execute(
        f"INSERT INTO channel_events ({COMMON}, published_at) SELECT gen_random_uuid(), 'acme', 'beds24-acme', gen_random_uuid(),"  # noqa: S608 - the test's own words
        " 'outbound', 'pms.booking.update', gen_random_uuid(), '{}', 'received', now() FROM generate_series(1, $1)",
        3 * WOKEN,
    )
    assert [row.id for row in await relay.take_expired(owner, EXPIRED, 10)] == [expired]
    found, _ = await relay.stale(owner, STALE, 3 * WOKEN)
    assert len(found) == WOKEN
    await owner.close()


async def test_a_worker_prolongs_and_gives_back_only_what_it_still_has(database_url: str, pool) -> None:
    mine = await insert_delivery(database_url, worker="me", lease=20)
    others = await insert_delivery(database_url, worker="other", lease=20)
    ended = await insert(database_url, "done", worker="'me'")
    async with pool.acquire() as connection:
        await inbound.prolong(connection, [mine, others, ended], "me", 120)
        long = "SELECT id FROM channel_events WHERE lease_until > now() + interval '1 minute'"
        assert [row["id"] for row in await connection.fetch(long)] == [mine]
        await inbound.release(connection, [mine, others, ended], "me")
        rows = await connection.fetch("SELECT id, status, starts FROM channel_events")
    assert {tuple(row) for row in rows} == {(mine, "received", 0), (others, "processing", 1), (ended, "done", 0)}


async def test_a_token_that_a_dead_worker_was_renewing_is_another_s_to_renew(database_url: str, pool) -> None:
    living = Presence(database_url, "living")
    await living.start()
    clock = Clock()
    takeover = Takeover(pool, patience=5, clock=clock)
    owner = await asyncpg.connect(database_url)
    await connections.add_company(owner, "acme", "Acme", b"key")
    for name, worker in (("a", "living"), ("b", "dead"), ("c", None)):
        await connections.add_connection(owner, name, "acme", "beds24", name, None, {})
        assert await connections.begin_renewal(owner, name, 60, worker)
    assert await takeover.look() == 0
    clock.now += 6
    assert await takeover.look() == 1
    free = [name for name in "abc" if await connections.begin_renewal(owner, name, 60, "next")]
    await owner.close()
    assert free == ["b"]
    await living.stop()


async def test_who_is_back_in_time_was_never_dead(database_url: str, pool) -> None:
    await insert_delivery(database_url, worker="blinks", lease=120)
    clock = Clock()
    takeover = Takeover(pool, patience=5, clock=clock)
    await takeover.look()
    back = Presence(database_url, "blinks")
    await back.start()
    clock.now += 3
    await takeover.look()
    await back.stop()
    clock.now += 3
    assert await takeover.look() == 0  # the patience begins anew
    assert await leases(database_url) == 1


async def test_the_lock_is_taken_again_after_the_session_was_cut(database_url: str, pool) -> None:
    presence = Presence(database_url, "cut", pause=0.05)
    await presence.start()
    await insert_delivery(database_url, worker="cut", lease=120)
    owner = await asyncpg.connect(database_url)
    held = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND a.application_name LIKE '%cut'"
    first = await owner.fetchval("SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%presence cut'")
    await owner.execute("SELECT pg_terminate_backend($1)", first)
    while await owner.fetchval(held) != 1 or first == await owner.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%presence cut'"
    ):
        pass
    assert await Takeover(pool).look() == 0
    await presence.stop()
    await owner.close()


async def test_a_lease_of_ours_that_nobody_knows_of_ends_and_no_other(database_url: str, pool) -> None:
    """In hand is what somebody has, however often it was asked for in vain beside him."""
    strays = Strays(pool, worker="ours")
    had = await insert_delivery(database_url, worker="ours", lease=120)
    stray = await insert_delivery(database_url, worker="ours", lease=120)
    await insert_delivery(database_url, worker="other", lease=120)
    strays.take(had)
    strays.take(had)
    strays.leave(had)
    assert await strays.look() == 1
    assert await leases(database_url) == 2
    assert await pool.fetchval("SELECT lease_until <= clock_timestamp() FROM channel_events WHERE id = $1", stray)
    assert await strays.look() == 0
    strays.leave(had)
    assert await strays.look() == 1
