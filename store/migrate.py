"""Moving the schema: upgrade and downgrade. What version it has is store/schema.py's, which every process asks."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

# Two processes that start at once must not migrate at once; any number that nobody else uses.
_LOCK = 7_203_411_959


async def upgrade(database_url: str, revision: str = "head") -> None:
    await _run(database_url, lambda config: command.upgrade(config, revision))


async def downgrade(database_url: str, revision: str) -> None:
    """`base` drops everything that staybus made."""
    await _run(database_url, lambda config: command.downgrade(config, revision))


async def _run(database_url: str, step: Callable[[Config], None]) -> None:
    def locked(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        step(config)

    engine = _engine(database_url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(locked)
    finally:
        await engine.dispose()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")))
    config.set_main_option("path_separator", "os")
    return config


def _engine(database_url: str) -> AsyncEngine:
    # The URL goes to asyncpg as it is: one reading of its options in the whole product.
    return create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(database_url), poolclass=NullPool
    )
