"""What we said ourselves does not come back; what the core heard last, or said since, is what the vendor has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from schemas.ids import uuid7
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.state import Author, system_clock
from simulators.core_pms import CorePms
from store import outbound
from tests.fleet import COMPANY, CONNECTION, World
from tests.integration.test_pull import lease, pulling

DATA = {"propertyId": "P1", "roomTypeId": "RT1", "checkIn": "2027-03-01", "checkOut": "2027-03-04", "adults": 2}
TOLD = "SELECT count(*) FROM core_events WHERE event_type = 'core.reservation.upserted'"


class Story:
    """One booking, B-1: what the core says of it, what people do to it, and what the core hears. Each a second later."""

    def __init__(self, world: World, core: CorePms) -> None:
        self.world, self.core = world, core
        self.seconds = 0

    def later(self) -> None:
        """By the vendor's clock, which has whole seconds."""
        self.seconds += 1
        self.world.sim.account.clock = lambda: system_clock() + timedelta(seconds=self.seconds)

    async def say(self, event_type: str, **data: Any) -> str:
        """returns its key"""
        self.later()
        key = f"{event_type} {self.seconds}"
        await self.core.publish(event_type, "B-1", COMPANY, {"reservationId": "B-1", **data}, key)
        await self.world.until("SELECT count(*) FROM channel_events WHERE idempotency_key = $1", key, equals=1)
        return key

    async def done(self, event_type: str, **data: Any) -> None:
        await self.say(event_type, **data)
        await self.world.all_settled()

    def somebody(self, **members: Any) -> dict[str, Any]:
        """A person changes it at the vendor. returns its webhook"""
        self.later()
        assert not self.world.sim.account.write_booking({"id": self.booking, **members}, Author(api=False)).errors
        return self.webhook()

    @property
    def booking(self) -> int:
        (id_,) = self.world.sim.account.bookings
        return id_

    def webhook(self) -> dict[str, Any]:
        return self.world.sim.account.webhook_body(self.booking)

    async def arrives(self, body: dict[str, Any]) -> None:
        assert (await self.world.webhook(body)).status_code == 202
        await self.world.all_settled()

    async def pulled(self) -> None:
        async with pulling(self.world) as puller:
            await puller.run(await lease(self.world))
        await self.world.all_settled()

    async def heard(self, name: str) -> list[Any]:
        """The values of a field, one an upsert."""
        told = await self.world.db.fetchval(TOLD)
        async with asyncio.timeout(20):
            while len(self.core.of("core.reservation.upserted")) < told:
                await asyncio.sleep(0.01)
        return [event.data["reservation"][name] for event in self.core.of("core.reservation.upserted")]


@pytest.fixture
async def story(world: World, core: CorePms) -> Story:
    story = Story(world, core)
    await story.done("pms.booking.create", **DATA)
    return story


@pytest.fixture
async def known(story: Story) -> Story:
    """Its echo is stored."""
    await story.arrives(story.webhook())
    assert await story.heard("adults") == []
    return story


Bring = Callable[[Story], Awaitable[None]]


async def _by_webhook(story: Story) -> None:
    await story.arrives(story.webhook())


async def _by_hint(story: Story) -> None:
    await story.arrives({"booking": {"id": story.booking}})


async def _by_pull(story: Story) -> None:
    await story.pulled()


WAYS = pytest.mark.parametrize("bring", [_by_webhook, _by_hint, _by_pull])


@WAYS
async def test_what_we_said_does_not_come_back(story: Story, bring: Bring) -> None:
    await bring(story)
    await story.done("pms.booking.update", adults=3)
    await bring(story)
    await story.done("pms.booking.update", checkOut="2027-03-06", adults=1)
    await story.done("pms.booking.cancel")
    await bring(story)
    assert await story.heard("adults") == []
    row = await story.world.db.fetchrow("SELECT adults, status FROM int_reservations")
    assert tuple(row) == (1, "cancelled")


@WAYS
async def test_a_persons_change_that_crosses_ours_is_followed_by_what_the_vendor_has(
    known: Story, bring: Bring
) -> None:
    theirs = known.somebody(numAdult=4)
    await known.done("pms.booking.update", adults=3)  # the core has not heard of the 4 yet
    await known.arrives(theirs)
    await bring(known)
    assert await known.heard("adults") == [4, 3]


@WAYS
async def test_what_waited_while_the_core_heard_something_else_comes_back(known: Story, bring: Bring) -> None:
    """The core said 3, then it was told 4; only then the vendor took the 3."""
    known.world.sim.faults.add(Fault(FaultKind.UNAVAILABLE, operation="POST /bookings"))
    await known.say("pms.booking.update", adults=3)
    await known.world.until("SELECT count(*) FROM channel_events WHERE status = 'retrying'", equals=1)
    assert (await known.world.webhook(known.somebody(numAdult=4))).status_code == 202
    await known.world.until(TOLD, equals=1)
    await known.world.all_settled()
    await bring(known)
    assert await known.heard("adults") == [4, 3]


async def test_there_and_back_is_told_both_times(known: Story) -> None:
    await known.done("pms.booking.update", adults=3)
    await known.arrives(known.webhook())
    for adults in (4, 3):
        await known.arrives(known.somebody(numAdult=adults))
    assert await known.heard("adults") == [4, 3]


async def test_cancelled_by_us_reopened_and_cancelled_by_a_person_ends_cancelled(known: Story) -> None:
    await known.done("pms.booking.cancel")
    await known.arrives(known.webhook())
    for status in ("confirmed", "cancelled"):
        await known.arrives(known.somebody(status=status))
    assert await known.heard("status") == ["confirmed", "cancelled"]


async def test_an_old_webhook_of_ours_that_is_told_is_followed_by_the_newer(story: Story) -> None:
    first = story.webhook()
    await story.done("pms.booking.update", adults=3)
    await story.arrives(first)
    await story.arrives(story.webhook())
    assert await story.heard("adults") in ([], [2, 3])


async def test_what_we_said_long_ago_and_a_person_took_back_is_told_with_what_we_said_since(known: Story) -> None:
    """Nobody brought the state between: to the stored one nothing has changed, to the core it has."""
    await known.done("pms.booking.update", adults=3)
    await known.world.db.execute("UPDATE own_writes SET written_at = written_at - interval '1 hour'")
    known.somebody(numAdult=2)  # its webhook is lost
    await known.done("pms.booking.update", checkOut="2027-03-06")
    await known.pulled()
    assert await known.heard("adults") == [2]


async def test_a_copy_of_our_booking_is_told(known: Story) -> None:
    """Our mark is in it, too."""
    account = known.world.sim.account
    ours = known.booking
    members = ("roomId", "status", "arrival", "departure", "numAdult", "apiReference")
    assert not account.book({name: account.bookings[ours][name] for name in members}).errors
    (copy,) = account.bookings.keys() - {ours}
    await known.arrives(account.webhook_body(copy))
    assert await known.heard("externalId") == [str(copy)]


async def test_what_is_refused_while_the_vendor_is_asked_hides_nobodys_own_change(known: Story) -> None:
    known.somebody(numAdult=3)  # its webhook tells the id alone
    await known.world.db.execute(
        "INSERT INTO own_writes (event_id, company_id, connection_id, external_id, marker, expected, expires_at)"
        " SELECT gen_random_uuid(), company_id, connection_id, external_id, 'm', $1, expires_at FROM own_writes",
        '{"adults": 3}',
    )
    known.world.sim.faults.add(Fault(FaultKind.SLOW, operation="GET /bookings", seconds=1))
    assert (await known.world.webhook({"booking": {"id": known.booking}})).status_code == 202
    await known.world.until("SELECT count(*) FROM channel_events WHERE status = 'processing'", equals=1)
    await known.world.db.execute("DELETE FROM own_writes WHERE marker = 'm'")  # as after a refusal
    await known.world.all_settled()
    assert await known.heard("adults") == [3]


async def test_the_note_of_what_we_write_is_of_the_last_attempt_and_keeps_the_vendors_id(world: World) -> None:
    """Each attempt writes anew, perhaps minutes later; one that looks it up again may not know the id."""
    note = uuid7(), COMPANY, CONNECTION
    kept = "SELECT written_at, external_id, expected::text FROM own_writes"
    await outbound.note_own_writes(world.db, [(*note, "7", "marker", '{"adults": 1}')])
    first = await world.db.fetchrow(kept)
    await outbound.note_own_writes(world.db, [(*note, None, "marker", '{"adults": 2}')])
    second = await world.db.fetchrow(kept)
    assert second["written_at"] > first["written_at"]
    assert tuple(second)[1:] == ("7", '{"adults": 2}')
