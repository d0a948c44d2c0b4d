"""The data of neutral commands (`pms.*`), as services send them; JSON is camelCase, snake_case is accepted too.

Ids are the core's own: mappings turn them into each vendor's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Protocol, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from .entities import Guest
from .vocabulary import EntityType, ReservationStatus

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _no_control(value: str) -> str:
    """No Postgres text can hold a NUL, and a query that looks for many ids at once would fail for all of them."""
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed")
    return value


def _day(value: Any) -> date:
    # Not pydantic's own reading: it takes any number, also as text, for seconds since 1970.
    if type(value) is date:
        return value
    if isinstance(value, str) and _DAY.fullmatch(value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("must be a date, YYYY-MM-DD")


def _followed(value: date) -> date:
    """A night ends the day after, which any calendar must have."""
    if value.year >= 3000:
        raise ValueError("must be before the year 3000")
    return value


Id = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True), AfterValidator(_no_control)]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Day = Annotated[date, BeforeValidator(_day)]
Night = Annotated[Day, AfterValidator(_followed)]
Count = Annotated[int, Field(strict=True, ge=0, le=500)]
Minor = Annotated[int, Field(strict=True, ge=0, le=10**12)]

# Vendors take rates for two or three years ahead. Without bounds one command says millions of nights, and merging it with
# another one keeps the process from all else meanwhile.
PERIOD_NIGHTS = 3 * 366
COMMAND_NIGHTS = 4 * PERIOD_NIGHTS  # units, prices and minimum stays may each come in periods of their own


# Said in place of a name that none of ours is: it is a sender's own word, and may be a guest's.
UNKNOWN_MEMBER = "an unknown member"


class InvalidCommandError(ValueError):
    """The data of a command does not fit; the text names the fields, never their values."""


class Merging(Protocol):
    """Commands of one lane on their way to be one. Each is laid over those before it, so that the newest word counts."""

    def add(self, newer: Any) -> None:
        """raises InvalidCommandError: no one command can say it all; then it is as it was before"""
        ...

    def command(self) -> CommandData:
        """What they say together."""
        ...


class CommandData(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def lane_entity(self) -> tuple[EntityType, str]:
        """What the command is about: commands on one (connection, entity) keep their order."""
        raise NotImplementedError

    def references(self) -> tuple[tuple[EntityType, str], ...]:
        """The internal ids that must be mapped before the vendor can be told."""
        raise NotImplementedError

    def merging(self) -> Merging:
        """Begins, with this one as the oldest, what commands of one lane say together: only asked of those that supersede."""
        raise NotImplementedError


class _Stay(CommandData):
    reservation_id: Id

    def lane_entity(self) -> tuple[EntityType, str]:
        return EntityType.RESERVATION, self.reservation_id


class BookingCreate(_Stay):
    property_id: Id
    room_type_id: Id
    check_in: Day
    check_out: Day
    adults: Count = 1
    children: Count = 0
    status: ReservationStatus = ReservationStatus.CONFIRMED
    guest: Guest | None = None
    total_price: Minor | None = None
    currency: Currency | None = None
    notes: Annotated[str, StringConstraints(max_length=2000)] | None = None

    @model_validator(mode="after")
    def _stay_has_nights(self) -> Self:
        return _check_stay(self, self.check_in, self.check_out)

    def references(self) -> tuple[tuple[EntityType, str], ...]:
        return (EntityType.PROPERTY, self.property_id), (EntityType.ROOM_TYPE, self.room_type_id)


class BookingUpdate(_Stay):
    """Only the members that are given change."""

    room_type_id: Id | None = None
    check_in: Day | None = None
    check_out: Day | None = None
    adults: Count | None = None
    children: Count | None = None
    status: ReservationStatus | None = None
    guest: Guest | None = None
    total_price: Minor | None = None
    currency: Currency | None = None
    notes: Annotated[str, StringConstraints(max_length=2000)] | None = None

    @model_validator(mode="after")
    def _something_changes(self) -> Self:
        if not self.model_fields_set - {"reservation_id"}:
            raise ValueError("name at least one member to change")
        return _check_stay(self, self.check_in, self.check_out)

    def references(self) -> tuple[tuple[EntityType, str], ...]:
        rooms = ((EntityType.ROOM_TYPE, self.room_type_id),) if self.room_type_id else ()
        return (EntityType.RESERVATION, self.reservation_id), *rooms


class BookingCancel(_Stay):
    reason: Annotated[str, StringConstraints(max_length=500)] | None = None

    def references(self) -> tuple[tuple[EntityType, str], ...]:
        return ((EntityType.RESERVATION, self.reservation_id),)


class Period(CommandData):
    """Nights from check_in-like `first` to `last`, both included."""

    first: Night
    last: Night
    available: Count | None = None
    price: Minor | None = None
    min_stay: Annotated[int, Field(strict=True, ge=1, le=365)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError("last is before first")
        if self.nights > PERIOD_NIGHTS:
            raise ValueError(f"first to last are {self.nights} nights, {PERIOD_NIGHTS} are taken; send fewer")
        if self.available is None and self.price is None and self.min_stay is None:
            raise ValueError("give available, price or minStay")
        return self

    @property
    def nights(self) -> int:
        return (self.last - self.first).days + 1


class AvailabilityUpdate(CommandData):
    property_id: Id
    room_type_id: Id
    periods: Annotated[tuple[Period, ...], Field(min_length=1, max_length=400)]
    currency: Currency | None = None

    @model_validator(mode="after")
    def _not_too_many_nights(self) -> Self:
        nights = sum(period.nights for period in self.periods)
        if nights > COMMAND_NIGHTS:
            raise ValueError(f"periods have {nights} nights in all, {COMMAND_NIGHTS} are taken; send several commands")
        return self

    def lane_entity(self) -> tuple[EntityType, str]:
        return EntityType.AVAILABILITY, self.room_type_id

    def references(self) -> tuple[tuple[EntityType, str], ...]:
        return (EntityType.PROPERTY, self.property_id), (EntityType.ROOM_TYPE, self.room_type_id)

    def merging(self) -> Merging:
        return _Calendar(self)

    @property
    def has_prices(self) -> bool:
        return any(period.price is not None for period in self.periods)


class _Calendar:
    """Availability of a room, night by night and member by member. Each command's nights are laid once, whatever their number."""

    def __init__(self, oldest: AvailabilityUpdate) -> None:
        self._newest = oldest
        self._priced = oldest.has_prices
        self._currency = oldest.currency
        self._nights: dict[date, dict[str, int]] = {}
        self._lay(oldest)

    def add(self, newer: AvailabilityUpdate) -> None:
        if newer.references() != self._newest.references():
            raise InvalidCommandError("propertyId: what is said of two properties is not one command")
        if self._priced and newer.has_prices and newer.currency != self._currency:
            raise InvalidCommandError(f"currency: prices in {self._currency} and {newer.currency} are not one command")
        if len(self._nights.keys() | _nights(newer)) > COMMAND_NIGHTS:
            raise InvalidCommandError(f"periods: more than {COMMAND_NIGHTS} nights are not one command")
        if newer.has_prices:
            self._priced, self._currency = True, newer.currency
        self._newest = newer
        self._lay(newer)

    def command(self) -> AvailabilityUpdate:
        return self._newest.model_copy(update={"periods": tuple(_periods(self._nights)), "currency": self._currency})

    def _lay(self, command: AvailabilityUpdate) -> None:
        for period in command.periods:
            said = period.model_dump(include={"available", "price", "min_stay"}, exclude_none=True)
            for offset in range(period.nights):
                self._nights.setdefault(period.first + timedelta(days=offset), {}).update(said)


def _nights(command: AvailabilityUpdate) -> set[date]:
    return {period.first + timedelta(days=offset) for period in command.periods for offset in range(period.nights)}


def _periods(nights: Mapping[date, dict[str, int]]) -> Iterator[Period]:
    """Neighbouring nights that say the same become one period, as long as one may be."""
    first: date | None = None
    for night in sorted(nights):
        first = first or night
        following = night + timedelta(days=1)
        if nights.get(following) != nights[night] or (following - first).days == PERIOD_NIGHTS:
            yield Period(first=first, last=night, **nights[night])
            first = None


C = TypeVar("C", bound=CommandData)

COMMANDS: Mapping[str, type[CommandData]] = {
    "pms.booking.create": BookingCreate,
    "pms.booking.update": BookingUpdate,
    "pms.booking.cancel": BookingCancel,
    "pms.availability.update": AvailabilityUpdate,
}


def parse_command(event_type: str, data: Any) -> CommandData:
    """raises InvalidCommandError, also for a type that no command has"""
    model = COMMANDS.get(event_type)
    if model is None:
        raise InvalidCommandError(f"type: {event_type} is not a command; known: {', '.join(sorted(COMMANDS))}")
    if not isinstance(data, dict):
        raise InvalidCommandError("data: a JSON object is needed")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InvalidCommandError(describe(error)) from error


def describe(error: ValidationError) -> str:
    """`field: what is wrong` for each fault, without the values (they may be a guest's)."""
    return "; ".join(map(_fault, error.errors(include_url=False, include_input=False, include_context=False)[:5]))


def _fault(fault: ErrorDetails) -> str:
    *above, last = fault["loc"] or ("data",)
    name = UNKNOWN_MEMBER if fault["type"] == "extra_forbidden" else last
    return f"{'.'.join(map(str, (*above, name)))}: {fault['msg']}"


def _check_stay(command: C, check_in: date | None, check_out: date | None) -> C:
    if check_in is not None and check_out is not None and check_out <= check_in:
        raise ValueError("checkOut must be after checkIn")
    return command
