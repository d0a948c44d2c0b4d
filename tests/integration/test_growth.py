"""What a large table must not change: plans go by index, and what a statement touches does not depend on what lies behind it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from bench import past
from schemas.ids import uuid7
from store import ingest, retention
from store.pool import API_ROLE, as_company, open_pool
from store.retention import WALKS, Keep
from store.seal import KeyFile
from store.statements import statements
from tests.integration.test_jobs import seed

SMALL, LARGE = 2_000, 20_000
GROWING = {
    *("channel_events", "event_attempts", "dead_letters", "webhook_log", "core_events", "sync_exchanges", "own_writes"),
    *("outbox", "int_reservations", "int_guests", "int_mappings", "int_availability", "audit_log"),
}
WORKERS = ("ingest", "inbound", "outbound", "settle", "results", "relay", "retention", "limits", "outbox", "pulls")
# By reason of what they are for, and bounded: gauges of what is open, which is what their partial index holds.
GAUGES = {"backlog", "open_letters"}
FEW = 100  # rows, as the last look of the statistics has it: so few are read at once wherever they are
KEEP = Keep.of_days(30, 30)


@pytest.fixture
async def worker(database_url: str) -> AsyncIterator[Any]:
    """A connection as the workers have it."""
    pool = await open_pool(database_url, name="test", size=1)
    async with pool.acquire() as connection:
        yield connection
    await pool.close()


async def make_past(database_url: str, folder: Path, count: int) -> past.Tenants:
    KeyFile.create(folder / "key")
    tenants = past.Tenants.new(KeyFile.read(folder / "key"))
    owner = await asyncpg.connect(database_url)
    await past.fill(owner, count, tenants, print, reservations=200)
    await owner.close()
    return tenants


async def test_a_column_that_a_migration_adds_does_not_make_samples_large_again(database_url: str) -> None:
    """The largest target among a table's columns decides how many rows ANALYZE reads, and documents are dear to compare."""
    database = await asyncpg.connect(database_url)
    try:
        found = await database.fetch(
            "SELECT relname, max(CASE WHEN attstattarget >= 0 THEN attstattarget ELSE 100 END) FROM pg_attribute"
            " JOIN pg_class c ON c.oid = attrelid WHERE relname = ANY($1) AND attnum > 0 AND NOT attisdropped GROUP BY 1",
            list(GROWING),
        )
        compared = await database.fetch(
            "SELECT relname, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relname = ANY($1)"
            " AND attnum > 0 AND NOT attisdropped AND attstattarget IS DISTINCT FROM 0"
            " AND atttypid IN ('json'::regtype, 'jsonb'::regtype, 'bytea'::regtype)",
            list(GROWING),
        )
    finally:
        await database.close()
    assert [*map(tuple, compared)] == []
    assert dict(map(tuple, found)) == dict.fromkeys(GROWING, 10)


# ------------------------------------------------------------------------------------------------ plans


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "Scan" in plan["Node Type"]:
        yield plan
    for child in plan.get("Plans", []):
        yield from scans(child)


async def whole_reads(connection: Any, name: str, sql: str) -> list[str]:
    """What this statement's plan, for whatever arguments, reads from end to end."""
    few = {
        row["name"]
        for row in await connection.fetch(
            "SELECT relname AS name FROM pg_class WHERE relkind = 'r' AND reltuples BETWEEN 0 AND $1"
            " UNION SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid IN"
            " (SELECT oid FROM pg_class WHERE relkind = 'r' AND reltuples BETWEEN 0 AND $1)",
            FEW,
        )
    }
    partial = {
        row["name"]
        for row in await connection.fetch(
            "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indpred IS NOT NULL"
        )
    }
    count = max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)
    await connection.execute(f"PREPARE plan_of_{name} AS {sql}")
    given = f"({', '.join(['NULL'] * count)})" if count else ""
    (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE plan_of_{name}{given}")
    await connection.execute(f"DEALLOCATE plan_of_{name}")
    found = []
    for scan in scans(json.loads(row[0])[0]["Plan"]):
        table = scan.get("Relation Name")
        if few & {table, scan.get("Index Name")}:
            continue
        if scan["Node Type"] == "Seq Scan" and table in GROWING:
            found.append(f"{name}: {table}")
        by_index = scan["Node Type"] in {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}
        narrowed = re.search(r'\$\d|[\w")]\.\w', scan.get("Index Cond", ""))  # by what is given, or was found before
        if by_index and not narrowed and scan["Index Name"] not in partial and table in {None, *GROWING}:
            found.append(f"{name}: all of {scan['Index Name']}")
    return found


@pytest.mark.parametrize("count", [0, SMALL])
async def test_no_statement_of_the_workers_reads_a_growing_table_whole(
    database_url: str, worker: Any, tmp_path: Path, count: int
) -> None:
    """A plan that was made while there was nothing is kept; one that is made anew must be as good."""
    if count:
        await make_past(database_url, tmp_path, count)
    known = {file.name.removesuffix(".sql") for file in (files("store") / "sql").iterdir()}
    assert set(WORKERS) <= known
    found = [
        fault
        for aggregate in WORKERS
        for name, sql in statements(aggregate).items()
        if name not in GAUGES
        for fault in await whole_reads(worker, name, sql)
    ]
    assert found == []


async def partly_read(connection: Any, name: str, sql: str) -> list[str]:
    """The indexes of open rows, or of some kind of rows, that this statement reads from end to end."""
    count = max(int(number) for number in re.findall(r"\$(\d+)", sql))
    await connection.execute(f"PREPARE part_of_{name} AS {sql}")
    (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE part_of_{name}({', '.join(['NULL'] * count)})")
    await connection.execute(f"DEALLOCATE part_of_{name}")
    return [
        f"{name}: {scan['Index Name']}"
        for scan in scans(json.loads(row[0])[0]["Plan"])
        if scan.get("Index Name", "").startswith("channel_events") and not scan.get("Index Cond")
    ]


NAMED = {
    "ingest": ["mark_published"],
    "inbound": [
        *("load", "start_alone", "lease", "begin_alone", "prolong", "release"),
        *("lock_open", "lock_held", "apply_states"),
    ],
    "outbound": [
        *("load_commands", "laned_connections", "deliveries_there", "claim", "begin_alone", "recount", "succeed"),
        *("lock_leased", "waiting", "wake_waiting", "lane_heads", "older_in_lane", "supersede"),
    ],
    "settle": ["finish"],
    "dead_letters": ["behind_letters", "park_poison", "take_lanes", "requeue", "abandon", "wake_lanes"],
}


@pytest.mark.parametrize("count", [0, SMALL])
async def test_what_is_named_is_found_by_its_name_however_much_is_open(
    database_url: str, worker: Any, tmp_path: Path, count: int
) -> None:
    """By its id, or its lane. Mostly next to nothing is open, and the plan of those times goes through all of it."""
    if count:
        await make_past(database_url, tmp_path, count)
    found = [
        fault
        for aggregate, names in NAMED.items()
        for name in names
        for fault in await partly_read(worker, name, statements(aggregate)[name])
    ]
    assert found == []


async def test_a_whole_read_would_be_found(database_url: str, worker: Any, tmp_path: Path) -> None:
    await make_past(database_url, tmp_path, SMALL)
    scan = "SELECT count(*) FROM channel_events WHERE event_type = $1"
    assert await whole_reads(worker, "scan", scan) == ["scan: channel_events"]
    hashed = (
        "SELECT id FROM webhook_log w WHERE id > $1 AND CASE WHEN w.status > 0"
        " THEN NOT EXISTS (SELECT FROM channel_events e WHERE e.id = w.event_ids[1]) END"
    )
    assert await whole_reads(worker, "hashed", hashed) == ["hashed: all of channel_events_pkey"]


async def test_a_whole_read_by_a_part_of_a_key_would_be_found(worker: Any) -> None:
    one_direction = "SELECT status FROM channel_events WHERE id = ANY ($1::uuid[]) AND direction = 'inbound'"
    (found,) = await whole_reads(worker, "one_direction", one_direction)
    assert found.startswith("one_direction: all of channel_events_")


# ------------------------------------------------------------------------------------------------ what is touched


async def touched(connection: Any, sql: str, *given: Any) -> int:
    """Blocks that the statement looks at, wherever they are."""
    (row,) = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", *given)
    plan = json.loads(row[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def finished(ids: list[Any], now: datetime) -> tuple[list[Any], ...]:
    """Columns of `finish`: done, with its attempt in the history."""
    rows = [(id_, "done", 1, 0, None, None, None, None, True, "done", now, None) for id_ in ids]
    return tuple(map(list, zip(*rows, strict=True)))


async def of_one_size(database_url: str, worker: Any, folder: Path, count: int) -> dict[str, int]:
    tenants = await make_past(database_url, folder, count)
    owner = await asyncpg.connect(database_url)
    facts = [past.fact(10**6 + n, tenants.known(n), datetime.now(UTC), price=n) for n in range(100)]
    now = datetime.now(UTC)
    await ingest.record(
        worker,
        [ingest.RequestRow(now, "beds24", f.connection_id, f.company_id, "POST", 202, "valid", None, 1, None, [f]) for f in facts],
    )  # fmt: skip
    ids = [fact.id for fact in facts]
    await owner.execute("UPDATE channel_events SET published_at = now() WHERE id = ANY ($1::uuid[])", ids[:50])
    await owner.execute("VACUUM ANALYZE")
    await owner.close()
    found = {
        "finish": await touched(worker, statements("settle")["finish"], *finished(ids, now)),
        "load": await touched(worker, statements("inbound")["load"], ids),
        "page": await touched(worker, statements("retention")["page_channel_events"], KEEP.rows, KEEP.letters, 100, 0),
        "log page": await touched(worker, statements("retention")["page_webhook_log"], KEEP.rows, 100, 0),
        "results page": await touched(worker, statements("retention")["page_core_events"], KEEP.rows, 100, uuid7()),
    }
    async with worker.transaction():
        page = await retention.drop(worker, WALKS[0], WALKS[0].after, KEEP, 100)
    assert page.rows["channel_events"] > 50
    return found


@pytest.fixture
async def both(stack: Any, tmp_path: Path, database_url: str) -> tuple[dict[str, int], dict[str, int]]:
    """What statements touch with a small and with a large past."""
    sizes = []
    for count in (SMALL, LARGE):
        name = f"growth_{count}_{tmp_path.name.rpartition('-')[2]}".lower()
        owner = await asyncpg.connect(stack.database_url)
        await owner.execute(f"CREATE DATABASE {name} TEMPLATE {database_url.rpartition('/')[2]}")
        url = f"{database_url.rpartition('/')[0]}/{name}"
        pool = await open_pool(url, name="test", size=1)
        async with pool.acquire() as connection:
            folder = tmp_path / str(count)
            folder.mkdir()
            sizes.append(await of_one_size(url, connection, folder, count))
        await pool.close()
        await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await owner.close()
    return sizes[0], sizes[1]


async def test_what_a_batch_touches_does_not_grow_with_the_past(both: tuple[dict[str, int], dict[str, int]]) -> None:
    """Ten times the past: an index may be a level deeper, nothing more."""
    small, large = both
    assert large.keys() == small.keys()
    for name, blocks in large.items():
        assert blocks <= 1.6 * small[name] + 20, (name, small, large)


# Of $2 rooms with ten commands each: routed, and sent; and a last one that could not be routed.
ROOMS = """
WITH said AS (
    INSERT INTO channel_events (id, company_id, direction, event_type, entity_type, entity_internal_id, idempotency_key, payload,
        status)
    SELECT gen_random_uuid(), 'acme', 'outbound', 'pms.availability.update', 'availability', $1 || n % $2, gen_random_uuid(), '{}',
           CASE WHEN n <= $2 THEN 'failed' ELSE 'done' END
    FROM generate_series(1, 11 * $2::int) n RETURNING id, entity_internal_id AS room, status
)
INSERT INTO channel_events (id, company_id, connection_id, parent_id, direction, event_type, entity_type, entity_internal_id,
    idempotency_key, payload, status, lane, lane_policy)
SELECT gen_random_uuid(), 'acme', 'beds24-acme', id, 'outbound', 'pms.availability.update', 'availability', room,
       gen_random_uuid(), '{}', 'done', 'availability:' || room || '@beds24-acme', 'supersede'
FROM said WHERE status = 'done'"""


async def test_what_an_operator_looks_at_does_not_grow_with_the_past(database_url: str) -> None:
    """Under row-level security, which has the planner expect few rows of everything."""
    owner = await asyncpg.connect(database_url)
    await seed(owner)
    await owner.execute(ROOMS, "Mine", 5)
    parked = [row["id"] for row in await owner.fetch("SELECT id FROM channel_events WHERE status = 'failed'")]
    sent = [row["id"] for row in await owner.fetch("SELECT id FROM channel_events WHERE lane IS NOT NULL")]
    given: dict[tuple[str, str], tuple[Any, ...]] = {
        ("dead_letters", "overtaken"): ([*parked, *sent],),
        ("events", "overtaken"): (sent, sent),
        ("events", "repeated"): (uuid7(), sent),
        ("events", "followers"): (sent[:5], 10**6, ["done"], None, None, None, None, None, None, 5000),
    }
    sizes = []
    pool = await open_pool(database_url, role=API_ROLE, name="test", size=1)
    for others in (SMALL // 10, LARGE // 10):
        await owner.execute(ROOMS, "Theirs", others)
        await owner.execute("VACUUM ANALYZE channel_events")
        async with as_company(pool, None) as db:
            sizes.append({key: await touched(db, statements(key[0])[key[1]], *of) for key, of in given.items()})
    await pool.close()
    await owner.close()
    small, large = sizes
    for key, blocks in large.items():
        assert blocks <= 2 * small[key] + 100, (key, small, large)  # read whole, ten times as many


@pytest.mark.parametrize("name", ["unpublished", "due", "expired", "stale"])
async def test_a_look_does_not_read_what_is_not_due_yet(
    database_url: str, worker: Any, tmp_path: Path, name: str
) -> None:
    """However many wait: those within their grace are behind the condition of the index, not behind a filter."""
    await make_past(database_url, tmp_path, SMALL)
    owner = await asyncpg.connect(database_url)
    states = {
        "unpublished": "status = 'received', published_at = NULL, received_at = now() + interval '1 hour'",
        "due": "status = 'retrying', next_attempt_at = now() + interval '1 hour'",
        "expired": "status = 'processing', lease_until = now() + interval '1 hour'",
        "stale": "status = 'received', published_at = now() + interval '1 hour'",
    }
    await owner.execute(f"UPDATE channel_events SET {states[name]} WHERE direction = 'inbound'")  # noqa: S608 - above
    await owner.execute("VACUUM ANALYZE channel_events")
    await owner.close()
    given = {"unpublished": ("",), "stale": (datetime(1970, 1, 1, tzinfo=UTC), UUID(int=0))}.get(name, ())
    assert await touched(worker, statements("relay")[name], 0.0, 500, *given) < 100


async def test_what_went_leaves_no_trace_and_what_stays_is_whole(
    database_url: str, worker: Any, tmp_path: Path
) -> None:
    """Retention over a past of every kind of row."""
    await make_past(database_url, tmp_path, SMALL)
    owner = await asyncpg.connect(database_url)
    open_before = await owner.fetchval("SELECT count(*) FROM dead_letters WHERE status = 'pending'")
    for walk in WALKS:
        after: tuple[Any, ...] | None = walk.after
        while after is not None:
            async with worker.transaction():
                after = (await retention.drop(worker, walk, after, KEEP, 100)).after
    left = "SELECT count(*) FROM channel_events WHERE processed_at < now() - interval '31 days' AND status <> 'failed'"
    assert await owner.fetchval(left) == 0
    assert await owner.fetchval("SELECT count(*) FROM dead_letters WHERE status = 'pending'") == open_before
    orphans = {
        table: await owner.fetchval(
            f"SELECT count(*) FROM {table} t WHERE NOT EXISTS (SELECT FROM channel_events e WHERE e.id = t.event_id)"  # noqa: S608
        )
        for table in ("event_attempts", "sync_exchanges", "dead_letters")
    }
    assert orphans == {"event_attempts": 0, "sync_exchanges": 0, "dead_letters": 0}
    assert await owner.fetchval("SELECT count(*) FROM channel_events") > SMALL * 0.45
    await owner.close()
