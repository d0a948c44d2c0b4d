"""Dead letters of what is malformed in a batch: each by itself and whole, so that it can be sent again without the others."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from store.settle import DeadLetterRow, bury
from telemetry.logs import about

from .letters import letter_without_row
from .persist import outlast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.event import Malformed
    from store.directory import Directory
    from store.pool import Pool
    from store.seal import Cipher
    from topology.consumer import Incoming

_log = logging.getLogger(__name__)


async def keep_malformed(
    pool: Pool, directory: Directory, queue: str, incoming: Incoming, malformed: Sequence[Malformed]
) -> None:
    """Committed when it returns; waits while the database is away."""
    letters = [_letter(one, queue, incoming.routing_key, directory.installation) for one in malformed]

    async def keep() -> None:
        async with pool.acquire() as connection:
            await bury(connection, letters)

    await outlast(keep)
    _log.warning(
        "events of a batch not readable: dead letters",
        extra=about(queue=queue, count=len(letters), reason=malformed[0].problem),
    )


def _letter(malformed: Malformed, queue: str, key: str, installation: Cipher) -> DeadLetterRow:
    letter = letter_without_row(key, None, malformed.problem, {"queue": queue, "key": key, "place": malformed.place})
    letter.queue = queue
    letter.error_code = "unreadable_message"
    letter.sealed = installation.seal_bytes(malformed.raw)
    return letter
