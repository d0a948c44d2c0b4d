"""`staybus lanes`: commands about one entity wait for each other; what holds them up, and how they go on."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.vocabulary import EventStatus, Fault, LanePolicy

from . import session
from .dlq import reason_of
from .output import AsJson, Refused, Yes, confirm, doing, emit, example, listing, note, noun, say
from .secrets import duration
from .vendors import refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from store.lanes import Filter

app = noun("Lanes: commands about one entity at one connection, which run one after the other.")

BATCH = 100  # lanes in one transaction
MOST = 1000  # lanes that a filter lets go on, unless --limit says more

LaneArgument = Annotated[str, typer.Argument(metavar="LANE", help="As in `staybus lanes list`.")]
Vendor = Annotated[str | None, typer.Option("--vendor", help="Only at this vendor.")]
Company = Annotated[str | None, typer.Option("--company", help="Only this company's.")]
ConnectionId = Annotated[str | None, typer.Option("--connection", help="Only at this connection.")]
Error = Annotated[Fault | None, typer.Option("--error", help="Only where the head failed with this class of error.")]
OlderThan = Annotated[
    timedelta | None,
    typer.Option("--older-than", parser=duration, metavar="TIME", help="Only where the head is older: 90m, 24h, 7d."),
]

COLUMNS = (
    *("lane", "company=company_id", "vendor", "policy", "status=head_status", "age", "waiting", "command=head_type"),
    *("class=error_class", "error=last_error", "head id=head_id"),
)


@app.command("list", epilog=example("staybus lanes list --vendor beds24 --older-than 1h"))
def list_(
    vendor: Vendor = None,
    company: Company = None,
    connection: ConnectionId = None,
    error: Error = None,
    older_than: OlderThan = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are on their way.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """Lanes that stand because the command at their head failed, the oldest first."""
    rows = session.run(_find(_filter(vendor, company, connection, error, older_than), limit, everything=all_))
    if not rows:
        refuse_unknown(vendor)
    listing(rows, COLUMNS, as_json=as_json, empty="no open lanes" if all_ else "no lane is held")
    if len(rows) == limit:
        note(f"the oldest {limit}; there may be more: --limit")


@app.command("show", epilog=example("staybus lanes show 'reservation:R1@beds24-acme'"))
def show(
    lane: LaneArgument, limit: Annotated[int, typer.Option("--limit", min=1, max=10_000)] = 100, as_json: AsJson = False
) -> None:
    """What of a lane has not ended, in its order."""
    rows = session.run(_commands(lane, limit))
    columns = ["id", "received=received_at", "command=event_type", "status", "attempts", "next=next_attempt_at"]
    empty = f"nothing waits in {lane}, or there is no such lane"
    listing(rows, [*columns, "class=error_class", "error=last_error"], as_json=as_json, empty=empty)
    if rows and not as_json:
        note(_stands(rows))


@app.command(
    "release",
    epilog=example(
        "staybus lanes release 'reservation:R1@beds24-acme' --reason 'booked by phone'",
        "staybus lanes release 'reservation:R1@beds24-acme' --requeue",
        "staybus lanes release --vendor beds24 --error rejected --reason 'refused for good' --dry-run",
    ),
)
def release(
    lanes: Annotated[
        list[str] | None, typer.Argument(metavar="LANE", help="As in `staybus lanes list`; several, or filters.")
    ] = None,
    vendor: Vendor = None,
    company: Company = None,
    connection: ConnectionId = None,
    error: Error = None,
    older_than: OlderThan = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Abandon the failed head, and why; what waits behind it runs.")
    ] = None,
    requeue: Annotated[bool, typer.Option("--requeue", help="Try the failed head again instead.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, max=10_000, show_default=str(MOST), help="Of a filter: at most so many, the oldest first."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run next.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Let held lanes go on: past their failed head (--reason), or with it again (--requeue)."""
    if requeue == (reason is not None):
        raise typer.BadParameter("--reason to abandon what holds the lane, or --requeue to try it again")
    why = reason_of(reason) if reason is not None else None
    chosen = _choose(lanes, _filter(vendor, company, connection, error, older_than), limit)
    session.run(_foresee(chosen, requeue=requeue))
    if dry_run or not as_json:
        _tell(chosen, as_json=as_json)
    if dry_run:
        note(f"dry run: {_count(chosen)} would be released, nothing was changed")
        return
    if not chosen:
        if as_json:
            emit({"released": [], "left": []})
        return
    doing = "Requeue the head of" if requeue else "Abandon the head of"
    confirm(f"{doing} {_count(chosen)}{'' if requeue else ' for good'}?", yes=yes)
    done = session.run(_release(chosen, why))
    released = [row["lane"] for row in chosen if row["head_id"] in done]
    left = [row["lane"] for row in chosen if row["head_id"] not in done]
    if as_json:
        emit({"released": [row for row in chosen if row["head_id"] in done], "left": left})
    else:
        say(f"released {len(released)}")
        if left:
            note(f"left as they are, because their heads were dealt with meanwhile: {', '.join(left)}")
    if left:
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------ choosing


def _filter(
    vendor: str | None, company: str | None, connection: str | None, error: Fault | None, older_than: timedelta | None
) -> Filter:
    from store.lanes import Filter

    return Filter(
        vendor=vendor,
        company_id=company,
        connection_id=connection,
        error_class=error.value if error else None,
        age=older_than.total_seconds() if older_than is not None else None,
    )


def _choose(lanes: list[str] | None, wanted: Filter, limit: int | None) -> list[dict[str, Any]]:
    """raises typer.BadParameter when nothing says which ones, or two things do"""
    from store.lanes import Filter

    if bool(lanes) == (wanted != Filter()):
        raise typer.BadParameter("say which: lanes, or a filter such as --vendor, not both")
    if lanes and limit is not None:
        raise typer.BadParameter("lanes say how many already: it goes with a filter", param_hint="--limit")
    if lanes:
        return session.run(_named(lanes))
    most = limit or MOST
    found = session.run(_find(wanted, most, everything=False))
    if not found:
        refuse_unknown(wanted.vendor)
    if len(found) == most:
        note(f"the oldest {most}; there may be more: --limit")
    return found


async def _find(wanted: Filter, limit: int, *, everything: bool) -> list[dict[str, Any]]:
    from store import lanes

    async with session.operator() as db:
        rows = await (lanes.open_ if everything else lanes.held)(db, wanted, limit)
    return [_document(row) for row in rows]


async def _named(names: Sequence[str]) -> list[dict[str, Any]]:
    """raises Refused, before anything is changed, when one of them is not held"""
    from store import lanes

    found = []
    async with session.operator() as db:
        for name in dict.fromkeys(names):
            rows = await lanes.held(db, lanes.Filter(lane=name), 1)
            if not rows:
                waiting = [dict(row) for row in await lanes.commands(db, name, 2)]
                state = _stands(waiting) if waiting else "nothing waits in it, or there is no such lane"
                raise Refused(f"lane {name}: no failed command holds it ({state}); nothing was changed")
            found += [_document(row) for row in rows]
    return found


async def _commands(lane: str, limit: int) -> list[dict[str, Any]]:
    from store import lanes

    async with session.operator() as db:
        return [dict(row) for row in await lanes.commands(db, lane, limit)]


def _stands(rows: Sequence[dict[str, Any]]) -> str:
    """What a lane waits for; rows in its order."""
    policy = rows[0]["policy"]
    if policy == LanePolicy.SUPERSEDE:
        return "the newest one runs next and takes what the others say along; a failed one holds nothing"
    head = rows[0]
    match head["status"]:
        case EventStatus.FAILED:
            return f"held by {head['id']}, which failed; `staybus lanes release` lets it go on"
        case EventStatus.PROCESSING:
            return f"{head['id']} is being sent"
        case EventStatus.RETRYING:
            return f"{head['id']} is tried again at {head['next_attempt_at']:%Y-%m-%d %H:%M:%S}Z"
        case _:
            return f"{head['id']} runs next"


async def _foresee(rows: Sequence[dict[str, Any]], *, requeue: bool) -> None:
    """Adds to each lane what would run next."""
    from store import lanes

    if requeue:
        for row in rows:
            row["next_id"], row["next_type"], row["next"] = row["head_id"], row["head_type"], "the head again"
        return
    async with session.operator() as db:
        behind = await lanes.following(db, [(row["lane"], row["head_id"]) for row in rows])
    for row in rows:
        follower = behind.get(row["lane"])
        row["next_id"] = follower["id"] if follower else None
        row["next_type"] = follower["event_type"] if follower else None
        if follower is None:
            row["next"] = "nothing waits"
        elif follower["status"] == EventStatus.FAILED:
            row["next"] = "held again: that one failed, too"
        elif follower["status"] == EventStatus.RETRYING:
            row["next"] = "runs at its time"
        else:
            row["next"] = "runs at once"


def _tell(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    columns = [
        "lane",
        "command=head_type",
        "error=last_error",
        "waiting",
        "next command=next_type",
        "next",
        "next id=next_id",
    ]
    listing(rows, columns, as_json=as_json, empty="no lane is held")


def _count(rows: Sequence[dict[str, Any]]) -> str:
    waiting = sum(row["waiting"] for row in rows)
    return f"{len(rows)} lane{'s' if len(rows) != 1 else ''} ({waiting} waiting)"


# ------------------------------------------------------------------------------------------------ doing


async def _release(rows: Sequence[dict[str, Any]], reason: str | None) -> set[Any]:
    """reason None: requeue. returns the heads that it was done to"""
    from store import dead_letters, jobs, lanes
    from store.pool import API_ROLE, as_company

    actor, done = session.actor(), set()
    async with session.pool(API_ROLE) as pool:
        with doing("release", len(rows)) as advance:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                heads = [row["head_id"] for row in batch]
                async with as_company(pool, None) as db:
                    if reason is None:
                        now = {id_ for id_, _ in await dead_letters.requeue(db, heads, actor)}
                    else:
                        now = await lanes.give_up(db, heads, actor, reason)
                    audited = [
                        (row["company_id"], row["lane"], _details(row, reason))
                        for row in batch
                        if row["head_id"] in now
                    ]
                    await jobs.audit(db, actor, "lane.release", audited)
                done |= now
                advance(len(batch))
    return done


def _details(row: dict[str, Any], reason: str | None) -> dict[str, str]:
    how = {"by": "requeue"} if reason is None else {"by": "abandon", "reason": reason}
    return {"head": str(row["head_id"]), **how}


def _document(row: Any) -> dict[str, Any]:
    document = {name: value for name, value in row.items() if name != "seq"}
    document["age"] = _age(document["age_seconds"])
    return document


def _age(seconds: int) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
