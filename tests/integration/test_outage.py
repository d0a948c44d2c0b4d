"""The database lets nobody in for a moment: those who ask are told so, and whatever lives on a session is there again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from simulators.bookings import generate
from store import connections
from tests.fleet import World

if TYPE_CHECKING:
    from ops.stack.local import Stack

KEPT = (
    "SELECT array_agg(DISTINCT split_part(application_name, ' ', 2)) FROM pg_stat_activity"
    " WHERE datname = $1 AND (application_name LIKE 'staybus presence %' OR application_name LIKE 'staybus bell%')"
)


async def test_a_database_that_lets_nobody_in_costs_no_session_for_good(stack: Stack, world: World) -> None:
    await world.start()
    key = await connections.add_api_key(world.db, None, "admin", ["admin"])
    name = urlsplit(world.database_url).path.removeprefix("/")
    owner = await asyncpg.connect(stack.database_url)
    kept = await owner.fetchval(KEPT, name)
    assert "presence" in kept
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'staybus presence %'"
    presences = await owner.fetchval(count, name)
    body = generate(7, 1, 0)[0].body
    await owner.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    try:
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        headers = {"authorization": f"Bearer {key}"}
        async with asyncio.timeout(20):
            # A session that is being ended may answer once more.
            while (refused := await world.webhook(body)).status_code != 503:
                await asyncio.sleep(0.05)
        assert refused.json()["code"] == "not-durable"
        asked = await world.http.get(world.url("ingress", "/admin/events"), headers=headers)
        assert (asked.status_code, asked.json()["code"]) == (503, "database-away")
        for process in ("ingress", "inbound"):
            assert (await world.http.get(world.url(process, "/readyz"))).status_code == 503
    finally:
        await owner.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    async with asyncio.timeout(20):
        while await owner.fetchval(count, name) != presences or await owner.fetchval(KEPT, name) != kept:
            await asyncio.sleep(0.05)
    await owner.close()
    await world.reconnect()
    assert (await world.webhook(body)).status_code in {200, 202}
    await world.all_settled()
