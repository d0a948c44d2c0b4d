"""The standard schema: what every vendor's property, room type, reservation, guest and availability become.

JSON is camelCase. Stays are half-open dates without time in the property's zone: check_in <= night < check_out. Money is
integer minor units. `external_*` are the vendor's ids as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from .vocabulary import ReservationStatus


class Entity(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Guest(Entity):
    """Personal data: sealed at rest, never in logs, errors or metrics. None means: the vendor did not say."""

    first_name: str | None = None
    last_name: str | None = None
    email: str | None = None
    phone: str | None = None
    language: str | None = None
    country: str | None = None

    def is_known(self) -> bool:
        return bool(self.first_name or self.last_name or self.email or self.phone)


ASKED = 100  # added to the tie of what the vendor was asked for; the database compares by it, too


@dataclass(frozen=True, slots=True)
class Version:
    """The fence: a state replaces the stored one only if it is greater. What is equal, or of the same modification time and
    smaller, may be the later change all the same: then the vendor is asked.

    modified_at  the vendor's own modification time of the entity
    observed_at  when that state was seen: the webhook's time stamp, or the time at which a fetch began
    tie          0-99, chooses among equals that come together, the same way in any order (a cancellation before the rest)
    asked        the vendor's API said so. Of one modification time that is greater than what a webhook told, whenever: the
                 two times come from two clocks
    """

    modified_at: datetime
    observed_at: datetime
    tie: int = 0
    asked: bool = False

    @property
    def rank(self) -> int:
        return self.tie + (ASKED if self.asked else 0)

    def replaces(self, stored: Version) -> bool:
        """As the WHERE of the database's upserts has it."""
        mine = (self.modified_at, self.asked, self.observed_at)
        return mine > (stored.modified_at, stored.asked, stored.observed_at)

    def __lt__(self, other: Version) -> bool:
        mine = (self.modified_at, self.asked, self.observed_at, self.tie)
        return mine < (other.modified_at, other.asked, other.observed_at, other.tie)


class Reservation(Entity):
    external_id: str
    external_property_id: str
    external_room_type_id: str
    external_unit_id: str | None = None
    status: ReservationStatus
    check_in: date
    check_out: date
    adults: int = Field(ge=0)
    children: int = Field(ge=0)
    total_price: int | None = None
    currency: str | None = None
    source: str | None = None
    source_reference: str | None = None
    booked_at: datetime | None = None
    cancelled_at: datetime | None = None
    guest: Guest | None = None
    marker: str | None = None  # the command of ours that created it, where the vendor gives our marker back


class Property(Entity):
    external_id: str
    name: str
    currency: str | None = None
    timezone: str | None = None
    country: str | None = None
    city: str | None = None
    address: str | None = None


class RoomType(Entity):
    external_id: str
    external_property_id: str
    name: str
    quantity: int = 1
    max_occupancy: int | None = None


class Availability(Entity):
    """One night of one room type."""

    external_property_id: str
    external_room_type_id: str
    day: date
    available: int | None = None
    price: int | None = None
    currency: str | None = None
    min_stay: int | None = None
    closed: bool | None = None


E = TypeVar("E", bound=Entity)


@dataclass(frozen=True, slots=True)
class Sourced(Generic[E]):
    """An entity with what it was made from.

    document  the vendor's own, unknown members included, card data left out; where it is stored its personal values are
              sealed, by the paths that the manifest names
    """

    entity: E
    version: Version
    document: Mapping[str, Any]
