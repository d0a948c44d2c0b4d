"""Beds24's JSON under Beds24's names: only the members that we use, tolerant where the vendor is loose.

Loose are: ids and counts (numbers, or the same as text), unknown values (`""` and null alike), times (with Z, or
without any zone: UTC). Not loose are dates and prices: a price in words or a day that does not exist is an error.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from adapters.errors import Malformed

_MAX_ID = 10**19


def _id(value: Any) -> str:
    if isinstance(value, str):
        if value.isascii() and value.isdigit() and len(value) < 20 and (text := value.lstrip("0")):
            return text
    elif isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_ID:
        return str(value)
    raise ValueError("must be a positive whole number")


def _day(value: Any) -> date:
    # Not pydantic's own reading: it takes any number, also as text, for seconds since 1970.
    if isinstance(value, str) and len(value) == 10 and value[4] == "-":
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date, YYYY-MM-DD")


def _moment(value: Any) -> datetime | None:
    if not value or (isinstance(value, str) and value.startswith("0000-00-00")):
        return None
    if isinstance(value, str) and len(value) >= 19:
        try:
            moment = datetime.fromisoformat(value)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("must be a time in ISO 8601")


Id = Annotated[str, BeforeValidator(_id)]
Day = Annotated[date, BeforeValidator(_day)]
Moment = Annotated[datetime | None, BeforeValidator(_moment)]
Count = Annotated[int | None, Field(ge=0, le=10_000)]
Whole = Annotated[int | None, Field(ge=-10_000, le=10_000)]
Money = Annotated[Decimal | None, Field(ge=-(10**12), le=10**12)]
Text = str | None  # "" stays "": who reads it takes both for unknown


class Document(BaseModel):
    model_config = ConfigDict(
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        str_strip_whitespace=True,
        coerce_numbers_to_str=True,  # the vendor's own example has `mobile` as a number
    )


class Booking(Document):
    id: Id
    propertyId: Id  # noqa: N815 - the vendor's names throughout
    roomId: Id  # noqa: N815 - the room type; the physical room is unitId
    unitId: Whole = None  # noqa: N815
    status: Text = None
    arrival: Day
    departure: Day
    numAdult: Count = None  # noqa: N815
    numChild: Count = None  # noqa: N815
    price: Money = None
    channel: Text = None
    apiReference: Text = None  # noqa: N815
    reference: Text = None
    bookingTime: Moment = None  # noqa: N815
    modifiedTime: Moment = None  # noqa: N815
    cancelTime: Moment = None  # noqa: N815
    firstName: Text = None  # noqa: N815
    lastName: Text = None  # noqa: N815
    email: Text = None
    phone: Text = None
    mobile: Text = None
    lang: Text = None
    country: Text = None
    country2: Text = None


class Days(Document):
    """One entry of a room's calendar: nights `from` to `to`, both included."""

    first: Day = Field(alias="from")
    last: Day = Field(alias="to")
    numAvail: Whole = None  # noqa: N815 - negative when overbooked
    minStay: Count = None  # noqa: N815
    price1: Money = None
    override: Text = None


class RoomCalendar(Document):
    roomId: Id  # noqa: N815
    propertyId: Id  # noqa: N815
    calendar: list[dict[str, Any]] = []


M = TypeVar("M", bound=Document)


def read_booking(document: Any) -> Booking:
    """raises Malformed, which names the field below `booking`"""
    return _read(Booking, document, "booking")


def read_calendar(document: Any) -> RoomCalendar:
    return _read(RoomCalendar, document, "room")


def read_days(document: Any) -> Days:
    return _read(Days, document, "room.calendar")


def read_id(value: Any, field: str) -> str:
    """raises Malformed"""
    try:
        return _id(value)
    except ValueError as error:
        raise Malformed(field, "missing" if value is None else str(error)) from error


def read_moment(value: Any, field: str) -> datetime | None:
    """raises Malformed"""
    try:
        return _moment(value)
    except ValueError as error:
        raise Malformed(field, str(error)) from error


def _read(model: type[M], document: Any, place: str) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error
    try:
        return model.model_validate(_tidied(model, document))
    except ValidationError:
        # Neither input nor context: both hold values, which may be a guest's.
        fault = first.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in (place, *fault["loc"]))
    problem = "missing" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
    raise Malformed(field, problem)


def _tidied(model: type[Document], document: Any) -> Any:
    """What only some documents need, and so is not done to all: unknown numbers as "", objects in place of text."""
    if not isinstance(document, dict):
        return document
    tidied = dict(document)
    for name, field in model.model_fields.items():
        value = tidied.get(name)
        blank = value == "" and field.annotation in {int | None, Decimal | None}
        if blank or (field.annotation == Text and isinstance(value, bool | dict | list)):
            tidied[name] = None
    return tidied
