"""The message: CloudEvents 1.0 in structured or batched JSON (https://github.com/cloudevents/spec).

A message that staybus itself publishes is a wake-up and carries no `data`: the row in `channel_events` has it. A
message from a service carries `data` and becomes a row at first sight.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, field_validator
from pydantic_core import from_json, to_json

from .ids import named, read_uuid

CONTENT_TYPE = "application/cloudevents+json"
BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"
SOURCE = "/staybus"
MAX_EVENTS = 200  # in one message; with MAX_BYTES the bound on what a worker must hold for one delivery
MAX_BYTES = 128 * 1024

TYPE_PATTERN = r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){0,7}$"
_FOREIGN_IDS = uuid.UUID("5e2d1bd6-4a27-5c1e-9f3a-0d5a5b1f2c77")

Word = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class MalformedMessageError(ValueError):
    """A message that cannot be read as events; the text names the place, never the content."""


class Event(BaseModel):
    """One event on the wire. Unknown attributes are CloudEvents extensions of others and are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: str = Field(default="1.0", pattern=r"^1\.0$")
    id: Word
    source: Word = SOURCE
    type: Annotated[str, StringConstraints(pattern=TYPE_PATTERN, max_length=200)]
    subject: Word | None = None
    time: datetime | None = None
    datacontenttype: str | None = None
    companyid: Word | None = None
    connectionid: Word | None = None
    idempotencykey: Word | None = None
    traceparent: Annotated[str, StringConstraints(max_length=64)] | None = None
    data: Any = None

    @field_validator("datacontenttype")
    @classmethod
    def _json_only(cls, value: str | None) -> str | None:
        if value is not None and not re.search(r"[/+]json\b", value):
            raise ValueError("data must be JSON")
        return value

    @property
    def row_id(self) -> uuid.UUID:
        """The id of this event's row: its own where it is a UUID, else derived from source and id (unique together)."""
        return read_uuid(self.id) or named(_FOREIGN_IDS, f"{self.source}\n{self.id}")

    @property
    def is_wake_up(self) -> bool:
        """As staybus publishes them: of a row, with nothing in it that could be lost. A missing source says no more than ours."""
        return self.data is None and self.source == SOURCE

    @property
    def dedupe_key(self) -> str:
        return self.idempotencykey or f"{self.source}#{self.id}"


_ONE = TypeAdapter(Event)
_MANY = TypeAdapter(list[Event])


def decode(body: bytes) -> list[Event]:
    """The events of one message, in structured or batched form: the body tells which, whatever the content type says.

    raises  MalformedMessageError
    """
    if len(body) > 4 * MAX_BYTES:
        raise MalformedMessageError(f"a body of {len(body)} bytes; at most {4 * MAX_BYTES} are read")
    try:
        if body.lstrip()[:1] == b"[":
            events = _MANY.validate_json(body)
            if not events:
                raise MalformedMessageError("an empty batch")
            return events
        return [_ONE.validate_json(body)]
    except ValidationError as error:
        raise MalformedMessageError(_problem(error)) from error


@dataclass(frozen=True, slots=True)
class Malformed:
    """What is no event. place: in its batch, from 0, or None: the whole message; raw: all of it; problem: names the attribute."""

    place: int | None
    raw: bytes
    problem: str


def decode_each(body: bytes) -> tuple[list[Event], list[Malformed]]:
    """As decode, but what is malformed is told and takes nothing else with it: one of a batch; or the whole message, where there
    are no others, or nobody meant a batch: more than MAX_EVENTS are malformed.
    """
    try:
        return decode(body), []  # the hot path reads no item by itself
    except MalformedMessageError as error:
        events, malformed = _item_by_item(body) if len(body) <= 4 * MAX_BYTES else ([], [])
        return (events, malformed) if events else ([], [Malformed(None, body, str(error))])


def _item_by_item(body: bytes) -> tuple[list[Event], list[Malformed]]:
    """Nothing at all where the whole is none."""
    events: list[Event] = []
    malformed: list[Malformed] = []
    try:
        items = from_json(body)
    except ValueError:
        return [], []
    for place, item in enumerate(items if isinstance(items, list) else ()):
        raw = to_json(item, inf_nan_mode="constants")
        try:
            events.append(_ONE.validate_json(raw))
        except ValidationError as error:
            malformed.append(Malformed(place, raw, _problem(error)))
        if len(malformed) > MAX_EVENTS:
            return [], []
    return events, malformed


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def encode(event: Event) -> bytes:
    """Structured mode. Whatever was read can be written, a number beyond 64 bits, too."""
    return event.model_dump_json(exclude_none=True).encode()


def wake_ups(type_: str, rows: Sequence[tuple[uuid.UUID, str, str | None, str | None]]) -> bytes:
    """The body that wakes these rows: one event in structured mode, several as a batch.

    rows: (id, company id, traceparent, connection id)

    Written by hand and not through the model: it is the hot path and the values are ours.
    """
    events = [
        {
            "specversion": "1.0",
            "id": str(id_),
            "source": SOURCE,
            "type": type_,
            "companyid": company,
            **({"traceparent": trace} if trace else {}),
            **({"connectionid": connection} if connection else {}),
        }
        for id_, company, trace, connection in rows
    ]
    return orjson.dumps(events[0] if len(events) == 1 else events)
