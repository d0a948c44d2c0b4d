"""What is finished and old goes, in small steps; nothing else does, whoever looks on or interferes."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from ops.settings import SettingsError, load
from schemas.ids import uuid7
from store import dead_letters
from store import retention as store
from store.pool import open_pool
from store.retention import Keep
from telemetry import metrics
from tests.cli.conftest import Cli
from tests.fleet import World
from workers import retention
from workers.retention import Retention

KEEP = Keep.of_days(30, 30)
OLD, YOUNG, LATELY = timedelta(days=31), timedelta(days=29), timedelta(hours=1)
FINAL = ("done", "skipped", "superseded", "abandoned", "failed")
OPEN = ("received", "processing", "retrying")


class Rows:
    """Rows of any age. Events are recorded, and finished, `age` ago."""

    def __init__(self, db: asyncpg.Connection[asyncpg.Record]) -> None:
        self.db = db

    async def event(self, status: str = "done", age: timedelta = OLD, **columns: Any) -> uuid.UUID:
        id_ = columns.pop("id", None) or uuid7()
        finished = None if status in OPEN else age
        given: dict[str, Any] = {
            "id": id_, "company_id": "acme", "connection_id": "c", "direction": "inbound", "event_type": "beds24.booking.modified",
            "idempotency_key": str(id_), "payload": "{}", "status": status, **columns,
        }  # fmt: skip
        numbered = ", ".join(f"${n + 3}" for n in range(len(given)))
        await self.db.execute(
            f"INSERT INTO channel_events (received_at, processed_at, {', '.join(given)})"  # noqa: S608 - the test's own words
            f" VALUES (now() - $1::interval, now() - $2::interval, {numbered})",
            age, finished, *given.values(),
        )  # fmt: skip
        return id_

    async def delivery(
        self, command: uuid.UUID, status: str = "done", age: timedelta = OLD, **columns: Any
    ) -> uuid.UUID:
        return await self.event(status, age, parent_id=command, direction="outbound", **columns)

    async def command(self, status: str = "done", age: timedelta = OLD, **columns: Any) -> uuid.UUID:
        return await self.event(status, age, direction="outbound", connection_id=None, **columns)

    async def connection(self, id_: str) -> None:
        await self.db.execute("INSERT INTO companies (id, name, data_key) VALUES ('acme', 'Acme', '')")
        await self.db.execute(
            "INSERT INTO connections (id, company_id, vendor, name) VALUES ($1, 'acme', 'v', 'n')", id_
        )

    async def letter(self, event: uuid.UUID | None, status: str, closed: timedelta | None = None) -> uuid.UUID:
        id_ = uuid7()
        await self.db.execute(
            "INSERT INTO dead_letters (id, event_id, operation, error_class, error_message, fingerprint, attempts, owner, status,"
            " resolved_at) VALUES ($1, $2, 'o', 'rejected', 'm', 'f', 1, 'tenant', $3, now() - $4::interval)",
            id_, event, status, closed,
        )  # fmt: skip
        return id_

    async def left(self, table: str = "channel_events", key: str = "id") -> set[Any]:
        return {row[key] for row in await self.db.fetch(f"SELECT {key} FROM {table}")}  # noqa: S608 - as above


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    connection = await asyncpg.connect(database_url)
    yield Rows(connection)
    await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Any]:
    opened = await open_pool(database_url, name="test", size=4)
    yield opened
    await opened.close()


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Any]:
    """Another scheduler's."""
    opened = await open_pool(database_url, name="other", size=1)
    yield opened
    await opened.close()


async def sweep(pool: Any, page: int = 1_000) -> dict[str, int] | None:
    dropped = await Retention(pool, KEEP, page=page).sweep(asyncio.Event())
    return None if dropped is None else dict(dropped)


# ------------------------------------------------------------------------------------------------ what goes


@pytest.mark.parametrize("status", FINAL)
async def test_a_finished_event_goes_when_it_is_old(rows: Rows, pool: Any, status: str) -> None:
    await rows.event(status)
    young = await rows.event(status, YOUNG)
    assert await sweep(pool) == {"channel_events": 1}
    assert await rows.left() == {young}


@pytest.mark.parametrize("status", OPEN)
async def test_an_open_event_never_goes(rows: Rows, pool: Any, status: str) -> None:
    kept = await rows.event(status)
    assert await sweep(pool) == {}
    assert await rows.left() == {kept}


async def test_an_event_that_waited_long_and_finished_lately_stays(rows: Rows, pool: Any) -> None:
    kept = await rows.event()
    await rows.db.execute("UPDATE channel_events SET processed_at = now() - interval '1 hour'")
    await sweep(pool)
    assert await rows.left() == {kept}


async def test_history_and_exchange_go_with_their_event_only(rows: Rows, pool: Any) -> None:
    old, young = await rows.event(), await rows.event(age=YOUNG)
    for id_ in (old, young):
        await rows.db.execute(
            "INSERT INTO event_attempts (event_id, company_id, attempt, outcome, finished_at)"
            " SELECT $1, 'acme', n, 'retry', now() - interval '40 days' FROM generate_series(1, 2) n",
            id_,
        )
        await rows.db.execute("INSERT INTO sync_exchanges (event_id, company_id) VALUES ($1, 'acme')", id_)
    assert await sweep(pool) == {"channel_events": 1, "event_attempts": 2, "sync_exchanges": 1}
    assert await rows.left("event_attempts", "event_id") == {young}
    assert await rows.left("sync_exchanges", "event_id") == {young}


@pytest.mark.parametrize(
    ("event", "letter", "closed", "event_goes", "letter_goes"),
    [
        ("failed", "pending", None, False, False),
        ("received", "retrying", None, False, False),
        ("done", "resolved", LATELY, False, False),
        ("done", "resolved", OLD, True, True),
        ("abandoned", "abandoned", LATELY, False, False),
        ("abandoned", "abandoned", OLD, True, True),
        ("done", "pending", None, False, False),
        ("received", "abandoned", OLD, False, False),  # an edit in it may still be laid over the event
    ],
)
async def test_a_dead_letter_keeps_its_event_until_it_is_closed_and_old(
    rows: Rows, pool: Any, event: str, letter: str, closed: timedelta | None, event_goes: bool, letter_goes: bool
) -> None:
    id_ = await rows.event(event)
    await rows.letter(id_, letter, closed)
    await sweep(pool)
    assert await rows.left() == (set() if event_goes else {id_})
    assert (await rows.left("dead_letters") == set()) is letter_goes


async def test_a_letter_without_an_event_goes_by_its_own_age(rows: Rows, pool: Any) -> None:
    await rows.letter(None, "abandoned", OLD)
    kept = {await rows.letter(None, "abandoned", YOUNG), await rows.letter(None, "pending")}
    assert await sweep(pool) == {"dead_letters": 1}
    assert await rows.left("dead_letters") == kept


@pytest.mark.parametrize("other", [*OPEN, "failed"])
async def test_the_past_of_a_lane_stays_while_something_of_it_is_open(rows: Rows, pool: Any, other: str) -> None:
    past = await rows.delivery(uuid7(), lane="l", lane_policy="hold")
    elsewhere = await rows.delivery(uuid7(), lane="m", lane_policy="hold")
    head = await rows.delivery(uuid7(), other, YOUNG, lane="l", lane_policy="hold")
    await sweep(pool)
    assert await rows.left() == {past, head}
    assert elsewhere not in await rows.left()
    await rows.db.execute("UPDATE channel_events SET status = 'done', processed_at = now() WHERE id = $1", head)
    await sweep(pool)
    assert await rows.left() == {head}


async def test_what_was_sent_after_a_delivery_that_was_given_up_stays_as_long_as_that_may_be_requeued(
    rows: Rows, pool: Any
) -> None:
    """Its row alone tells that the older state would be put back."""
    lane = "availability:R@c"
    given_up = await rows.delivery(uuid7(), "abandoned", lane=lane, lane_policy="supersede")
    letter = await rows.letter(given_up, "abandoned", LATELY)
    newer = await rows.delivery(uuid7(), lane=lane, lane_policy="supersede")
    await sweep(pool)
    assert await rows.left() == {given_up, newer}
    assert await dead_letters.overtaken(rows.db, [given_up]) == {given_up}
    await rows.db.execute("UPDATE dead_letters SET resolved_at = now() - $2::interval WHERE id = $1", letter, OLD)
    await sweep(pool)
    await sweep(pool)
    assert await rows.left() == set()


@pytest.mark.parametrize(("status", "letter"), [("failed", "pending"), ("abandoned", "abandoned")])
async def test_what_was_commanded_after_a_parked_command_stays_as_long_as_that_may_be_requeued(
    rows: Rows, pool: Any, status: str, letter: str
) -> None:
    await rows.connection("c")
    about = {"entity_type": "availability", "entity_internal_id": "R"}
    parked = await rows.command(status, **about)
    kept = await rows.letter(parked, letter, LATELY if letter == "abandoned" else None)
    newer = await rows.command(**about)
    delivery = await rows.delivery(newer, lane="availability:R@c", lane_policy="supersede", **about)
    another = await rows.command(**about | {"entity_internal_id": "S"})
    await sweep(pool)
    assert await rows.left() == {parked, newer, delivery}
    assert another not in await rows.left()
    assert await dead_letters.overtaken(rows.db, [parked]) == {parked}
    await rows.db.execute(
        "UPDATE dead_letters SET status = 'abandoned', resolved_at = now() - $2::interval WHERE id = $1", kept, OLD
    )
    await sweep(pool)
    await sweep(pool)
    assert await rows.left() == set()


async def test_a_failed_one_that_is_alone_in_its_lane_goes(rows: Rows, pool: Any) -> None:
    failed = await rows.delivery(uuid7(), "failed", lane="l", lane_policy="hold")
    await rows.letter(failed, "abandoned", OLD)
    assert await sweep(pool) == {"channel_events": 1, "dead_letters": 1}


@pytest.mark.parametrize(
    ("status", "age"), [("received", OLD), ("processing", OLD), ("failed", YOUNG), ("done", YOUNG)]
)
async def test_a_command_stays_with_all_its_deliveries(rows: Rows, pool: Any, status: str, age: timedelta) -> None:
    command = await rows.command()
    family = {command, await rows.delivery(command), await rows.delivery(command, status, age)}
    await sweep(pool)
    assert await rows.left() == family


@pytest.mark.parametrize(("status", "age"), [("received", OLD), ("failed", YOUNG), ("done", YOUNG)])
async def test_deliveries_stay_with_their_command(rows: Rows, pool: Any, status: str, age: timedelta) -> None:
    """A command that is requeued would send again what no row tells of."""
    command = await rows.command(status, age)
    family = {command, await rows.delivery(command)}
    await sweep(pool)
    assert await rows.left() == family


async def test_a_family_goes_together_and_a_delivery_without_a_command_alone(rows: Rows, pool: Any) -> None:
    command = await rows.command()
    for _ in range(3):
        await rows.delivery(command, lane=None)
    await rows.delivery(uuid7())
    assert await sweep(pool) == {"channel_events": 5}


async def test_logs_results_outbox_and_own_writes(rows: Rows, pool: Any) -> None:
    day = timedelta(days=1)
    for age in (OLD, YOUNG):
        await rows.db.execute(
            "INSERT INTO webhook_log (received_at, platform, method, status, signature, bytes)"
            " VALUES (now() - $1::interval, 'beds24', 'POST', 202, 'valid', 1)",
            age,
        )
    results = [uuid7() for _ in range(4)]
    for id_, age in zip(results, (OLD, OLD, OLD, YOUNG), strict=True):
        await rows.db.execute(
            "INSERT INTO core_events (id, company_id, event_type, subject, data, cause_id, created_at)"
            " VALUES ($1, 'acme', 'core.x', 's', '{}', $1, now() - $2::interval)",
            id_, age,
        )  # fmt: skip
    await rows.db.execute(
        "INSERT INTO core_batches (id, event_ids, created_at) VALUES ($1, $2, now() - $3::interval)",
        uuid7(), results[1:2], OLD,
    )  # fmt: skip
    taken = [uuid7() for _ in range(3)]
    for id_, age in zip(taken, (OLD, YOUNG, None), strict=True):
        await rows.db.execute(
            "INSERT INTO outbox (id, company_id, event_type, payload, created_at, taken_at)"
            " VALUES ($1, 'acme', 'pms.note.add', '{}', now() - interval '40 days', now() - $2::interval)",
            id_, age,
        )  # fmt: skip
    writes = [uuid7() for _ in range(2)]
    for id_, lasts in zip(writes, (-day, day), strict=True):
        await rows.db.execute(
            "INSERT INTO own_writes (event_id, company_id, connection_id, marker, expected, expires_at)"
            " VALUES ($1, 'acme', 'c', 'm', '{}', now() + $2::interval)",
            id_, lasts,
        )  # fmt: skip
    assert await sweep(pool) == {"webhook_log": 1, "core_events": 2, "outbox": 1, "own_writes": 1}
    assert await rows.left("core_events") == {results[1], results[3]}  # one waits to be told, one is young
    assert await rows.left("outbox") == set(taken[1:])
    assert await rows.left("own_writes", "event_id") == {writes[1]}


# ------------------------------------------------------------------------------------------------ how


async def test_it_goes_page_by_page_past_what_must_stay(rows: Rows, pool: Any) -> None:
    stays = {await rows.event("received") for _ in range(12)}
    for _ in range(25):
        await rows.event()
    stays.add(await rows.event(age=YOUNG))
    async with pool.acquire() as connection:
        seen = [page async for page in retention.pages(connection, KEEP, asyncio.Event(), limit=5)]
    dropped = [page.rows["channel_events"] for page in seen[: -len(store.WALKS) + 1]]
    assert dropped == [0, 0, 3, 5, 5, 5, 5, 2]
    assert await rows.left() == stays


async def test_one_row_with_a_wrong_time_does_not_end_the_round(rows: Rows, pool: Any) -> None:
    stays = [await rows.event(age=timedelta(days=-365)) for _ in range(4)]
    for _ in range(10):
        await rows.event()
    assert await sweep(pool, page=5) == {"channel_events": 10}
    assert await rows.left() == set(stays)


@pytest.mark.parametrize("page", [1, 7, 20])
async def test_no_page_size_skips_or_repeats_a_row(rows: Rows, pool: Any, page: int) -> None:
    """Also where many rows have the same time."""
    await rows.db.execute(
        "INSERT INTO own_writes (event_id, company_id, connection_id, marker, expected, expires_at)"
        " SELECT gen_random_uuid(), 'acme', 'c', 'm', '{}', now() - make_interval(days => 1 + n / 10)"
        " FROM generate_series(0, 39) n"
    )
    await rows.db.execute(
        "INSERT INTO outbox (company_id, event_type, payload, taken_at)"
        " SELECT 'acme', 'pms.note.add', '{}', now() - interval '50 days' FROM generate_series(1, 40)"
    )
    for _ in range(10):
        await rows.letter(None, "resolved", OLD)
    looked: Counter[str] = Counter()
    async with pool.acquire() as connection:
        async for one in retention.pages(connection, KEEP, asyncio.Event(), limit=page, only_look=True):
            looked.update(one.rows)
    assert +looked == {"own_writes": 40, "outbox": 40, "dead_letters": 10}
    assert await sweep(pool, page) == +looked


async def test_what_somebody_has_locked_is_left_with_its_family_and_not_waited_for(
    rows: Rows, pool: Any, database_url: str
) -> None:
    command = await rows.command()
    delivery = await rows.delivery(command)
    alone = await rows.event()
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT FROM channel_events WHERE id = $1 FOR UPDATE", delivery)
        assert await asyncio.wait_for(sweep(pool), 20) == {"channel_events": 1}
    await other.close()
    assert await rows.left() == {command, delivery}
    assert alone not in await rows.left()
    assert await sweep(pool) == {"channel_events": 2}


async def test_what_was_requeued_between_look_and_drop_stays(rows: Rows, pool: Any) -> None:
    id_ = await rows.event("abandoned")
    walk = store.WALKS[0]
    async with pool.acquire() as connection:
        async with connection.transaction():
            page = await store.look(connection, walk, walk.after, KEEP, 10)
        assert page.rows["channel_events"] == 1
        await rows.db.execute("UPDATE channel_events SET status = 'received', processed_at = NULL")
        assert await connection.fetch(store._SQL["lock_events"], [id_]) == []


async def test_of_two_schedulers_one_drops(rows: Rows, pool: Any, other: Any) -> None:
    await rows.event()
    async with store.alone(pool) as connection:
        assert connection is not None
        assert await sweep(other) is None
        assert len(await rows.left()) == 1
    assert await sweep(other) == {"channel_events": 1}


async def test_a_right_to_drop_whose_answer_came_too_late_is_nobodys(
    rows: Rows, pool: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session would have it for as long as its process lives, and nobody would drop anything any more."""
    await rows.event()
    fetchval = asyncpg.Connection.fetchval

    async def late(*args: Any, **named: Any) -> None:
        await fetchval(*args, **named)
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetchval", late)
        with pytest.raises(TimeoutError):
            await sweep(pool)
    async with asyncio.timeout(10):  # the server notices the end of a session a moment later
        while (dropped := await sweep(other)) is None:
            await asyncio.sleep(0.01)
    assert dropped == {"channel_events": 1}


async def test_a_stop_ends_the_round_after_the_page_at_hand(rows: Rows, pool: Any) -> None:
    for _ in range(30):
        await rows.event()
    stop = asyncio.Event()

    def clock() -> float:
        """Looked at before and after a page: the stop comes while the first is under way, and its pause would be for ever."""
        stop.set()
        return 1e9 * clocks.pop()

    clocks = [0, 1, 2, 3, 4]
    clocks.reverse()
    await asyncio.wait_for(Retention(pool, KEEP, page=10, clock=clock).sweep(stop), 20)
    assert len(await rows.left()) in {20, 30}


async def test_a_stop_ends_the_pause_between_pages_and_rounds(rows: Rows, pool: Any, other: Any) -> None:
    for _ in range(30):
        await rows.event()
    ticks = iter(range(0, 10**9, 10**6))
    stop = asyncio.Event()
    running = asyncio.create_task(Retention(pool, KEEP, page=10, clock=lambda: float(next(ticks))).run(stop))
    while len(await rows.left()) == 30:
        await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(running, 20)
    assert len(await rows.left()) == 20
    assert await sweep(other) == {"channel_events": 20}  # the right to drop was given back


async def test_a_cut_session_costs_a_round_and_nothing_else(
    rows: Rows, pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(30):
        await rows.event()
    kept = await rows.event("received")
    stop = asyncio.Event()
    cut = 0

    def clock() -> float:
        return 0.0

    running = asyncio.create_task(Retention(pool, KEEP, page=1, pause=0.05, clock=clock).run(stop))
    with caplog.at_level(logging.WARNING):
        while await rows.left() != {kept}:
            if cut < 3:
                cut += await rows.db.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'staybus test' AND datname = current_database()"
                )
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(running, 20)
    assert cut
    assert "database away, dropping later" in caplog.messages


async def test_a_cancelled_round_gives_the_right_back(rows: Rows, pool: Any, other: Any) -> None:
    for _ in range(30):
        await rows.event()
    ticks = iter(range(0, 10**9, 10**6))
    running = asyncio.create_task(
        Retention(pool, KEEP, page=10, clock=lambda: float(next(ticks))).sweep(asyncio.Event())
    )
    while len(await rows.left()) == 30:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await sweep(other) == {"channel_events": 20}


# ------------------------------------------------------------------------------------------------ who starts it


async def test_the_scheduler_drops_and_counts(world: World) -> None:
    rows = Rows(world.db)
    await rows.event()
    kept = await rows.event(age=YOUNG)
    before = metrics.DROPPED.labels("channel_events")._value.get()
    await world.start("scheduler")
    await world.until("SELECT count(*) FROM channel_events", equals=1)
    assert await rows.left() == {kept}
    assert metrics.DROPPED.labels("channel_events")._value.get() == before + 1


async def test_a_resend_is_a_duplicate_while_its_first_is_kept(world: World) -> None:
    await world.start("ingress", "inbound")
    body = {"timeStamp": "2026-11-01T08:00:00Z", "action": "SYNC_ROOM", "roomId": "713992", "propId": "345754"}
    assert (await world.webhook(body)).status_code == 202
    await world.all_settled()
    pool = await open_pool(world.database_url, name="test")
    await sweep(pool)
    assert (await world.webhook(body)).status_code == 200
    await world.db.execute(
        "UPDATE channel_events SET received_at = now() - interval '31 days', processed_at = now() - interval '31 days'"
    )
    await sweep(pool)
    await pool.close()
    assert (await world.webhook(body)).status_code == 202


@pytest.mark.parametrize("name", ["STAYBUS_RETENTION_DAYS", "STAYBUS_DEAD_LETTER_RETENTION_DAYS"])
def test_less_than_a_day_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("STAYBUS_DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("STAYBUS_AMQP_URL", "amqp://h")
    monkeypatch.setenv(name, "0")
    with pytest.raises(SettingsError, match=f"^{name}: at least 1: a vendor's resend within 24 hours"):
        load()


async def test_the_command_looks_asks_and_drops(rows: Rows, database_url: str) -> None:
    staybus = Cli(
        {"STAYBUS_DATABASE_URL": database_url, "STAYBUS_AMQP_URL": "amqp://127.0.0.1:1", "STAYBUS_DEBUG": None}
    )
    assert "nothing was dropped" in (await staybus("db", "retain")).err
    command = await rows.command()
    await rows.delivery(command)
    kept = await rows.event(age=YOUNG)
    looked = await staybus("db", "retain", "--dry-run", "--json")
    assert looked.document == [{"table": "channel_events", "rows": 2}]
    assert "2 rows are old enough to go; nothing was dropped" in looked.err
    assert "nothing was done" in (await staybus("db", "retain", code=1, typed="n\n")).err
    assert len(await rows.left()) == 3
    pool = await open_pool(database_url, name="test")
    async with store.alone(pool):
        assert "a scheduler drops old rows just now" in (await staybus("db", "retain", "--yes", code=1)).err
    await pool.close()
    assert "channel_events" in (await staybus("db", "retain", "--yes")).out
    assert await rows.left() == {kept}
    assert await rows.db.fetchval("SELECT details::text FROM audit_log WHERE action = 'retention.drop'")
