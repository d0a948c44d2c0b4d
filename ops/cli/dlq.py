"""`staybus dlq`: what could not be done, and what to do about it."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from schemas.vocabulary import DeadLetterStatus, Fault, JobKind, Owner

from . import edits, jobs, session
from .jobs import MOST, AsJob, Detach
from .output import (
    FOUND,
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
    say,
)
from .secrets import duration
from .vendors import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from store.dead_letters import Filter
    from workers.bulk import Batch, Letters, Task

    Leaves = Callable[[Mapping[str, Any]], str | None]

app = noun("Dead letters: look, edit, requeue, abandon.")
app.command("edit", epilog=edits.EXAMPLES)(edits.edit)

PAGE = 500
BATCH = 100  # letters in one transaction: each is locked no longer than that takes
JOB_FROM = 500  # so many are a job for the schedulers, which outlives this terminal
SHOWN = 1000  # of a dry run

Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="Of dead letters or of their events.")]
Vendor = Annotated[str | None, typer.Option("--vendor", help="Only at this vendor.")]
Company = Annotated[str | None, typer.Option("--company", help="Only this company's.")]
Type = Annotated[str | None, typer.Option("--type", help="Only of this event type, such as pms.booking.create.")]
Error = Annotated[Fault | None, typer.Option("--error", help="Only with this class of error.")]
Fingerprint = Annotated[str | None, typer.Option("--fingerprint", help="Only of this cause; see `staybus dlq stats`.")]
OwnedBy = Annotated[Owner | None, typer.Option("--owner", help="Only what this side can mend.")]
OlderThan = Annotated[
    timedelta | None,
    typer.Option("--older-than", parser=duration, metavar="TIME", help="Only those that are older: 90m, 24h, 7d."),
]
All = Annotated[bool, typer.Option("--all", help="Every open one, where no filter is given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which ones.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, max=MOST, help="Of a filter: at most so many, the oldest first.")
]
Rate = Annotated[float | None, typer.Option("--rate", min=0.1, max=1_000_000, help="At most so many a second.")]

COLUMNS = (
    *("id", "created=created_at", "vendor", "company=company_id", "operation", "class=error_class", "status"),
    *("owner", "attempts", "fingerprint", "error=error_message", "event id=event_id"),
)


@app.command("list", epilog=example("staybus dlq list --vendor beds24 --error unmapped"))
def list_(
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    owner: OwnedBy = None,
    older_than: OlderThan = None,
    status: Annotated[DeadLetterStatus | None, typer.Option("--status", help="Default: the open ones.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """The newest first; without --status those that are open."""
    wanted = _filter(vendor, company, event_type, error, fingerprint, owner, older_than, status)
    rows = session.run(_find(wanted, limit))
    if not rows:
        refuse_unknown(vendor)
    listing(rows, COLUMNS, as_json=as_json, empty="no dead letters")
    if len(rows) == limit:
        note(f"the newest {limit}; there may be more: --limit")


@app.command("show", epilog=example("staybus dlq show 0192f0c1-7a3e-7c00-8000-000000000001"))
def show(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="Of a dead letter or of its event.")],
    as_json: AsJson = False,
) -> None:
    """One dead letter, with the paths that were edited. Guests' data in an edit is never shown."""
    document = session.run(_show(id_))
    facts(document, as_json=as_json)
    if not as_json and document["event_id"]:
        note(f"its history: staybus events show {document['event_id']}")


@app.command("stats", epilog=example("staybus dlq stats", "staybus dlq stats --check --json"))
def stats(
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    owner: OwnedBy = None,
    older_than: OlderThan = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when any is open.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open dead letters by cause: the same fingerprint is the same fault."""
    rows = session.run(_groups(_filter(vendor, company, event_type, error, None, owner, older_than, None)))
    if not rows:
        refuse_unknown(vendor)
    columns = ["fingerprint", "letters", "vendor", "operation", "class=error_class", "code=error_code", "owner"]
    listing(rows, [*columns, "oldest", "newest", "error"], as_json=as_json, empty="no open dead letters")
    if check and rows:
        raise typer.Exit(FOUND)


@app.command(
    "requeue",
    epilog=example(
        "staybus dlq requeue 0192f0c1-7a3e-7c00-8000-000000000001",
        "staybus dlq requeue --vendor beds24 --fingerprint 1f3a… --dry-run",
        "staybus dlq requeue --vendor beds24 --error transient --canary 5 --rate 20",
    ),
)
def requeue(
    ids: Ids = None,
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    owner: OwnedBy = None,
    older_than: OlderThan = None,
    all_: All = False,
    limit: Limit = None,
    rate: Rate = None,
    canary: Annotated[
        int | None,
        typer.Option("--canary", min=1, max=1000, help="So many go first; the rest only if they came through."),
    ] = None,
    canary_share: Annotated[
        float, typer.Option("--canary-share", min=0.01, max=1.0, help="Which part of the canary is enough.")
    ] = 1.0,
    note_: Annotated[str | None, typer.Option("--note", help="What was mended; kept with the letter.")] = None,
    job: AsJob = False,
    detach: Detach = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let events run again with a fresh budget of attempts; their history and their edits stay."""
    if canary is None and canary_share != 1:
        raise typer.BadParameter("says which part of a --canary is enough", param_hint="--canary-share")
    wanted = _filter(vendor, company, event_type, error, fingerprint, owner, older_than, DeadLetterStatus.PENDING)
    plan = _pick(ids, wanted, all_, limit, _not_requeued)
    if dry_run:
        _show_chosen(plan, as_json, "requeued")
        return
    if plan.total and not ids:
        confirm(f"Requeue {plan.summary()}?", yes=yes)
    from workers.bulk import Requeue

    if plan.total and (job or detach or canary or plan.total > JOB_FROM):
        order = plan.job(JobKind.REQUEUE, rate, note_, canary=canary, canary_share=canary_share)
        jobs.start(order, detach=detach, as_json=as_json)
        return
    done = session.run(_do("requeue", Requeue(plan.letters), plan, rate, note_))
    if as_json:
        emit({"requeued": done.done, "left": done.left, "unreadable": done.unreadable})
    else:
        say(f"requeued {len(done.done)}")
        if done.left:
            note(
                f"left as they are, because they run, have ended, or were overtaken by something newer: {plan.named(done.left)}"
            )
        if done.unreadable:
            note(f"cannot be requeued, no event could be read from them: {plan.named(done.unreadable)}; abandon them")
    if ids and done.failed:
        raise typer.Exit(1)


@app.command(
    "abandon",
    epilog=example(
        "staybus dlq abandon 0192f0c1-7a3e-7c00-8000-000000000001 --reason 'cancelled by phone'",
        "staybus dlq abandon --company acme --older-than 30d --reason 'the season is over' --dry-run",
    ),
)
def abandon(
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the letter and in the audit log.")],
    ids: Ids = None,
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    owner: OwnedBy = None,
    older_than: OlderThan = None,
    all_: All = False,
    limit: Limit = None,
    rate: Rate = None,
    job: AsJob = False,
    detach: Detach = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give up for good. What waited behind them in their lanes goes on."""
    why = reason_of(reason)
    wanted = _filter(vendor, company, event_type, error, fingerprint, owner, older_than, None)
    plan = _pick(ids, wanted, all_, limit, _not_abandoned)
    if dry_run:
        _show_chosen(plan, as_json, "abandoned")
        return
    if plan.total:
        confirm(f"Abandon {plan.summary()} for good?", yes=yes)
    from workers.bulk import Abandon

    if plan.total and (job or detach or plan.total > JOB_FROM):
        jobs.start(plan.job(JobKind.ABANDON, rate, why), detach=detach, as_json=as_json)
        return
    done = session.run(_do("abandon", Abandon(plan.letters), plan, rate, why))
    if as_json:
        emit({"abandoned": done.done, "left": done.left})
    else:
        say(f"abandoned {len(done.done)}")
        if done.left:
            note(f"left as they are, because they are not open, or are being sent just now: {plan.named(done.left)}")
    if ids and done.left:
        raise typer.Exit(1)


def reason_of(text: str) -> str:
    """raises typer.BadParameter"""
    if not 1 <= len(text.strip()) <= 500:
        raise typer.BadParameter("1 to 500 characters", param_hint="--reason")
    return text.strip()


# ------------------------------------------------------------------------------------------------ choosing


def _not_requeued(letter: Mapping[str, Any]) -> str | None:
    """Why a letter would be left as it is; None: its event runs again."""
    if not letter["readable"]:
        return "no event could be read from them"
    if letter["status"] not in {DeadLetterStatus.PENDING, DeadLetterStatus.ABANDONED}:
        return "they run already or have ended"
    why = "something newer about the same thing went out since, or is to, and would be undone"
    return why if letter["overtaken"] else None


def _not_abandoned(letter: Mapping[str, Any]) -> str | None:
    return None if letter["status"] in {DeadLetterStatus.PENDING, DeadLetterStatus.RETRYING} else "they are not open"


@dataclass(frozen=True)
class _Plan:
    """Which letters; kinds: those that it would be done to, left: why the others stay.

    rows: those that were named by id; given: from their own and their events' ids to the one that named them
    """

    letters: Letters
    kinds: Counter[tuple[str, str]]
    left: Counter[str]
    limit: int | None = None
    rows: tuple[dict[str, Any], ...] = ()
    given: Mapping[UUID, UUID] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """To how many it would be done, as counted now."""
        return self.kinds.total()

    @property
    def met(self) -> int:
        """With those that would be left."""
        return self.total + self.left.total()

    def summary(self) -> str:
        named = [f"{count} {vendor} {operation}" for (vendor, operation), count in self.kinds.most_common(5)]
        more = ", …" if len(self.kinds) > 5 else ""
        rest = f"; {self.rest()}" if self.left else ""
        first = "the oldest " if self.met == self.limit else ""
        return f"{first}{self.total} dead letter{'s' if self.total != 1 else ''} ({', '.join(named)}{more}{rest})"

    def rest(self) -> str:
        return ", ".join(f"{count} would be left: {why}" for why, count in self.left.most_common())

    def named(self, ids: Sequence[UUID]) -> str:
        """Some of its letters or events, as they were given where they were."""
        more = f" and {len(ids) - 20} more" if len(ids) > 20 else ""
        return ", ".join(str(self.given.get(id_, id_)) for id_ in ids[:20]) + more

    def job(
        self,
        kind: JobKind,
        rate: float | None,
        why: str | None,
        *,
        canary: int | None = None,
        canary_share: float = 1.0,
    ) -> Any:
        from store.jobs import NewJob

        return NewJob(
            kind=kind.value,
            filter=self.letters.document(),
            requested_by=session.actor(),
            total=self.total,
            company_id=self.letters.wanted.company_id,
            most=self.limit,
            rate=rate,
            canary=canary,
            canary_share=canary_share,
            note=why,
        )


def _filter(
    vendor: str | None,
    company: str | None,
    event_type: str | None,
    error: Fault | None,
    fingerprint: str | None,
    owner: Owner | None,
    older_than: timedelta | None,
    status: DeadLetterStatus | None,
) -> Filter:
    from store.dead_letters import Filter

    return Filter(
        status=status.value if status else None,
        vendor=vendor,
        company_id=company,
        operation=event_type,
        error_class=error.value if error else None,
        fingerprint=fingerprint,
        owner=owner.value if owner else None,
        until=_id_of(older_than) if older_than is not None else None,
    )


def _pick(ids: list[UUID] | None, wanted: Filter, everything: bool, limit: int | None, leaves: Leaves) -> _Plan:
    """raises typer.BadParameter when nothing says which ones: a forgotten filter must not mean all of them"""
    narrowed = any(
        (wanted.vendor, wanted.company_id, wanted.operation, wanted.error_class, wanted.fingerprint, wanted.owner)
    )
    narrowed = narrowed or wanted.until is not None
    if ids:
        if narrowed or everything:
            raise typer.BadParameter("ids or a filter, not both")
        if limit is not None:
            raise typer.BadParameter("ids say how many already: it goes with a filter or --all", param_hint="--limit")
        return session.run(_named(list(dict.fromkeys(ids)), leaves))
    if not narrowed and not everything:
        raise typer.BadParameter("say which: ids, a filter such as --vendor, or --all")
    plan = session.run(_counted(wanted, limit, leaves))
    if not plan.met:
        refuse_unknown(wanted.vendor)
    return plan


async def _named(ids: Sequence[UUID], leaves: Leaves) -> _Plan:
    from store import dead_letters
    from workers.bulk import Letters

    rows = await _by_id(ids)
    async with session.operator() as db:
        late = await dead_letters.overtaken(db, [row["event_id"] for row in rows if row["event_id"]])
    one_each = [
        row | {"letters": 1, "readable": row["event_id"] is not None, "overtaken": row["event_id"] in late}
        for row in rows
    ]
    given = {}
    for row in rows:
        given[row["id"]] = given[row["event_id"]] = row["id"] if row["id"] in ids else row["event_id"]
    letters = Letters(ids=tuple(row["id"] for row in rows))
    return _Plan(letters, *_sorted(one_each, leaves), rows=tuple(rows), given=given)


async def _counted(wanted: Filter, limit: int | None, leaves: Leaves) -> _Plan:
    """What comes after this moment is not picked, however long the doing takes."""
    from dataclasses import replace

    from store import dead_letters
    from workers.bulk import Letters

    async with session.operator() as db:
        if wanted.until is None:
            wanted = replace(wanted, until=await dead_letters.newest(db))
        counts = await dead_letters.kinds(db, wanted, limit, judged=leaves is _not_requeued)
    return _Plan(Letters(wanted), *_sorted(map(dict, counts), leaves), limit)


def _sorted(counts: Iterable[Mapping[str, Any]], leaves: Leaves) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """(what it would be done to, why the others would be left)"""
    kinds, left = Counter[tuple[str, str]](), Counter[str]()
    for row in counts:
        why = leaves(row)
        if why is None:
            kinds[row["vendor"] or "no vendor", row["operation"]] += row["letters"]
        else:
            left[why] += row["letters"]
    return kinds, left


async def _find(wanted: Filter, limit: int) -> list[dict[str, Any]]:
    from store import dead_letters

    found: list[dict[str, Any]] = []
    before = None
    async with session.operator() as db:
        while len(found) < limit:
            size = min(PAGE, limit - len(found))
            rows = await dead_letters.find(db, wanted, size, before)
            found += [_document(row) for row in rows]
            if len(rows) < size:
                break
            before = rows[-1]["id"]
    return found


def _id_of(age: timedelta) -> UUID:
    """The first UUIDv7 of that moment, from 1970 on: ids are in order of time, so age needs no filter of its own."""
    return UUID(int=int(max(0.0, time.time() - age.total_seconds()) * 1000) << 80)


async def _by_id(ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """raises Refused, before anything is changed, when one of them is unknown"""
    from store import dead_letters

    async with session.operator() as db:
        found = {id_: await dead_letters.show(db, id_) for id_ in ids}
    if unknown := [str(id_) for id_, row in found.items() if row is None]:
        raise Refused(f"dead letter {', '.join(unknown)}: not known; nothing was changed. See `staybus dlq list`")
    return list({row["id"]: _document(row) for row in found.values() if row is not None}.values())


def _show_chosen(plan: _Plan, as_json: bool, what: str) -> None:
    rows = list(plan.rows) or session.run(_oldest(plan))
    listing(rows, COLUMNS, as_json=as_json, empty="no dead letters")
    rest = f", {plan.rest()}" if plan.left else ""
    first = f"; the oldest {len(rows)} are shown" if len(rows) < plan.met else ""
    note(f"dry run: {plan.total} would be {what}{rest}; nothing was changed{first}")


async def _oldest(plan: _Plan) -> list[dict[str, Any]]:
    from store import dead_letters

    async with session.operator() as db:
        rows = await dead_letters.oldest(db, plan.letters.wanted, min(plan.met, SHOWN))
    return [_document(row) for row in rows]


# ------------------------------------------------------------------------------------------------ doing


async def _do(what: str, task: Task, plan: _Plan, rate: float | None, why: str | None) -> Batch:
    """All of it from here, in one batch after the other. returns what was done in all of them"""
    from store.pool import API_ROLE, as_company
    from workers.bulk import Batch, Order

    order = Order(session.actor(), why)
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    whole = Batch(None, more=plan.met > 0)
    async with session.pool(API_ROLE) as pool:
        with doing(what, plan.met) as advance:
            while whole.more and (room := plan.met - len(whole.done) - whole.failed) > 0:
                async with as_company(pool, None) as db:
                    batch = await task.batch(db, whole.cursor, min(size, room), order)
                whole.cursor, whole.more = batch.cursor, batch.more
                whole.done += batch.done
                whole.left += batch.left
                whole.unreadable += batch.unreadable
                advance(len(batch.done) + batch.failed)
                if rate is not None and whole.more:
                    await asyncio.sleep(len(batch.done) / rate)
    return whole


async def _show(id_: UUID) -> dict[str, Any]:
    return (await _by_id([id_]))[0]


async def _groups(wanted: Filter) -> list[dict[str, Any]]:
    from store import dead_letters

    async with session.operator() as db:
        return [dict(row) for row in await dead_letters.groups(db, wanted)]


def _document(row: Any) -> dict[str, Any]:
    import orjson

    document = dict(row)
    for name in ("routing", "edit"):
        if document.get(name) is not None:
            document[name] = orjson.loads(document[name])
    return document
