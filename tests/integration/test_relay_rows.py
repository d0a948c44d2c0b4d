"""The relay's looks at rows, without a broker: what is found, what is left alone, and that two schedulers share."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

import asyncpg
import pytest

from schemas.ids import uuid7
from store import relay, results
from store.ingest import mark_published
from store.relay import Look
from store.results import CoreEventRow

COMMON = "id, company_id, connection_id, parent_id, direction, event_type, idempotency_key, payload, status"
UNPUBLISHED, STALE, EXPIRED = Look("unpublished", 2), Look("stale", 60), Look("expired", 0)


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
    until = f"now() + interval '{lease} seconds'"
    who = {"worker": f"'{worker}'", "lease_token": "gen_random_uuid()"}
    return await insert(url, "processing", lease_until=until, attempts=1, starts=1, **who)


async def flood(db: Any, company: str, count: int, *, direction: str = "inbound", published: str = "NULL") -> None:
    """Rows of a company that came one after the other, a minute ago."""
    await db.execute(
        "INSERT INTO channel_events (id, company_id, direction, event_type, idempotency_key, payload, received_at, published_at)"  # noqa: S608 - the test's own words
        " SELECT gen_random_uuid(), $1, $2, 'beds24.booking.modified', gen_random_uuid(), '{}',"
        f" now() - interval '1 minute' + n * interval '1 millisecond', {published} FROM generate_series(1, $3) n",
        company, direction, count,
    )  # fmt: skip


async def turn(db: Any, limit: int = 100, after: str = "") -> list[str]:
    """The companies of the rows that are woken, in order."""
    async with db.transaction():
        return [row.company_id for row in await relay.take_in_turn(db, UNPUBLISHED, limit, after)]


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
MINUTES_AGO = "now() - interval '5 minutes'"


@pytest.mark.parametrize(
    ("look", "status", "found", "left"),
    [
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


# ------------------------------------------------------------------------------------------------ unpublished


async def test_what_nobody_has_woken_is_found_once(database_url: str, db: Any) -> None:
    wanted = await insert(database_url, "received", received_at=MINUTE_AGO)
    await insert(database_url, "received", received_at="now()")
    async with db.transaction():
        (row,) = await relay.take_in_turn(db, UNPUBLISHED, 10)
    assert (row.id, row.vendor, row.inbound) == (wanted, "beds24", False)
    assert await turn(db) == []


async def test_companies_take_turns_however_much_one_of_them_has(db: Any) -> None:
    for company, count in (("big", 900), ("large", 900), ("little", 3)):
        await flood(db, company, count)
    assert Counter(await turn(db, 120)) == {"big": 40, "large": 40, "little": 3}


async def test_of_each_the_oldest_come_first(db: Any) -> None:
    await flood(db, "big", 100)
    await flood(db, "little", 1)
    await turn(db, 60)
    woken = await db.fetch("SELECT published_at FROM channel_events WHERE company_id = 'big' ORDER BY received_at")
    assert [row["published_at"] is not None for row in woken] == [True] * 30 + [False] * 70


async def test_a_company_gets_no_more_than_its_share_until_some_of_it_is_settled(db: Any) -> None:
    await flood(db, "big", 900)
    await flood(db, "large", 900)
    assert Counter(await turn(db)) == {"big": 50, "large": 50}
    assert await turn(db) == []
    await db.execute(
        "UPDATE channel_events SET status = 'done' WHERE id IN "
        "(SELECT id FROM channel_events WHERE company_id = 'big' AND published_at IS NOT NULL LIMIT 7)"
    )
    assert Counter(await turn(db)) == {"big": 7}


async def test_who_waits_alone_has_it_all(db: Any) -> None:
    await flood(db, "big", 900)
    assert Counter(await turn(db)) == {"big": 100}


async def test_what_was_announced_long_ago_is_not_waited_for(db: Any) -> None:
    """It is lost, say. Whether it is, the other look finds out."""
    await flood(db, "big", 900, published=MINUTES_AGO)
    await flood(db, "big", 900)
    assert Counter(await turn(db)) == {"big": 100}


async def test_a_share_is_large_enough_to_get_on(db: Any) -> None:
    for n in range(30):
        await flood(db, f"company-{n:02}", 50)
    assert Counter(await turn(db, 500)) == {f"company-{n:02}": 20 for n in range(25)}


async def test_who_found_no_room_is_first_the_next_time(db: Any) -> None:
    for company in ("a", "b", "c", "d"):
        await flood(db, company, 50)
    first = await turn(db, 50)
    assert Counter(first) == {"a": 20, "b": 20, "c": 10}
    assert Counter(await turn(db, 30, after=first[-1])) == {"d": 30}
    assert Counter(await turn(db, 500)) == {"a": 30, "b": 30, "c": 40, "d": 20}


async def test_commands_do_not_wait_behind_their_companys_flood_of_facts(db: Any) -> None:
    await flood(db, "big", 900, published="now()")
    await flood(db, "big", 900)
    await flood(db, "big", 10, direction="outbound")
    async with db.transaction():
        woken = await relay.take_in_turn(db, UNPUBLISHED, 100)
    assert [row.inbound for row in woken] == [False] * 10


async def test_two_schedulers_share_the_work(database_url: str, db: Any) -> None:
    ids = {await insert(database_url, "received", received_at=MINUTE_AGO) for _ in range(20)}
    other = await asyncpg.connect(database_url)
    async with db.transaction(), other.transaction():
        first = await relay.take_in_turn(db, UNPUBLISHED, 10)
        second = await asyncio.wait_for(relay.take_in_turn(other, UNPUBLISHED, 20), 10)
    await other.close()
    assert {row.id for row in first} | {row.id for row in second} == ids
    assert not {row.id for row in first} & {row.id for row in second}


@pytest.mark.parametrize("look", ["due", "expired", "lost"])
async def test_what_one_scheduler_takes_another_goes_past(database_url: str, db: Any, look: str) -> None:
    status, since = {
        "due": ("retrying", {"next_attempt_at": MINUTE_AGO}),
        "expired": ("processing", {"lease_until": MINUTE_AGO}),
        "lost": ("received", {"published_at": MINUTES_AGO}),
    }[look]
    ids = [await insert(database_url, status, **since) for _ in range(4)]
    other = await asyncpg.connect(database_url)

    async def take(connection: Any, limit: int) -> list[uuid.UUID]:
        if look == "lost":
            return [row.id for row in await relay.take_lost(connection, STALE, ids[:limit])]
        return [row.id for row in await relay.take(connection, Look(look, 0), limit)]

    async with db.transaction(), other.transaction():
        first = await take(db, 2)
        second = await asyncio.wait_for(take(other, 4), 10)
    await other.close()
    assert (sorted(first), sorted(second)) == (ids[:2], ids[2:])


async def test_two_schedulers_tell_no_result_twice(database_url: str, db: Any) -> None:
    for _ in range(3):
        await results.keep(db, [CoreEventRow("acme", "beds24-acme", "core.x", "s", "{}", uuid7(), None)])
    other = await asyncpg.connect(database_url)
    async with db.transaction(), other.transaction():
        first = await results.untold(db, 0, 2, [])
        second = await asyncio.wait_for(results.untold(other, 0, 3, []), 10)
        assert await results.untold(other, 60, 3, []) == []  # whoever made them may still be telling them
    await other.close()
    assert (len(first), len(second)) == (2, 1)
    assert len({batch.id for batch in (*first, *second)}) == 3


async def test_one_scheduler_at_a_time_takes_the_outbox(database_url: str, db: Any) -> None:
    """Two that take the next rows each might record them in the wrong order."""
    for _ in range(2):
        await db.execute("INSERT INTO outbox (company_id, event_type, payload) VALUES ('acme', 'pms.note.add', '{}')")
    other = await asyncpg.connect(database_url)
    async with db.transaction():
        assert len(await relay.outbox(db, 1)) == 1
        async with other.transaction():
            assert await asyncio.wait_for(relay.outbox(other, 10), 10) == []
    await other.close()


async def test_a_lease_that_ran_out_is_told_from_a_first_attempt(database_url: str, db: Any) -> None:
    """By its error: the mark of its first wake-up, which may come late, does not cover the one that it needs now."""
    id_ = await insert(database_url, "processing", lease_until=MINUTE_AGO, attempts=1, starts=1)
    async with db.transaction():
        await relay.take(db, Look("expired", 0), 10)
    assert await db.fetchval("SELECT error_class FROM channel_events WHERE id = $1", id_) == "unknown"


async def test_only_the_first_wake_up_is_marked(database_url: str, db: Any) -> None:
    """What failed and was requeued is to be woken anew, what was given back at once, and what is settled needs no mark."""
    first = await insert(database_url, "received")
    others = [
        await insert(database_url, "received", error_class="'transient'"),
        await insert(database_url, "received", published_at=MINUTES_AGO),
        await insert(database_url, "done"),
    ]
    before = await db.fetch("SELECT id, published_at FROM channel_events WHERE id = ANY ($1) ORDER BY id", others)
    await mark_published(db, [first, *others])
    assert await db.fetchval(
        "SELECT published_at > now() - interval '1 minute' FROM channel_events WHERE id = $1", first
    )
    after = await db.fetch("SELECT id, published_at FROM channel_events WHERE id = ANY ($1) ORDER BY id", others)
    assert after == before


# ------------------------------------------------------------------------------------------------ stale


async def stale(db: Any, limit: int = 10, after: Any = None) -> list[uuid.UUID]:
    found, _ = await relay.stale(db, STALE, limit, after)
    return [row.id for row in found]


async def test_what_was_woken_long_ago_is_found_and_marked_only_when_taken(database_url: str, db: Any) -> None:
    wanted = await insert(database_url, "received", published_at=MINUTES_AGO)
    await insert(database_url, "received", published_at="now() - interval '30 seconds'")
    assert [await stale(db) for _ in range(2)] == [[wanted]] * 2
    async with db.transaction():
        (row,) = await relay.take_lost(db, STALE, [wanted])
    assert (row.id, row.vendor) == (wanted, "beds24")
    async with db.transaction():
        assert await relay.take_lost(db, STALE, [wanted]) == []
    assert await stale(db) == []


async def test_what_was_settled_in_the_meantime_is_not_taken(database_url: str, db: Any) -> None:
    await insert(database_url, "received", published_at=MINUTES_AGO)
    found = await stale(db)
    await db.execute("UPDATE channel_events SET status = 'done'")
    async with db.transaction():
        assert await relay.take_lost(db, STALE, found) == []


async def test_the_look_goes_on_where_it_was(database_url: str, db: Any) -> None:
    ids = [await insert(database_url, "received", published_at=f"now() - interval '{n} minutes'") for n in (9, 8, 7)]
    _, last = await relay.stale(db, STALE, 2)
    assert await stale(db, 2, last) == ids[2:]


async def test_rows_of_one_time_are_read_to_their_end(database_url: str, db: Any) -> None:
    ids = sorted([await insert(database_url, "received", published_at="'2000-01-01Z'") for _ in range(3)])
    found, place = await relay.stale(db, STALE, 2)
    assert [row.id for row in found] + await stale(db, 2, place) == ids


async def test_what_waits_behind_its_lanes_head_is_left_to_the_head(database_url: str, db: Any) -> None:
    old = {"published_at": MINUTES_AGO, "lane": "'l'", "lane_policy": "'hold'"}
    head = await insert(database_url, "received", **old)
    await insert(database_url, "received", **old)
    assert await stale(db) == [head]


async def test_a_superseding_lane_wakes_its_newest(database_url: str, db: Any) -> None:
    old = {"published_at": MINUTES_AGO, "lane": "'l'", "lane_policy": "'supersede'"}
    await insert(database_url, "received", **old)
    newest = await insert(database_url, "received", **old)
    assert await stale(db) == [newest]


async def test_a_paused_connections_deliveries_are_left_alone(database_url: str, db: Any) -> None:
    await insert(database_url, "received", published_at=MINUTES_AGO)
    await db.execute("UPDATE connections SET status = 'paused'")
    assert await stale(db) == []


async def test_a_look_reads_so_many_rows_and_says_where_it_came_to_though_it_finds_none(
    database_url: str, db: Any
) -> None:
    await db.execute("UPDATE connections SET status = 'paused'")
    for n in (9, 8, 7):
        await insert(database_url, "received", published_at=f"now() - interval '{n} minutes'")
    await flood(db, "acme", 1, published=MINUTES_AGO)
    found, place = await relay.stale(db, STALE, 3)
    assert found == []
    (fact,), end = await relay.stale(db, STALE, 3, place)
    assert (fact.inbound, end) == (True, None)
