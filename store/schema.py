"""Which schema the database has, and which this code needs. Light: every process asks at its start."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import asyncpg


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """current None: an empty database"""

    current: str | None
    head: str

    @property
    def up_to_date(self) -> bool:
        return self.current == self.head


def head() -> str:
    """The newest migration, by the number that its file begins with."""
    names = (entry.name for entry in (files("migrations") / "versions").iterdir())
    return max(name.partition("_")[0] for name in names if name[0].isdigit())


async def status(database_url: str) -> SchemaStatus:
    """raises what asyncpg raises when the database cannot be reached"""
    connection = await asyncpg.connect(database_url)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return SchemaStatus(None, head())
        return SchemaStatus(await connection.fetchval("SELECT version_num FROM alembic_version"), head())
    finally:
        await connection.close()
