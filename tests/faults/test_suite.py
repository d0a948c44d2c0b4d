"""A sample of the long suite (`make faults`): some kill points and faults, and what becomes of messages that kill."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from schemas.vocabulary import MAX_STARTS
from tests.faults import broker, database, outside
from tests.faults.crashing import resolve
from tests.faults.fault import Fault, endure
from tests.faults.ground import Ground
from tests.faults.kills import Deal, Strike, deal, strike_all
from tests.faults.load import Load
from tests.faults.steps import POINTS, STEPS, Point, Step
from tests.fleet import PROCESSES

pytestmark = [pytest.mark.fault, pytest.mark.timeout(180)]

SAMPLE = {
    "ingress": ("ingress.insert.during", "ingress.answer.after", "ingress.publish.after"),
    "inbound": ("inbound.commit.after", "inbound.acked.before"),
    "outbound": ("outbound.create.after", "outbound.supersede.after"),
    "scheduler": ("scheduler.outbox-taken.after",),
}
FAULTS = {fault.name: fault for fault in (*broker.FAULTS, *database.FAULTS, *outside.FAULTS)}


def point(name: str) -> Point:
    return next(each for each in POINTS if each.name == name)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.process}.{step.name}")
def test_every_step_is_there(step: Step) -> None:
    """A step whose function was renamed would never be hit."""
    holder, name = resolve(step.place)
    assert callable(getattr(holder, name))


def test_names_are_names_of_one() -> None:
    assert [name for name, times in Counter(point.name for point in POINTS).items() if times > 1] == []
    assert len(FAULTS) == len((*broker.FAULTS, *database.FAULTS, *outside.FAULTS))
    assert sum(fault.kind in {"broker", "database"} for fault in FAULTS.values()) + len(outside.FAULTS) >= 50


def test_the_long_run_comes_to_every_point() -> None:
    dealt = deal(20261121, 520)
    strikes = [strike for each in dealt for hand in each.strikes.values() for strike in hand]
    assert len(strikes) >= 520
    missing = {point.name for point in POINTS} - {strike.point.name for strike in strikes}
    assert missing == set()


async def test_killed_at_some_points(ground: Ground) -> None:
    """A create that was done and not recorded is among them: it is looked up and not made again."""
    strikes = {process: tuple(Strike(point(name), 1) for name in names) for process, names in SAMPLE.items()}
    struck = await strike_all(ground, Deal("sample", 3, strikes), pace=0.5)
    assert struck.verdict.violations == []
    assert struck.misses == []
    assert struck.verdict.webhooks > 0
    assert struck.verdict.commands > 0


@pytest.mark.parametrize(
    "name",
    [
        "database-some-sessions-ended",
        "database-answers-lost",
        "broker-connections-closed",
        "vendor-reset-after-commit",
        "stop-outbound",
    ],
)
async def test_some_faults(ground: Ground, name: str) -> None:
    fault: Fault = FAULTS[name]
    verdict = await endure(ground, fault, 11, pace=0.5)
    assert verdict.violations == []
    assert verdict.webhooks > 0


async def one_message(ground: Ground, load: Load) -> int:
    """Thirty facts that wait in one message, as the relay publishes them; no worker is there."""
    ground.world.kill("inbound")
    await load.history(10, 2)
    await broker.queue_purged(broker.INBOUND)(ground, load)
    await ground.execute(
        "UPDATE channel_events SET published_at = NULL, received_at = received_at - interval '3 s' WHERE status = 'received'"
    )
    async with asyncio.timeout(10):
        while not (waiting := (await ground.waiting()).get(broker.INBOUND, 0)):
            await asyncio.sleep(0.05)
    return waiting


async def test_a_batch_that_is_cut_behaves_as_its_events_alone(ground: Ground) -> None:
    """Killed before the commit, and after it, before the ack: each time everything in the message is done once."""
    for where in ("inbound.commit.after", "inbound.acked.before"):
        load = Load(ground, random.Random(where))
        messages = await one_message(ground, load)
        assert messages < 10 * 3 / 2, "the facts came one in a message"
        assert await ground.kill_at(point(where), 1, load)
        await ground.ensure("inbound")
        assert (await ground.judge(load)).violations == []


async def deaths_of(ground: Ground, process: str, place: str, id_: str) -> int:
    """Begins the process again each time that the event about this kills it at this place, until the event is parked. The last one
    lives on: what it has begun since is not to lose its worker once more."""
    deaths = 0
    plan = {"poison": [place, id_], "mark": str(ground.world.folder / "poison")}
    parked = (
        "SELECT count(*) FROM channel_events WHERE status = 'failed'"
        " AND (entity_external_id = $1 OR entity_internal_id = $1 AND parent_id IS NOT NULL)"
    )
    async with asyncio.timeout(90), ground.pool.acquire() as connection:
        while True:
            ground.begin(process, plan)
            while ground.world.processes[process].poll() is None:
                if await connection.fetchval(parked, id_):
                    return deaths
                await asyncio.sleep(0.05)
            deaths += 1
            ground.world.processes.pop(process).wait()


@pytest.mark.parametrize("what", ["a delivery", "a hint"])
async def test_a_call_that_kills_its_workers_is_parked_and_those_beside_it_are_done(ground: Ground, what: str) -> None:
    """What was begun twice and never ended begins alone the third time: there the innocent end, and are not taken for what
    killed them."""
    load = Load(ground, random.Random(what))
    if what == "a delivery":
        ground.world.kill("outbound")
        for _ in range(6):
            await load.story("exchange", changes=0)
        victim = load.said[3].entity
        for operation in ("POST /bookings", "GET /bookings"):  # the look-up, too, is under way when it comes to that
            ground.slow(operation, 1.0, 100)
        process, place = "outbound", "workers.delivery:DeliveryStage._ask"
    else:
        ground.world.kill("inbound")
        for _ in range(6):
            await load.hint()
        ground.slow("GET /bookings", 1.0, 100)
        victim = "poison"
        await ground.execute(
            "UPDATE channel_events SET entity_external_id = 'poison' WHERE id = (SELECT id FROM channel_events"
            " WHERE event_type LIKE '%.hinted' AND status = 'received' ORDER BY seq LIMIT 1)"
        )
        process, place = "inbound", "workers.hints:Hints._fetch"
    deaths = await deaths_of(ground, process, place, victim)
    verdict = await ground.judge(load, patience=40)
    await ground.ensure(process)
    assert deaths == MAX_STARTS
    letters = [verdict.record.events[id_] for id_ in verdict.record.letters]
    assert [row.error for row in letters] == [f"started {MAX_STARTS} times and never ended"]
    others = {row.status for id_, row in verdict.record.events.items() if id_ not in verdict.record.letters}
    assert others <= {"done", "skipped"}
    assert verdict.repeats == {}


async def test_an_event_that_kills_its_workers_is_parked_and_its_neighbours_are_done(ground: Ground) -> None:
    load = Load(ground, random.Random(5))
    await one_message(ground, load)
    async with ground.pool.acquire() as connection:
        victim = await connection.fetchval(
            "SELECT id FROM channel_events WHERE status = 'received' ORDER BY seq LIMIT 1"
        )
        await connection.execute("UPDATE channel_events SET entity_external_id = 'poison' WHERE id = $1", victim)
    deaths = await deaths_of(ground, "inbound", "workers.inbound:InboundStage._interpret", "poison")
    verdict = await ground.judge(load, patience=10)
    await ground.ensure("inbound")
    # Twice together with the others, and then alone, each start counted.
    assert deaths <= MAX_STARTS + 2
    assert verdict.record.letters == [victim]
    assert verdict.record.events[victim].error == f"started {MAX_STARTS} times and never ended"
    others = {row.status for id_, row in verdict.record.events.items() if id_ != victim}
    assert others <= {"done", "skipped"}


async def test_what_used_the_delivery_limit_up_and_never_failed_is_done(ground: Ground) -> None:
    """Workers die of something else with it in their hands: the broker gives it up, the recorder wakes it again."""
    load = Load(ground, random.Random(6))
    vhost = ground.amqp_url.rpartition("/")[2]
    await broker.ctl(
        ground,
        "set_policy",
        "-p",
        vhost,
        "limit",
        f"^{broker.INBOUND}$",
        '{"delivery-limit": 1}',
        "--apply-to",
        "queues",
    )
    try:
        await one_message(ground, load)
        for _ in range(2):
            assert await ground.kill_at(point("inbound.load.after"), 1, load)
        assert await ground.kill_at(point("scheduler.letter-announce.before"), 1, Load.nothing(ground))
        for name in PROCESSES:
            await ground.ensure(name)
        verdict = await ground.judge(load)
    finally:
        await broker.ctl(ground, "clear_policy", "-p", vhost, "limit")
    assert verdict.violations == []
