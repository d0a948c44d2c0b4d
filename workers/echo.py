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
_WHOLE = ("status", "check_in", "check_out", "adults", "children", "external_room_type_id")  # what a create says


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
        "total_price": data.total_price,
        "external_room_type_id": command.external_id(EntityType.ROOM_TYPE, data.room_type_id)
        if data.room_type_id
        else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def said_near(sourced: Sourced[Reservation], writes: Iterable[tuple[Mapping[str, Any], datetime]]) -> dict[str, Any]:
    """What our writes (expected fields, when) near the time of this state say together: of each field the latest word."""
    at = sourced.version.modified_at
    said: dict[str, Any] = {}
    for fields, written_at in sorted(writes, key=lambda write: write[1]):
        if abs(at - written_at) <= _NEAR:
            said |= fields
    return said


def is_echo(sourced: Sourced[Reservation], writes: Iterable[tuple[Mapping[str, Any], datetime]]) -> bool:
    """True if our writes say what this state says, and are as old as it."""
    said = said_near(sourced, writes)
    if not said:  # as nearly always
        return False
    state = sourced.entity.model_dump(mode="json")
    return all(state.get(name) == value for name, value in said.items())


def tells_more(sourced: Sourced[Reservation], said: Mapping[str, Any], stored: Mapping[str, Any] | None) -> bool:
    """Whether an echo of what we said also tells what somebody else did, which the core does not know yet.

    stored  the state before it, by the names of Reservation; None: this is the first that we see
    """
    if stored is None:
        return any(name not in said for name in _WHOLE)
    return any(getattr(sourced.entity, name) != value for name, value in stored.items() if name not in said)
