"""`staybus doctor`: what stands between this machine and a running staybus, and what to do about each."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from . import session
from .failures import describe
from .output import AsJson, cell, emit, example, note, table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from ops.settings import Settings

LITTLE, TOO_LITTLE = 2 * 1024**3, 300 * 1024**2  # bytes free; RabbitMQ stops taking messages below 200 MB here


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    state: State
    found: str
    do: str = ""


def register(app: typer.Typer) -> None:
    app.command("doctor", epilog=example("staybus doctor"))(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Check settings, key file, database, broker, adapters and disk. Changes nothing; exit code 1 if one is broken."""
    findings = session.run(_all())
    if as_json:
        emit([asdict(finding) for finding in findings])
    else:
        table(["check", "state", "found"], [(one.check, one.state.value, one.found) for one in findings])
        for one in findings:
            if one.do:
                note(f"{one.check}: {cell(one.do)}")
    if any(one.state is State.BROKEN for one in findings):
        raise typer.Exit(1)


async def _all() -> list[Finding]:
    findings = [_adapters(), _disk()]
    try:
        settings = session.settings()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return [Finding("settings", State.BROKEN, describe(error), "set the variables, or run `staybus up`"), *findings]
    from ops.stack.health import address

    found = f"database {address(settings.database_url)}, broker {address(settings.amqp_url)}"
    findings.insert(0, Finding("settings", State.OK, found))
    findings.append(_key_file(settings))
    findings += [finding async for finding in _database(settings)]
    findings.append(await _broker(settings))
    return findings


def _adapters() -> Finding:
    from adapters.registry import RegistryError, adapters

    try:
        return Finding("adapters", State.OK, ", ".join(adapters()))
    except RegistryError as error:
        return Finding("adapters", State.BROKEN, str(error), "mend or remove that package")


def _disk() -> Finding:
    place = session.FOLDER if session.FOLDER.exists() else Path.cwd()
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GB free at {place.resolve()}"
    if free < TOO_LITTLE:
        return Finding(
            "disk", State.BROKEN, found, "free some space: the broker blocks publishers when its disk is full"
        )
    return Finding("disk", State.WARNING if free < LITTLE else State.OK, found)


def _key_file(settings: Settings) -> Finding:
    from store.seal import KeyFile, SealError

    path = settings.key_file
    try:
        KeyFile.read(path)
    except SealError as error:
        do = "restore your copy of it; only for a new installation: " if path.parent.exists() else ""
        return Finding("key file", State.BROKEN, str(error), f"{do}staybus secret new-key {path}")
    if path.stat().st_mode & 0o077:
        return Finding("key file", State.WARNING, f"{path}: others may read it", f"chmod 600 {path}")
    return Finding("key file", State.OK, str(path))


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    import asyncpg

    from ops.stack.health import address, postgres_problem
    from store import schema

    where = address(settings.database_url)
    problem = postgres_problem(settings.database_url)
    if problem is not None:
        yield Finding("database", State.BROKEN, f"{where}: {problem}", "start it, or correct STAYBUS_DATABASE_URL")
        return
    db = await asyncpg.connect(settings.database_url)
    try:
        version = str(await db.fetchval("SHOW server_version"))
        old = db.get_server_version().major < 15
        yield Finding(
            "database",
            State.BROKEN if old else State.OK,
            f"{where}: PostgreSQL {version}",
            "PostgreSQL 15 or newer is needed" if old else "",
        )
        status = await schema.status(settings.database_url)
        if not status.up_to_date:
            found = f"at {status.current or 'no version'}, {status.head} is needed"
            yield Finding("schema", State.BROKEN, found, "staybus db upgrade")
            return
        yield Finding("schema", State.OK, f"at {status.current}")
        yield await _roles(db)
        yield await _data_keys(db, settings)
    finally:
        await db.close()


async def _roles(db: asyncpg.Connection[asyncpg.Record]) -> Finding:
    """May this user become the roles that processes run as?"""
    from store.pool import API_ROLE, WORKER_ROLE

    wanted = [WORKER_ROLE, API_ROLE]
    usable = await db.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY ($1::text[]) AND pg_has_role(current_user, rolname, 'MEMBER')",
        wanted,
    )
    missing = sorted(set(wanted) - {row["rolname"] for row in usable})
    if missing:
        user = await db.fetchval("SELECT current_user")
        do = f'as a superuser: GRANT {", ".join(missing)} TO "{user}" (CREATE ROLE … NOLOGIN first where it is missing)'
        return Finding("roles", State.BROKEN, f"not usable: {', '.join(missing)}", do)
    return Finding("roles", State.OK, ", ".join(wanted))


async def _data_keys(db: asyncpg.Connection[asyncpg.Record], settings: Settings) -> Finding:
    """A key file that is not the one that sealed: everything starts, and nothing can be read."""
    from store.connections import company_keys
    from store.seal import KeyFile, SealError

    wrapped = await company_keys(db)
    try:
        keys = KeyFile.read(settings.key_file)
    except SealError:
        return Finding("companies", State.WARNING, f"{len(wrapped)}; not checked without a key file")
    for company_id, key in wrapped:
        try:
            keys.cipher(company_id, key)
        except SealError:
            found = f"{company_id}: its data key cannot be opened with {settings.key_file}"
            return Finding("companies", State.BROKEN, found, "restore the key file that was there when it was added")
    return Finding("companies", State.OK, f"{len(wrapped)}, all of them opened by the key file")


async def _broker(settings: Settings) -> Finding:
    from topology.apply import BrokerUnavailable, check

    from .topology import declared

    try:
        missing = await check(settings.amqp_url, declared(), ca_file=settings.amqp_ca_file)
    except BrokerUnavailable as error:
        return Finding("broker", State.BROKEN, str(error), "start it, or correct STAYBUS_AMQP_URL")
    except Exception as error:  # noqa: BLE001 - as above
        return Finding("broker", State.BROKEN, describe(error), "see `staybus topology diff`")
    if missing:
        names = ", ".join(sorted({one.name for one in missing}))
        return Finding("broker", State.BROKEN, f"reachable; not as declared: {names}", "staybus topology apply")
    return Finding("broker", State.OK, "reachable, topology complete")
