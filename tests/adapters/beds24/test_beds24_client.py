"""The client against the simulator over real HTTP; what the simulator cannot say comes from a script of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pytest

from adapters.beds24 import adapter, client
from adapters.errors import (
    AdapterError,
    Malformed,
    Misconfigured,
    RateLimited,
    Rejected,
    Transient,
    Unauthorized,
    Unknown,
)
from adapters.port import Budget, Command, Effects, Hint, Recorded, Reply, Request, Response
from adapters.transport import HttpTransport
from schemas.commands import parse_command
from schemas.vocabulary import EntityType, ReservationStatus
from simulators.beds24 import Fault, FaultKind, operations
from simulators.beds24.state import Author
from tests.adapters.beds24 import evidence as ev
from tests.adapters.beds24.examples import connection, post
from tests.contract.evidence import TestSession, command
from tests.simulators.beds24_spec import SPEC, validate_request

RESERVATION, AVAILABILITY = EntityType.RESERVATION, EntityType.AVAILABILITY


@pytest.fixture
async def world() -> AsyncIterator[ev.World]:
    """The simulator; afterwards every request that it saw is held to the vendor's own specification."""
    async with ev.world() as running:
        yield running
        if SPEC.exists():
            for call in running.sim.account.calls:
                validate_request(call.method, f"{call.path}?{call.query}".rstrip("?"), call.body)


@pytest.fixture
async def session(world: ev.World) -> AsyncIterator[TestSession]:
    http = HttpTransport("beds24", total=5)
    yield TestSession(adapter, world.connection, http, world.credentials)
    await http.close()


def say(world: ev.World, event_type: str, **changes: Any) -> Command:
    return command(event_type, parse_command(event_type, ev.COMMANDS[event_type] | changes), world)


async def fetched(session: TestSession, *ids: object) -> list[Any]:
    found = await adapter.fetch(session, [Hint(RESERVATION, str(id_)) for id_ in ids])
    return [effects.reservations[0] for effects in found.values()]


async def test_a_create_is_saved_as_said_and_found_by_its_marker(world: ev.World, session: TestSession) -> None:
    sent = say(world, "pms.booking.create")
    assert await adapter.find(session, sent) is None
    reply = await adapter.execute(session, sent)
    saved = world.sim.account.bookings[int(reply.external_id or 0)]
    assert (
        saved.items()
        >= {
            "roomId": ev.ROOM,
            "status": "confirmed",
            "arrival": "2027-03-10",
            "departure": "2027-03-13",
            "price": 313.5,
            "apiReference": sent.marker,
            "notes": ev.NOTES,
            **ev.SENT,
        }.items()
    )
    again = await adapter.find(session, sent)
    assert again is not None
    assert (again.external_id, again.found) == (reply.external_id, True)
    (back,) = await fetched(session, reply.external_id)
    assert (back.entity.marker, back.entity.total_price) == (sent.marker, 31350)


async def test_a_booking_of_ours_is_found_even_when_it_is_cancelled_or_past(
    world: ev.World, session: TestSession
) -> None:
    sent = say(world, "pms.booking.create", checkIn="2020-01-01", checkOut="2020-01-02")
    reply = await adapter.execute(session, sent)
    world.sim.account.cancel(int(reply.external_id or 0))
    found = await adapter.find(session, sent)
    assert found == Reply(reply.external_id, found.response if found else {}, found=True)


async def test_an_update_changes_what_it_names_and_nothing_else(world: ev.World, session: TestSession) -> None:
    before = dict(world.sim.account.bookings[world.booking])
    await adapter.execute(session, say(world, "pms.booking.update", checkOut="2027-02-09", guest=None, notes=None))
    after = world.sim.account.bookings[world.booking]
    assert {name for name in before if before[name] != after[name]} <= {"departure", "modifiedTime"}
    assert after["departure"] == "2027-02-09"


async def test_a_cancellation_keeps_the_booking(world: ev.World, session: TestSession) -> None:
    reply = await adapter.execute(session, say(world, "pms.booking.cancel"))
    assert reply.external_id == str(world.booking)
    (back,) = await fetched(session, world.booking)
    assert back.entity.status is ReservationStatus.CANCELLED
    assert back.entity.cancelled_at is None  # measured: an API cancellation leaves cancelTime empty


async def test_availability_is_written_and_read_back(world: ev.World, session: TestSession) -> None:
    session.time = datetime(2027, 4, 1, tzinfo=UTC)
    reply = await adapter.execute(session, say(world, "pms.availability.update"))
    assert reply.external_id == str(ev.ROOM)
    hint = Hint(AVAILABILITY, str(ev.ROOM))
    nights = (await adapter.fetch(session, [hint]))[hint].availability
    by_day = {night.entity.day: night.entity for night in nights}
    assert len(by_day) == 365
    last = by_day[date(2027, 5, 31)]
    assert (last.available, last.price, last.currency, last.min_stay) == (1, 12000, "EUR", 2)
    assert by_day[date(2027, 6, 1)].min_stay != 2 or by_day[date(2027, 6, 1)].price != 12000
    assert {night.version.observed_at for night in nights} == {datetime(2027, 4, 1, tzinfo=UTC)}


def nightly(world: ev.World, *nights: str) -> Command:
    return say(world, "pms.availability.update", periods=[{"first": n, "last": n, "available": 1} for n in nights])


@pytest.mark.parametrize(
    ("nights", "calls"),
    [
        (("2027-05-01", "2027-05-03", "2030-05-02"), 1),
        (("2027-05-01", "2027-05-03", "2030-05-04"), 2),
        (("2999-12-31", "2027-05-01", "2040-05-01", "2040-05-02"), 3),
    ],
)
async def test_nights_far_apart_are_looked_up_without_all_between_them(
    world: ev.World, session: TestSession, nights: tuple[str, ...], calls: int
) -> None:
    said = nightly(world, *nights)
    await adapter.execute(session, said)
    before = len(world.sim.account.calls)
    assert await adapter.find(session, said)
    assert len(world.sim.account.calls) - before == calls
    world.sim.account.inventory.set_days(
        ev.ROOM, date.fromisoformat(nights[0]), date.fromisoformat(nights[0]), {"numAvail": 0}
    )
    assert await adapter.find(session, said) is None


async def test_what_would_take_many_calls_to_look_up_is_said_once_more() -> None:
    periods = [{"first": f"{2027 + 10 * n}-05-01", "last": f"{2027 + 10 * n}-05-01", "available": 1} for n in range(9)]
    assert await adapter.find(scripted(), availability(*periods)) is None


async def test_what_is_fetched_is_what_the_webhook_would_have_brought(world: ev.World, session: TestSession) -> None:
    (fact,) = adapter.parse(post(world.sim.account.webhook_body(world.booking)), world.connection)
    now = datetime.now(UTC)
    recorded = Recorded(UUID(int=1), fact.event_type, fact.entity_type, fact.external_id, fact.payload, now)
    effects = adapter.interpret(recorded, world.connection)
    assert isinstance(effects, Effects)
    (by_webhook,) = effects.reservations
    (by_fetch,) = await fetched(session, world.booking)
    assert by_fetch.entity == by_webhook.entity
    assert by_fetch.version.modified_at == by_webhook.version.modified_at
    shown = {name: value for name, value in by_webhook.document["booking"].items() if name != "bookingGroup"}
    assert by_fetch.document["booking"] == shown


async def test_cancelled_past_and_blocked_bookings_are_fetched_too(world: ev.World, session: TestSession) -> None:
    """The vendor leaves cancelled and past ones out unless every status is asked for by name."""
    account = world.sim.account
    stay = {"roomId": ev.ROOM, "arrival": "2020-01-01", "departure": "2020-01-03"}
    ids = [account.book(stay | {"status": status}).id for status in ("cancelled", "black", "inquiry", "new", "request")]
    statuses = [row.entity.status for row in await fetched(session, *ids)]
    assert statuses == ["cancelled", "blocked", "pending", "pending", "pending"]


async def test_a_hundred_bookings_are_one_call(world: ev.World, session: TestSession) -> None:
    stay = {"roomId": ev.ROOM, "arrival": "2027-01-01", "departure": "2027-01-03"}
    ids = [world.sim.account.book(stay).id for _ in range(130)]
    assert len(await fetched(session, *ids, *ids)) == 130
    assert len(world.seen()) == 2


async def test_all_pages_are_read(world: ev.World, session: TestSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    stay = {"roomId": ev.ROOM, "arrival": "2027-01-01", "departure": "2027-01-03"}
    ids = [world.sim.account.book(stay).id for _ in range(5)]
    assert [row.entity.external_id for row in await fetched(session, *ids)] == [str(id_) for id_ in ids]
    assert len(world.seen()) == 3


async def pulled(session: TestSession, since: datetime) -> list[Any]:
    return [fact async for page in adapter.changes(session, since) for fact in page.facts]


async def test_a_pull_lists_every_status_and_the_past_and_nothing_older(
    world: ev.World, session: TestSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = world.sim.account
    stay = {"roomId": ev.ROOM, "arrival": "2020-01-01", "departure": "2020-01-03"}
    statuses = ("cancelled", "black", "inquiry", "new", "request", "confirmed")
    ids = [str(account.book(stay | {"status": status}).id) for status in statuses]
    account.bookings[world.booking]["modifiedTime"] = "2026-01-31T23:59:59Z"
    since = datetime.fromisoformat("2026-02-01T01:00:00+01:00")
    assert [fact.external_id for fact in await pulled(session, since)] == ids
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    pages = [page async for page in adapter.changes(session, since)]
    assert [len(page.facts) for page in pages] == [2, 2, 2, 0, 0, 0]  # once more: nothing was moved meanwhile
    assert [page.more for page in pages] == [True] * 5 + [False]


async def test_a_booking_that_moves_forward_while_pages_are_read_is_not_left_out(
    world: ev.World, session: TestSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before it is deleted: it comes over to the page that was read already, and the pass after that brings it."""
    monkeypatch.setattr(operations, "PAGE_SIZE", 2)
    account = world.sim.account
    stay = {"roomId": ev.ROOM, "arrival": "2027-05-01", "departure": "2027-05-03"}
    ids = [str(world.booking), *(str(account.book(stay).id) for _ in range(4))]
    found = []
    async for page in adapter.changes(session, datetime(2020, 1, 1, tzinfo=UTC)):
        if not found:
            account.erase(world.booking)
        found += [fact.external_id for fact in page.facts]
    assert sorted(found) == sorted(ids)
    assert len(world.seen()) == 3 * 2  # the pass in which it was lost, and two that agree


def listed(*bookings: tuple[int, str], more: bool) -> Response:
    """A page of bookings, each with the time of its last change."""
    data = [
        {"id": id_, "propertyId": 1, "roomId": 2, "status": "new", "modifiedTime": f"2027-04-01T{at}Z"}
        for id_, at in bookings
    ]
    return answered({"success": True, "data": data, "pages": {"nextPageExists": more}}, 200)


BEFORE, DURING = "11:00:00", "12:00:01"  # TestSession's time is 12:00:00.5


async def test_a_booking_that_a_change_of_another_moves_forward_is_not_left_out() -> None:
    """Where a change takes a booking to the end of the list."""
    unasked = listed(more=False)
    session = scripted(
        listed((1, BEFORE), (2, BEFORE), more=True),
        listed((4, BEFORE), (1, DURING), more=False),
        *[listed((2, BEFORE), (3, BEFORE), more=True), listed((4, BEFORE), (1, DURING), more=False)] * 2,
        unasked,
    )
    facts = await pulled(session, datetime(2026, 1, 1, tzinfo=UTC))
    assert {fact.external_id for fact in facts} == {"1", "2", "3", "4"}
    assert session.http.answers == [unasked]  # type: ignore[attr-defined]


async def test_what_comes_into_a_list_meanwhile_asks_for_no_further_pass() -> None:
    first = listed((1, BEFORE), (2, BEFORE), more=True)
    session = scripted(
        first, listed((3, BEFORE), more=False), first, listed((3, BEFORE), (4, DURING), more=False), first
    )
    facts = await pulled(session, datetime(2026, 1, 1, tzinfo=UTC))
    assert [fact.external_id for fact in facts] == ["1", "2", "3", "4"]
    assert session.http.answers == [first]  # type: ignore[attr-defined]


async def test_a_list_that_loses_something_in_each_pass_is_read_another_time() -> None:
    passes = [(listed((n + 1, BEFORE), more=True), listed((99, BEFORE), more=False)) for n in range(client.PASSES)]
    session = scripted(*[page for pages in passes for page in pages])
    with pytest.raises(Transient, match="the list lost something"):
        await pulled(session, datetime(2026, 1, 1, tzinfo=UTC))


async def test_what_is_pulled_was_seen_when_its_page_was_asked_for(world: ev.World, session: TestSession) -> None:
    """So that a webhook of a later change in the same second is newer than it."""
    (page,) = [page async for page in adapter.changes(session, datetime(2020, 1, 1, tzinfo=UTC))]
    (fact,) = page.facts
    recorded = Recorded(
        UUID(int=1), fact.event_type, fact.entity_type, fact.external_id, fact.payload, datetime.now(UTC)
    )
    effects = adapter.interpret(recorded, world.connection)
    assert isinstance(effects, Effects)
    assert effects.reservations[0].version.observed_at == session.now()


async def test_a_pulled_booking_with_items_and_a_group_has_the_key_of_its_webhook(
    world: ev.World, session: TestSession
) -> None:
    account = world.sim.account
    item = {
        "id": world.booking,
        "invoiceItems": [{"type": "charge", "description": "Room", "qty": 1, "amount": 90}],
        "infoItems": [{"code": "ARRIVAL", "text": "late"}],
    }
    assert not account.write_booking(item, Author()).errors
    account.bookings[world.booking] |= {"masterId": world.booking, "stripeToken": "tok_77"}
    (sent,) = adapter.parse(post(account.webhook_body(world.booking)), world.connection)
    (listed,) = await pulled(session, datetime(2020, 1, 1, tzinfo=UTC))
    assert listed.idempotency_key == sent.idempotency_key
    assert "tok_77" not in str(listed.payload)


async def test_documents_that_cannot_be_read_are_told_after_all_that_can(world: ev.World, session: TestSession) -> None:
    account = world.sim.account
    sound = account.book({"roomId": ev.ROOM, "arrival": "2027-05-01", "departure": "2027-05-03"}).id
    account.bookings[world.booking]["propertyId"] = "none"
    pages = adapter.changes(session, datetime(2020, 1, 1, tzinfo=UTC))
    assert [fact.external_id for fact in (await anext(pages)).facts] == [str(sound)]
    with pytest.raises(Malformed, match=r"booking\.propertyId"):
        await anext(pages)


async def test_nothing_is_asked_where_there_is_no_hint(world: ev.World, session: TestSession) -> None:
    assert await adapter.fetch(session, []) == {}
    assert world.seen() == []


async def test_credits_are_decimal_and_told(world: ev.World, session: TestSession) -> None:
    await adapter.execute(session, say(world, "pms.booking.cancel"))
    (budget,) = session.budgets
    assert budget.remaining == pytest.approx(97.9)
    assert 0 < budget.resets_in <= 300


async def test_out_of_credits_says_when_there_are_more(world: ev.World, session: TestSession) -> None:
    await session.access_token()
    world.sim.account.credits.exhaust()
    with pytest.raises(RateLimited) as caught:
        await adapter.execute(session, say(world, "pms.booking.cancel"))
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 300
    assert session.budgets[-1].remaining == 0


@pytest.mark.parametrize(
    ("message", "code", "shown"),
    [
        ("invalid", "invalid", "email: invalid"),
        (f"{ev.SENT['email']} is invalid", "refused", "email: (text withheld)"),
        (f"no such guest: {ev.SENT['lastName'].upper()}", "refused", "email: (text withheld)"),
        ("call 420606123456", "refused", "email: (text withheld)"),
        ("x" * 300, "refused", "email: (text withheld)"),
    ],
)
async def test_a_refusal_names_the_field_but_repeats_nothing_of_the_guest(
    message: str, code: str, shown: str, world: ev.World, session: TestSession
) -> None:
    world.sim.faults.add(Fault(FaultKind.REFUSE_ITEM, "POST /bookings", field="email", message=message))
    with pytest.raises(Rejected) as caught:
        await adapter.execute(session, say(world, "pms.booking.create"))
    assert str(caught.value) == f"beds24 bookings.create: refused: {shown}"
    assert caught.value.place == "beds24 bookings.create: email"
    assert caught.value.code == code


async def test_a_token_without_the_scope_is_misconfigured(world: ev.World) -> None:
    http = HttpTransport("beds24")
    few = {"invite_code": world.sim.account.access.invite(["read:bookings"])}
    session = TestSession(adapter, world.connection, http, few)
    with pytest.raises(Misconfigured, match="scopes") as caught:
        await adapter.execute(session, say(world, "pms.booking.cancel"))
    assert type(caught.value) is Misconfigured
    await http.close()


async def test_without_the_personal_scope_guests_are_unknown(world: ev.World) -> None:
    http = HttpTransport("beds24")
    few = {"invite_code": world.sim.account.access.invite(["read:bookings"])}
    (row,) = await fetched(TestSession(adapter, world.connection, http, few), world.booking)
    assert (row.entity.guest, row.entity.total_price) == (None, None)
    await http.close()


async def test_an_invite_code_becomes_a_refresh_token_that_serves_from_then_on(
    world: ev.World, session: TestSession
) -> None:
    first = await adapter.grant(session.http, world.connection, world.credentials)
    assert first.credentials.keys() == {"refresh_token"}
    assert first.expires_in == pytest.approx(86400, abs=5)
    later = await adapter.grant(session.http, world.connection, {**world.credentials, **first.credentials})
    assert later.credentials == {}
    assert later.access_token != first.access_token


async def test_a_new_invite_code_serves_when_the_refresh_token_has_died(world: ev.World, session: TestSession) -> None:
    grant = await adapter.grant(session.http, world.connection, {**world.credentials, "refresh_token": "dead"})
    assert grant.credentials["refresh_token"]


async def test_check_tells_scopes_and_renews_a_dead_token_once(world: ev.World, session: TestSession) -> None:
    await session.access_token()
    world.sim.account.access.expire_all()
    told = await adapter.check(session)
    assert session.renewed == 1
    assert "all:bookings-personal" in told["scopes"]
    assert told["ownerId"] == world.sim.account.owner_id
    assert not {"requestIp", "deviceName", "whiteList"} & told.keys()


# ------------------------------------------------------------------------------------------------ scripted answers


class Script:
    """Gives these answers in turn; an error is raised."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def send(self, request: Request) -> Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def scripted(*answers: Response | Exception, **config: Any) -> TestSession:
    session = TestSession(adapter, connection(**config), Script(*answers), {})
    session._token = "token"
    return session


def answered(document: Any, status: int = 201, **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, document)


def create() -> Command:
    external = {(EntityType.PROPERTY, "p1"): "345754", (EntityType.ROOM_TYPE, "rt1"): "713992"}
    data = parse_command("pms.booking.create", ev.COMMANDS["pms.booking.create"])
    return Command(UUID(int=1), "pms.booking.create", "key-1", "staybus:1", data, external)


def availability(*periods: dict[str, Any]) -> Command:
    external = {(EntityType.PROPERTY, "P1"): "1", (EntityType.ROOM_TYPE, "RT1"): "2"}
    type_ = "pms.availability.update"
    data = parse_command(type_, {"propertyId": "P1", "roomTypeId": "RT1", "periods": list(periods)})
    return Command(UUID(int=1), type_, "key-1", "staybus:1", data, external)


def cancel() -> Command:
    data = parse_command("pms.booking.cancel", {"reservationId": "r1"})
    return Command(UUID(int=1), "pms.booking.cancel", "key-1", "staybus:1", data, {(RESERVATION, "r1"): "7"})


async def test_a_booking_that_was_made_with_a_part_refused_is_made() -> None:
    result = {
        "success": False,
        "new": {"id": 9},
        "errors": [{"action": "new booking", "field": "email", "message": "x"}],
    }
    reply = await adapter.execute(scripted(answered([result])), create())
    assert reply.external_id == "9"
    assert reply.response == {
        "success": False,
        "new": ["id"],
        "errors": [{"action": "new booking", "field": "email"}],
    }


async def test_a_change_that_was_made_in_part_is_refused_and_says_so() -> None:
    result = {
        "success": False,
        "modified": {"status": "cancelled"},
        "errors": [{"field": "price", "message": "invalid"}],
    }
    with pytest.raises(Rejected, match="price: invalid; changed nevertheless: status"):
        await adapter.execute(scripted(answered([result])), cancel())


@pytest.mark.parametrize(
    "document",
    [None, [], {}, ["x"], [{}], [{"success": "no"}], [{"success": True}], [{"success": True, "new": {}}]],
)
async def test_a_create_without_a_readable_result_may_have_been_done(document: Any) -> None:
    with pytest.raises(Unknown):
        await adapter.execute(scripted(answered(document)), create())


@pytest.mark.parametrize("success", [True, False, None])
@pytest.mark.parametrize("id_", [True, False, 0, -1, 1.5, {"a": 1}, [7], "", "x", "9" * 5000, "7\n"])
async def test_an_id_that_is_none_is_not_taken_and_not_forgotten(id_: Any, success: bool | None) -> None:
    with pytest.raises(Unknown, match=r"new\.id cannot be a booking's"):
        await adapter.execute(scripted(answered([{"success": success, "new": {"id": id_}}])), create())


async def test_a_change_without_a_word_of_its_success_may_have_been_done() -> None:
    with pytest.raises(Unknown, match="no word of what became of it"):
        await adapter.execute(scripted(answered([{"modified": {"status": "cancelled"}}])), cancel())


@pytest.mark.parametrize(
    ("status", "for_create", "for_cancel"),
    [
        (302, Unknown, Transient),
        (400, Rejected, Rejected),
        (404, Rejected, Rejected),
        (408, Transient, Transient),
        (418, Rejected, Rejected),
        (422, Rejected, Rejected),
        (425, Transient, Transient),
        (500, Unknown, Transient),
        (503, Unknown, Transient),
    ],
)
async def test_statuses(status: int, for_create: type[AdapterError], for_cancel: type[AdapterError]) -> None:
    refusal = {"success": False, "code": status, "error": "text of the vendor"}
    for sent, expected in ((create(), for_create), (cancel(), for_cancel)):
        with pytest.raises(AdapterError) as caught:
            await adapter.execute(scripted(answered(refusal, status)), sent)
        assert type(caught.value) is expected
        assert caught.value.code == str(status)
        assert ("text of the vendor" in str(caught.value)) == (expected is Rejected)


@pytest.mark.parametrize("status", [200, 201])
@pytest.mark.parametrize(
    ("code", "for_create", "for_cancel"),
    [
        (400, Rejected, Rejected),
        (403, Misconfigured, Misconfigured),
        (429, RateLimited, RateLimited),
        (500, Unknown, Transient),
    ],
)
async def test_an_error_that_comes_as_a_success_is_what_it_says(
    status: int, code: int, for_create: type[AdapterError], for_cancel: type[AdapterError]
) -> None:
    error = {"success": False, "type": "error", "code": code, "error": "text of the vendor"}
    for sent, expected in ((create(), for_create), (cancel(), for_cancel)):
        with pytest.raises(AdapterError) as caught:
            await adapter.execute(scripted(answered(error, status)), sent)
        assert (type(caught.value), caught.value.code) == (expected, str(code))
    with pytest.raises(for_cancel):
        await adapter.fetch(scripted(answered(error, status)), [Hint(RESERVATION, "1")])


async def test_a_token_that_is_refused_with_a_success_status_is_renewed() -> None:
    no = {"success": False, "code": 401, "error": "Token is not valid"}
    session = scripted(answered(no, 200), answered({"token": "b", "expiresIn": 1}, 200), answered([{"success": True}]))
    session._credentials = {"refresh_token": "r"}
    await adapter.execute(session, cancel())
    assert session.renewed == 1


@pytest.mark.parametrize(
    "document",
    [
        {"success": False, "data": []},
        {"success": False, "code": "many", "data": []},
        {"success": True, "data": [{"apiReference": "staybus:1", "id": None}]},
        {"success": True, "data": [{"apiReference": "staybus:1", "id": True}]},
    ],
)
async def test_a_look_up_that_says_neither_yes_nor_no_is_made_again(document: Any) -> None:
    """Taken for a no, the booking would be made once more."""
    with pytest.raises(Transient):
        await adapter.find(scripted(answered(document, 200)), create())


@pytest.mark.parametrize("status", [301, 302, 307, 400, 403, 404, 405, 413, 422])
@pytest.mark.parametrize("document", [None, [], "no", {"error": "no route"}, {"success": True}])
async def test_what_is_not_the_apis_own_word_is_no_refusal(status: int, document: Any) -> None:
    for sent, expected in ((create(), Unknown), (cancel(), Transient)):
        with pytest.raises(AdapterError, match="not an answer of the API; if it stays so, check base_url") as caught:
            await adapter.execute(scripted(answered(document, status)), sent)
        assert type(caught.value) is expected
    with pytest.raises(Transient):
        await adapter.fetch(scripted(answered(document, status)), [Hint(RESERVATION, "1")])
    with pytest.raises(Transient):
        await adapter.grant(
            Script(answered(document, status)), connection(), {"refresh_token": "r", "invite_code": "i"}
        )


async def test_a_token_that_is_refused_twice_is_unauthorized() -> None:
    no = {"success": False, "code": 401, "error": "Token is not valid"}
    session = scripted(answered(no, 401), answered({"token": "b", "expiresIn": 1}, 200), answered(no, 401))
    session._credentials = {"refresh_token": "r"}
    with pytest.raises(Unauthorized):
        await adapter.execute(session, create())
    assert session.renewed == 1


async def test_credit_headers_are_read_under_the_specifications_names_too() -> None:
    session = scripted(
        answered([{"success": True}], x_fivemincreditlimit_remaining="12.5", x_fivemincreditlimit_resetsin="44"),
        answered([{"success": True}], x_five_min_limit_remaining="nonsense"),
        answered([{"success": True}], x_five_min_limit_remaining="3"),
    )
    for _ in range(3):
        await adapter.execute(session, cancel())
    assert session.budgets == [Budget(12.5, 44.0), Budget(3.0, 300.0)]


async def test_credits_that_are_overdrawn_are_used_up() -> None:
    session = scripted(
        answered([{"success": True}], x_five_min_limit_remaining="-1.1", x_five_min_limit_resets_in="-2")
    )
    await adapter.execute(session, cancel())
    assert session.budgets == [Budget(0.0, 0.0)]


async def test_a_429_without_headers_waits_a_whole_window() -> None:
    with pytest.raises(RateLimited) as caught:
        await adapter.execute(scripted(answered(None, 429)), cancel())
    assert caught.value.retry_after == 300


async def test_no_wait_is_longer_than_the_window() -> None:
    session = scripted(
        answered([{"success": True}], x_five_min_limit_remaining="9", x_five_min_limit_resets_in="999999999"),
        answered(None, 429, retry_after="31536000"),
    )
    await adapter.execute(session, cancel())
    with pytest.raises(RateLimited) as caught:
        await adapter.execute(session, cancel())
    assert caught.value.retry_after == 300
    assert session.budgets == [Budget(9.0, 300.0), Budget(0.0, 300.0)]


async def test_an_address_that_is_none_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match="base_url"):
        await adapter.execute(scripted(base_url="beds24.com"), cancel())


@pytest.mark.parametrize("document", [{"data": [3]}, {"data": [{"id": 1}]}])
async def test_a_document_that_is_no_booking_is_malformed(document: Any) -> None:
    with pytest.raises(Malformed):
        await adapter.fetch(scripted(answered(document, 200)), [Hint(RESERVATION, "1")])


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("document", [None, [], {}, "", {"data": {}}, {"success": True}])
async def test_an_answer_without_its_list_is_asked_for_again(status: int, document: Any) -> None:
    for hint in (Hint(RESERVATION, "1"), Hint(AVAILABILITY, "1")):
        with pytest.raises(Transient, match="without a list in data"):
            await adapter.fetch(scripted(answered(document, status)), [hint])
    with pytest.raises(Transient):
        await adapter.find(scripted(answered(document, status)), create())
    with pytest.raises(Transient):
        await pulled(scripted(answered(document, status)), datetime(2026, 1, 1, tzinfo=UTC))


async def test_a_fetched_booking_that_cannot_be_is_named() -> None:
    wrong = [{"id": 77, "propertyId": 1, "roomId": 2, "arrival": "2027-01-02", "departure": "2027-01-01"}]
    wrong[0]["modifiedTime"] = "2026-01-01T00:00:00Z"
    with pytest.raises(Malformed, match=r"booking\.departure: must be after arrival \(booking 77\)"):
        await adapter.fetch(scripted(answered({"data": wrong}, 200)), [Hint(RESERVATION, "77")])


async def test_a_server_that_always_has_a_next_page_is_left() -> None:
    endless = answered({"data": [], "pages": {"nextPageExists": True}}, 200)
    session = scripted(*[endless] * 60)
    with pytest.raises(Transient, match="pages"):
        await adapter.fetch(session, [Hint(RESERVATION, "1")])
    assert len(session.http.requests) == client.MAX_PAGES  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", [None, {}, {"token": "t"}, {"token": "t", "expiresIn": "soon"}, []])
async def test_a_grant_that_cannot_be_read_is_tried_again(document: Any) -> None:
    with pytest.raises(Transient):
        await adapter.grant(Script(answered(document, 200)), connection(), {"refresh_token": "r"})


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_grant_that_the_api_refuses_is_misconfigured(status: int) -> None:
    no = {"success": False, "type": "error", "code": status, "error": "no"}
    for with_status in (status, 200):
        with pytest.raises(Misconfigured, match="refresh_token was refused"):
            await adapter.grant(Script(answered(no, with_status)), connection(), {"refresh_token": "r"})


@pytest.mark.parametrize(("status", "error"), [(429, RateLimited), (500, Transient)])
async def test_a_grant_that_fails_is_no_refusal(status: int, error: type[AdapterError]) -> None:
    with pytest.raises(error):
        await adapter.grant(Script(answered(None, status)), connection(), {"refresh_token": "r"})


async def test_a_calendar_that_cannot_be_read_is_written_once_more() -> None:
    """Whether the nights are as wanted then nobody knows; to say them again does no harm."""
    entry = {"from": "2027-05-01", "to": "2027-05-01", "numAvail": "on request"}
    document = {"success": True, "data": [{"roomId": 2, "propertyId": 1, "calendar": [entry]}]}
    said = availability({"first": "2027-05-01", "last": "2027-05-01", "available": 3})
    assert await adapter.find(scripted(answered(document, 200)), said) is None
