"""One company floods, three others send a little, at the same vendor: the real ingress, worker and scheduler."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from schemas.connection import Connection
from simulators.bookings import generate
from store import connections
from telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fleet import World

NOISY, QUIET = "noisy", ("quiet-1", "quiet-2", "quiet-3")
SECRET = "another secret of the tests"
FLOOD, FEW = 1_000, 5
ROUND = 50  # requests under way at once
SETTLED = "SELECT count(*) FROM channel_events WHERE company_id = ANY ($1) AND status = 'done'"


@pytest.fixture
async def tenants(world: World) -> World:
    for company in (NOISY, *QUIET):
        data_key = world.keys.new_data_key()
        await connections.add_company(world.db, company, company, data_key)
        config = {"currency": "EUR", "webhook_auth": "hmac"}
        await connections.add_connection(world.db, _connection(company), company, "beds24", company, None, config)
        sealed = world.keys.cipher(company, data_key).seal_bytes(SECRET.encode())
        of = Connection(_connection(company), company, "beds24", company)
        await connections.put_secret(world.db, of, "webhook_secret", sealed)
    return world


def _connection(company: str) -> str:
    return f"beds24-{company}"


async def send(world: World, company: str, bodies: Sequence[Any]) -> None:
    async def one(body: Any) -> None:
        raw = orjson.dumps(body)
        signature = hmac.new(SECRET.encode(), raw, hashlib.sha256).hexdigest()
        answer = await world.http.post(
            world.url("ingress", f"/webhooks/beds24/{_connection(company)}"),
            content=raw,
            headers={"content-type": "application/json", "x-beds24-signature": f"sha256={signature}"},
        )
        assert answer.status_code == 202, answer.text

    for start in range(0, len(bodies), ROUND):
        await asyncio.gather(*(one(body) for body in bodies[start : start + ROUND]))


def held() -> float:
    return metrics.HELD_BACK.labels("beds24")._value.get()


async def test_a_flood_waits_behind_itself_and_nobody_behind_it(tenants: World) -> None:
    world = tenants
    await world.start("ingress")
    flood = [change.body for change in generate(31, FLOOD, 0)]
    few = [change.body for change in generate(32, FEW, 0)]
    before = held()
    for company in QUIET:
        await send(world, company, few[:1])
    sent = 0
    while sent < FLOOD - 200 or held() == before:  # the worker is away: the queue is late, and the ingress notices
        assert sent < FLOOD
        await send(world, NOISY, flood[sent : sent + ROUND])
        sent += ROUND
    await asyncio.gather(send(world, NOISY, flood[sent:]), *(send(world, company, few[1:]) for company in QUIET))
    waiting = held() - before

    await world.start("inbound")
    await world.until(SETTLED, list(QUIET), equals=FEW * len(QUIET))
    left = "SELECT count(*) FROM channel_events WHERE status = 'received' AND published_at IS NULL"
    await world.until(f"{left} AND company_id = $1", NOISY, equals=waiting)
    assert waiting > 0

    await world.start("scheduler")
    await world.until(SETTLED, [NOISY], equals=FLOOD)
    for company, count in ((NOISY, FLOOD), *((company, FEW) for company in QUIET)):
        told = "SELECT count(*), count(DISTINCT cause_id) FROM core_events WHERE company_id = $1"
        assert tuple(await world.db.fetchrow(told, company)) == (count, count)


async def test_who_floods_alone_is_not_held_back(tenants: World) -> None:
    world = tenants
    await world.start("ingress")
    before = held()
    flood = [change.body for change in generate(33, FLOOD, 0)]
    await send(world, NOISY, flood[:500])
    await world.until("SELECT count(*) FROM channel_events WHERE published_at IS NOT NULL", equals=500)
    await send(world, NOISY, flood[500:])
    await world.start("inbound")
    await world.until(SETTLED, [NOISY], equals=FLOOD)
    assert held() == before
