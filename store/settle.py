"""Writing what became of events: status, attempts, dead letters. Both directions end here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID

from schemas.ids import uuid7

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from .pool import Connection

_SQL = statements("settle")
_BURY_STRANGERS = _SQL["bury"].replace("(event_id) WHERE event_id", "(digest) WHERE digest")
_NUMBER = re.compile(r"\b\d+\b")


class SettledElsewhereError(Exception):
    """Another worker had some of these events too, and was quicker, or has them now."""


@dataclass(slots=True)
class FinishRow:
    """The new state of one event. keep_attempt: it belongs into the history. lease_token: written only while that is held"""

    id: UUID
    status: str
    attempts: int
    starts: int
    next_attempt_at: datetime | None
    error_class: str | None
    last_error: str | None
    error_code: str | None
    keep_attempt: bool
    outcome: str
    started_at: datetime
    lease_token: UUID | None = None


@dataclass(slots=True)
class DeadLetterRow:
    """digest: of what has no event, what tells it from others; None: it is never the same as another"""

    event_id: UUID | None
    company_id: str | None
    connection_id: str | None
    vendor: str | None
    queue: str | None
    operation: str
    entity_type: str | None
    entity_external_id: str | None
    entity_internal_id: str | None
    error_class: str
    error_code: str | None
    error_message: str
    attempts: int
    first_attempt_at: datetime | None
    owner: str
    sealed: bytes | None = None
    routing: str | None = None
    place: str | None = None
    digest: bytes | None = None

    def fingerprint(self) -> str:
        """Same cause, same fingerprint: vendor, operation, class and code, and the place, or the field that the message opens
        with, in whichever item of a list it is."""
        opening, _, _ = self.error_message.partition(":")
        place = _NUMBER.sub("#", opening) if self.place is None else self.place
        parts = (self.vendor, self.operation, self.error_class, self.error_code, place)
        return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:12]


async def finish(connection: Connection, rows: Sequence[FinishRow]) -> int:
    """Ends those that are open, in the order in which all lock them; the caller owns the transaction. returns how many were"""
    columns = zip(
        *(
            (r.id, r.status, r.attempts, r.starts, r.next_attempt_at, r.error_class, r.last_error, r.error_code,
             r.keep_attempt, r.outcome, r.started_at, r.lease_token)
            for r in sorted(rows, key=lambda row: row.id)
        ),
        strict=True,
    )  # fmt: skip
    return len(await connection.fetch(_SQL["finish"], *columns)) if rows else 0


async def bury(connection: Connection, rows: Sequence[DeadLetterRow]) -> None:
    """Opens a dead letter for each, or adds to the one that is open already."""
    await _bury(connection, _SQL["bury"], [row for row in rows if row.event_id is not None])
    await _bury(connection, _BURY_STRANGERS, _each_once([row for row in rows if row.event_id is None]))


def _each_once(strangers: Sequence[DeadLetterRow]) -> list[DeadLetterRow]:
    """One statement cannot add twice to one letter."""
    found: dict[bytes | int, DeadLetterRow] = {}
    for row in strangers:
        key = row.digest or id(row)
        found[key] = replace(row, attempts=found[key].attempts + row.attempts) if key in found else row
    return list(found.values())


async def _bury(connection: Connection, statement: str, rows: Sequence[DeadLetterRow]) -> None:
    columns = zip(
        *(
            (uuid7(), r.event_id, r.company_id, r.connection_id, r.vendor, r.queue, r.operation, r.entity_type,
             r.entity_external_id, r.entity_internal_id, r.error_class, r.error_code, r.error_message,
             r.fingerprint(), r.attempts, r.first_attempt_at, r.owner, r.sealed, r.routing, r.digest)
            for r in rows
        ),
        strict=True,
    )  # fmt: skip
    if rows:
        await connection.execute(statement, *columns)


async def resolve(connection: Connection, ids: Sequence[UUID]) -> None:
    """Closes the dead letters of events that came through."""
    if ids:
        await connection.execute(_SQL["resolve"], ids)
