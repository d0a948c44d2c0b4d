"""`staybus secret`: what is kept sealed, and the key file that seals it."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import fields, session
from .output import FOUND, AsJson, Refused, example, listing, note, noun, say

if TYPE_CHECKING:
    from adapters.port import Manifest
    from schemas.connection import Connection
    from store.directory import Directory
    from store.pool import Connection as Db
    from store.seal import Cipher

app = noun(
    "Secrets of connections, and the key file. Values come from a prompt, a file or stdin, never from arguments."
)

ConnectionId = Annotated[str, typer.Argument(metavar="CONNECTION", help="As in `staybus connection list`.")]
Name = Annotated[str, typer.Argument(help="The secret, such as webhook_secret.")]
File = Annotated[Path | None, typer.Option("--file", help="Read it from this file.")]
Stdin = Annotated[bool, typer.Option("--stdin", help="Read it from stdin.")]
Generate = Annotated[bool, typer.Option("--generate", help="Make it up and print it, this once.")]

# Fetched and renewed by the workers themselves, with the others: nobody rotates it.
_RENEWED_BY_US = "access_token"
_UNITS = {"m": 60, "h": 3600, "d": 86400}


def duration(value: str) -> timedelta:
    """90m, 24h, 7d"""
    match = re.fullmatch(r"(\d{1,5})([mhd])", value.strip())
    if match is None:
        raise typer.BadParameter("a number with m, h or d: 90m, 24h, 7d")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


@app.command("set", epilog=example("staybus secret set beds24-acme webhook_secret --generate"))
def set_(
    connection_id: ConnectionId, name: Name, file: File = None, stdin: Stdin = False, generate: Generate = False
) -> None:
    """Store a secret; the one before is invalid at once. Asks for it unless told where it is."""
    _store(connection_id, name, _sources(name, file, stdin, generate), None)


@app.command("rotate", epilog=example("staybus secret rotate beds24-acme webhook_secret --overlap 7d --generate"))
def rotate(
    connection_id: ConnectionId,
    name: Name,
    overlap: Annotated[
        timedelta, typer.Option(parser=duration, metavar="TIME", help="How long the one before stays valid, too.")
    ] = "7d",  # type: ignore[assignment]  # typer parses the default as it does what is given
    file: File = None,
    stdin: Stdin = False,
    generate: Generate = False,
) -> None:
    """Replace a secret while the one before stays valid, so that nothing is lost on the way."""
    until = datetime.now(UTC) + overlap
    _store(connection_id, name, _sources(name, file, stdin, generate), until)
    say(f"the one before stays valid until {until:%Y-%m-%d %H:%M}Z")


def _sources(name: str, file: Path | None, stdin: bool, generate: bool) -> fields.Sources:
    if sum((file is not None, stdin, generate)) > 1:
        raise typer.BadParameter("one of --file, --stdin, --generate")
    prompted = [] if file or stdin or generate else [name]
    return fields.Sources(
        prompted, [f"{name}={file}"] if file else [], name if stdin else None, [name] if generate else []
    )


def _store(connection_id: str, name: str, sources: fields.Sources, previous_until: datetime | None) -> None:
    # Asked for only when it is sure that it can be stored.
    session.run(_check(connection_id, name, rotating=previous_until is not None))
    values = sources.read()
    session.run(_put(connection_id, name, values[name], previous_until))
    say(f"{'rotated' if previous_until else 'set'} {name} of {connection_id}")
    sources.tell(values)


async def _check(connection_id: str, name: str, *, rotating: bool) -> None:
    from adapters.registry import adapter
    from store import connections

    async with session.keys() as (pool, directory), pool.acquire() as db:
        of, _ = await _owner(db, directory, connection_id)
        fields.check_secret_names(adapter(of.vendor).manifest, [name])
        if rotating and name not in await connections.secrets(db, connection_id):
            raise Refused(f"{name}: {connection_id} has none to rotate; `staybus secret set {connection_id} {name}`")
        if rotating:
            await session.known(directory, connection_id)  # the one before stays valid: it must be possible to open it


async def _put(connection_id: str, name: str, value: str, previous_until: datetime | None) -> None:
    from adapters.registry import adapter
    from store import connections

    async with session.keys() as (pool, directory), pool.acquire() as db, db.transaction():
        of, cipher = await _owner(db, directory, connection_id)
        sealed = cipher.seal_bytes(value.encode())
        derived = _derived(adapter(of.vendor).manifest, name)
        await connections.put_credential(db, of, name, sealed, derived, previous_until=previous_until)
        action = "secret.rotate" if previous_until else "secret.set"
        await connections.audit(db, session.actor(), of.company_id, action, f"{connection_id}/{name}", {})


def _derived(manifest: Manifest, name: str) -> list[str]:
    """What was got with a secret, and ends with it."""
    if name == fields.WEBHOOK_SECRET:
        return []
    return [_RENEWED_BY_US, *(grant for field in manifest.fields if field.name == name for grant in field.grants)]


async def _owner(db: Db, directory: Directory, connection_id: str) -> tuple[Connection, Cipher]:
    """Whose secret it is, and what seals it; what is stored stays shut, for it may be what is to be replaced.

    raises  Refused, SealError
    """
    from schemas.connection import Connection
    from store import connections

    for row in await connections.list_connections(db, None):
        if row["id"] == connection_id and (cipher := await directory.cipher(row["company_id"])) is not None:
            return Connection(row["id"], row["company_id"], row["vendor"], row["name"]), cipher
    raise session.no_connection(connection_id)


@app.command("list", epilog=example("staybus secret list beds24-acme"))
def list_(
    connection_id: Annotated[str | None, typer.Argument(metavar="CONNECTION", help="Only this one's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Names and ages; never values."""
    rows = session.run(_rows(connection_id))
    columns = ["connection=connection_id", "name", "rotated=rotated_at", "age_days"]
    columns += ["previous valid until=previous_until", "expires=expires_at"]
    listing(rows, columns, as_json=as_json, empty="no secrets")


@app.command("age", epilog=example("staybus secret age --days 90"))
def age(
    days: Annotated[int, typer.Option(min=1, help="Older than this is too old.")] = 90,
    connection_id: Annotated[str | None, typer.Option("--connection", help="Only this one's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which secrets are due for a rotation; exit code 3 when there are any."""
    rows = session.run(_rows(connection_id))
    old = [row for row in rows if row["name"] != _RENEWED_BY_US and row["age_days"] > days]
    columns = ["connection=connection_id", "name", "age_days", "rotated=rotated_at"]
    listing(old, columns, as_json=as_json, empty=f"no secret is older than {days} days")
    if old:
        note("next: staybus secret rotate CONNECTION NAME")
        raise typer.Exit(FOUND)


async def _rows(connection_id: str | None) -> list[dict[str, Any]]:
    from store import connections

    async with session.owner() as db:
        rows = await connections.list_secrets(db, connection_id)
    now = datetime.now(UTC)
    return [dict(row) | {"age_days": (now - row["rotated_at"]).days} for row in rows]


@app.command("new-key", epilog=example("staybus secret new-key .staybus/key"))
def new_key(path: Annotated[Path, typer.Argument(help="Where; a file that is there is never overwritten.")]) -> None:
    """Make a key file. Keep a copy: without it nothing that it sealed can be read again."""
    from store.seal import KeyFile

    try:
        KeyFile.create(path)
    except FileExistsError:
        raise Refused(f"{path}: is there already, and an old key is the only way to what it sealed") from None
    say(f"made {path}")
    note(f"keep a copy elsewhere; staybus reads it from STAYBUS_KEY_FILE (default {session.FOLDER / 'key'})")
