"""A database session of one's own, kept: what lives no longer than it (a lock, a subscription) is begun again when it is lost."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg

from telemetry.logs import about

from .pool import is_outage

if TYPE_CHECKING:
    from .pool import Connection

    Own = asyncpg.Connection[asyncpg.Record]

ANSWER = 5.0  # seconds
OPENING = 10.0  # seconds for a new session, what is begun on it included

_log = logging.getLogger(__name__)


class Session(ABC):
    """What it is for says who derives from it: `begin`."""

    def __init__(self, database_url: str, name: str, *, look: float = 2.0, pause: float = 0.5) -> None:
        """Seconds: look between questions whether the server is still there, pause between attempts to be back"""
        self._url = database_url
        self._name = name
        self._look = look
        self._pause = pause
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def begin(self, connection: Connection) -> None:
        """On each new connection. May raise what asyncpg raises."""

    async def start(self) -> None:
        """returns when it has begun. raises what asyncpg raises when the database cannot be reached"""
        connection = await self._open()
        self._task = asyncio.create_task(self._keep(connection), name=self._name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _open(self) -> Own:
        async with asyncio.timeout(OPENING):
            connection = await asyncpg.connect(self._url, server_settings={"application_name": self._name})
            lost = self._lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            try:
                await self.begin(connection)
            except BaseException:
                connection.terminate()
                raise
        return connection

    async def _keep(self, connection: Own) -> None:
        try:
            while True:
                await self._trouble(connection)
                connection.terminate()
                connection = await self._open_at_last()
        finally:
            connection.terminate()

    async def _trouble(self, connection: Own) -> None:
        """Returns when the session is lost: the server said so, or does not answer."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), self._look)
                return
            try:
                await connection.execute("SELECT 1", timeout=ANSWER)
            except Exception as error:  # noqa: BLE001 - see _open_at_last
                self._tell(error)
                return

    async def _open_at_last(self) -> Own:
        while True:
            try:
                return await self._open()
            except Exception as error:  # noqa: BLE001 - whatever is said: who gave up would be taken for dead, or hear no bell, for good
                self._tell(error)
                await asyncio.sleep(self._pause)

    def _tell(self, error: Exception) -> None:
        if not is_outage(error):
            _log.warning("session lost, trying again", extra=about(session=self._name, error_type=type(error).__name__))
