"""Operators' jobs: what is done to many dead letters or events, a batch at a time, by whichever scheduler comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from schemas.ids import uuid7

from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from .pool import Connection

_SQL = statements("jobs")


@dataclass(frozen=True, slots=True)
class NewJob:
    """most: at most so many; rate: at most so many a second; canary: so many go first and decide."""

    kind: str
    filter: Mapping[str, Any]
    requested_by: str
    total: int
    company_id: str | None = None
    most: int | None = None
    rate: float | None = None
    canary: int | None = None
    canary_share: float = 1.0
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """done and failed so far; cursor: the last one that was looked at."""

    id: UUID
    company_id: str | None
    kind: str
    filter: Mapping[str, Any]
    most: int | None
    rate: float | None
    canary: int | None
    canary_share: float
    requested_by: str
    note: str | None
    status: str
    total: int
    done: int
    failed: int
    cursor: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the events that a job let run."""

    came_through: int
    failed_again: int
    under_way: int


async def add(connection: Connection, job: NewJob) -> UUID:
    id_ = uuid7()
    filter_ = orjson.dumps(dict(job.filter)).decode()
    await connection.execute(
        _SQL["add"], id_, job.company_id, job.kind, filter_, job.most, job.rate, job.canary, job.canary_share,
        job.requested_by, job.note, job.total,
    )  # fmt: skip
    return id_


async def find(connection: Connection, status: str | None, limit: int) -> list[Job]:
    return [_job(row) for row in await connection.fetch(_SQL["list"], status, limit)]


async def show(connection: Connection, id_: UUID) -> Job | None:
    row = await connection.fetchrow(_SQL["show"], id_)
    return _job(row) if row is not None else None


async def cancel(connection: Connection, id_: UUID, actor: str) -> bool:
    """False when it has ended. What it let run goes on."""
    return await connection.fetchval(_SQL["cancel"], id_, actor) is not None


async def due(connection: Connection) -> bool:
    """Whether `take` may find one."""
    return bool(await connection.fetchval(_SQL["due"]))


async def take(connection: Connection) -> Job | None:
    """The job whose turn it is, locked until the transaction ends."""
    row = await connection.fetchrow(_SQL["take"])
    return _job(row) if row is not None else None


async def advance(
    connection: Connection,
    job: Job,
    status: str,
    *,
    done: int = 0,
    failed: int = 0,
    cursor: str | None = None,
    pause: float = 0.0,
    error: str | None = None,
) -> None:
    """In the transaction of the batch. cursor None: where it was; pause: seconds until the next batch"""
    await connection.execute(_SQL["advance"], job.id, status, done, failed, cursor or job.cursor, pause, error)


async def rest(connection: Connection, id_: UUID, seconds: float, error: str) -> None:
    await connection.execute(_SQL["rest"], id_, seconds, error)


async def fail(connection: Connection, id_: UUID, error: str) -> None:
    await connection.execute(_SQL["fail"], id_, error)


async def outcome(connection: Connection, id_: UUID) -> Outcome:
    row = await connection.fetchrow(_SQL["outcome"], id_)
    if row is None:
        raise AssertionError("a select of aggregates always has a row")
    return Outcome(*row)


async def reasons(connection: Connection, id_: UUID) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["reasons"], id_))


async def audit(
    connection: Connection, actor: str, action: str, rows: Sequence[tuple[str | None, str, Mapping[str, Any]]]
) -> None:
    """rows: (company, target, details): who did what, many at once"""
    if rows:
        companies, targets, details = zip(*rows, strict=True)
        texts = [orjson.dumps(one).decode() for one in details]
        await connection.execute(_SQL["audit"], actor, action, companies, targets, texts)


def _job(row: asyncpg.Record) -> Job:
    values = dict(row)
    return Job(**(values | {"filter": orjson.loads(values["filter"])}))
