"""`staybus events`: what was recorded, what became of it, and how ended ones run again."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from schemas.vocabulary import EventStatus, JobKind

from . import jobs, session
from .jobs import MOST, AsJob, Detach
from .output import (
    AsJson,
    Refused,
    Yes,
    confirm,
    doing,
    emit,
    example,
    facts,
    listing,
    note,
    noun,
    progress,
    say,
    table,
)
from .secrets import duration
from .vendors import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from store.events import Selection
    from store.pool import Connection
    from workers.bulk import Batch, Candidate, Replay

app = noun("Events: what was recorded, and what became of it. Guests' data is never shown.")


@app.command("list", epilog=example("staybus events list --status failed --vendor beds24 --limit 20"))
def list_(
    status: Annotated[EventStatus | None, typer.Option("--status", help="Only with this status.")] = None,
    vendor: Annotated[str | None, typer.Option("--vendor", help="Only of this vendor's connections.")] = None,
    company: Annotated[str | None, typer.Option("--company", help="Only this company's.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    before: Annotated[UUID | None, typer.Option("--before", help="Go on after this id, the last one shown.")] = None,
    as_json: AsJson = False,
) -> None:
    """The newest events first."""
    session.run(_list(status.value if status else None, vendor, company, event_type, limit, before, as_json))


async def _list(
    status: str | None,
    vendor: str | None,
    company: str | None,
    event_type: str | None,
    limit: int,
    before: UUID | None,
    as_json: bool,
) -> None:
    from store import events

    wanted = events.Filter(status=status, vendor=vendor, company_id=company, event_type=event_type)
    async with session.operator() as db:
        try:
            rows = await events.find(db, wanted, limit, before)
        except events.UnknownCursorError:
            raise typer.BadParameter(
                f"{before}: not known, or not any more; begin again", param_hint="--before"
            ) from None
        total = len(rows) if len(rows) < limit and before is None else await events.count(db, wanted)
    if not rows:
        refuse_unknown(vendor)
    columns = ["id", "received=received_at", "type=event_type", "company=company_id", "connection=connection_id"]
    columns += ["status", "attempts", "entity=entity_external_id", "error=last_error"]
    listing(map(dict, rows), columns, as_json=as_json, empty="no events")
    if total > len(rows) and rows:
        bound = " or more" if total >= events.COUNTED else ""
        note(f"{len(rows)} of {total}{bound}; older ones: --before {rows[-1]['id']}")


@app.command("show", epilog=example("staybus events show 0192f0c1-7a3e-7c00-8000-000000000001"))
def show(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="An event's, or that of an outbox row.")],
    payload: Annotated[
        bool, typer.Option("--payload", help="With what it says, personal values left out as they are stored.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """One event with its history and its deliveries."""
    session.run(_show(id_, payload, as_json))


async def _show(id_: UUID, payload: bool, as_json: bool) -> None:
    import orjson

    from store import events

    async with session.operator() as db:
        row = await events.show(db, id_)
        if row is None:
            row = await events.show(db, await _event_of_outbox_row(db, id_))
        if row is None:
            raise Refused(f"event {id_}: not known")
        history = [dict(one) for one in await events.attempts(db, row["id"])]
        deliveries = [dict(one) for one in await events.deliveries(db, row["id"])]
    document: dict[str, Any] = {name: value for name, value in row.items() if name != "payload"}
    if payload:
        document["payload"] = orjson.loads(row["payload"])
    if as_json:
        emit(document | {"history": history, "deliveries": deliveries})
        return
    facts({name: value for name, value in document.items() if name != "payload"}, as_json=False)
    if payload:
        say("\npayload")
        emit(document["payload"])
    if history:
        say("\nhistory")
        columns = ["attempt", "outcome", "error_class", "error_code", "error", "worker", "started_at", "finished_at"]
        table(columns, [[one[name] for name in columns] for one in history])
    if deliveries:
        say("\ndeliveries")
        columns = ["id", "connection_id", "status", "attempts", "last_error"]
        table(columns, [[one[name] for name in columns] for one in deliveries])


async def _event_of_outbox_row(db: Connection, id_: UUID) -> UUID:
    """raises Refused when there is none, or not yet"""
    from store import outbox

    row = await outbox.show(db, id_)
    if row is None:
        raise Refused(f"event {id_}: not known; `staybus events list` shows the newest")
    if row["error"]:
        raise Refused(f"outbox row {id_}: was not taken: {row['error']}")
    if row["event_id"] is None:
        raise Refused(f"outbox row {id_}: no scheduler has taken it yet; is `staybus run scheduler` running?")
    return UUID(str(row["event_id"]))


# ------------------------------------------------------------------------------------------------ replay

PAGE = 500  # events that are looked at, or made, in one transaction
JOB_FROM = 500  # so many are a job for the schedulers, which outlives this terminal
RATE = 100.0  # a second, so that what happens now keeps its place
REPLAYED = (EventStatus.DONE, EventStatus.SKIPPED)


def moment(value: str) -> datetime:
    """2027-05-01, 2027-05-01T14:30, with or without a zone (UTC); or how long ago: 90m, 24h, 7d"""
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        try:
            return datetime.now(UTC) - duration(value)
        except typer.BadParameter:
            raise typer.BadParameter("a time such as 2027-01-31 or 2027-01-31T08:00Z, or 90m, 24h, 7d ago") from None
    try:
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except OverflowError:
        raise typer.BadParameter("its zone leads out of the years 1 to 9999") from None


def statuses(value: str) -> tuple[str, ...]:
    """done,skipped; what went out merged into a newer one is done, too"""
    given = tuple(dict.fromkeys(word.strip() for word in value.split(",")))
    if unknown := [word for word in given if word not in set(REPLAYED)]:
        failed = unknown[0] in {EventStatus.FAILED, EventStatus.ABANDONED}
        hint = "; what failed is requeued: `staybus dlq requeue`" if failed else ""
        raise typer.BadParameter(f"{unknown[0]}: of {', '.join(REPLAYED)}{hint}")
    return (*given, EventStatus.SUPERSEDED) if EventStatus.DONE in given else given


@app.command(
    "replay",
    epilog=example(
        "staybus events replay --vendor beds24 --from 2027-05-01T14:00 --to 2027-05-01T15:00 --dry-run",
        "staybus events replay --company acme --type beds24.booking.modified --from 24h --rate 20",
        "staybus events replay 0192f0c1-7a3e-7c00-8000-000000000001 --again",
    ),
)
def replay(
    ids: Annotated[
        list[UUID] | None, typer.Argument(metavar="ID", help="Of events; of a command: all of its deliveries.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--from", parser=moment, metavar="TIME", help="Recorded then or later: ISO 8601 (UTC), or 24h ago."
        ),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", parser=moment, metavar="TIME", help="Recorded before then.")
    ] = None,
    vendor: Annotated[str | None, typer.Option("--vendor", help="Only of this vendor's connections.")] = None,
    company: Annotated[str | None, typer.Option("--company", help="Only this company's.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    status: Annotated[
        Any,
        typer.Option(
            "--status", parser=statuses, metavar="STATUS", help="How they ended: done (also with a newer one), skipped."
        ),
    ] = "done",
    again: Annotated[
        bool, typer.Option("--again", help="Also what makes a second effect, or puts an older state back, at a vendor.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=MOST, help="At most so many, the oldest first.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, max=1_000_000, help="At most so many a second.")] = RATE,
    note_: Annotated[str | None, typer.Option("--note", help="Why; kept in the audit log.")] = None,
    job: AsJob = False,
    detach: Detach = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run ended events again, as new events with the same content.

    Facts go through the fence again: what is newer stays, and the newest fact of each thing is applied and told again.
    Deliveries are sent to their vendor again, where sending again is safe.
    """
    narrowed = any((since, until, vendor, company, event_type))
    if bool(ids) == narrowed:
        raise typer.BadParameter("say which: ids, or a filter such as --from, not both")
    if since and until and until <= since:
        raise typer.BadParameter("is not after --from: nothing was recorded between them", param_hint="--to")
    plan = session.run(_plan(ids or [], since, until, vendor, company, event_type, status, again, limit))
    if not plan.kinds:
        refuse_unknown(vendor)
    if dry_run:
        _tell_plan(plan, as_json=as_json)
        return
    plan.check(again=again)
    if plan.total and not ids:
        confirm(f"Replay {plan.summary()}?", yes=yes)
    if plan.total and (job or detach or plan.total > JOB_FROM):
        jobs.start(plan.job(limit, rate, note_), detach=detach, as_json=as_json)
        return
    done = session.run(_replay(plan, limit, rate, note_))
    if as_json:
        emit({"run": plan.task.run, "replayed": done.done, "left": done.left})
    else:
        say(f"replayed {len(done.done)}")
        if done.left:
            note(f"left as they are: {len(done.left)}; {plan.why_left()}")
    if ids and done.left:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Plan:
    """What a replay would meet, by kind: (vendor, type, what stands against it)."""

    task: Replay
    kinds: Counter[tuple[str, str, str | None]]
    limit: int | None

    def runs(self, against: str | None) -> bool:
        return against is None or (self.task.again and against not in _NEVER)

    @property
    def total(self) -> int:
        """How many run again."""
        found = sum(count for (_, _, against), count in self.kinds.items() if self.runs(against))
        return found if self.limit is None else min(found, self.limit)

    def summary(self) -> str:
        types = Counter[str]()
        for (_, event_type, against), count in self.kinds.items():
            types[event_type] += count if self.runs(against) else 0
        named = [f"{count} {event_type}" for event_type, count in types.most_common() if count]
        more = ", …" if len(named) > 5 else ""
        left = self.kinds.total() - types.total()
        rest = f"; {left} more would be left" if left else ""
        return f"{self.total} event{'s' if self.total != 1 else ''} ({', '.join(named[:5])}{more}{rest})"

    def why_left(self) -> str:
        reasons = dict.fromkeys(why for _, _, why in self.kinds if why is not None and not self.runs(why))
        return ", or ".join(reasons) or "they changed meanwhile, --dry-run says how"

    def check(self, *, again: bool) -> None:
        """raises Refused: a second effect at a vendor must be asked for"""
        twice = Counter({kind: count for kind, count in self.kinds.items() if kind[2] in _TWICE})
        if twice and not again:
            vendor, event_type, why = next(iter(twice))
            raise Refused(
                f"{twice.total()} of these cannot be repeated without a second effect, such as {event_type} at {vendor}: {why}. "
                "Nothing was done: leave them out with --type, or say --again"
            )

    def job(self, limit: int | None, rate: float, why: str | None) -> Any:
        from store.jobs import NewJob

        return NewJob(
            kind=JobKind.REPLAY.value,
            filter={"selection": self.task.selection.document(), "again": self.task.again},
            requested_by=session.actor(),
            total=self.total,
            company_id=self.task.selection.company_id,
            most=limit,
            rate=rate,
            note=why,
        )


_SECOND = "the vendor would make another one"
_UNKNOWN = "nothing tells the vendor that it is the same"
_OLDER = "something newer about the same thing went out since, and would be undone"
_FAILED = "failed or was given up, and is a dead letter: `staybus dlq requeue` lets it run again"
_ENDED = "has not ended as done or skipped"
_THERE = "has an id at the vendor: a second one could not be kept; `staybus mapping remove` first, if it is gone there"
_TWICE = frozenset({_SECOND, _UNKNOWN})
_NEVER = frozenset({_FAILED, _ENDED, _THERE})


def _against(one: Candidate, wanted: Selection) -> str | None:
    from adapters.port import Repeat

    if one.status not in wanted.statuses:
        return _FAILED if one.status in {EventStatus.FAILED, EventStatus.ABANDONED} else _ENDED
    if one.there:
        return _THERE
    match one.repeat:
        case Repeat.LOOK_UP:
            return _SECOND
        case Repeat.ASK:
            return _UNKNOWN
        case _:
            return _OLDER if one.overtaken else None


async def _plan(
    ids: Sequence[UUID],
    since: datetime | None,
    until: datetime | None,
    vendor: str | None,
    company: str | None,
    event_type: str | None,
    status: tuple[str, ...],
    again: bool,
    limit: int | None,
) -> _Plan:
    """Looks at all of them, a page at a time. raises Refused for ids that are not known"""
    from adapters.registry import adapters
    from schemas.ids import uuid7
    from store import events
    from store.pool import API_ROLE, as_company
    from workers.bulk import Replay

    async with session.pool(API_ROLE) as pool:
        async with as_company(pool, None) as db:
            if ids:
                selection = events.Selection((*REPLAYED, EventStatus.SUPERSEDED), ids=await _deliveries(db, ids))
            else:
                first, last = await events.stretch(db, since, until)
                at = await events.connections_of(db, vendor) if vendor is not None else None
                selection = events.Selection(status, first, last, since, until, at, company, event_type)
        task = Replay(selection, adapters(), again, uuid7(), whole=limit is None)
        kinds: Counter[tuple[str, str, str | None]] = Counter()
        met: set[UUID] = set()  # with something before it in its lane
        cursor, more = None, True
        with progress("look", selection.last - selection.first) as advance:
            while more and not (limit is not None and kinds.total() >= limit):
                async with as_company(pool, None) as db:
                    before = int(cursor or selection.first)
                    page = await task.page(db, cursor, PAGE, met)
                cursor, more = page.cursor, page.more
                met.update(one.id for one in page.behind)
                for one in (*page.found, *page.behind)[: None if limit is None else limit - kinds.total()]:
                    kinds[one.vendor or "none", one.event_type, _against(one, selection)] += 1
                advance(int(cursor or 0) - before)
    return _Plan(task, kinds, limit)


async def _deliveries(db: Connection, ids: Sequence[UUID]) -> tuple[UUID, ...]:
    """In the order of recording. raises Refused"""
    from store import events

    rows = await events.deliveries_of(db, ids)
    if unknown := [str(id_) for id_ in ids if id_ not in {row["asked"] for row in rows}]:
        raise Refused(f"event {', '.join(unknown)}: not known; nothing was done. See `staybus events list`")
    if nothing := [str(row["asked"]) for row in rows if row["nothing"]]:
        raise Refused(f"command {', '.join(nothing)}: has no deliveries to send again; nothing was done")
    return tuple(row["id"] for row in await events.replayable_ids(db, list({row["id"] for row in rows})))


def _tell_plan(plan: _Plan, *, as_json: bool) -> None:
    rows = [
        {
            "vendor": vendor,
            "type": event_type,
            "events": count,
            "replayed": plan.runs(against),
            "against": against,
        }
        for (vendor, event_type, against), count in plan.kinds.most_common()
    ]
    listing(rows, ["events", "vendor", "type", "replayed", "against"], as_json=as_json, empty="no events")
    note(f"dry run: {plan.total} would be replayed, nothing was changed")


async def _replay(plan: _Plan, limit: int | None, rate: float, why: str | None) -> Batch:
    from store.pool import API_ROLE, as_company
    from workers.bulk import Batch, Order

    order = Order(session.actor(), why)
    size = max(1, min(PAGE, int(rate)))
    whole = Batch(None, more=plan.kinds.total() > 0)
    async with session.pool(API_ROLE) as pool:
        with doing("replay", plan.total) as advance:
            while whole.more and (limit is None or len(whole.done) + whole.failed < limit):
                room = size if limit is None else min(size, limit - len(whole.done) - whole.failed)
                async with as_company(pool, None) as db:
                    batch = await plan.task.batch(db, whole.cursor, room, order)
                whole.cursor, whole.more = batch.cursor, batch.more
                whole.done += batch.done
                whole.left += batch.left
                advance(len(batch.done))
                if whole.more and batch.done:
                    await asyncio.sleep(len(batch.done) / rate)
    return whole
