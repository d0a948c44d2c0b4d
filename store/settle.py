"""Writing what became of events: status, attempts, dead letters. Both directions end here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from schemas.ids import uuid7
from schemas.vocabulary import EventStatus

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from .pool import Connection

_SQL = statements("settle")
_DONE = EventStatus.DONE.value


@dataclass(slots=True)
class FinishRow:
    """The new state of one event. keep_attempt: it belongs into the history."""

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

    @property
    def plain(self) -> bool:
        """Done at the first attempt, with nothing to remember."""
        return self.status == _DONE and self.attempts == 1 and self.starts == 0 and not self.keep_attempt


@dataclass(slots=True)
class DeadLetterRow:
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

    def fingerprint(self) -> str:
        """Same cause, same fingerprint: vendor, operation, class and code, and the field that the message opens with."""
        place = self.error_message.partition(":")[0]
        parts = (self.vendor, self.operation, self.error_class, self.error_code, place)
        return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:12]


async def finish(connection: Connection, rows: Sequence[FinishRow]) -> int:
    """Ends those that are open; the caller owns the transaction. returns how many were"""
    plain = [row for row in rows if row.plain]
    others = [row for row in rows if not row.plain]
    ended = 0
    if plain:
        ended += len(await connection.fetch(_SQL["done"], [row.id for row in plain], plain[0].started_at))
    if others:
        given = zip(
            *(
                (r.id, r.status, r.attempts, r.starts, r.next_attempt_at, r.error_class, r.last_error, r.error_code,
                 r.keep_attempt, r.outcome, r.started_at)
                for r in others
            ),
            strict=True,
        )  # fmt: skip
        ended += len(await connection.fetch(_SQL["finish"], *given))
    return ended


async def bury(connection: Connection, rows: Sequence[DeadLetterRow]) -> None:
    """Opens a dead letter for each, or adds to the one that is open already."""
    columns = zip(
        *(
            (uuid7(), r.event_id, r.company_id, r.connection_id, r.vendor, r.queue, r.operation, r.entity_type,
             r.entity_external_id, r.entity_internal_id, r.error_class, r.error_code, r.error_message,
             r.fingerprint(), r.attempts, r.first_attempt_at, r.owner, r.sealed, r.routing)
            for r in rows
        ),
        strict=True,
    )  # fmt: skip
    if rows:
        await connection.execute(_SQL["bury"], *columns)


async def resolve(connection: Connection, ids: Sequence[UUID]) -> None:
    """Closes the dead letters of events that came through."""
    if ids:
        await connection.execute(_SQL["resolve"], ids)
