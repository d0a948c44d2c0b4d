"""Messages, ids, money, traces, commands: the pure parts."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.commands import (
    COMMANDS,
    PERIOD_NIGHTS,
    AvailabilityUpdate,
    CommandData,
    InvalidCommandError,
    parse_command,
)
from schemas.event import MAX_EVENTS, MalformedMessageError, decode, decode_each, encode, wake_ups
from schemas.ids import uuid7
from schemas.money import to_decimal, to_minor
from telemetry.trace import begin


def test_wake_ups_are_read_back_single_and_batched() -> None:
    rows = [(uuid7(), "acme", begin(), "c1") for _ in range(3)]
    assert [event.row_id for event in decode(wake_ups("beds24.booking.created", rows))] == [id_ for id_, *_ in rows]
    (one,) = decode(wake_ups("pms.x", [(rows[0][0], "acme", None, None)]))
    assert (one.row_id, one.companyid, one.type, one.data) == (rows[0][0], "acme", "pms.x", None)
    assert decode(encode(one)) == [one]


def test_a_foreign_id_is_always_the_same_row_and_differs_by_source() -> None:
    def event(source: str) -> uuid.UUID:
        return decode(orjson.dumps({"specversion": "1.0", "id": "order-7", "source": source, "type": "a.b"}))[0].row_id

    assert event("/a") == event("/a") != event("/b")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Invalid JSON"),
        (b"\xff", "Invalid JSON"),
        (b"[]", "empty batch"),
        (b"{}", "id: Field required"),
        (b'{"id":"1","source":"s","type":"UPPER"}', "type"),
        (b'{"id":"1","source":"s","type":"a","specversion":"0.3"}', "specversion"),
        (b'{"id":"1","source":"s","type":"a","datacontenttype":"text/xml"}', "datacontenttype"),
        (b"x" * 600_000, "bytes"),
    ],
)
def test_a_message_that_cannot_be_read_says_where(body: bytes, words: str) -> None:
    with pytest.raises(MalformedMessageError, match=words):
        decode(body)


GOOD = {"id": "1", "source": "/s", "type": "a.b", "data": {"n": 1}}


def test_what_is_malformed_in_a_batch_takes_none_of_the_others_with_it() -> None:
    odd: dict[str, object] = {"type": "a.b", "data": {"guest": "Zoë", "big": 10**30, "half": 0.5}}
    body = json.dumps([GOOD, odd, {**GOOD, "id": "2"}, 7]).encode()
    events, malformed = decode_each(body)
    assert events == decode(orjson.dumps([GOOD, {**GOOD, "id": "2"}]))
    assert [(one.place, json.loads(one.raw)) for one in malformed] == [(1, odd), (3, 7)]
    assert malformed[0].problem == "id: Field required"


@pytest.mark.parametrize(
    ("body", "opening"),
    [
        (b"[]", "an empty batch"),
        (b"[{}, 7]", "0.id: "),
        (orjson.dumps([GOOD])[:-1], "Invalid JSON: "),
        (orjson.dumps({**GOOD, "type": "UPPER"}), "type: "),
        (orjson.dumps([GOOD, *[1] * (MAX_EVENTS + 1)]), "1: "),
        (b" " * 600_000 + orjson.dumps([GOOD, 7]), "a body of "),
    ],
)
def test_a_batch_that_is_none_is_malformed_as_a_whole(body: bytes, opening: str) -> None:
    events, (malformed,) = decode_each(body)
    assert (events, malformed.place, malformed.raw) == ([], None, body)
    assert malformed.problem.startswith(opening)


@settings(derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_events_or_malformed(body: bytes) -> None:
    events, malformed = decode_each(body)
    assert events or malformed
    with suppress(MalformedMessageError):
        assert decode(body) == events


def test_ids_are_version_7_and_go_forward() -> None:
    ids = [uuid7() for _ in range(50)]
    assert {id_.version for id_ in ids} == {7}
    assert len(set(ids)) == 50
    assert [id_.int >> 80 for id_ in ids] == sorted(id_.int >> 80 for id_ in ids)


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [("12.34", "EUR", 1234), ("12", "JPY", 12), ("1.2345", "KWD", 1234), ("0.005", "USD", 0)],
)
def test_money(amount: str, currency: str, minor: int) -> None:
    assert to_minor(Decimal(amount), currency) == minor
    assert to_minor(to_decimal(minor, currency), currency) == minor


def test_a_trace_is_kept_if_it_is_one() -> None:
    good = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    assert begin(good) == good
    for bad in (None, "", "x", "00-" + "0" * 32 + "-" + "cd" * 8 + "-01"):
        assert begin(bad) != bad
        assert begin(begin(bad)).startswith("00-")


CREATE = {"reservationId": "B", "propertyId": "P", "roomTypeId": "R", "checkIn": "2027-01-01", "checkOut": "2027-01-02"}


AVAILABILITY = "pms.availability.update"


def together(oldest: CommandData, *newer: CommandData) -> AvailabilityUpdate:
    merging = oldest.merging()
    for command in newer:
        merging.add(command)
    merged = merging.command()
    assert isinstance(merged, AvailabilityUpdate)
    return merged


def nights(*periods: tuple[str, str]) -> dict[str, object]:
    said = [{"first": first, "last": last, "available": 1} for first, last in periods]
    return {"propertyId": "P", "roomTypeId": "R", "periods": said}


@pytest.mark.parametrize(
    ("event_type", "data", "words"),
    [
        ("pms.unknown", {}, "is not a command"),
        ("pms.booking.create", [], "JSON object"),
        ("pms.booking.create", {**CREATE, "checkOut": "2027-01-01"}, "checkOut must be after checkIn"),
        ("pms.booking.create", {**CREATE, "adults": -1}, "adults"),
        *(("pms.booking.create", {**CREATE, "adults": adults}, "adults: ") for adults in (True, "2", 2.0)),
        *(
            ("pms.booking.update", {"reservationId": "B", "checkIn": day}, "checkIn: .*YYYY-MM-DD")
            for day in (1893456000, "1893456000", "2027-W01-1", "2027-02-30", "2027-03-01T00:00:00", True)
        ),
        ("pms.booking.create", {**CREATE, "surprise": 1}, "^an unknown member: "),
        ("pms.booking.create", {**CREATE, "guest": {"surprise": 1}}, r"^guest\.an unknown member: "),
        ("pms.booking.create", {**CREATE, "roomTypeId": "R\x00"}, "roomTypeId"),
        ("pms.booking.create", {**CREATE, "currency": "euro"}, "currency"),
        ("pms.booking.update", {"reservationId": "B"}, "at least one member"),
        ("pms.booking.cancel", {}, "reservationId"),
        ("pms.availability.update", {"propertyId": "P", "roomTypeId": "R", "periods": []}, "periods"),
        (
            "pms.availability.update",
            {
                "propertyId": "P",
                "roomTypeId": "R",
                "periods": [{"first": "2027-01-02", "last": "2027-01-01", "price": 1}],
            },
            "last is before first",
        ),
        (AVAILABILITY, nights(("9999-12-01", "9999-12-31")), r"periods\.0\.last: .*before the year 3000"),
        (AVAILABILITY, nights(("2027-01-01", "2030-01-03")), r"periods\.0: .*1099 nights, 1098 are taken"),
        (AVAILABILITY, nights(*[("2027-01-01", "2030-01-02")] * 4, ("2027-01-01", "2027-01-01")), "4393 nights in all"),
    ],
)
def test_a_command_that_does_not_fit_names_its_field(event_type: str, data: object, words: str) -> None:
    with pytest.raises(InvalidCommandError, match=words):
        parse_command(event_type, data)


def test_availability_for_three_years_member_by_member_fits() -> None:
    assert parse_command(AVAILABILITY, nights(*[("2027-01-01", "2030-01-02")] * 4))


def test_merged_periods_are_no_longer_than_one_may_be() -> None:
    newer, older = (
        parse_command(AVAILABILITY, nights(years))
        for years in (("2030-01-03", "2033-01-04"), ("2027-01-01", "2030-01-02"))
    )
    merged = together(older, newer)
    assert [period.nights for period in merged.periods] == [PERIOD_NIGHTS, PERIOD_NIGHTS]


def test_availability_is_merged_where_one_currency_says_it_all() -> None:
    def command(currency: str | None, price: int | None) -> AvailabilityUpdate:
        period = {"first": "2027-05-01", "last": "2027-05-01", "available": 1, "price": price}
        data = {"propertyId": "P", "roomTypeId": "R", "periods": [period], "currency": currency}
        found = parse_command(AVAILABILITY, data)
        assert isinstance(found, AvailabilityUpdate)
        return found

    assert together(command("EUR", 1), command(None, None)).currency == "EUR"
    assert together(command("USD", None), command("EUR", 1)).currency == "EUR"
    with pytest.raises(InvalidCommandError, match="prices in USD and EUR"):
        together(command("USD", 1), command("EUR", 1))


def test_availability_of_two_properties_or_of_too_many_nights_is_not_merged() -> None:
    first, second, third = (
        parse_command(AVAILABILITY, nights(*decade))
        for decade in (
            [("2027-01-01", "2029-12-31"), ("2030-01-01", "2032-12-31")],
            [("2033-01-01", "2035-12-31"), ("2036-01-01", "2038-12-31")],
            [("2039-01-01", "2039-01-20")],
        )
    )
    with pytest.raises(InvalidCommandError, match="periods: more than 4392 nights"):
        together(first, second, third)
    with pytest.raises(InvalidCommandError, match="propertyId: what is said of two"):
        together(first, first.model_copy(update={"property_id": "another"}))


def test_every_command_says_its_lane_and_its_references() -> None:
    for event_type, model in COMMANDS.items():
        members = model.model_fields
        data = {**CREATE, "adults": 3, "periods": [{"first": "2027-01-01", "last": "2027-01-01", "available": 1}]}
        from pydantic.alias_generators import to_camel

        fitting = {name: value for name, value in data.items() if name in {to_camel(member) for member in members}}
        command = parse_command(event_type, fitting)
        assert command.references()
        assert command.lane_entity()[1]


@settings(derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12), st.integers(0, 5), st.sampled_from(["available", "price", "minStay"]), st.integers(1, 9)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_merged_availability_says_what_its_commands_said_one_after_the_other(
    said: list[tuple[int, int, str, int]],
) -> None:
    def command(start: int, length: int, member: str, value: int) -> AvailabilityUpdate:
        first = date(2027, 5, 1) + timedelta(days=start)
        period = {"first": first.isoformat(), "last": (first + timedelta(days=length)).isoformat(), member: value}
        found = parse_command("pms.availability.update", {"propertyId": "P", "roomTypeId": "R", "periods": [period]})
        assert isinstance(found, AvailabilityUpdate)
        return found

    def nights(command: AvailabilityUpdate) -> dict[tuple[date, str], int]:
        return {
            (period.first + timedelta(days=n), member): value
            for period in command.periods
            for n in range((period.last - period.first).days + 1)
            for member, value in period.model_dump(exclude={"first", "last"}, exclude_none=True).items()
        }

    commands = [command(*entry) for entry in said]
    one_by_one: dict[tuple[date, str], int] = {}
    for entry in commands:
        one_by_one.update(nights(entry))
    assert nights(together(*commands)) == one_by_one
