"""Recognising the webhook that tells us what we told the vendor."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from schemas.commands import BookingCancel, BookingCreate, BookingUpdate
from schemas.vocabulary import EntityType, ReservationStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adapters.port import Command
    from schemas.entities import Reservation, Sourced
    from store.inbound import StoredState

# The vendor's clock may differ from ours and its answer may come late. A person's change that says exactly what we said within
# this time is taken for an echo, too: whether the core knows it nevertheless, `tells_more` says.
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


@dataclass(frozen=True, slots=True)
class OwnWrite:
    """What we wrote to an entity.

    fields      see `expected`
    written_at  just before the call, of several the last
    said_at     when the command was recorded: the core knows since then, though it may be written much later
    """

    fields: Mapping[str, Any]
    written_at: datetime
    said_at: datetime


def own_writes_of(text: str | None) -> list[OwnWrite]:
    """text: as store.inbound has it"""
    return [
        OwnWrite(
            write["expected"],
            datetime.fromisoformat(write["written_at"]),
            # The command's row may be gone.
            datetime.fromisoformat(write["said_at"] or write["written_at"]),
        )
        for write in (orjson.loads(text) if text else ())
    ]


def is_echo(sourced: Sourced[Reservation], writes: Iterable[OwnWrite]) -> bool:
    """True if what our writes near the time of this state say together, of each field the latest word, is what it says."""
    at = sourced.version.modified_at
    said: dict[str, Any] = {}
    for write in sorted(writes, key=lambda write: write.written_at):
        if abs(at - write.written_at) <= _NEAR:
            said |= write.fields
    return bool(said) and _says(sourced.entity, said)  # mostly nothing is said


def tells_more(sourced: Sourced[Reservation], writes: Iterable[OwnWrite], stored: StoredState | None) -> bool:
    """Whether an echo also tells what the core does not know. To the core a field is what it said since it was told of the
    reservation last; where it has said nothing, what is stored: all of that it was told, or had said.

    stored  the state before it; None: this is the first that we see
    """
    told_at = stored.told_at if stored else None
    said: dict[str, Any] = {}
    for write in sorted(writes, key=lambda write: (write.said_at, write.written_at)):
        if told_at is None or write.said_at > told_at:
            said |= write.fields
    if not _says(sourced.entity, said):
        return True
    if stored is None:
        return any(name not in said for name in _WHOLE)
    return any(getattr(sourced.entity, name) != value for name, value in stored.fields.items() if name not in said)


def _says(entity: Reservation, fields: Mapping[str, Any]) -> bool:
    """fields: as `expected` has them"""
    if not fields:
        return True
    state = entity.model_dump(mode="json")
    return all(state.get(name) == value for name, value in fields.items())
