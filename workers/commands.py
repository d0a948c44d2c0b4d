"""Commands as services send them: what is one, and the row that it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from schemas.commands import COMMANDS, UNKNOWN_MEMBER, CommandData, InvalidCommandError, Period, parse_command
from schemas.entities import Guest
from store.outbound import CommandRow
from store.seal import split

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from uuid import UUID

    from schemas.event import Event
    from store.overlay import Paths

PERSONAL = (("guest",), ("notes",), ("reason",))  # of a command's data
_MODELS: tuple[type[CommandData], ...] = (*COMMANDS.values(), Period)
_MEMBERS = frozenset(
    name for model in _MODELS for member, field in model.model_fields.items() for name in (member, field.alias)
)
_GUESTS = frozenset(name for member, field in Guest.model_fields.items() for name in (member, field.alias))
_FAMILY = "pms."
_NUL = "\0"


def command_row(
    id_: UUID, company_id: str, event: Event, seal: Callable[[Mapping[str, Any]], bytes | None]
) -> CommandRow:
    """The row of a command as a service sent it, its personal part sealed."""
    data = event.data if isinstance(event.data, dict) else {"value": event.data}
    kind, internal = _entity(event.type, data)
    # Where a command that does not fit holds what is a guest's, nobody can tell.
    readable, personal = ({}, data) if kind is None else split(data, PERSONAL)
    return CommandRow(
        id=id_,
        company_id=company_id,
        connection_id=event.connectionid,
        parent_id=None,
        event_type=event.type,
        entity_type=kind,
        entity_internal_id=internal or event.subject,
        idempotency_key=event.dedupe_key,
        payload=orjson.dumps(readable).decode(),
        sealed=seal(personal),
        lane=None,
        lane_policy=None,
        max_attempts=1,
        trace=event.traceparent,
    )


def _entity(event_type: str, data: dict[str, Any]) -> tuple[str | None, str | None]:
    """(type, internal id) of what a command is about; what cannot be read is parked when it is routed."""
    try:
        kind, internal = parse_command(event_type, data).lane_entity()
    except InvalidCommandError:
        return None, None
    return kind.value, internal


def personal_of(*said: Mapping[str, Any]) -> Paths:
    """What of commands' data, or of edits of it, is shown to nobody, also where it does not fit: of a member that no command has,
    here or inside, nobody can tell what it holds.
    """
    members = [member for data in said for member in data.items()]
    strange = tuple((name,) for name, value in members if not _MEMBERS.issuperset((name, *_names(value))))
    return tuple(dict.fromkeys(PERSONAL + strange))


def sayable(name: str) -> str:
    """A member's name, where it is one of ours."""
    return name if name in _MEMBERS or name in _GUESTS else UNKNOWN_MEMBER


def _names(value: Any) -> Iterator[str]:
    """Of all members in it."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names(inner)


def company_of(event: Event) -> str:
    """Nobody's name where none is given, or one that the database cannot be asked for."""
    return "" if event.companyid is None or _NUL in event.companyid else event.companyid


def problem_of(event: Event, actions: Collection[str], *, known: bool) -> str | None:
    """Why an event can have no row, or None."""
    if event.companyid is None:
        return "companyid: missing"
    place = next((at for name, value in event if (at := _place_of_nul(value, name))), None)
    if place is not None:
        return f"{place}: holds a NUL character, which the database cannot keep; send it again without"
    if not known:
        return f"companyid: {event.companyid} does not exist"
    return no_command(event, actions)


def no_command(event: Event, actions: Collection[str]) -> str | None:
    """Why an event is no command, or None. actions: types of vendors that are commands, too"""
    if not event.type.startswith(_FAMILY) and event.type not in actions:
        return f"type: {event.type} is no command; those begin with {_FAMILY}"
    if event.data is None:
        return "data: missing; a command carries its data as a JSON object"
    if isinstance(event.data, dict) and any("." in name for name in event.data):
        # Sealed, a dot means a member of a member: put back, it might fit, which as it was sent it does not.
        return "data: a member's name has a dot in it; no command has such a member"
    return None


def _place_of_nul(value: Any, place: str) -> str | None:
    """The path of the first value with one, or of the object whose member's name has one."""
    members: Iterable[tuple[str, Any]]
    match value:
        case str():
            return place if _NUL in value else None
        case dict() if any(_NUL in name for name in value):
            return place
        case dict():
            members = ((sayable(name), one) for name, one in value.items())
        case list():
            members = ((str(index), one) for index, one in enumerate(value))
        case _:
            return None
    return next((at for name, one in members if (at := _place_of_nul(one, f"{place}.{name}"))), None)
