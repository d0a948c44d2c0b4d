"""A few random schedules on the real parts (`make converge ARGS="--real"` plays more); and that what is wrong is found.

Hypothesis draws none of these: a schedule waits for real retries, pulls and takeovers, so there is no time to search or to
shorten. What it would draw, seeds deal; the fast form leaves the search to it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.convergence import real
from tests.convergence.fleet import Fleet
from tests.convergence.outside import Op, Traits
from tests.convergence.real import Player, Verdict
from tests.convergence.schedule import Schedule

if TYPE_CHECKING:
    from ops.stack.local import Stack

pytestmark = [pytest.mark.fault, pytest.mark.timeout(150)]

SEEDS = range(8)  # all four processes begin anew in them
MEETINGS = {
    "webhook", "webhook that is known", "inbound done", "inbound skipped: echo of our own write", "pulled", "outbound done",
    "outbound tried again", "inbound killed", "outbound killed", "scheduler killed",
}  # fmt: skip


@pytest.fixture(scope="module")
async def fleet(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    if stack.amqp_admin_url is None:
        pytest.fail("the fleet has a vhost of its own: STAYBUS_AMQP_URL needs a broker of ours, or leave it unset")
    async with Fleet.open(stack, tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


async def test_random_schedules_on_the_real_parts_end_at_one_truth(fleet: Fleet) -> None:
    verdicts: dict[int, Verdict] = {}
    await real.play_many(fleet, ((seed, real.of(seed)) for seed in SEEDS), len(SEEDS), verdicts.__setitem__)
    bad = {seed: verdict for seed, verdict in verdicts.items() if verdict.faults}
    assert not bad, "\n".join(f"seed {seed}\n{verdict.shown}" for seed, verdict in bad.items())
    assert verdicts.keys() == set(SEEDS)
    assert await fleet.left_over() == []
    assert fleet.reached.keys() >= MEETINGS, fleet.reached


# ------------------------------------------------------------------------------------------------ wrong on purpose

# A guest books and changes; the first webhook comes when the second is settled.
_LATE = ((Op.BOOK, 1, 0), (Op.SECONDS, 0, 0), (Op.QUICK, 0, 1))
_ALONE = Traits(echoes=True, webhooks_alone=True)

TAMPERED = {
    "UPDATE int_reservations SET check_out = check_out + 1": "check_out is",
    "UPDATE int_reservations SET adults = adults + 1": "adults is",
    "UPDATE int_reservations SET status = 'cancelled'": "status is",
    "UPDATE int_reservations SET guest_id = NULL": "another guest at the vendor",
    "DELETE FROM int_reservations": "is only at the vendor",
    "UPDATE int_mappings SET internal_entity_id = internal_entity_id || 'x' WHERE external_entity_type = 'reservation'": "told as",
    "UPDATE channel_events SET status = 'received' WHERE direction = 'inbound'": "is received in the end",
    "UPDATE channel_events SET status = 'abandoned' WHERE parent_id IS NOT NULL": "is abandoned in the end",
    "DELETE FROM channel_events WHERE direction = 'inbound'": "lost: accepted webhook has no event row",
    "DELETE FROM channel_events WHERE parent_id IS NULL AND direction = 'outbound'": "has no row",
    "DELETE FROM webhook_log": "is not in the log",
    "DELETE FROM core_events": "nobody told the core",
    "INSERT INTO core_events (id, company_id, event_type, subject, data, cause_id)"
    " SELECT gen_random_uuid(), company_id, event_type, subject, data, cause_id FROM core_events": "has 2 results, not 1",
}


@pytest.fixture(scope="module")
async def over(fleet: Fleet) -> AsyncIterator[Player]:
    """A schedule that has come to its end, and nothing is wrong."""
    played = Schedule((*_LATE, (Op.CREATE, 1, 0), (Op.UPDATE, 0, 2)), _ALONE)
    async with Player.begin(fleet, played) as player:
        await player.play()
        async with fleet.pool.acquire() as db:
            assert await player.judge(db) == []
        yield player


@pytest.mark.parametrize("sql", TAMPERED)
async def test_what_the_database_holds_wrongly_is_found(fleet: Fleet, over: Player, sql: str) -> None:
    async with fleet.pool.acquire() as db:
        change = db.transaction()
        await change.start()
        await db.execute(f"{sql} {'AND' if 'WHERE' in sql else 'WHERE'} company_id = $1", over.company)
        found = await over.judge(db)
        await change.rollback()
        assert any(TAMPERED[sql] in fault for fault in found), found
        assert await over.judge(db) == []


async def test_a_booking_that_only_the_vendor_changed_is_found(fleet: Fleet, over: Player) -> None:
    booking = next(iter(over.vendor.account.bookings.values()))
    async with fleet.pool.acquire() as db:
        for name, other in (("numAdult", 9), ("departure", "2027-12-24"), ("lastName", "Somebody"), ("status", "new")):
            right, booking[name] = booking[name], other
            assert await over.judge(db) != [], name
            booking[name] = right
        assert await over.judge(db) == []


async def test_a_fleet_without_its_fence_is_found(fleet: Fleet) -> None:
    environment = fleet.world.environment
    environment["inbound"] = {"FAULTS": orjson.dumps({"broken": "has_no_fence"}).decode()}
    await fleet.begin_anew("inbound", kill=True)
    broken = await real.play(fleet, Schedule(_LATE, _ALONE))
    del environment["inbound"]
    await fleet.begin_anew("inbound", kill=True)
    assert any("at ours and" in fault for fault in broken.faults), broken.shown
    assert (await real.play(fleet, Schedule(_LATE, _ALONE))).faults == []
