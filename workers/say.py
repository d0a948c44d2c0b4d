"""What a delivery's lane wants, said to its vendor: in one call, or in as few as the vendor takes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from adapters.errors import AdapterError
from adapters.port import Command, Repeat, Reply
from schemas.commands import InvalidCommandError
from schemas.vocabulary import CallKind, Fault
from telemetry.logs import about

from .delivery_rows import Work, ids, made_before

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from schemas.commands import CommandData

    from .sessions import VendorSession

_log = logging.getLogger(__name__)

# What is wrong is what was said: said in part, it may be right.
_OF_THE_DATA = frozenset({Fault.REJECTED, Fault.UNSUPPORTED, Fault.INVALID, Fault.UNMAPPED})


async def say(
    session: VendorSession, work: Work, command: Command, said: Sequence[tuple[UUID, CommandData]], repeat: Repeat
) -> Reply:
    """What a lane wants, the oldest first, in one call. What no one call can say, or the vendor refuses, in halves: so the
    fault of one of them keeps none of the others back, and nothing older comes to the vendor behind what is newer."""
    *older, (newest, _) = said
    data = await _merged(work, said)
    if data is not None:
        key = command.idempotency_key if newest == work.row.id else f"{command.idempotency_key}/{newest}"
        work.command = replace(command, data=data, idempotency_key=key)
        try:
            reply = await ask_or_execute(session, work, work.command, repeat)
        except AdapterError as error:
            if not older or error.fault not in _OF_THE_DATA:
                raise
        else:
            work.absorbed += [id_ for id_, _ in said if id_ != work.row.id]
            return reply
    half = len(said) // 2
    try:
        await say(session, work, command, said[:half], repeat)
    except AdapterError as error:
        if error.fault not in _OF_THE_DATA:
            raise
        # The last of that half waits for its own turn, and ends there with its reason.
    return await say(session, work, command, said[half:], repeat)


async def _merged(work: Work, said: Sequence[tuple[UUID, CommandData]]) -> CommandData | None:
    """None: no one command says it all."""
    *older, (_, data) = said
    for id_, before in reversed(older):
        await asyncio.sleep(0)  # thousands of nights take some 30 ms, and there may be many of them
        try:
            data = data.over(before)
        except InvalidCommandError:
            return None
        except Exception:  # noqa: BLE001 - a fault of merging is none of either; they go out one by one
            _log.exception("an older command cannot be merged", extra=about(**ids(work), older=str(id_)))
            return None
    return data


async def ask_or_execute(session: VendorSession, work: Work, command: Command, repeat: Repeat) -> Reply:
    if work.doubt and repeat is not Repeat.ASK:
        work.asked = CallKind.READ
        found = await session.adapter.find(session, command)
        work.looked_up = True
        if found is not None:
            return found
        work.doubt = False  # the vendor says that it has not happened
        work.asked = CallKind.WRITE
    known = made_before(command)
    if known is not None:
        work.existed = True
        return Reply(known, {"existed": True}, found=True)
    return await session.adapter.execute(session, command)
