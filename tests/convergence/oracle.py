"""What must hold when everything is over. Each rule gives a sentence for each thing that breaks it.

**Which write wins.** The vendor's own order, member by member: its users' changes take their place when they are made, a command
of the core when the vendor takes it, for the last time if it is repeated (one that says the whole wanted state may be, after
no answer), or when a look-up finds that all is as it wants it. Commands about one entity are taken in the core's order, each
at least once; a create exactly once.

**What the core knows.** Of each field it holds what it was told last, or said itself since. That is the vendor's value.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import orjson

from adapters.beds24.mapping import as_webhook, reservation
from schemas.commands import parse_command
from schemas.vocabulary import EventStatus

from .outside import AVAILABILITY, CREATE, ROOMS, Told
from .vendor import nights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.entities import Reservation, Sourced

    from .model import Event
    from .outside import Outside, Said
    from .vendor import Write

FIELDS = ("status", "checkIn", "checkOut", "adults", "children", "totalPrice", "externalRoomTypeId")
_ROOMS = {"RT1": ROOMS[0], "RT2": ROOMS[1]}


def broken(played: Outside) -> list[str]:
    return [
        *_nothing_is_open(played),
        *_ours_is_the_vendors(played),
        *_commands_in_order(played),
        *_creates_once(played),
        *_the_vendor_has_what_was_written(played),
        *_availability_in_order(played),
        *_the_core_knows(played),
        *_one_name_for_each(played),
    ]


def _nothing_is_open(played: Outside) -> Iterator[str]:
    over = {EventStatus.DONE, EventStatus.SKIPPED, EventStatus.SUPERSEDED}
    for event in played.tables.events.values():
        if event.status not in over and not _left_behind(played, event):
            yield f"{event.event_type} {event.idempotency_key} is {event.status} in the end"


def _vendors(played: Outside) -> dict[str, Sourced[Reservation]]:
    found = {}
    for id_ in played.vendor.account.bookings:
        document = played.vendor.account.view(id_, invoice=True, info=True)
        sourced = reservation(as_webhook(document), played.connection, played.clock.ours(), asked=True)
        assert sourced is not None
        found[str(id_)] = sourced
    return found


def _ours_is_the_vendors(played: Outside) -> Iterator[str]:
    theirs = _vendors(played)
    for external in theirs.keys() ^ played.tables.reservations.keys():
        yield f"booking {external} is only at {'the vendor' if external in theirs else 'ours'}"
    for external, sourced in theirs.items():
        stored = played.tables.reservations.get(external)
        if stored is None:
            continue
        mine, right = (entity.model_dump(exclude={"guest", "marker"}) for entity in (stored.entity, sourced.entity))
        for name in right:
            if mine[name] != right[name]:
                yield f"booking {external}: {name} is {mine[name]} at ours and {right[name]} at the vendor"
        if stored.version.modified_at != sourced.version.modified_at:
            yield f"booking {external}: is of {stored.version.modified_at} at ours, {sourced.version.modified_at} there"
        guest = sourced.entity.guest
        if guest is not None:
            known = played.tables.guests.get(external) if stored.has_guest else None
            if known is None or known[0] != guest:
                yield f"booking {external}: another guest at the vendor"


def _lanes(played: Outside) -> dict[str, list[Said]]:
    """By booking, in the core's order."""
    lanes: dict[str, list[Said]] = defaultdict(list)
    for said in played.said:
        if said.event_type != AVAILABILITY:
            lanes[said.data["reservationId"]].append(said)
    return lanes


def _effects(played: Outside) -> dict[str, list[Write]]:
    """By the delivery's key."""
    found: dict[str, list[Write]] = defaultdict(list)
    for write in played.vendor.log:
        if write.key is not None:
            found[write.key.removesuffix(f"@{played.connection.id}")].append(write)
    return found


def _commands_in_order(played: Outside) -> Iterator[str]:
    effects = _effects(played)
    for internal, commands in _lanes(played).items():
        order = sorted((write.at, said.key) for said in commands for write in effects[said.key])
        taken = [key for key, _ in groupby(key for _, key in order)]
        if taken != [said.key for said in commands]:
            yield f"{internal}: the vendor took {taken}, the core said {[said.key for said in commands]}"


def _creates_once(played: Outside) -> Iterator[str]:
    effects = _effects(played)
    for said in played.said:
        if said.event_type == CREATE and len(effects[said.key]) != 1:
            yield f"{said.key}: created {len(effects[said.key])} times"


def _the_vendor_has_what_was_written(played: Outside) -> Iterator[str]:
    """The log that the other rules read is the whole truth."""
    for id_, booking in played.vendor.account.bookings.items():
        last: dict[str, Any] = {}
        for write in played.vendor.log:
            if write.booking == id_:
                last |= write.members
        for name, value in last.items():
            if booking[name] != value:
                yield f"booking {id_}: {name} is {booking[name]}, last written {value}"


def _availability_in_order(played: Outside) -> Iterator[str]:
    """What was requeued after it had failed may come after what is newer: that is not promised, so it is left out. So is what
    failed and was left behind, as far as nothing newer says the same nights."""
    wanted: dict[Any, Any] = {}
    unsure: set[Any] = set()
    left: set[Any] = set()
    for said in played.said:
        if said.event_type != AVAILABILITY:
            continue
        names = _said_nights(said)
        wanted |= names
        delivery = _delivery(played, said)
        if delivery is not None and delivery.requeued:
            unsure |= names.keys()
        left -= names.keys()
        if delivery is not None and _left_behind(played, delivery):
            left |= names.keys()
    written: dict[Any, Any] = {}
    for write in played.vendor.log:
        for entry in write.members.get("calendar", ()):
            written |= nights(entry)
    for place in wanted.keys() | written.keys():
        if place not in unsure | left and wanted.get(place) != written.get(place):
            yield f"night {place}: {written.get(place)} at the vendor, {wanted.get(place)} said last"


def _said_nights(said: Said) -> dict[Any, Any]:
    """Of availability, as the vendor has them."""
    found: dict[Any, Any] = {}
    for period in said.data["periods"]:
        names = {"available": "numAvail", "minStay": "minStay", "price": "price1"}
        entry = {names.get(name, name): value for name, value in period.items()}
        entry = {"from": entry.pop("first"), "to": entry.pop("last"), **entry}
        if "price1" in entry:
            entry["price1"] /= 100
        found |= nights(entry)
    return found


def _delivery(played: Outside, said: Said) -> Event | None:
    id_ = played.tables.keys.get((True, f"{said.key}@{played.connection.id}"))
    return None if id_ is None else played.tables.events[id_]


def _left_behind(played: Outside, event: Event) -> bool:
    """It failed, and newer availability of its room went out before it was requeued: no requeue puts it behind that."""
    return event.event_type == AVAILABILITY and event.status is EventStatus.FAILED and played.tables.gone_past(event)


def _the_core_knows(played: Outside) -> Iterator[str]:
    told: dict[str, Told] = {told.external_id: told for told in played.told}
    internal = {external: name for (kind, external), name in played.tables.mappings.items() if kind == "reservation"}
    lanes = _lanes(played)
    for external, sourced in _vendors(played).items():
        last = told.get(external)
        shown = orjson.loads(last.row.data)["reservation"] if last is not None else {}
        right = sourced.entity.model_dump(mode="json", by_alias=True)
        for name in FIELDS:
            own = [said for said in lanes.get(internal.get(external, ""), ()) if name in _named(said)]
            said_since = own and (last is None or own[-1].key not in last.said)
            knows = _named(own[-1])[name] if said_since else shown.get(name)
            if knows != right[name]:
                yield f"booking {external}: nobody told the core that {name} is {right[name]}, to it that is {knows}"


def _named(said: Said) -> dict[str, Any]:
    """What a command says of the standard fields."""
    if said.event_type == "pms.booking.cancel":
        return {"status": "cancelled"}
    data = parse_command(said.event_type, said.data).model_dump(mode="json", by_alias=True, exclude_none=True)
    if "roomTypeId" in data:
        data["externalRoomTypeId"] = _ROOMS[data["roomTypeId"]]
    return {name: data[name] for name in FIELDS if name in data}


def _one_name_for_each(played: Outside) -> Iterator[str]:
    """The core knows what it created by its own name, whichever way it hears of it."""
    internal = {external: name for (kind, external), name in played.tables.mappings.items() if kind == "reservation"}
    for told in played.told:
        if told.row.subject != internal.get(told.external_id):
            yield f"booking {told.external_id}: told as {told.row.subject}, it is {internal.get(told.external_id)}"
