"""From the surroundings to what a command works with: settings, the database, the key file, who is asking."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import asyncio
import getpass
import logging
import os
import signal
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .output import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from pydantic.fields import FieldInfo

    from ops.settings import Settings
    from ops.stack.local import Stack
    from store.directory import Directory, Known
    from store.pool import Connection, Pool

T = TypeVar("T")

FOLDER = Path(".staybus")
STACK = FOLDER / "stack"  # where `staybus up` keeps its servers

# No SET ROLE: the URL's own user, who owns the tables. Companies, connections, secrets, keys and the deletion of mappings
# are an operator's, and neither of the roles that serve requests and events may write them.
OWNER = "none"

CONNECT = 10.0  # seconds for the database's first answer
FAREWELL = 3.0  # seconds to give back what was begun, and to say goodbye to it

_open: set[Pool] = set()


def settings() -> Settings:
    """By environment or STAYBUS_CONFIG; else those of the local stack that runs in this folder. raises SettingsError"""
    from pydantic import ValidationError

    from ops.settings import Settings, SettingsError, load

    given = all(_is_given(Settings.model_fields[name]) for name in ("database_url", "amqp_url"))
    stack = None if given or os.environ.get("STAYBUS_CONFIG") else _local_stack()
    if stack is None:
        try:
            return load()
        except SettingsError as error:
            if given:
                raise
            raise SettingsError(f"{error}; set it, or start a local stack here with `staybus up`") from error
    try:
        return Settings(database_url=stack.database_url, amqp_url=stack.amqp_url)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"STAYBUS_{str(fault['loc'][0]).upper()}: {fault['msg']}") from error


def run(work: Coroutine[Any, Any, T]) -> T:
    """Libraries say nothing beside the one line that an error ends with. raises KeyboardInterrupt, whoever is silent meanwhile"""
    if not os.environ.get("STAYBUS_DEBUG") and not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(_interruptible(work))


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    """After Ctrl-C what was begun has a moment to be given back. Then its sessions end: a database that fell silent never answers."""
    loop, task, interrupted = asyncio.get_running_loop(), asyncio.ensure_future(work), False

    def end_sessions() -> None:
        for pool in _open:
            pool.terminate()

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            end_sessions()
        else:
            interrupted = True
            loop.call_later(FAREWELL, end_sessions)
        task.cancel()

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        return await task
    except BaseException:
        if interrupted:
            raise KeyboardInterrupt from None
        raise


def actor() -> str:
    """Who does it, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"cli:{os.getuid()}"


@asynccontextmanager
async def pool(role: str = OWNER, given: Settings | None = None) -> AsyncIterator[Pool]:
    from store.pool import open_pool

    found = given or settings()
    with reaching_database(found):
        async with asyncio.timeout(CONNECT):
            opened = await open_pool(found.database_url, role=role, name="cli", size=2)
        _open.add(opened)
        try:
            yield opened
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await opened.close()
        finally:
            _open.discard(opened)
            opened.terminate()


@asynccontextmanager
async def owner() -> AsyncIterator[Connection]:
    """One transaction with the owner's rights."""
    async with pool() as opened, opened.acquire() as connection, connection.transaction():
        yield connection


@asynccontextmanager
async def operator() -> AsyncIterator[Connection]:
    """One transaction that sees every company, and may do what the administration over HTTP may."""
    from store.pool import API_ROLE, as_company

    async with pool(API_ROLE) as opened, as_company(opened, None) as connection:
        yield connection


@asynccontextmanager
async def keys(role: str = OWNER) -> AsyncIterator[tuple[Pool, Directory]]:
    """The database and what opens its sealed values. raises SealError"""
    from store.directory import Directory
    from store.seal import KeyFile

    found = settings()
    key_file = KeyFile.read(found.key_file)
    async with pool(role, found) as opened:
        yield opened, Directory(opened, key_file)


async def known(directory: Directory, connection_id: str) -> Known:
    """raises Refused"""
    found = await directory.get(connection_id)
    if found is None:
        raise no_connection(connection_id)
    return found


def no_connection(connection_id: str) -> Refused:
    return Refused(f"connection {connection_id}: not known; `staybus connection list` shows those that are")


def no_company(company_id: str) -> Refused:
    return Refused(f"company {company_id}: not known; add it with `staybus company add {company_id} --name …`")


@contextmanager
def reaching_database(found: Settings) -> Iterator[None]:
    """What the network does, and no file or pipe, names the server. It is neither the text nor the URL's password that is shown."""
    import asyncpg

    from ops.stack.health import address
    from store.pool import is_outage

    try:
        yield
    except OSError as error:
        if error.filename is not None or isinstance(error, BrokenPipeError):
            raise
        raise Refused(
            f"the database at {address(found.database_url)} does not answer ({type(error).__name__}): "
            "start it, or correct STAYBUS_DATABASE_URL"
        ) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError) as error:
        if not is_outage(error):
            raise
        raise Refused(
            f"the database at {address(found.database_url)} went away in the middle: see what was done, then again"
        ) from error


def _is_given(field: FieldInfo) -> bool:
    from pydantic import AliasChoices

    alias = field.validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else []
    return any(os.environ.get(str(name)) for name in names)


def _local_stack() -> Stack | None:
    if not STACK.is_dir():
        return None
    from ops.stack import local

    return local.running(STACK)
