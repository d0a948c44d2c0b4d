"""A company with one Beds24 connection, ready to use. Safe to repeat: what is there stays, only the simulator's address and
its invite code are renewed (a simulator starts with an empty memory)."""

from __future__ import annotations

import secrets as random_secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from schemas.connection import Connection
from schemas.vocabulary import EntityType
from store import connections
from store.seal import KeyFile

if TYPE_CHECKING:
    from pathlib import Path

    from store.seal import Cipher

PROPERTY, STUDIO, LOFT = "345754", "713992", "713993"  # as the simulator has them
MAPPINGS = (
    (EntityType.PROPERTY, PROPERTY, "P-HARBOUR"),
    (EntityType.ROOM_TYPE, STUDIO, "RT-STUDIO"),
    (EntityType.ROOM_TYPE, LOFT, "RT-LOFT"),
)
FIRST_BOOKING = 90_923_001


@dataclass(frozen=True, slots=True)
class Tenant:
    company: str = "acme"
    connection: str = "beds24-acme"

    @property
    def as_connection(self) -> Connection:
        return Connection(self.connection, self.company, "beds24", "Harbour Lofts")


class SeedError(Exception):
    """What of the data that is there already does not fit."""


def key_file(path: Path) -> Path:
    """Makes it unless it is there."""
    if not path.exists():
        KeyFile.create(path)
    return path


async def seed(database_url: str, key: Path, tenant: Tenant, *, simulator: str, invite_code: str) -> str:
    """returns the webhook secret

    simulator   its base URL
    raises      SeedError, SealError
    """
    keys = KeyFile.read(key)
    db = await asyncpg.connect(database_url)
    try:
        async with db.transaction():
            await connections.add_company(db, tenant.company, "Acme Stays", keys.new_data_key())
            wrapped = await db.fetchval("SELECT data_key FROM companies WHERE id = $1", tenant.company)
            cipher = keys.cipher(tenant.company, wrapped)
            await _connect(db, tenant, f"{simulator}/api/v2")
            await _map(db, tenant)
            await connections.put_secret(
                db, tenant.as_connection, "invite_code", cipher.seal_bytes(invite_code.encode())
            )
            return await _webhook_secret(db, tenant, cipher)
    finally:
        await db.close()


async def admin_key(database_url: str, company: str | None, name: str, kept: str = "") -> str:
    """A key for the administration: the one that was kept from an earlier time, if it is still good.

    company   None: for all companies
    """
    db = await asyncpg.connect(database_url)
    try:
        if kept and await connections.find_api_key(db, kept):
            return kept
        return await connections.add_api_key(db, company, name, ["admin"])
    finally:
        await db.close()


async def next_booking(database_url: str) -> int:
    """The first Beds24 id that no earlier simulator has given: one that is given twice would be another booking here."""
    db = await asyncpg.connect(database_url)
    try:
        known = await db.fetchval(
            "SELECT max(external_entity_id::bigint) FROM int_mappings "
            "WHERE external_entity_type = 'reservation' AND external_entity_id ~ '^[0-9]{1,15}$'"
        )
    finally:
        await db.close()
    return max(FIRST_BOOKING, (known or 0) + 1)


def write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text + "\n")


async def _connect(db: asyncpg.Connection[asyncpg.Record], tenant: Tenant, base_url: str) -> None:
    config = {"base_url": base_url, "currency": "EUR", "webhook_auth": "hmac"}
    there = await db.fetchrow("SELECT company_id, vendor FROM connections WHERE id = $1", tenant.connection)
    if there is None:
        await connections.add_connection(db, tenant.connection, tenant.company, "beds24", "Harbour Lofts", None, config)
    elif tuple(there) == (tenant.company, "beds24"):
        await connections.set_config(db, tenant.connection, config)
    else:
        raise SeedError(f"connection {tenant.connection} is {there['company_id']}'s at {there['vendor']} already")


async def _map(db: asyncpg.Connection[asyncpg.Record], tenant: Tenant) -> None:
    """Somebody's own mappings of these ids are left alone."""
    rows = await connections.list_mappings(db, tenant.connection, None, 100_000)
    there = {(row["internal_entity_type"], row["external_entity_id"]) for row in rows}
    there |= {(row["internal_entity_type"], row["internal_entity_id"]) for row in rows}
    for kind, external, internal in MAPPINGS:
        if not {(kind.value, external), (kind.value, internal)} & there:
            await connections.add_mapping(db, tenant.as_connection, kind.value, external, internal)


async def _webhook_secret(db: asyncpg.Connection[asyncpg.Record], tenant: Tenant, cipher: Cipher) -> str:
    held = (await connections.secrets(db, tenant.connection)).get("webhook_secret")
    if held is not None:
        return cipher.open_bytes(held.sealed).decode()
    secret = random_secrets.token_hex(32)
    await connections.put_secret(db, tenant.as_connection, "webhook_secret", cipher.seal_bytes(secret.encode()))
    return secret
