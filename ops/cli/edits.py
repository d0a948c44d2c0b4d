"""`staybus dlq edit`: an operator's correction of what an event says, kept beside it and applied when it runs again."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import copy
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from . import session
from .output import AsJson, Refused, emit, example, note, say

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from schemas.connection import Connection
    from store.overlay import Paths
    from store.seal import Cipher

EXAMPLES = example(
    "staybus dlq edit 0192f0c1-… --set 'booking.departure=\"2027-05-04\"' --dry-run",
    "staybus dlq edit 0192f0c1-… --set periods.0.available=3 --unset currency",
    "staybus dlq edit 0192f0c1-… --file patch.json",
    "staybus dlq edit 0192f0c1-… --editor",
)
MOST_BYTES = 128 * 1024  # of an edit: as much as a message may have
_MAY_EXIST = (
    "it was sent and never answered, so it may exist at the vendor already: then it is found there when it is requeued, ends as done "
    "as it was first said, and this edit is not said. Look there, and correct it with a command of its own"
)


def edit(
    id_: Annotated[UUID, typer.Argument(metavar="ID", help="Of a dead letter or of its event.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=JSON", help="A value; the path is dotted, numbers count in lists from 0."),
    ] = None,
    unset: Annotated[list[str] | None, typer.Option("--unset", metavar="PATH", help="Take a member away.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A JSON merge patch (RFC 7396); - is stdin.", allow_dash=True)
    ] = None,
    editor: Annotated[bool, typer.Option("--editor", help="Edit the whole in $EDITOR, guests' data covered.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Take every edit back.")] = False,
    note_: Annotated[str | None, typer.Option("--note", help="Why; kept with the letter.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also when it still cannot be read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what the event would say.")] = False,
    as_json: AsJson = False,
) -> None:
    """Correct what an event says. The event stays as it came; the edit is laid over it when it runs again.

    Edits add up. Guests' data in an edit is sealed, and shown nowhere. For that, use --file or --editor: what is typed into
    a shell is kept by it.
    """
    ways = sum((bool(set_ or unset), file is not None, editor, clear))
    if ways != 1:
        raise typer.BadParameter("one of --set and --unset, --file, --editor, --clear")
    change = _change(set_ or [], unset or [], file, editor, clear)
    subject = session.run(_load(id_))
    if clear and not subject.overlay:
        raise Refused(f"dead letter {subject.letter_id}: has no edit to take back")
    outcome = _outcome(subject, change(subject))
    if outcome.overlay == subject.overlay and not clear:
        raise Refused("this changes nothing; see `staybus dlq show`")
    refused = outcome.problem is not None and not force and not clear
    kept = not dry_run and not refused
    if kept:
        session.run(_keep(subject, outcome, note_))
    _tell(subject, outcome, kept=kept, dry_run=dry_run, as_json=as_json)
    if set_ and not as_json and _typed(set_, subject.personal):
        note("guests' data was typed into a shell, which may keep it: next time --file - or --editor")
    if refused:
        raise Refused(f"it still cannot be read: {outcome.problem}; nothing was changed. --force keeps it all the same")


def _tell(subject: _Subject, outcome: _Outcome, *, kept: bool, dry_run: bool, as_json: bool) -> None:
    payload, _ = mask(outcome.document, outcome.personal)
    if as_json:
        readable, _ = _parts(subject, outcome)
        emit(
            {
                "id": subject.letter_id,
                "event_id": subject.event_id,
                "kept": kept,
                "paths": outcome.paths,
                "edit": readable,
                "payload": payload,
                "problem": outcome.problem,
                "means": outcome.means,
                "may_exist": subject.may_exist,
            }
        )
        return
    if dry_run:
        emit(payload)
    changed = ", ".join(outcome.paths) or "nothing any more"
    if kept:
        say(f"edited {subject.letter_id}: {changed}" if outcome.paths else f"{subject.letter_id} is as it came again")
    elif dry_run:
        note(f"dry run: nothing was changed; it would change {changed}")
    if outcome.problem is None:
        note(f"it can be read: {outcome.means}")
    elif kept or dry_run:
        note(f"it cannot be read: {outcome.problem}")
    if subject.may_exist and outcome.paths and (kept or dry_run):
        note(_MAY_EXIST)
    if kept:
        note(f"next: staybus dlq requeue {subject.letter_id}")


# ------------------------------------------------------------------------------------------------ what is edited


@dataclass(frozen=True)
class _Subject:
    """overlay: the edits so far. personal: the paths whose values are a guest's."""

    row: Mapping[str, Any]
    original: dict[str, Any]
    overlay: dict[str, Any]
    personal: Paths
    cipher: Cipher
    connection: Connection | None

    @property
    def letter_id(self) -> UUID:
        return UUID(str(self.row["id"]))

    @property
    def event_id(self) -> UUID:
        return UUID(str(self.row["event_id"]))

    @property
    def may_exist(self) -> bool:
        """Whether it makes something, at a vendor that may have made it: our marker finds it, whatever else is said now."""
        if self.row["direction"] != "outbound" or self.connection is None or not self.row["starts"]:
            return False
        from adapters.registry import adapters

        found = adapters().get(self.connection.vendor)
        return found is not None and self.row["event_type"] in found.manifest.commands_with_marker

    def say(self, name: str) -> str:
        """A member's name, where it can be no guest's; what a vendor calls its members is none."""
        from workers.commands import sayable

        return sayable(name) if self.row["direction"] == "outbound" else name

    @property
    def current(self) -> dict[str, Any]:
        from store.overlay import merged

        return dict(merged(copy.deepcopy(self.original), self.overlay))


async def _load(id_: UUID) -> _Subject:
    """raises Refused, SealError"""
    import orjson

    from store import dead_letters
    from store.overlay import document, patch
    from store.pool import WORKER_ROLE

    async with session.keys(WORKER_ROLE) as (pool, directory):
        async with pool.acquire() as db:
            found = await dead_letters.editable(db, id_)
        if found is None:
            raise Refused(f"dead letter {id_}: not known; see `staybus dlq list`")
        row = dict(found)
        if row["event_type"] is None:
            raise Refused(f"dead letter {row['id']}: no event could be read from it, so there is nothing to edit")
        _check_rests(row)
        cipher = await directory.cipher(row["company_id"])
        if cipher is None:
            raise session.no_company(row["company_id"])
        known = await directory.get(row["connection_id"]) if row["connection_id"] else None
    overlay = patch(orjson.loads(row["overlay"]) if row["overlay"] else None, row["overlay_sealed"], cipher)
    original = document(row["payload"], row["sealed"], None, cipher)
    return _Subject(
        row,
        original,
        overlay,
        _personal(row, known.connection if known else None, original, overlay),
        cipher,
        known.connection if known else None,
    )


def _check_rests(row: Mapping[str, Any]) -> None:
    """raises Refused: what runs cannot be edited under way"""
    if row["status"] in {"pending", "abandoned"} and row["event_status"] in {"failed", "abandoned"}:
        return
    raise Refused(
        f"dead letter {row['id']}: its event is {row['event_status']}; only one that failed or was abandoned can be edited"
    )


def _personal(row: Mapping[str, Any], connection: Connection | None, *said: Mapping[str, Any]) -> Paths:
    if row["direction"] == "outbound":
        from workers.commands import personal_of

        return personal_of(*said)
    from adapters.registry import adapter

    if connection is None:
        raise session.no_connection(row["connection_id"])
    return adapter(connection.vendor).manifest.personal


# ------------------------------------------------------------------------------------------------ what becomes of it


@dataclass(frozen=True)
class _Outcome:
    """paths: what is changed, and personal: what is a guest's, with this edit; problem: why the real parser refuses the
    document; means: what it makes of it.
    """

    overlay: dict[str, Any]
    document: dict[str, Any]
    paths: list[str]
    personal: Paths
    problem: str | None
    means: str | None


def _outcome(subject: _Subject, wanted: dict[str, Any]) -> _Outcome:
    """raises Refused for what must not be kept at all"""
    import orjson

    from store.overlay import difference, merged, paths

    overlay = difference(subject.original, wanted)
    document = dict(merged(copy.deepcopy(subject.original), overlay))
    personal = _personal(subject.row, subject.connection, subject.original, subject.overlay, overlay)
    _check_keepable(overlay, personal)
    if len(orjson.dumps(overlay)) > MOST_BYTES:
        raise Refused(f"an edit may have {MOST_BYTES} bytes")
    problem, means = _judge(subject, document)
    return _Outcome(overlay, document, sorted(set(paths(overlay, subject.say))), personal, problem, means)


def _check_keepable(overlay: Mapping[str, Any], personal: Paths) -> None:
    """raises Refused: card data, or a value that would hide guests' data from its sealing"""
    from adapters.documents import card_member

    if (card := card_member(overlay)) is not None:
        raise Refused(f"{card}: card data is kept nowhere, nothing was changed")
    if any("." in name and (name,) in personal for name in overlay):
        # Sealed, a dot means a member of a member, as `no_command` says.
        raise Refused("a member's name has a dot in it; no command has such a member. Nothing was changed")
    for path in personal:
        place: Any = overlay
        for step in path[:-1]:
            place = place.get(step)
            if place is None:
                break
            if not isinstance(place, dict):
                raise Refused(f"{step}: holds guests' data by name and must stay an object")


def _judge(subject: _Subject, document: dict[str, Any]) -> tuple[str | None, str | None]:
    """(problem, meaning) by what will read it. raises Refused when it is about something else now"""
    judge = _judge_command if subject.row["direction"] == "outbound" else _judge_fact
    return judge(subject, document)


def _judge_command(subject: _Subject, document: dict[str, Any]) -> tuple[str | None, str | None]:
    from schemas.commands import InvalidCommandError, parse_command

    row = subject.row
    try:
        data = parse_command(row["event_type"], document)
    except InvalidCommandError as error:
        return str(error), None
    kind, internal = data.lane_entity()
    if row["parent_id"] is not None and (kind.value, internal) != (row["entity_type"], row["entity_internal_id"]):
        raise Refused(
            f"this delivery is about {row['entity_type']} {row['entity_internal_id']} and stays in its lane; "
            "for another one, abandon it and publish a command"
        )
    return None, f"{row['event_type']} about {kind.value} {internal}"


def _judge_fact(subject: _Subject, document: dict[str, Any]) -> tuple[str | None, str | None]:
    from adapters.errors import AdapterError
    from adapters.port import Hint, Recorded
    from adapters.registry import adapter
    from schemas.vocabulary import EntityType

    row, connection = subject.row, subject.connection
    if connection is None:
        raise session.no_connection(row["connection_id"])
    entity = EntityType(row["entity_type"])
    fact = Recorded(row["event_id"], row["event_type"], entity, row["entity_external_id"], document, row["received_at"])
    try:
        found = adapter(connection.vendor).interpret(fact, connection)
    except AdapterError as error:
        return str(error), None
    except Exception as error:  # noqa: BLE001 - its text may quote a guest
        return f"{type(error).__name__} in the adapter", None
    if isinstance(found, Hint):
        return None, f"{connection.vendor} is asked for {found.entity_type.value} {found.external_id}, edited or not"
    ids = {one.entity.external_id for one in found.reservations}
    if entity is EntityType.RESERVATION and ids != {row["entity_external_id"]}:
        raise Refused(f"this fact is about reservation {row['entity_external_id']}, an edit cannot make it another's")
    return None, f"{entity.value} {row['entity_external_id']} is stored, if nothing newer is"


async def _keep(subject: _Subject, outcome: _Outcome, why: str | None) -> None:
    from store import connections, dead_letters
    from store.pool import WORKER_ROLE

    row = subject.row
    readable, sealed = _parts(subject, outcome)
    kept = dead_letters.Edit(readable if outcome.overlay else None, sealed, outcome.paths)
    details: dict[str, Any] = {"event": str(subject.event_id), "paths": outcome.paths}
    if why:
        details["note"] = why
    if outcome.problem is not None and outcome.overlay:
        details["forced"] = True
    async with session.pool(WORKER_ROLE) as pool, pool.acquire() as db, db.transaction():
        actor = session.actor()
        if not await dead_letters.edit(db, subject.letter_id, subject.event_id, kept, actor, why, row["edited_at"]):
            raise Refused(
                f"dead letter {subject.letter_id}: was requeued or edited by somebody else just now; look again"
            )
        await connections.audit(db, actor, row["company_id"], "dead_letter.edit", str(subject.letter_id), details)


def _parts(subject: _Subject, outcome: _Outcome) -> tuple[dict[str, Any], bytes | None]:
    from store.overlay import parts

    secret = [name for name in outcome.overlay if subject.say(name) != name]
    return parts(outcome.overlay, outcome.personal, secret, subject.cipher)


# ------------------------------------------------------------------------------------------------ ways of editing


def _change(
    set_: Sequence[str], unset: Sequence[str], file: Path | None, editor: bool, clear: bool
) -> Callable[[_Subject], dict[str, Any]]:
    """From what is edited to what it should say. raises typer.BadParameter, Refused for words and files that do not fit"""
    if clear:
        return lambda subject: subject.original
    if editor:
        return _by_editor
    if file is not None:
        patch = _read_patch(file)
        return lambda subject: _patched(subject.current, patch)
    given = [_assignment(word) for word in set_]

    def change(subject: _Subject) -> dict[str, Any]:
        document = copy.deepcopy(subject.current)
        for path, value in given:
            _place(document, path, "--set", value)
        for path in unset:
            _place(document, path, "--unset")
        return document

    return change


def _patched(document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    from store.overlay import merged

    return dict(merged(document, patch))


def _assignment(word: str) -> tuple[str, Any]:
    path, equals, text = word.partition("=")
    if not path or not equals:
        raise typer.BadParameter("PATH=JSON, such as booking.numAdult=2", param_hint="--set")
    return path, _json(text, f"--set {path}", "a text needs its quotes: 'booking.arrival=\"2027-05-01\"'")


def _json(text: str, param_hint: str, advice: str) -> Any:
    """raises typer.BadParameter with the place and not the text, which may be a guest's"""
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(
            f"not JSON: {error.msg}, line {error.lineno} column {error.colno}; {advice}", param_hint=param_hint
        ) from None


def _read_patch(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"--file {file}: cannot be read ({type(error).__name__})") from error
    return _object(_json(text, "--file", "a merge patch is a JSON object"), "--file")


def _object(document: Any, param_hint: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise typer.BadParameter("a JSON object is needed", param_hint=param_hint)
    return document


_TAKEN_AWAY = object()


def _place(document: dict[str, Any], path: str, option: str, value: Any = _TAKEN_AWAY) -> None:
    """Sets or takes away one value. raises typer.BadParameter when the path leads nowhere"""
    *way, last = path.split(".")
    place: Any = document
    for step in way:
        if isinstance(place, dict) and value is not _TAKEN_AWAY and place.get(step) is None:
            place[step] = {}
        place = _inner(place, step, path, option)
    if isinstance(place, dict):
        if value is not _TAKEN_AWAY:
            place[last] = value
        elif last in place:
            del place[last]
        else:
            raise typer.BadParameter(f"{path}: there is nothing to take away", param_hint=option)
    elif isinstance(place, list) and last == str(len(place)) and value is not _TAKEN_AWAY:
        place.append(value)
    else:
        _inner(place, last, path, option)
        if value is _TAKEN_AWAY:
            del place[int(last)]
        else:
            place[int(last)] = value


def _inner(place: Any, step: str, path: str, option: str) -> Any:
    if isinstance(place, dict) and step in place:
        return place[step]
    if isinstance(place, list) and step.isascii() and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    raise typer.BadParameter(f"{path}: there is no {step}", param_hint=option)


def _typed(words: Sequence[str], personal: Paths) -> bool:
    """Whether one of the paths is within a guest's data, or around it."""
    ways = [tuple(word.partition("=")[0].split(".")) for word in words]
    return any(way[: len(path)] == path[: len(way)] for way in ways for path in personal)


def _by_editor(subject: _Subject) -> dict[str, Any]:
    import orjson

    covered, values = mask(subject.current, subject.personal)
    text = orjson.dumps(covered, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    document = _json(_edited(text), "--editor", "nothing was changed")
    return reveal(_object(document, "--editor"), values, subject.personal)


def _edited(text: str) -> str:
    """What the editor makes of it. The file is the user's alone, and gone afterwards."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="staybus-") as folder:
        file = Path(folder) / "payload.json"
        file.write_text(text)
        try:
            done = subprocess.run([*shlex.split(command), str(file)], check=False)
        except (OSError, ValueError) as error:
            raise Refused(f"the editor {command!r} cannot be started; set EDITOR") from error
        if done.returncode != 0:
            raise Refused(f"the editor ended with {done.returncode}; nothing was changed")
        return file.read_text()


# ------------------------------------------------------------------------------------------------ covering guests' data


def mask(document: Mapping[str, Any], personal: Paths) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the document with a numbered word for each personal value, word → value)"""
    covered = copy.deepcopy(dict(document))
    values: dict[str, Any] = {}

    def cover(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cover(one) for name, one in value.items()}
        if isinstance(value, list):
            return [cover(one) for one in value]
        if value is None or value == "":
            return value
        word = f"(sealed {len(values) + 1})"
        values[word] = value
        return word

    for path in personal:
        place: Any = covered
        for step in path[:-1]:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict) and path[-1] in place:
            place[path[-1]] = cover(place[path[-1]])
    return covered, values


def reveal(document: dict[str, Any], values: Mapping[str, Any], personal: Paths) -> dict[str, Any]:
    """The inverse of mask, wherever among the personal values the words were moved to. raises Refused for one elsewhere"""

    def uncover(value: Any, at: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            return {name: uncover(one, (*at, name)) for name, one in value.items()}
        if isinstance(value, list):
            return [uncover(one, (*at, str(index))) for index, one in enumerate(value)]
        if not isinstance(value, str) or value not in values:
            return value
        if not any(at[: len(path)] == path for path in personal):
            raise Refused(
                f"{'.'.join(at)}: {value} stands for guests' data, and what is there is stored in the clear; "
                "move it only to where the event keeps guests' data. Nothing was changed"
            )
        return values[value]

    return {name: uncover(value, (name,)) for name, value in document.items()}
