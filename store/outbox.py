"""The outbox as a service or an operator writes it; the relay takes its rows (store/relay.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.ids import uuid7

from .statements import statements

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

    from .pool import Connection

_SQL = statements("outbox")


async def add(
    connection: Connection,
    company_id: str,
    event_type: str,
    payload: str,
    *,
    subject: str | None = None,
    connection_id: str | None = None,
    idempotency_key: str | None = None,
) -> UUID:
    """payload: JSON text. returns the row's id, which is not yet its event's"""
    id_ = uuid7()
    await connection.execute(_SQL["add"], id_, company_id, event_type, subject, connection_id, payload, idempotency_key)
    return id_


async def show(connection: Connection, id_: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(_SQL["show"], id_)
