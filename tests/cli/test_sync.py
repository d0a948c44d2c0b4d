"""Pulls by command line: the vendor is the simulator."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ops.cli.events import moment
from simulators.beds24 import Beds24, create_app
from simulators.beds24.faults import Fault, FaultKind
from simulators.server import SimServer
from store import pulls

from .conftest import audited
from .test_broken_off import begun, ended

if TYPE_CHECKING:
    from .conftest import Cli, Db


@pytest.fixture
async def sim(acme: Cli) -> AsyncIterator[Beds24]:
    """The vendor of `beds24-acme`, with three bookings that nobody told us about."""
    sim = Beds24()
    async with SimServer(create_app(sim)) as server:
        for _ in range(3):
            sim.account.book({"roomId": 713992, "arrival": "2027-03-01", "departure": "2027-03-04", "lastName": "Long"})
        await acme("connection", "set", "beds24-acme", f"base_url={server.url}/api/v2")
        await acme("secret", "set", "beds24-acme", "invite_code", "--stdin", typed=sim.account.access.invite())
        yield sim


async def test_a_dry_run_records_nothing_a_run_everything_and_a_second_one_nothing(
    acme: Cli, sim: Beds24, db: Db
) -> None:
    dry = await acme("sync", "run", "beds24-acme", "--dry-run", "--json")
    assert dry.document == {"listed": 3, "new": 3, "duplicate": 0, "pages": 1}
    assert await db.fetchval("SELECT count(*) FROM channel_events") == 0
    assert await db.fetchval("SELECT count(*) FROM pulls") == 0
    told = await acme("sync", "run", "beds24-acme")
    assert "3 listed, 3 new recorded, 0 known already" in told.out
    assert "Long" not in told.out + told.err
    assert await db.fetchval("SELECT count(*) FROM channel_events WHERE status = 'received'") == 3
    again = await acme("sync", "run", "beds24-acme", "--since", "2020-01-01", "--json")
    assert again.document == {"listed": 3, "new": 0, "duplicate": 3, "pages": 1}
    assert "sync.run" in await audited(db)


async def test_status_tells_how_far_and_why_not(acme: Cli, sim: Beds24, db: Db) -> None:
    (row,) = (await acme("sync", "status", "--json")).document
    assert (row["id"], row["state"], row["every"], row["covered_until"]) == ("beds24-acme", "not yet", 300.0, None)
    await acme("sync", "run", "beds24-acme")
    (row,) = (await acme("sync", "status", "--json")).document
    assert (row["state"], row["listed"], row["recorded"]) == ("ok", 3, 3)
    sim.faults.add(Fault(FaultKind.UNAVAILABLE, "GET /bookings"))
    refused = await acme("sync", "run", "beds24-acme", code=1)
    assert "bookings.pull" in refused.err
    assert "failing" in (await acme("sync", "status")).out
    await acme("connection", "set", "beds24-acme", "pull=0")
    (row,) = (await acme("sync", "status", "--json")).document
    assert (row["state"], row["every"]) == ("off", 0.0)
    assert (await acme("sync", "status", "--company", "other")).out == ""


async def test_one_that_is_being_pulled_is_left_to_whoever_pulls(acme: Cli, sim: Beds24, db: Db) -> None:
    await pulls.claim(db, ["beds24-acme"], "scheduler@elsewhere", 60.0)
    refused = await acme("sync", "run", "beds24-acme", code=1)
    assert "scheduler@elsewhere" in refused.err
    (row,) = (await acme("sync", "status", "--json")).document
    assert row["state"] == "running"


async def test_ctrl_c_gives_the_connection_back(acme: Cli, sim: Beds24, db: Db) -> None:
    sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, "GET /bookings"))
    process = await begun(acme, "sync", "run", "beds24-acme")
    async with asyncio.timeout(30):
        while not any(call.operation == "GET /bookings" for call in sim.account.calls):
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert (await ended(process, 15))[0] == 130
    assert await db.fetchval("SELECT lease_until FROM pulls") is None
    assert "3 listed" in (await acme("sync", "run", "beds24-acme")).out


async def test_without_units_it_says_when_to_try_again(acme: Cli, sim: Beds24, db: Db) -> None:
    await db.execute(
        "INSERT INTO rate_budgets (scope, company_id, remaining, resets_at)"
        " VALUES ('beds24-acme', 'acme', 3, now() + interval '1 hour')"
    )
    refused = await acme("sync", "run", "beds24-acme", code=1)
    assert "rate limit: 3 units left" in refused.err
    assert "try again in" in refused.err


async def test_paused_and_unknown_connections_are_refused(acme: Cli, sim: Beds24) -> None:
    await acme("connection", "pause", "beds24-acme")
    assert "staybus connection resume" in (await acme("sync", "run", "beds24-acme", code=1)).err
    assert "not known" in (await acme("sync", "run", "nobody", code=1)).err
    assert "2027-01-31" in (await acme("sync", "run", "beds24-acme", "--since", "yesterday", code=2)).err


def test_times_are_read_with_and_without_zone_and_as_ages() -> None:
    assert moment("2027-01-31") == datetime(2027, 1, 31, tzinfo=UTC)
    assert moment("2027-01-31T08:00+02:00") == datetime(2027, 1, 31, 6, tzinfo=UTC)
    assert abs(datetime.now(UTC) - moment("24h") - timedelta(hours=24)) < timedelta(minutes=1)
