"""What the router cannot record or route is a dead letter by itself; what stands beside it goes on."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import aio_pika
import pytest

from schemas.event import BATCH_CONTENT_TYPE, SOURCE, Event, decode
from schemas.ids import derived
from simulators.core_pms import CorePms
from store import connections, outbound
from tests.fleet import COMPANY, CONNECTION, World
from workers.commands import command_row

CREATE = "pms.booking.create"
STAY: dict[str, Any] = {
    "propertyId": "P1",
    "roomTypeId": "RT1",
    "checkIn": "2027-03-01",
    "checkOut": "2027-03-04",
}


@pytest.fixture
def processes() -> tuple[str, ...]:
    return "outbound", "scheduler"


def said(booking: str, type_: str = CREATE, *, data: dict[str, Any] | None = None, **attributes: Any) -> dict[str, Any]:
    """As a service writes it."""
    return {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "/core-pms",
        "type": type_,
        "companyid": COMPANY,
        "idempotencykey": f"{type_}-{booking}",
        "data": {"reservationId": booking} | (STAY if data is None else data),
    } | attributes


async def publish_together(world: World, events: Sequence[dict[str, Any]]) -> None:
    """In one message."""
    async with await aio_pika.connect(world.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange("pms.events", ensure=False)
        body = json.dumps(events).encode()
        await exchange.publish(aio_pika.Message(body, content_type=BATCH_CONTENT_TYPE, delivery_mode=2), CREATE)


async def record(world: World, *events: dict[str, Any]) -> None:
    """As an earlier release did, whatever they say; the scheduler wakes them."""
    cipher = await world.cipher()
    rows = [command_row(e.row_id, COMPANY, e, cipher.seal) for e in map(Event.model_validate, events)]
    await outbound.insert_commands(world.db, rows)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (said("BAD", data=STAY | {"propertyId": "P\0"}), "NUL"),
        (said("BAD", data=STAY | {"guest": {"lastName": "\0"}}), "NUL"),
        (said("BAD", companyid="ac\0me"), "NUL"),
        (said("BAD", id="\0"), "NUL"),
        (said("BAD", data=STAY | {"totalPrice": 10**30}), "64 bits"),
        (said("BAD", "foo.bar"), "foo.bar is no command"),
        (said("BAD", data=STAY | {"guest.email": "jane@example.invalid"}), "dot"),
    ],
    ids=["in an id", "in a name", "in the company", "in the event's id", "a number", "a foreign type", "a dotted name"],
)
async def test_what_can_have_no_row_is_kept_whole_and_stops_nobody(
    world: World, core: CorePms, bad: dict[str, Any], words: str
) -> None:
    await publish_together(world, [said("B-1"), bad, said("B-2", data=STAY | {"notes": "a literal \\u0000"})])
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    letter = await world.db.fetchrow("SELECT company_id, error_code, error_message, sealed FROM dead_letters")
    assert letter["error_code"] == "not_recorded"
    assert words in letter["error_message"]
    cipher = await world.cipher() if letter["company_id"] else world.keys.installation
    (kept,) = decode(cipher.open_bytes(letter["sealed"]))
    assert kept == Event.model_validate(bad)
    assert len(world.sim.account.bookings) == 2


async def test_a_control_character_in_an_id_is_named_and_holds_back_nothing_of_its_entity(
    world: World, core: CorePms
) -> None:
    bad = said("B-1", data=STAY | {"propertyId": "P\0"})
    await record(world, bad, said("B-1", idempotencykey="corrected"))
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    letter = await world.db.fetchrow("SELECT event_id::text, error_code, error_message FROM dead_letters")
    assert tuple(letter)[:2] == (bad["id"], "invalid_command")
    assert letter["error_message"].startswith("propertyId: ")
    assert "control characters" in letter["error_message"]


async def test_a_row_of_a_foreign_type_is_parked_when_it_is_met(world: World, core: CorePms) -> None:
    foreign = said("BAD", "foo.bar")
    await record(world, foreign)
    wake = {name: foreign[name] for name in ("id", "type", "companyid")} | {"source": SOURCE}
    await publish_together(world, [wake, said("B-1")])
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    letter = await world.db.fetchrow("SELECT event_id::text, error_code FROM dead_letters")
    assert tuple(letter) == (foreign["id"], "invalid_command")


async def test_a_row_that_cannot_be_read_is_parked_alone(world: World, core: CorePms) -> None:
    bad = said("BAD", data=STAY | {"notes": "sealed"})
    async with world.db.transaction():
        await record(world, said("B-1"), bad, said("B-2"))
        await world.db.execute("UPDATE channel_events SET payload = '[]' WHERE id = $1", uuid.UUID(bad["id"]))
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    await world.until("SELECT status FROM channel_events WHERE id = $1", uuid.UUID(bad["id"]), equals="failed")
    letter = await world.db.fetchrow("SELECT error_class, owner FROM dead_letters")
    assert tuple(letter) == ("bug", "pipeline")


async def test_a_row_whose_targets_cannot_be_found_is_parked_alone(
    world: World, core: CorePms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update still follows its create, though the two are looked up apart."""
    look = outbound.mapped_connections

    async def refuse(connection: Any, wanted: Sequence[tuple[str, str, str]]) -> Any:
        if any(internal == "NOWHERE" for _, _, internal in wanted):
            raise ValueError("no such text")
        return await look(connection, wanted)

    monkeypatch.setattr(outbound, "mapped_connections", refuse)
    update = said("B-1", "pms.booking.update", data={"adults": 4})
    bad = said("BAD", data=STAY | {"propertyId": "NOWHERE"})
    await publish_together(world, [said("B-1"), bad, update, said("B-2")])
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=3)
    letter = await world.db.fetchrow("SELECT event_id::text, error_class, error_message FROM dead_letters")
    assert tuple(letter)[:2] == (bad["id"], "bug")
    assert "ValueError" in letter["error_message"]


async def test_no_word_of_a_command_that_does_not_fit_is_readable(world: World, core: CorePms) -> None:
    name = {"guestname": "Jane Roe", "Jane Roe": True, "adults": "Jane Roe", "checkOut": "Jane Roe"}
    await publish_together(world, [said("B-1", data=STAY | name), said("B-2", "pms.unknown", data={"who": "Jane Roe"})])
    await world.until("SELECT count(*) FROM dead_letters", equals=2)
    for table in ("channel_events", "dead_letters", "event_attempts", "core_events"):
        rows = str([dict(row) for row in await world.db.fetch(f"SELECT * FROM {table}")])  # noqa: S608
        assert "Jane Roe" not in rows, table
    row = await world.db.fetchrow("SELECT payload::text, sealed FROM channel_events WHERE event_type = $1", CREATE)
    assert row["payload"] == "{}"
    assert (await world.cipher()).open(row["sealed"]) == {"reservationId": "B-1"} | STAY | name


async def test_what_fits_at_last_is_sealed_only_where_it_is_a_guests(world: World, core: CorePms) -> None:
    """It did not when it was recorded, by the rules of another release; what waits in a lane is merged by what is readable."""
    command = Event.model_validate(said("B-1", data=STAY | {"notes": "Jane Roe"}))
    cipher = await world.cipher()
    row = command_row(command.row_id, COMPANY, command, cipher.seal)
    await outbound.insert_commands(world.db, [replace(row, payload="{}", sealed=cipher.seal(command.data))])
    await core.wait_for(lambda e: e.type == "core.command.succeeded", timeout=20)
    sent = await world.db.fetchrow("SELECT payload::text, sealed FROM channel_events WHERE parent_id IS NOT NULL")
    assert json.loads(sent["payload"]) == {"reservationId": "B-1"} | STAY
    assert cipher.open(sent["sealed"]) == {"notes": "Jane Roe"}


async def test_the_reason_of_a_cancellation_is_sealed(world: World, core: CorePms) -> None:
    await publish_together(world, [said("B-1"), said("B-1", "pms.booking.cancel", data={"reason": "Jane Roe is ill"})])
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    rows = await world.db.fetch(
        "SELECT payload::text, sealed FROM channel_events WHERE event_type = 'pms.booking.cancel'"
    )
    cipher = await world.cipher()
    assert [(row["payload"], cipher.open(row["sealed"])) for row in rows] == [
        ('{"reservationId":"B-1"}', {"reason": "Jane Roe is ill"})
    ] * 2


async def test_a_command_whose_key_looks_like_a_deliverys_takes_nothing_from_it(world: World, core: CorePms) -> None:
    await publish_together(world, [said("B-1", idempotencykey=f"k@{CONNECTION}"), said("B-2", idempotencykey="k")])
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)
    assert len(world.sim.account.bookings) == 2


async def test_a_delivery_that_an_earlier_release_recorded_is_not_made_again(world: World, core: CorePms) -> None:
    """It has the same id, and another key: of the command's own."""
    command = Event.model_validate(said("B-1"))
    row = command_row(command.row_id, COMPANY, command, (await world.cipher()).seal)
    delivery = replace(
        row,
        id=derived(row.id, CONNECTION),
        parent_id=row.id,
        connection_id=CONNECTION,
        idempotency_key=f"{row.idempotency_key}@{CONNECTION}",
        lane=f"reservation:B-1@{CONNECTION}",
        lane_policy="hold",
        max_attempts=3,
    )
    await outbound.insert_commands(world.db, [row, delivery])
    await world.until("SELECT array_agg(status) FROM channel_events", equals=["done", "done"])
    assert await world.db.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert len(world.sim.account.bookings) == 1


async def test_a_delivery_that_cannot_be_recorded_is_not_lost_silently(world: World, core: CorePms) -> None:
    command = said("B-2")
    await publish_together(world, [said("B-1", idempotencykey=f"{command['id']}@{CONNECTION}"), command, said("B-3")])
    failed = await core.wait_for(lambda e: e.type == "core.command.failed", timeout=20)
    assert failed.data["deliveryId"] == command["id"]
    assert f"another event has {command['id']}@{CONNECTION}" in failed.data["error"]
    await world.until("SELECT count(*) FROM channel_events WHERE parent_id IS NOT NULL AND status = 'done'", equals=2)


@pytest.mark.parametrize("type_", ["foo.bar", "beds24.booking.modified", "core.command.failed"])
async def test_an_event_of_a_foreign_type_that_an_earlier_release_recorded_is_parked(
    world: World, core: CorePms, type_: str
) -> None:
    """Its type is no key that leads to the router, whom it waits for."""
    await record(world, said("B-30", type_), said("B-31"))
    told = await core.wait_for(lambda e: e.type == "core.command.failed")
    assert (told.data["fault"], told.data["command"]) == ("invalid", type_)
    await core.wait_for(lambda e: e.type == "core.command.succeeded" and e.subject == "B-31")
    letter = await world.db.fetchrow("SELECT operation, error_message, owner FROM dead_letters")
    assert (letter["operation"], letter["owner"]) == (type_, "tenant")
    assert letter["error_message"].startswith(f"type: {type_} is not a command; known: pms.")


async def test_an_update_is_not_routed_by_the_lanes_of_another_booking(world: World, core: CorePms) -> None:
    """One whose id begins as a lane of the first would."""
    await connections.add_connection(world.db, "other", COMPANY, "beds24", "Other", None, {})
    for booking, connection in (("A@x", "other"), ("C", CONNECTION)):
        row = command_row(uuid.uuid4(), COMPANY, Event.model_validate(said(booking)), (await world.cipher()).seal)
        lane = f"reservation:{booking}@{connection}"
        await outbound.insert_commands(
            world.db, [replace(row, connection_id=connection, parent_id=uuid.uuid4(), lane=lane, lane_policy="hold")]
        )
    wanted = [(COMPANY, outbound.lane_prefix("reservation", name)) for name in ("A", "A@x", "C")]
    assert await outbound.laned_connections(world.db, wanted) == {
        wanted[1]: [("other", "beds24")], wanted[2]: [(CONNECTION, "beds24")],
    }  # fmt: skip
