"""What operators do to many dead letters or events at once, a batch at a time.

A batch is one transaction of the caller's: what it changes, its lines in the audit log, and the place where the next one
begins. So whoever does it (a command at its terminal, or a scheduler for a job) may stop anywhere and go on from there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from adapters.port import Repeat
from store import dead_letters, events, jobs
from store.dead_letters import Filter
from store.events import Selection

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import asyncpg

    from adapters.port import Adapter
    from store.pool import Connection

STRETCH = 20_000  # rows that one batch of a replay looks at, however few of them it wants
TOGETHER = 5_000  # commands that it repeats beside these, because they are of the same lanes; more only of a single one


@dataclass(frozen=True, slots=True)
class Order:
    """Who asked for it, and for which job."""

    actor: str
    note: str | None = None
    job_id: UUID | None = None


@dataclass(slots=True)
class Batch:
    """done, left: ids of what was done and of what could not be; unreadable: of letters without an event that could run.

    cursor: where the next batch begins; more: whether there is one
    """

    cursor: str | None
    more: bool
    done: list[UUID] = field(default_factory=list)
    left: list[UUID] = field(default_factory=list)
    unreadable: list[UUID] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return len(self.left) + len(self.unreadable)


class Task(Protocol):
    async def batch(self, db: Connection, cursor: str | None, limit: int, order: Order) -> Batch: ...


# ------------------------------------------------------------------------------------------------ dead letters


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters by filter, the oldest first, or by their ids."""

    wanted: Filter = field(default_factory=Filter)
    ids: tuple[UUID, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        if self.ids:
            return {"ids": [str(id_) for id_ in self.ids]}
        return {name: str(value) for name, value in asdict(self.wanted).items() if value is not None}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Letters:
        if "ids" in document:
            return cls(ids=tuple(map(UUID, document["ids"])))
        until = document.get("until")
        return cls(Filter(**{**document, "until": UUID(until) if until else None}))

    async def page(self, db: Connection, cursor: str | None, limit: int) -> tuple[list[asyncpg.Record], Batch]:
        """The next letters, and the batch that is about them, with nothing done yet."""
        after = UUID(cursor) if cursor else None
        if self.ids:
            ids = sorted(id_ for id_ in self.ids if after is None or id_ > after)[:limit]
            found = [row for id_ in ids if (row := await dead_letters.show(db, id_)) is not None]
        else:
            found = await dead_letters.oldest(db, self.wanted, limit, after)
            ids = [row["id"] for row in found]
        return found, Batch(str(ids[-1]) if ids else cursor, more=len(ids) == limit)


@dataclass(frozen=True, slots=True)
class Requeue:
    """done and left are ids of events."""

    letters: Letters

    async def batch(self, db: Connection, cursor: str | None, limit: int, order: Order) -> Batch:
        page, batch = await self.letters.page(db, cursor, limit)
        wanted = [row["event_id"] for row in page if row["event_id"]]
        again = await dead_letters.requeue(db, wanted, order.actor, order.note, order.job_id)
        details = _details(order, note=order.note)
        await jobs.audit(
            db, order.actor, "dead_letter.requeue", [(company, str(id_), details) for id_, company in again]
        )
        done = {id_ for id_, _ in again}
        batch.done = [id_ for id_ in wanted if id_ in done]
        batch.left = [id_ for id_ in wanted if id_ not in done]
        batch.unreadable = [row["id"] for row in page if not row["event_id"]]
        return batch


@dataclass(frozen=True, slots=True)
class Abandon:
    """The order's note is the reason. done and left are ids of letters."""

    letters: Letters

    async def batch(self, db: Connection, cursor: str | None, limit: int, order: Order) -> Batch:
        page, batch = await self.letters.page(db, cursor, limit)
        ids = [row["id"] for row in page]
        rows = await dead_letters.abandon(db, ids, order.actor, order.note or "")
        details = _details(order, reason=order.note)
        await jobs.audit(
            db, order.actor, "dead_letter.abandon", [(row["company_id"], str(row["id"]), details) for row in rows]
        )
        batch.done = [row["id"] for row in rows]
        done = set(batch.done)
        batch.left = [id_ for id_ in ids if id_ not in done]
        return batch


def _details(order: Order, **given: str | None) -> dict[str, str]:
    named = given | {"job": str(order.job_id) if order.job_id else None}
    return {name: value for name, value in named.items() if value}


# ------------------------------------------------------------------------------------------------ replay


@dataclass(frozen=True, slots=True)
class Candidate:
    """An ended event that a selection names.

    repeat     of a delivery: what its vendor lets be repeated; None of a fact
    overtaken  something newer about the same thing went to the vendor since
    there      it makes what has an id at the vendor already, where a second one could not be kept
    """

    id: UUID
    company_id: str
    status: str
    vendor: str | None
    event_type: str
    repeat: Repeat | None
    overtaken: bool
    there: bool

    @property
    def harmless(self) -> bool:
        return self.repeat is None or (self.repeat is Repeat.SAFE and not self.overtaken)

    def runs(self, wanted: Selection, *, again: bool) -> bool:
        """again: also what is not harmless"""
        return self.status in wanted.statuses and not self.there and (again or self.harmless)


@dataclass(frozen=True, slots=True)
class Page:
    """found: the next candidates; behind: later ones of their lanes, which are repeated together with them

    cursor: where the page after them begins; more: whether there is one
    """

    found: list[Candidate]
    behind: list[Candidate]
    cursor: str | None
    more: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """again: also what would make a second effect at a vendor, or put an older state back. done and left: the originals.

    run    names the replay in its events' keys: one run repeats an event but once
    whole  all that is selected is meant. Then the commands of a lane are repeated together, so that whoever stops in between
           leaves none of them at an older state; availability goes out merged again. Otherwise only the newest of a lane may go.
    """

    selection: Selection
    adapters: Mapping[str, Adapter]
    again: bool
    run: UUID
    whole: bool

    async def batch(self, db: Connection, cursor: str | None, limit: int, order: Order) -> Batch:
        page = await self.page(db, cursor, limit)
        chosen = [one.id for one in (*page.found, *page.behind) if one.runs(self.selection, again=self.again)]
        new = await events.replay(db, chosen, self.run)
        rows = [
            (row["company_id"], str(row["replay_of"]), _details(order, note=order.note, event=str(row["id"])))
            for row in new
        ]
        await jobs.audit(db, order.actor, "event.replay", rows)
        done = {row["replay_of"] for row in new}
        return Batch(
            page.cursor,
            page.more,
            done=[id_ for id_ in chosen if id_ in done],
            left=[one.id for one in page.found if one.id not in done],
        )

    async def page(self, db: Connection, cursor: str | None, limit: int, met: Collection[UUID] = frozenset()) -> Page:
        """What this run has not repeated yet. met: what its caller had with a page before, and does not want again"""
        rows, reached, more = await self._next(db, cursor, limit)
        found = await self._left(db, [row for row in rows if row["id"] not in met])
        some, behind = await self._together(db, found)
        if len(some) < len(found):
            reached, more = self._place(some[-1], cursor), True
        return Page(*await self._judge(db, some, behind), reached, more)

    async def _next(self, db: Connection, cursor: str | None, limit: int) -> tuple[list[asyncpg.Record], str, bool]:
        """returns rows of the selection, the place behind them, and whether there are more"""
        wanted = self.selection
        if wanted.ids is not None:
            start = int(cursor or 0)
            end = start + limit
            return await events.replayable_ids(db, wanted.ids[start:end]), str(end), end < len(wanted.ids)
        after = int(cursor) if cursor else wanted.first
        up_to = min(after + STRETCH, wanted.last)
        rows = await events.replayable(db, wanted, after, up_to, limit)
        reached = rows[-1]["seq"] if len(rows) == limit else up_to
        return rows, str(reached), reached < wanted.last

    def _place(self, row: asyncpg.Record, cursor: str | None) -> str:
        """Behind this row, which comes after the cursor."""
        ids = self.selection.ids
        return str(row["seq"] if ids is None else ids.index(row["id"], int(cursor or 0)) + 1)

    async def _left(self, db: Connection, rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
        """Of these, what this run has not repeated together with something before them."""
        deliveries = [row["id"] for row in rows if row["direction"] == "outbound"]
        if not (self.whole and deliveries):
            return rows
        repeated = await events.repeated(db, self.run, deliveries)
        return [row for row in rows if row["id"] not in repeated]

    async def _together(
        self, db: Connection, rows: list[asyncpg.Record]
    ) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
        """The first of these, and all that the selection has behind them in their lanes; as many as one transaction should
        hold, but at least one of them."""
        if not self.whole:
            return rows, []
        while True:
            deliveries = [row["id"] for row in rows if row["direction"] == "outbound"]
            most = TOGETHER + 1 if len(rows) > 1 else None
            behind = await events.followers(db, self.selection, deliveries, most) if deliveries else []
            if most is None or len(behind) < most:
                return rows, await self._left(db, behind)
            rows = rows[: len(rows) // 2]

    async def _judge(
        self, db: Connection, rows: Sequence[asyncpg.Record], behind: Sequence[asyncpg.Record]
    ) -> tuple[list[Candidate], list[Candidate]]:
        deliveries = [row["id"] for row in (*rows, *behind) if row["direction"] == "outbound"]
        if not deliveries:
            return [self._candidate(row) for row in rows], []
        makers = [row["id"] for row in (*rows, *behind) if row["direction"] == "outbound" and self._makes(row)]
        there = await events.mapped(db, makers) if makers else set()
        judged = {row["id"]: self._candidate(row, there=row["id"] in there) for row in (*rows, *behind)}
        going = [id_ for id_, one in judged.items() if self.whole and one.runs(self.selection, again=self.again)]
        for id_ in await events.overtaken(db, deliveries, going):
            judged[id_] = replace(judged[id_], overtaken=True)
        return [judged[row["id"]] for row in rows], [judged[row["id"]] for row in behind]

    def _candidate(self, row: asyncpg.Record, *, there: bool = False) -> Candidate:
        return Candidate(
            row["id"],
            row["company_id"],
            row["status"],
            row["vendor"],
            row["event_type"],
            self._repeat(row) if row["direction"] == "outbound" else None,
            overtaken=False,
            there=there,
        )

    def _makes(self, row: asyncpg.Record) -> bool:
        adapter = self.adapters.get(row["vendor"] or "")
        return adapter is not None and row["event_type"] in adapter.manifest.commands_with_marker

    def _repeat(self, row: asyncpg.Record) -> Repeat:
        adapter = self.adapters.get(row["vendor"] or "")
        support = adapter.manifest.commands.get(row["event_type"]) if adapter is not None else None
        return support.repeat if support is not None else Repeat.ASK
