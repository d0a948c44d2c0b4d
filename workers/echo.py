"""Recognising the webhook that tells us what we told the vendor."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from schemas.commands import BookingCancel, BookingCreate, BookingUpdate
from schemas.vocabulary import EntityType, ReservationStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adapters.port import Command
    from schemas.entities import Reservation, Sourced

# The vendor's clock may differ from ours and its answer may come late; a person's change that says exactly what we said
# within this time has nothing to tell either.
_NEAR = timedelta(minutes=2)


def expected(command: Command) -> dict[str, Any] | None:
    """The standard, non-personal fields that this command writes; None where no webhook about it is recognised."""
    data = command.data
    if isinstance(data, BookingCancel):
        return {"status": ReservationStatus.CANCELLED.value}
    if not isinstance(data, BookingCreate | BookingUpdate):
        return None
    fields: dict[str, Any] = {
        "status": data.status.value if data.status else None,
        "check_in": data.check_in.isoformat() if data.check_in else None,
        "check_out": data.check_out.isoformat() if data.check_out else None,
        "adults": data.adults,
        "children": data.children,
        "external_room_type_id": command.external_id(EntityType.ROOM_TYPE, data.room_type_id)
        if data.room_type_id
        else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def is_echo(sourced: Sourced[Reservation], writes: Iterable[tuple[Mapping[str, Any], datetime]]) -> bool:
    """True if one of our writes (expected fields, when) says what this state says and is as old as it."""
    state = sourced.entity.model_dump(mode="json")
    return any(
        abs(sourced.version.modified_at - written_at) <= _NEAR
        and bool(fields)
        and all(state.get(name) == value for name, value in fields.items())
        for fields, written_at in writes
    )
