"""Access tokens: one process renews, the others read what it got; and a vendor that is silent holds nothing of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from adapters.errors import Transient, Unauthorized
from adapters.port import Grant
from adapters.registry import adapter
from adapters.transport import HttpTransport
from ops.parts import open_parts
from simulators.beds24.faults import Fault, FaultKind
from store import connections
from store.clock import Clock
from store.directory import Directory, Known
from store.pool import open_pool
from tests.fleet import CONNECTION, World
from workers.sessions import FRESH, LEASE, PAUSE, SETTLING, Tokens
from workers.upkeep import Upkeep

if TYPE_CHECKING:
    from ops.parts import Parts
    from store.pool import Pool

SETUP, REFRESH = "GET /authentication/setup", "GET /authentication/token"
BEDS24 = adapter("beds24")


@dataclass
class Ground:
    world: World
    known: Known
    resources: AsyncExitStack

    async def process(self, *, size: int = 2, sleep: Callable[[float], Any] = asyncio.sleep) -> tuple[Tokens, Pool]:
        """What one process has: a pool, a client, a cache."""
        pool = await open_pool(self.world.database_url, name="test", size=size)
        self.resources.push_async_callback(pool.close)
        http = HttpTransport("beds24", total=3.0)
        self.resources.push_async_callback(http.close)
        return Tokens(pool, http, sleep=sleep, now=await Clock.of(pool)), pool

    def asked(self) -> list[str]:
        return [call.operation for call in self.world.sim.account.calls if "authentication" in call.operation]

    async def until_asked(self, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while len(self.asked()) < times:
                await asyncio.sleep(0.01)

    async def lease(self) -> Any:
        return await self.world.db.fetchval("SELECT renewing_until FROM connections")


@pytest.fixture
async def ground(world: World) -> AsyncIterator[Ground]:
    async with AsyncExitStack() as resources:
        pool = await open_pool(world.database_url, name="test", size=1)
        resources.push_async_callback(pool.close)
        known = await Directory(pool, world.keys).get(CONNECTION)
        assert known is not None
        yield Ground(world, known, resources)


async def test_processes_that_need_a_token_at_once_make_one_request(ground: Ground) -> None:
    ground.world.sim.faults.add(Fault(FaultKind.SLOW, operation=SETUP, seconds=0.5))
    processes = [(await ground.process())[0] for _ in range(3)]
    tokens = await asyncio.gather(*(t.current(BEDS24, ground.known) for t in processes for _ in range(5)))
    assert len(set(tokens)) == 1
    assert ground.asked() == [SETUP]
    assert await ground.lease() is None


async def test_a_token_that_was_refused_is_renewed_once_for_all_who_were_refused(ground: Ground) -> None:
    processes = [(await ground.process())[0] for _ in range(3)]
    old = {await t.current(BEDS24, ground.known) for t in processes}
    assert len(old) == 1
    ground.world.sim.faults.add(Fault(FaultKind.SLOW, operation=REFRESH, seconds=0.5))
    refused = old.pop()
    new = await asyncio.gather(*(t.renewed(BEDS24, ground.known, refused) for t in processes for _ in range(5)))
    assert len(set(new)) == 1
    assert new[0] != refused
    assert ground.asked() == [SETUP, REFRESH]


async def test_what_came_in_place_of_a_refused_token_is_given_time_before_it_is_replaced_as_well(
    ground: Ground,
) -> None:
    """A vendor that refuses whatever it grants is not asked for more with each call."""
    processes = [(await ground.process())[0] for _ in range(2)]
    first = await processes[0].current(BEDS24, ground.known)
    (second,) = {await tokens.renewed(BEDS24, ground.known, first) for tokens in processes}
    for tokens in processes:
        for _ in range(3):
            with pytest.raises(Unauthorized, match="nor was the one before"):
                await tokens.renewed(BEDS24, ground.known, second)
        assert await tokens.renewed(BEDS24, ground.known, first) == second  # who had the first one may try it
        assert await tokens.current(BEDS24, ground.known) == second
    assert ground.asked() == [SETUP, REFRESH]
    now = processes[0]._now
    processes[0]._now = lambda: now() + SETTLING
    assert await processes[0].renewed(BEDS24, ground.known, second) != second
    assert ground.asked() == [SETUP, REFRESH, REFRESH]


async def test_after_the_death_of_who_renews_another_does_when_its_lease_is_over(ground: Ground) -> None:
    slept = 0

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += 1
        assert ground.asked() == []
        if slept == 20:
            await ground.world.db.execute("UPDATE connections SET renewing_until = now() - interval '1 s'")

    dead, _ = await ground.process()
    tokens, _ = await ground.process(sleep=sleep)
    assert await dead._stored_or_lease(ground.known, None) is not None  # it goes no further
    assert await tokens.current(BEDS24, ground.known)
    assert slept == 20
    assert ground.asked() == [SETUP]


async def test_who_waits_for_another_longer_than_any_lease_says_so(ground: Ground) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    await ground.world.db.execute("UPDATE connections SET renewing_until = now() + interval '1 hour'")
    tokens, _ = await ground.process(sleep=sleep)
    with pytest.raises(Transient, match="another process"):
        await tokens.current(BEDS24, ground.known)
    assert LEASE <= sum(slept) <= LEASE + 2 * PAUSE
    assert ground.asked() == []


async def test_a_vendor_that_does_not_answer_holds_no_connection_of_ours(ground: Ground) -> None:
    ground.world.sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, operation=SETUP))
    tokens, pool = await ground.process(size=1)
    asking = asyncio.create_task(tokens.current(BEDS24, ground.known))
    await ground.until_asked()
    async with asyncio.timeout(2):  # less than the call takes
        assert await pool.fetchval("SELECT 1") == 1
        locked = "SELECT count(*) FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND NOT granted"
        assert await ground.world.db.fetchval(locked) == 0
        await ground.world.db.execute("UPDATE connections SET name = 'free' WHERE id = $1", CONNECTION)
    assert not asking.done()
    with pytest.raises(Transient):
        await asking
    assert await ground.lease() is None  # the next need not wait
    assert await tokens.current(BEDS24, ground.known)


async def test_who_ends_too_late_does_not_end_the_lease_of_the_next(ground: Ground) -> None:
    slow, _ = await ground.process()
    late = await slow._stored_or_lease(ground.known, None)
    assert late is not None
    assert not isinstance(late, str)
    await ground.world.db.execute("UPDATE connections SET renewing_until = now() - interval '1 s'")
    next_, _ = await ground.process()
    lease = await next_._stored_or_lease(ground.known, None)
    assert lease is not None
    assert not isinstance(lease, str)
    await slow._give_up(ground.known.connection, late)
    assert await ground.lease() == lease.until
    await next_._give_up(ground.known.connection, lease)
    assert await ground.lease() is None


async def test_a_database_that_is_away_for_a_moment_is_waited_for(ground: Ground) -> None:
    """It would be taken for a bug, and the command that needs the token parked."""
    tokens, pool = await ground.process()

    class Flaky:
        failures = 2

        def acquire(self) -> Any:
            if self.failures:
                self.failures -= 1
                raise ConnectionRefusedError
            return pool.acquire()

    tokens._pool = Flaky()  # type: ignore[assignment]
    assert await tokens.current(BEDS24, ground.known)
    assert ground.asked() == [SETUP]


@pytest.mark.parametrize("lifetime", [1e300, float("inf"), float("nan"), -1e300])
async def test_what_an_invite_code_brought_is_kept_however_long_it_is_said_to_live(
    ground: Ground, lifetime: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def grant(*_: Any) -> Grant:
        return Grant("a token", lifetime, {"refresh_token": "the only way to the next"})

    monkeypatch.setattr(type(BEDS24), "grant", grant)
    tokens, _ = await ground.process()
    assert await tokens.current(BEDS24, ground.known) == "a token"
    assert "refresh_token" in await connections.secrets(ground.world.db, CONNECTION)


async def test_a_token_is_renewed_before_it_ends_and_kept_till_then(ground: Ground) -> None:
    tokens, _ = await ground.process()
    first = await tokens.current(BEDS24, ground.known)
    assert await tokens.current(BEDS24, ground.known) == first
    stored = await connections.secrets(ground.world.db, CONNECTION)
    ends = stored["access_token"].expires_at
    assert ends is not None
    tokens._now = lambda: ends - timedelta(minutes=4)
    assert await tokens.current(BEDS24, ground.known) != first
    assert ground.asked() == [SETUP, REFRESH]


async def replace_refresh_token(ground: Ground) -> str:
    """As `staybus secret set` does, with that of another account. returns it"""
    access = ground.world.sim.account.access
    granted = access.set_up(access.invite(), "another")
    assert granted is not None
    refresh, _ = granted
    async with ground.world.db.transaction():
        sealed = ground.known.cipher.seal_bytes(refresh.encode())
        await connections.put_credential(
            ground.world.db, ground.world.connection, "refresh_token", sealed, ["access_token"]
        )
    return refresh


def owner(ground: Ground, token: str) -> str | None:
    """The refresh token that it was got with."""
    return ground.world.sim.account.access.tokens[token].refresh


async def test_a_new_credential_is_used_by_every_process_within_seconds(ground: Ground) -> None:
    processes = [(await ground.process())[0] for _ in range(2)]
    old = {await t.current(BEDS24, ground.known) for t in processes}
    refresh = await replace_refresh_token(ground)
    for tokens in processes:
        now = tokens._now
        tokens._now = lambda now=now: now() + FRESH
    new = {await t.current(BEDS24, ground.known) for t in processes}
    assert old.isdisjoint(new)
    assert {owner(ground, token) for token in new} == {refresh}
    assert ground.asked() == [SETUP, REFRESH]


async def test_what_is_got_with_a_credential_that_was_replaced_meanwhile_is_not_kept(ground: Ground) -> None:
    ground.world.sim.faults.add(Fault(FaultKind.SLOW, operation=SETUP, seconds=1))
    tokens, _ = await ground.process()
    asking = asyncio.create_task(tokens.current(BEDS24, ground.known))
    await ground.until_asked()
    refresh = await replace_refresh_token(ground)
    assert owner(ground, await asking) == refresh
    stored = await connections.secrets(ground.world.db, CONNECTION)
    assert ground.known.cipher.open_bytes(stored["refresh_token"].sealed).decode() == refresh
    assert ground.asked() == [SETUP, REFRESH]
    assert await ground.lease() is None


# ------------------------------------------------------------------------------------------------ a stop


async def forsaken(ground: Ground, tokens: Tokens) -> None:
    """Nobody waits any more for what the vendor was asked for."""
    asking = asyncio.create_task(tokens.current(BEDS24, ground.known))
    await ground.until_asked()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_a_stop_keeps_what_an_invite_code_was_used_up_for(ground: Ground) -> None:
    """It works once: without the refresh token that it brings, the connection needs another."""
    ground.world.sim.faults.add(Fault(FaultKind.SLOW, operation=SETUP, seconds=0.5))
    async with open_parts("scheduler", ground.world.settings()) as parts:
        tokens = parts.sessions.tokens("beds24")
        await forsaken(ground, tokens)
    assert {"refresh_token", "access_token"} <= set(await connections.secrets(ground.world.db, CONNECTION))
    assert await ground.lease() is None
    assert await (await ground.process())[0].current(BEDS24, ground.known)
    assert ground.asked() == [SETUP]


async def test_a_stop_waits_no_longer_for_a_vendor_than_it_is_given(ground: Ground) -> None:
    ground.world.sim.faults.add(Fault(FaultKind.TIMEOUT_BEFORE_COMMIT, operation=SETUP))
    tokens, _ = await ground.process()
    await forsaken(ground, tokens)
    async with asyncio.timeout(2):  # less than the call takes
        await tokens.stop(0.05)
    assert await ground.lease() is None


async def test_a_stop_does_not_wait_for_another_process_nor_begin_to_ask(ground: Ground) -> None:
    waits = asyncio.Event()

    async def sleep(_: float) -> None:
        waits.set()
        await asyncio.Event().wait()

    await ground.world.db.execute("UPDATE connections SET renewing_until = now() + interval '1 hour'")
    tokens, _ = await ground.process(sleep=sleep)
    asking = asyncio.create_task(tokens.current(BEDS24, ground.known))
    async with asyncio.timeout(10):
        await waits.wait()
        await tokens.stop(grace=60)
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert ground.asked() == []


# ------------------------------------------------------------------------------------------------ renewed ahead of their end


class Rounds(Upkeep):
    """By a clock that the test sets."""

    now = 0.0

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.pool, parts.directory, parts.sessions, lambda: None, clock=lambda: self.now)  # type: ignore[arg-type,return-value]

    async def round(self) -> None:
        """And what it begins."""
        await self.renew_tokens()
        await asyncio.gather(*self._renewing.values())


async def ends(ground: Ground, after: timedelta) -> None:
    await ground.world.db.execute("UPDATE secrets SET expires_at = now() + $1 WHERE name = 'access_token'", after)


async def somebody_needs_one(ground: Ground) -> None:
    await (await ground.process())[0].current(BEDS24, ground.known)


def revoke_all(ground: Ground) -> None:
    access = ground.world.sim.account.access
    for refresh in list(access.grants):
        access.revoke(refresh)


async def test_a_token_that_cannot_be_renewed_is_asked_for_more_and_more_rarely_until_its_credential_is_replaced(
    ground: Ground,
) -> None:
    async with open_parts("scheduler", ground.world.settings()) as parts:
        upkeep = Rounds(parts)
        await somebody_needs_one(ground)
        revoke_all(ground)
        await ends(ground, timedelta(minutes=4))
        tries = []
        for upkeep.now in range(0, 300, 5):
            before = len(ground.asked())
            await upkeep.round()
            if len(ground.asked()) > before:
                tries.append(upkeep.now)
        assert tries == [0, 10, 30, 70, 150]

        await replace_refresh_token(ground)
        await somebody_needs_one(ground)  # and has it for a day
        await upkeep.round()
        revoke_all(ground)
        await ends(ground, timedelta(minutes=4))
        before = len(ground.asked())
        await upkeep.round()
        assert len(ground.asked()) > before


async def test_a_token_that_ended_while_nobody_looked_is_renewed(ground: Ground) -> None:
    """What renews it dies at the vendor when it is not used for a month."""
    async with open_parts("scheduler", ground.world.settings()) as parts:
        await somebody_needs_one(ground)
        await ends(ground, -timedelta(days=3))
        await Rounds(parts).round()
        assert ground.asked() == [SETUP, REFRESH]


async def test_what_cannot_be_renewed_is_tried_once_an_hour_in_the_end(ground: Ground) -> None:
    async with open_parts("scheduler", ground.world.settings()) as parts:
        upkeep = Rounds(parts)
        await somebody_needs_one(ground)
        revoke_all(ground)
        await ends(ground, -timedelta(days=3))
        tries = []
        for upkeep.now in range(0, 17_000, 10):
            before = len(ground.asked())
            await upkeep.round()
            if len(ground.asked()) > before:
                tries.append(upkeep.now)
        assert tries == [0, 10, 30, 70, 150, 310, 630, 1270, 2550, 5110, 8710, 12310, 15910]
