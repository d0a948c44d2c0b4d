"""The schema is the same after up → down → up, and nothing of ours is left after down."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from store import migrate, schema

if TYPE_CHECKING:
    from ops.stack.local import Stack

CATALOGUE = {
    "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default, is_identity"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
    "policies": "SELECT tablename, policyname, roles, cmd, qual, with_check FROM pg_policies ORDER BY 1, 2",
    "grants": "SELECT table_name, grantee, privilege_type FROM information_schema.role_table_grants"
    " WHERE grantee LIKE 'staybus\\_%' ORDER BY 1, 2, 3",
    "statistics": "SELECT attrelid::regclass::text, attname, attstattarget FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
    " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2",
    "options": "SELECT relname, reloptions, relrowsecurity FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1",
    "views": "SELECT c.relname, c.reloptions, pg_get_viewdef(c.oid) FROM pg_class c"
    " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'v' ORDER BY 1",
}


@pytest.fixture
async def empty_url(stack: Stack) -> AsyncIterator[str]:
    name = f"empty_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(stack.database_url)
    await owner.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(stack.database_url)._replace(path=f"/{name}"))
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


async def catalogue(url: str) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {name: [tuple(row) for row in await connection.fetch(sql)] for name, sql in CATALOGUE.items()}
    finally:
        await connection.close()


async def test_up_down_up_is_the_same_schema(empty_url: str) -> None:
    assert (await schema.status(empty_url)).current is None
    await migrate.upgrade(empty_url)
    first = await catalogue(empty_url)
    assert (await schema.status(empty_url)).up_to_date
    await migrate.downgrade(empty_url, "base")
    left = {row[0] for row in (await catalogue(empty_url))["columns"]}
    assert left == {"alembic_version"}
    await migrate.upgrade(empty_url)
    assert await catalogue(empty_url) == first
    await migrate.upgrade(empty_url)  # again changes nothing
    assert await catalogue(empty_url) == first


async def test_a_release_back_and_forth_keeps_what_was_recorded(empty_url: str) -> None:
    """From 0002 to 0001 and back: the sync log's lines and the results that nobody was told."""
    await migrate.upgrade(empty_url, "0001")
    owner = await asyncpg.connect(empty_url)
    event, told, untold = uuid4(), uuid4(), uuid4()
    await owner.execute(
        "INSERT INTO channel_events (id, company_id, direction, event_type, idempotency_key, payload, status, parent_id, attempts)"
        " VALUES ($1, 'acme', 'outbound', 'pms.note.add', 'k', '{}', 'done', $1, 1)",
        event,
    )
    await owner.execute(
        "INSERT INTO sync_log (company_id, event_id, direction, action, state, triggered_at, started_at, request, response)"
        " VALUES ('acme', $1, 'outbound', 'add', 'success', now(), now(), '{\"a\": 1}', '{\"b\": 2}')",
        event,
    )
    for id_, at in ((told, "now()"), (untold, "NULL")):
        await owner.execute(
            "INSERT INTO core_events (id, company_id, event_type, subject, data, cause_id, published_at)"  # noqa: S608 - our own words
            f" VALUES ($1, 'acme', 'core.x', 's', '{{}}', $2, {at})",
            id_,
            event,
        )
    line = "SELECT event_id, direction, action, state, request::text, response::text FROM sync_log"
    for _ in range(2):
        before = await owner.fetch(line)
        await migrate.upgrade(empty_url)
        assert await owner.fetch(line) == before
        assert await owner.fetchval("SELECT array_agg(DISTINCT u) FROM core_batches, unnest(event_ids) u") == [untold]
        await migrate.downgrade(empty_url, "0001")
        assert await owner.fetch(line) == before
        assert await owner.fetch("SELECT id FROM core_events WHERE published_at IS NULL") == [(untold,)]
    await owner.close()


async def test_an_open_circuit_is_one_of_both_kinds_and_the_version_before_may_go_on(empty_url: str) -> None:
    """From 0008 to 0009 and back, with processes of 0008 that are not restarted yet."""
    await migrate.upgrade(empty_url, "0008")
    owner = await asyncpg.connect(empty_url)
    await owner.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '')")
    for id_ in ("silent", "mute"):
        await owner.execute(
            "INSERT INTO connections (id, company_id, vendor, name) VALUES ($1, 'acme', 'beds24', $1)", id_
        )
    fails = (
        "INSERT INTO circuits AS c (connection_id, company_id, failures, retry_at) VALUES ($1, 'acme', 7, now())"
        " ON CONFLICT (connection_id) DO UPDATE SET failures = c.failures + 1"
    )
    await owner.execute(fails, "silent")
    await migrate.upgrade(empty_url, "0009")
    rows = "SELECT connection_id, kind, failures FROM call_circuits ORDER BY 1, 2"
    assert await owner.fetch(rows) == [("silent", "read", 7), ("silent", "write", 7)]
    for id_ in ("silent", "mute"):
        await owner.execute(fails, id_)
    await owner.execute("UPDATE call_circuits SET failures = 9 WHERE kind = 'write'")
    await owner.execute("INSERT INTO call_circuits VALUES ('mute', 'write', 'acme', 5, now())")
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute("INSERT INTO call_circuits VALUES ('mute', 'glance', 'acme', 5, now())")
    await migrate.downgrade(empty_url, "0008")  # who answers one kind has no circuit there
    assert await owner.fetch("SELECT connection_id, failures FROM circuits") == [("silent", 7)]
    await owner.close()


async def test_every_tenant_table_has_row_level_security(empty_url: str) -> None:
    await migrate.upgrade(empty_url)
    found = await catalogue(empty_url)
    views = {row[0]: row[1] or [] for row in found["views"]}
    assert all("security_invoker=true" in options for options in views.values())  # their tables' policies hold
    tenant = {row[0] for row in found["columns"] if row[1] == "company_id"} - views.keys()
    protected = {row[0] for row in found["policies"] if row[1] == "of_company"}
    assert tenant == protected
    assert {row[0] for row in found["options"] if row[2]} == protected


def test_the_newest_migration_by_file_name_is_the_head() -> None:
    config = Config()
    config.set_main_option("script_location", "migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == schema.head()


async def test_keys_and_lanes_are_compared_by_their_bytes_in_any_locale(empty_url: str) -> None:
    await migrate.upgrade(empty_url)
    database = await asyncpg.connect(empty_url)
    try:
        found = await database.fetch(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_name = 'channel_events' AND collation_name = 'C' ORDER BY 1"
        )
    finally:
        await database.close()
    assert [row["column_name"] for row in found] == ["idempotency_key", "lane"]
