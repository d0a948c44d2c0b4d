"""Dead letters of what is malformed among the messages of a work queue: each by itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from store.settle import bury
from telemetry.logs import about

from .letters import unreadable
from .persist import outlast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.event import Malformed
    from store.directory import Directory
    from store.pool import Pool
    from topology.consumer import Incoming

_log = logging.getLogger(__name__)


async def keep_malformed(
    pool: Pool, directory: Directory, queue: str, incoming: Incoming, malformed: Sequence[Malformed]
) -> None:
    """Committed when it returns; waits while the database is away."""
    routing = {"queue": queue, "key": incoming.routing_key}
    letters = [unreadable(one, queue, routing, directory.installation) for one in malformed]

    async def keep() -> None:
        async with pool.acquire() as connection:
            await bury(connection, letters)

    await outlast(keep)
    _log.warning(
        "not readable: dead letters", extra=about(queue=queue, count=len(letters), reason=malformed[0].problem)
    )
