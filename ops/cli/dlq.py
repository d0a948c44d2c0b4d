"""`staybus dlq`: what could not be done, and what to do about it."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from schemas.vocabulary import DeadLetterStatus, Fault

from . import session
from .output import FOUND, AsJson, Refused, Yes, confirm, emit, example, facts, listing, note, noun, say, steps
from .secrets import duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from store.dead_letters import Filter

app = noun("Dead letters: look, requeue, abandon.")

PAGE = 500
BATCH = 100  # letters in one transaction: each is locked no longer than that takes

Ids = Annotated[list[UUID] | None, typer.Argument(metavar="ID", help="Of dead letters or of their events.")]
Vendor = Annotated[str | None, typer.Option("--vendor", help="Only at this vendor.")]
Company = Annotated[str | None, typer.Option("--company", help="Only this company's.")]
Type = Annotated[str | None, typer.Option("--type", help="Only of this event type, such as pms.booking.create.")]
Error = Annotated[Fault | None, typer.Option("--error", help="Only with this class of error.")]
Fingerprint = Annotated[str | None, typer.Option("--fingerprint", help="Only of this cause; see `staybus dlq stats`.")]
OlderThan = Annotated[
    timedelta | None,
    typer.Option("--older-than", parser=duration, metavar="TIME", help="Only those that are older: 90m, 24h, 7d."),
]
All = Annotated[bool, typer.Option("--all", help="Every open one, where no filter is given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which ones.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many, the newest first.")]
Rate = Annotated[float | None, typer.Option("--rate", min=0.1, help="At most so many a second.")]

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
    older_than: OlderThan = None,
    status: Annotated[DeadLetterStatus | None, typer.Option("--status", help="Default: the open ones.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """The newest first; without --status those that are open."""
    wanted = _filter(vendor, company, event_type, error, fingerprint, status)
    rows = session.run(_find(wanted, limit, older_than))
    listing(rows, COLUMNS, as_json=as_json, empty="no dead letters")
    if len(rows) == limit:
        note(f"the newest {limit}; there may be more: --limit")


@app.command("show", epilog=example("staybus dlq show 0192f0c1-7a3e-7c00-8000-000000000001"))
def show(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="Of a dead letter or of its event.")],
    as_json: AsJson = False,
) -> None:
    """One dead letter."""
    document = session.run(_show(id_))
    facts(document, as_json=as_json)
    if not as_json and document["event_id"]:
        note(f"its history: staybus events show {document['event_id']}")


@app.command("stats", epilog=example("staybus dlq stats", "staybus dlq stats --check --json"))
def stats(
    vendor: Vendor = None,
    company: Company = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when any is open.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open dead letters by cause: the same fingerprint is the same fault."""
    rows = session.run(_groups(vendor, company))
    columns = ["fingerprint", "letters", "vendor", "operation", "class=error_class", "code=error_code", "owner"]
    listing(rows, [*columns, "oldest", "newest", "error"], as_json=as_json, empty="no open dead letters")
    if check and rows:
        raise typer.Exit(FOUND)


@app.command(
    "requeue",
    epilog=example(
        "staybus dlq requeue 0192f0c1-7a3e-7c00-8000-000000000001",
        "staybus dlq requeue --vendor beds24 --fingerprint 1f3a… --dry-run",
    ),
)
def requeue(
    ids: Ids = None,
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    older_than: OlderThan = None,
    all_: All = False,
    limit: Limit = None,
    rate: Rate = None,
    note_: Annotated[str | None, typer.Option("--note", help="What was mended; kept with the letter.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let events run again with a fresh budget of attempts; their history stays."""
    wanted = _filter(vendor, company, event_type, error, fingerprint, DeadLetterStatus.PENDING)
    picked = _pick(ids, wanted, older_than, all_, limit)
    chosen = [letter for letter in picked if letter["event_id"]]
    unreadable = [str(letter["id"]) for letter in picked if not letter["event_id"]]
    if dry_run:
        _show_chosen(chosen, as_json, "requeued")
        return
    if chosen and not ids:
        confirm(f"Requeue {_summary(chosen)}?", yes=yes)
    done = session.run(_requeue(chosen, rate, note_))
    left = [str(letter["event_id"]) for letter in chosen if letter["event_id"] not in done]
    if as_json:
        emit({"requeued": [str(id_) for id_ in done], "left": left, "unreadable": unreadable})
    else:
        say(f"requeued {len(done)}")
        if left:
            note(f"left as they are, because they run already or have ended: {', '.join(left)}")
        if unreadable:
            note(f"cannot be requeued, no event could be read from them: {', '.join(unreadable)}; abandon them")
    if ids and len(done) < len(ids):
        raise typer.Exit(1)


@app.command(
    "abandon",
    epilog=example("staybus dlq abandon 0192f0c1-7a3e-7c00-8000-000000000001 --reason 'cancelled by phone'"),
)
def abandon(
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the letter and in the audit log.")],
    ids: Ids = None,
    vendor: Vendor = None,
    company: Company = None,
    event_type: Type = None,
    error: Error = None,
    fingerprint: Fingerprint = None,
    older_than: OlderThan = None,
    all_: All = False,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give up for good. What waited behind them in their lanes goes on."""
    if not 1 <= len(reason.strip()) <= 500:
        raise typer.BadParameter("1 to 500 characters", param_hint="--reason")
    chosen = _pick(ids, _filter(vendor, company, event_type, error, fingerprint, None), older_than, all_, limit)
    if dry_run:
        _show_chosen(chosen, as_json, "abandoned")
        return
    if chosen:
        confirm(f"Abandon {_summary(chosen)} for good?", yes=yes)
    done = session.run(_abandon(chosen, reason.strip()))
    left = [str(letter["id"]) for letter in chosen if letter["id"] not in done]
    if as_json:
        emit({"abandoned": [str(id_) for id_ in done], "left": left})
    else:
        say(f"abandoned {len(done)}")
        if left:
            note(f"left as they are, because they are not open: {', '.join(left)}")
    if ids and left:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ choosing


def _filter(
    vendor: str | None,
    company: str | None,
    event_type: str | None,
    error: Fault | None,
    fingerprint: str | None,
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
    )


def _pick(
    ids: list[UUID] | None, wanted: Filter, older_than: timedelta | None, everything: bool, limit: int | None
) -> list[dict[str, Any]]:
    """raises typer.BadParameter when nothing says which ones: a forgotten filter must not mean all of them"""
    narrowed = older_than is not None or any(
        (wanted.vendor, wanted.company_id, wanted.operation, wanted.error_class, wanted.fingerprint)
    )
    if ids:
        if narrowed or everything:
            raise typer.BadParameter("ids or a filter, not both")
        return session.run(_by_id(list(dict.fromkeys(ids))))
    if not narrowed and not everything:
        raise typer.BadParameter("say which: ids, a filter such as --vendor, or --all")
    return session.run(_find(wanted, limit, older_than))


async def _find(wanted: Filter, limit: int | None, older_than: timedelta | None) -> list[dict[str, Any]]:
    from store import dead_letters

    found: list[dict[str, Any]] = []
    before = _id_of(older_than) if older_than is not None else None
    async with session.operator() as db:
        while limit is None or len(found) < limit:
            size = PAGE if limit is None else min(PAGE, limit - len(found))
            rows = await dead_letters.find(db, wanted, size, before)
            found += [_document(row) for row in rows]
            if len(rows) < size:
                break
            before = rows[-1]["id"]
    return found


def _id_of(age: timedelta) -> UUID:
    """The first UUIDv7 of that moment: ids are in order of time, so age needs no filter of its own."""
    return UUID(int=int((time.time() - age.total_seconds()) * 1000) << 80)


async def _by_id(ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """raises Refused, before anything is changed, when one of them is unknown"""
    from store import dead_letters

    async with session.operator() as db:
        found = {id_: await dead_letters.show(db, id_) for id_ in ids}
    if unknown := [str(id_) for id_, row in found.items() if row is None]:
        raise Refused(f"dead letter {', '.join(unknown)}: not known; nothing was changed. See `staybus dlq list`")
    return list({row["id"]: _document(row) for row in found.values() if row is not None}.values())


def _summary(letters: Sequence[dict[str, Any]]) -> str:
    kinds = Counter((letter["vendor"] or "no vendor", letter["operation"]) for letter in letters)
    named = [f"{count} {vendor} {operation}" for (vendor, operation), count in kinds.most_common(5)]
    more = ", …" if len(kinds) > 5 else ""
    return f"{len(letters)} dead letter{'s' if len(letters) != 1 else ''} ({', '.join(named)}{more})"


def _show_chosen(letters: list[dict[str, Any]], as_json: bool, what: str) -> None:
    listing(letters, COLUMNS, as_json=as_json, empty="no dead letters")
    note(f"dry run: {len(letters)} would be {what}, nothing was changed")


# ------------------------------------------------------------------------------------------------ doing


async def _requeue(letters: Sequence[dict[str, Any]], rate: float | None, why: str | None) -> list[UUID]:
    from store import connections, dead_letters
    from store.pool import API_ROLE, as_company

    done: list[UUID] = []
    event_ids = list(dict.fromkeys(letter["event_id"] for letter in letters))
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    batches = [event_ids[start : start + size] for start in range(0, len(event_ids), size)]
    async with session.pool(API_ROLE) as pool:
        for number, batch in enumerate(steps("requeue", batches)):
            if rate is not None and number:
                await asyncio.sleep(size / rate)
            async with as_company(pool, None) as db:
                for event_id, company in await dead_letters.requeue(db, batch, session.actor(), why):
                    await connections.audit(
                        db, session.actor(), company, "dead_letter.requeue", str(event_id), {"note": why} if why else {}
                    )
                    done.append(event_id)
    return done


async def _abandon(letters: Sequence[dict[str, Any]], reason: str) -> list[UUID]:
    from store import connections, dead_letters
    from store.pool import API_ROLE, as_company

    done: list[UUID] = []
    ids = [letter["id"] for letter in letters]
    async with session.pool(API_ROLE) as pool:
        for batch in steps("abandon", [ids[start : start + BATCH] for start in range(0, len(ids), BATCH)]):
            async with as_company(pool, None) as db:
                for row in await dead_letters.abandon(db, batch, session.actor(), reason):
                    await connections.audit(
                        db,
                        session.actor(),
                        row["company_id"],
                        "dead_letter.abandon",
                        str(row["id"]),
                        {"reason": reason},
                    )
                    done.append(row["id"])
    return done


async def _show(id_: UUID) -> dict[str, Any]:
    return (await _by_id([id_]))[0]


async def _groups(vendor: str | None, company: str | None) -> list[dict[str, Any]]:
    from store import dead_letters

    async with session.operator() as db:
        return [dict(row) for row in await dead_letters.groups(db, vendor, company)]


def _document(row: Any) -> dict[str, Any]:
    import orjson

    document = dict(row)
    document["routing"] = orjson.loads(row["routing"]) if row["routing"] else None
    return document
