"""Hearing of an outbox row when it is committed, not at the next look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import Connection

CHANNEL = "staybus_outbox"  # what the trigger of the table notifies (migration 0007)


class Bell(Session):
    """rung: called once a commit, and each time that it listens anew: what was written meanwhile said nothing"""

    def __init__(self, database_url: str, name: str, rung: Callable[[], None], *, look: float = 2.0) -> None:
        super().__init__(database_url, f"staybus {name} bell", look=look)
        self._rung = rung

    async def begin(self, connection: Connection) -> None:
        await connection.add_listener(CHANNEL, lambda *_: self._rung())
        self._rung()
