"""Companies, connections, their secrets, api keys and mappings, as operators and workers handle them."""

from __future__ import annotations

import hashlib
import secrets as random_secrets
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

    from schemas.connection import Connection as VendorConnection

    from .pool import Connection

_SQL = statements("connections")
KEY_PREFIX = "sbk_"


@dataclass(frozen=True, slots=True)
class SealedSecret:
    sealed: bytes
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """company_id None: an operator of the whole installation."""

    id: UUID
    company_id: str | None
    scopes: frozenset[str]


async def begin_renewal(
    connection: Connection, connection_id: str, seconds: float, worker: str | None
) -> datetime | None:
    """Until when it is ours to renew this connection's token; None: somebody else is at it.

    worker   whose presence is watched; None: nobody's, then it is ours for that time even if we die
    """
    until: datetime | None = await connection.fetchval(_SQL["begin_renewal"], connection_id, seconds, worker)
    return until


async def end_renewal(connection: Connection, connection_id: str, until: datetime) -> None:
    """until: what `begin_renewal` returned"""
    await connection.execute(_SQL["end_renewal"], connection_id, until)


async def company_keys(connection: Connection) -> list[tuple[str, bytes]]:
    """(company, its wrapped data key)"""
    return [(row["id"], row["data_key"]) for row in await connection.fetch(_SQL["company_keys"])]


async def secrets(connection: Connection, connection_id: str) -> dict[str, SealedSecret]:
    rows = await connection.fetch(_SQL["secrets"], connection_id)
    return {row["name"]: SealedSecret(row["sealed"], row["expires_at"]) for row in rows}


async def put_secret(
    connection: Connection,
    of: VendorConnection,
    name: str,
    sealed: bytes,
    *,
    previous_until: datetime | None = None,
    expires_at: datetime | None = None,
) -> None:
    """previous_until: how long the value before stays valid"""
    await connection.execute(_SQL["put_secret"], of.id, of.company_id, name, sealed, previous_until, expires_at)


async def put_credential(
    connection: Connection,
    of: VendorConnection,
    name: str,
    sealed: bytes,
    derived: Sequence[str],
    *,
    previous_until: datetime | None = None,
) -> None:
    """In a transaction. derived: names of what was got with the value before; it goes, also what is being got just now."""
    # First: its lock has a renewal that is about to store what it got wait, or us for it.
    await connection.execute(_SQL["end_any_renewal"], of.id)
    await connection.execute(_SQL["forget_secrets"], of.id, list(derived))
    await put_secret(connection, of, name, sealed, previous_until=previous_until)


async def tokens_to_renew(connection: Connection, within: float) -> list[str]:
    return [row["connection_id"] for row in await connection.fetch(_SQL["tokens_to_renew"], within)]


async def add_company(connection: Connection, company_id: str, name: str, data_key: bytes) -> bool:
    """False if it is there already: its key is never replaced."""
    return bool((await connection.execute(_SQL["add_company"], company_id, name, data_key)).endswith(" 1"))


async def add_connection(
    connection: Connection,
    connection_id: str,
    company_id: str,
    vendor: str,
    name: str,
    account: str | None,
    config: Mapping[str, Any],
) -> None:
    """raises asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError"""
    await connection.execute(
        _SQL["add_connection"], connection_id, company_id, vendor, name, account, orjson.dumps(config).decode()
    )


async def set_config(connection: Connection, connection_id: str, config: Mapping[str, Any]) -> bool:
    return bool(
        (await connection.execute(_SQL["set_config"], connection_id, orjson.dumps(config).decode())) != "UPDATE 0"
    )


async def unset_config(connection: Connection, connection_id: str, names: Sequence[str]) -> None:
    if names:
        await connection.execute(_SQL["unset_config"], connection_id, list(names))


async def set_status(connection: Connection, connection_id: str, status: str) -> bool:
    return bool((await connection.execute(_SQL["set_status"], connection_id, status)) != "UPDATE 0")


async def list_companies(connection: Connection) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["list_companies"]))


async def list_connections(connection: Connection, company_id: str | None) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["list_connections"], company_id))


async def list_secrets(connection: Connection, connection_id: str | None) -> list[asyncpg.Record]:
    """Names and ages; never values."""
    return list(await connection.fetch(_SQL["list_secrets"], connection_id))


async def add_api_key(
    connection: Connection, company_id: str | None, name: str, scopes: Sequence[str], *, id_: UUID | None = None
) -> str:
    """returns the key itself: only its hash is kept"""
    key = KEY_PREFIX + random_secrets.token_urlsafe(32)
    await connection.execute(_SQL["add_api_key"], id_ or uuid7(), company_id, name, hash_key(key), list(scopes))
    return key


async def find_api_key(connection: Connection, key: str) -> ApiKey | None:
    row = await connection.fetchrow(_SQL["find_api_key"], hash_key(key))
    return ApiKey(row["id"], row["company_id"], frozenset(row["scopes"])) if row else None


async def list_api_keys(connection: Connection) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["list_api_keys"]))


async def revoke_api_key(connection: Connection, key_id: UUID) -> bool:
    return bool((await connection.execute(_SQL["revoke_api_key"], key_id)) != "UPDATE 0")


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def add_mapping(
    connection: Connection,
    of: VendorConnection,
    entity_type: str,
    external_id: str,
    internal_id: str,
    *,
    auto_sync: bool = True,
) -> None:
    """raises asyncpg.UniqueViolationError if the internal id is mapped to another external id of this connection"""
    await connection.execute(
        _SQL["add_mapping"], of.company_id, of.id, entity_type, external_id, internal_id, auto_sync
    )


async def list_mappings(
    connection: Connection, connection_id: str | None, entity_type: str | None, limit: int
) -> list[asyncpg.Record]:
    return list(await connection.fetch(_SQL["list_mappings"], connection_id, entity_type, limit))


async def remove_mapping(connection: Connection, connection_id: str, entity_type: str, external_id: str) -> bool:
    status = await connection.execute(_SQL["remove_mapping"], connection_id, entity_type, external_id)
    return bool(status != "DELETE 0")


async def audit(
    connection: Connection, actor: str, company_id: str | None, action: str, target: str, details: Mapping[str, Any]
) -> None:
    """Who did what; details carry neither guest data nor secrets."""
    await connection.execute(_SQL["audit"], actor, company_id, action, target, orjson.dumps(details).decode())
