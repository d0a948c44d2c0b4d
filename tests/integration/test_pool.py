"""Sessions of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from store.pool import WARM, open_pool

if TYPE_CHECKING:
    from store.pool import Connection


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
