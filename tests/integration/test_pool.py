"""Sessions of a pool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from ops.parts import open_parts
from schemas.event import CONTENT_TYPE, wake_ups
from schemas.vocabulary import MAX_STARTS
from store.pool import WARM, open_pool
from tests.fleet import COMPANY, CONNECTION
from topology.consumer import Incoming
from topology.declared import dlq
from workers.recorder import Recorder
from workers.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from store.pool import Connection
    from tests.fleet import World


async def test_sessions_that_plan_are_ready_before_anything_comes(database_url: str) -> None:
    pids: list[int] = []

    async def warm(connection: Connection) -> None:
        pids.append(await connection.fetchval("SELECT pg_backend_pid()"))

    pool = await open_pool(database_url, name="test", size=6, warm=warm)
    try:
        assert len(pids) == WARM
        taken = [await pool.acquire() for _ in range(WARM)]
        assert {await connection.fetchval("SELECT pg_backend_pid()") for connection in taken} == set(pids)
        more = await pool.acquire()  # beyond them, one is begun
        assert await more.fetchval("SELECT pg_backend_pid()") == pids[WARM]
        for connection in (*taken, more):
            await pool.release(connection)
    finally:
        await pool.close()


async def test_without_statements_to_plan_two_sessions_are_enough(database_url: str) -> None:
    pool = await open_pool(database_url, name="test", size=6)
    observer = await asyncpg.connect(database_url)
    try:
        assert (
            await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'staybus test'")
            == 2
        )
    finally:
        await observer.close()
        await pool.close()


async def test_who_has_a_session_asks_for_no_second_one(world: World) -> None:
    """Several that do would wait for one another, and all of their process with them."""
    await world.db.execute(
        "INSERT INTO outbox (company_id, event_type, payload) VALUES ($1, 'pms.booking.cancel', '{}')", COMPANY
    )
    delivery = await world.db.fetchval(
        """INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload,
               status, starts)
           VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), 'outbound', 'pms.booking.cancel', 'k', '{}', 'received', $3)
           RETURNING id""",
        COMPANY,
        CONNECTION,
        MAX_STARTS + 1,
    )

    async def depths(_: Iterable[str]) -> dict[str, int]:
        return {}

    body = wake_ups("pms.booking.cancel", [(delivery, COMPANY, None, CONNECTION)])
    dead = Incoming(body, CONTENT_TYPE, dlq("beds24"), None, None, {}, False, None, 1, 1)
    async with open_parts("scheduler", world.settings(), pool_size=1) as parts:
        recorder = Recorder(parts.pool, parts.directory, parts.publisher, dlq("beds24"), now=parts.now)
        async with asyncio.timeout(10):
            assert await Relay(parts.pool, parts.directory, parts.publisher, depths).take_outbox() == 1
            assert await recorder._record(dead) == []
    assert await world.db.fetchval("SELECT vendor FROM dead_letters WHERE event_id = $1", delivery) == "beds24"
