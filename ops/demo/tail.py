"""One line for each thing that was settled, and for each webhook that was refused. Ids and reasons, no guest data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import asyncpg

_MARGIN = 1_000  # rows that may be committed after later ones
_WATCHED = 2_000  # failed events whose requeue is still noticed
_STYLES = {"done": "green", "failed": "bold red", "retrying": "yellow", "skipped": "dim", "superseded": "dim"}
_EVENTS = """
SELECT id, seq, direction, event_type, parent_id, connection_id, coalesce(entity_internal_id, entity_external_id) AS entity,
       entity_external_id, status, attempts, max_attempts, last_error, received_at, processed_at,
       clock_timestamp() AS now
FROM channel_events WHERE seq > $1 OR id = ANY ($2::uuid[]) ORDER BY COALESCE(processed_at, received_at), seq
"""
_REFUSED = """
SELECT id, received_at, platform, connection_id, status, error FROM webhook_log WHERE id > $1 AND status >= 400 ORDER BY id
"""


@dataclass
class Tail:
    """Of everything after `begin`."""

    seq: int = 0
    refused: int = 0
    _told: dict[UUID, tuple[str, int, datetime | None]] = field(default_factory=dict)
    _watched: dict[UUID, None] = field(default_factory=dict)
    _start: int = 0

    async def begin(self, db: asyncpg.Connection[asyncpg.Record]) -> None:
        self.seq = self._start = await db.fetchval("SELECT coalesce(max(seq), 0) FROM channel_events")
        self.refused = await db.fetchval("SELECT coalesce(max(id), 0) FROM webhook_log")
        rows = await db.fetch(
            "SELECT id, status, attempts, processed_at FROM channel_events "
            "WHERE status IN ('received', 'processing', 'retrying', 'failed') ORDER BY seq DESC LIMIT $1",
            _WATCHED,
        )
        self._watched = dict.fromkeys(row["id"] for row in rows)
        self._told = {row["id"]: (row["status"], row["attempts"], row["processed_at"]) for row in rows}

    async def lines(self, db: asyncpg.Connection[asyncpg.Record]) -> list[Text]:
        rows = await db.fetch(_EVENTS, max(self._start, self.seq - _MARGIN), list(self._watched))
        found = list(self._news(rows))
        for row in await db.fetch(_REFUSED, self.refused):
            self.refused = row["id"]
            found.append(_refusal(row))
        return found

    def _news(self, rows: list[asyncpg.Record]) -> Iterator[Text]:
        for row in rows:
            self.seq = max(self.seq, row["seq"])
            state = (row["status"], row["attempts"], row["processed_at"])
            if row["status"] in {"received", "processing", "retrying", "failed"}:
                self._watched[row["id"]] = None
            else:
                self._watched.pop(row["id"], None)
            if row["status"] in {"received", "processing"} or self._told.get(row["id"]) == state:
                continue
            self._told[row["id"]] = state
            yield _line(row)
        while len(self._watched) > _WATCHED:
            self._watched.pop(next(iter(self._watched)))
        while len(self._told) > 4 * _MARGIN:
            self._told.pop(next(iter(self._told)))


def _line(row: asyncpg.Record) -> Text:
    status = row["status"]
    at: datetime = row["processed_at"] or row["now"]
    took = (at - row["received_at"]).total_seconds()
    said = row["last_error"] or ""
    if status == "done":
        external = row["entity_external_id"] if row["direction"] == "outbound" else None
        said = f"{took * 1000:.0f} ms" if took < 10 else f"{took:.0f} s"
        said += f", {row['connection_id']} {external or ''}".rstrip() if row["parent_id"] else ""
    elif status == "retrying":
        said = f"attempt {row['attempts']} of {row['max_attempts']}: {said}"
    line = Text(f"{at.astimezone():%H:%M:%S} {row['direction']:8} {row['event_type']:24} {row['entity'] or '-':12} ")
    line.append(f"{status:10} ", _STYLES.get(status, ""))
    return line.append(said)


def _refusal(row: asyncpg.Record) -> Text:
    line = Text(
        f"{row['received_at'].astimezone():%H:%M:%S} webhook  {row['platform']:24} {row['connection_id'] or '-':12} "
    )
    line.append(f"{row['status']:<10} ", "bold red")
    return line.append(row["error"] or "")
