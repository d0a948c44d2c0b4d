"""The relay's looks at rows, without a broker: what is found, what is left alone, and that two schedulers share."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import pytest

from schemas.ids import uuid7
from store import relay
from store.relay import Look

COMMON = "id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload, status"


async def insert(url: str, status: str, **columns: Any) -> uuid.UUID:
    """A delivery of beds24-acme in this state."""
    id_ = uuid7()
    connection = await asyncpg.connect(url)
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    await connection.execute(
        f"INSERT INTO channel_events ({COMMON}{names}) VALUES "  # noqa: S608 - the test's own words
        f"($1, 'acme', 'beds24-acme', $2, 'outbound', 'pms.booking.update', $3, '{{}}', $4{values})",
        id_, uuid7(), str(id_), status,
    )  # fmt: skip
    await connection.close()
    return id_


async def insert_delivery(url: str, *, worker: str, lease: float) -> uuid.UUID:
    return await insert(
        url, "processing", worker=f"'{worker}'", lease_until=f"now() + interval '{lease} seconds'", attempts=1, starts=1
    )


@pytest.fixture
async def db(database_url: str):
    connection = await asyncpg.connect(database_url)
    await connection.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '')")
    await connection.execute(
        "INSERT INTO connections (id, company_id, vendor, name) VALUES ('beds24-acme', 'acme', 'beds24', 'x')"
    )
    yield connection
    await connection.close()


MINUTE_AGO = "now() - interval '1 minute'"
IN_A_MINUTE = "now() + interval '1 minute'"


@pytest.mark.parametrize(
    ("look", "status", "found", "left"),
    [
        (Look("unpublished", 2), "received", {"received_at": MINUTE_AGO}, {"received_at": "now()"}),
        (
            Look("stale", 60),
            "received",
            {"published_at": "now() - interval '2 minutes'"},
            {"published_at": "now() - interval '30 seconds'"},
        ),
        (Look("due", 0), "retrying", {"next_attempt_at": MINUTE_AGO}, {"next_attempt_at": IN_A_MINUTE}),
        (Look("expired", 0), "processing", {"lease_until": MINUTE_AGO}, {"lease_until": IN_A_MINUTE}),
    ],
)
async def test_each_look_finds_its_rows_once(
    database_url: str, db: Any, look: Look, status: str, found: dict[str, str], left: dict[str, str]
) -> None:
    wanted = await insert(database_url, status, **found)
    await insert(database_url, status, **left)
    async with db.transaction():
        (row,) = await relay.take(db, look, 10)
    assert (row.id, row.vendor) == (wanted, "beds24")
    async with db.transaction():
        assert await relay.take(db, look, 10) == []
    assert await db.fetchval("SELECT status FROM channel_events WHERE id = $1", wanted) == "received"


async def test_what_waits_behind_its_lanes_head_is_left_to_the_head(database_url: str, db: Any) -> None:
    old = {"published_at": "now() - interval '5 minutes'", "lane": "'l'", "lane_policy": "'hold'"}
    head = await insert(database_url, "received", **old)
    await insert(database_url, "received", **old)
    async with db.transaction():
        assert [row.id for row in await relay.take(db, Look("stale", 60), 10)] == [head]


async def test_a_superseding_lane_wakes_its_newest(database_url: str, db: Any) -> None:
    old = {"published_at": "now() - interval '5 minutes'", "lane": "'l'", "lane_policy": "'supersede'"}
    await insert(database_url, "received", **old)
    newest = await insert(database_url, "received", **old)
    async with db.transaction():
        assert [row.id for row in await relay.take(db, Look("stale", 60), 10)] == [newest]


async def test_a_paused_connections_deliveries_are_left_alone(database_url: str, db: Any) -> None:
    await insert(database_url, "received", published_at="now() - interval '5 minutes'")
    await db.execute("UPDATE connections SET status = 'paused'")
    async with db.transaction():
        assert await relay.take(db, Look("stale", 60), 10) == []


async def test_two_schedulers_share_the_work(database_url: str, db: Any) -> None:
    ids = {await insert(database_url, "received", received_at=MINUTE_AGO) for _ in range(20)}
    other = await asyncpg.connect(database_url)
    async with db.transaction(), other.transaction():
        first, second = await asyncio.gather(
            relay.take(db, Look("unpublished", 2), 10), relay.take(other, Look("unpublished", 2), 10)
        )
    await other.close()
    assert {row.id for row in first} | {row.id for row in second} == ids
    assert not {row.id for row in first} & {row.id for row in second}
