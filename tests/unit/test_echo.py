"""What is an echo of our own write, and what only looks like one."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from adapters.port import Command
from schemas.commands import parse_command
from schemas.entities import Reservation, Sourced, Version
from schemas.vocabulary import EntityType, ReservationStatus
from store.inbound import StoredState
from workers.echo import OwnWrite, expected, is_echo, tells_more

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def command(event_type: str, **data: Any) -> Command:
    external = {(EntityType.ROOM_TYPE, "R"): "713992"}
    return Command(uuid.uuid4(), event_type, "k", "m", parse_command(event_type, data), external)


def state(at: datetime = NOW, **changes: Any) -> Sourced[Reservation]:
    entity = Reservation(
        external_id="1", external_property_id="P", external_room_type_id="713992", status=ReservationStatus.CONFIRMED,
        check_in=date(2027, 1, 1), check_out=date(2027, 1, 3), adults=2, children=0,
    )  # fmt: skip
    return Sourced(entity.model_copy(update=changes), Version(at, at), {})


def write(fields: dict[str, Any], said_at: datetime = NOW) -> OwnWrite:
    return OwnWrite(fields, NOW, said_at)


CREATE = command(
    "pms.booking.create",
    reservationId="B", propertyId="P", roomTypeId="R", checkIn="2027-01-01", checkOut="2027-01-03", adults=2,
)  # fmt: skip


def test_the_state_that_we_wrote_near_the_time_is_an_echo() -> None:
    fields = expected(CREATE)
    assert fields is not None
    assert is_echo(state(), [write(fields)])
    assert is_echo(state(NOW + timedelta(seconds=90)), [write(fields)])


@pytest.mark.parametrize("changes", [{"adults": 3}, {"check_out": date(2027, 1, 4)}, {"external_room_type_id": "2"}])
def test_another_state_is_not(changes: dict[str, Any]) -> None:
    fields = expected(CREATE)
    assert fields is not None
    assert not is_echo(state(**changes), [write(fields)])


def test_the_same_state_much_later_is_somebodys_own_change() -> None:
    fields = expected(CREATE)
    assert fields is not None
    assert not is_echo(state(NOW + timedelta(hours=1)), [write(fields)])
    assert not is_echo(state(), [])


def test_an_update_expects_only_what_it_says_and_availability_nothing() -> None:
    assert expected(command("pms.booking.update", reservationId="B", adults=3)) == {"adults": 3}
    assert expected(command("pms.booking.cancel", reservationId="B")) == {"status": "cancelled"}
    availability = command(
        "pms.availability.update", propertyId="P", roomTypeId="R",
        periods=[{"first": "2027-01-01", "last": "2027-01-02", "available": 0}],
    )  # fmt: skip
    assert expected(availability) is None


def stored(told_at: datetime | None, **changes: Any) -> StoredState:
    fields = state(**changes).entity.model_dump(exclude={"external_id", "guest", "marker"})
    return StoredState(fields, told_at)


def test_an_echo_tells_more_where_the_core_does_not_know_the_field() -> None:
    a_minute = timedelta(minutes=1)
    said = [write({"adults": 2})]
    assert not tells_more(state(), said, stored(None, adults=1))
    assert not tells_more(state(), said, stored(NOW - a_minute, adults=1))
    assert tells_more(state(), said, stored(NOW + a_minute, adults=1)), "it was told 1 after it had said 2"
    assert tells_more(state(), said, stored(NOW, adults=1)), "or at the same moment"
    assert not tells_more(state(), said, stored(NOW + a_minute)), "it was told 2"
    assert tells_more(state(children=1), said, stored(NOW - a_minute)), "somebody else's change beside it"
    since = [write({"adults": 3}, NOW - a_minute), *said, write({"children": 1}, NOW - a_minute)]
    assert tells_more(state(), since, stored(None)), "it said children: 1, and somebody took that back"
    assert not tells_more(state(children=1), since, stored(None))


def test_of_a_first_state_an_echo_tells_more_where_a_create_was_not_all_of_it() -> None:
    fields = expected(CREATE)
    assert fields is not None
    assert not tells_more(state(), [write(fields)], None)
    assert tells_more(state(), [write({"adults": 2})], None)
