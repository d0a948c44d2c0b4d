"""What the lane of a delivery wants, said to its vendor: in one call, or in as few as the vendor takes."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from adapters.errors import AdapterError, Misconfigured, Rejected, Transient
from adapters.port import Command, Repeat, Reply
from adapters.transport import NOT_SENT
from schemas.commands import InvalidCommandError
from schemas.vocabulary import CallKind, Fault
from store.seal import SealError
from telemetry.logs import about

from .delivery_rows import Work, all_mapped, ids, made_before
from .outcome import Done

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .sessions import VendorSession

_log = logging.getLogger(__name__)

PAGE = 200  # commands that are in hand at once, and go out in one call at most

# What is wrong is what was said: said in part, it may be right.
_OF_THE_DATA = frozenset({Fault.REJECTED, Fault.UNSUPPORTED, Fault.INVALID, Fault.UNMAPPED})


class Older(Protocol):
    """What waits in the lane of a delivery and is older (workers/lane.py)."""

    async def waiting(self) -> list[Work]:
        """The oldest, a page at most."""
        ...

    def read(self, older: Work) -> Command:
        """raises AdapterError, InvalidCommandError, SealError"""
        ...

    async def resolved(self, command: Command) -> Command:
        """With the vendor's ids of all that it refers to."""
        ...

    async def said(self, part: Sequence[Work]) -> None:
        """The vendor has done them: they end, for good."""
        ...

    async def refused(self, older: Work, error: Exception) -> None:
        """It ends as a dead letter, with its own reason."""
        ...


async def say(session: VendorSession, newest: Work, older: Older, repeat: Repeat) -> Reply:
    """All that waits in the lane, and the newest last. Whatever ends the attempt in the middle: what was said is not said again
    behind what is newer, and what was refused by itself does not go out behind it."""
    if newest.command is None:
        raise AssertionError("a claimed delivery without command has its outcome already")
    waiting = await older.waiting()
    # Parts are settled in their order, so of an attempt that did not end only what comes first now may have been done. Beyond a page
    # nobody has looked whether one has begun.
    doubt = newest.doubt or len(waiting) >= PAGE or any(work.row.starts for work in waiting)
    saying = _Saying(session, newest, newest.command, older, repeat, doubt)
    # A full page goes without the newest: so what went out in one call with the newest of another attempt is in one page with it.
    while len(waiting) >= PAGE:
        await saying.part(waiting)
        waiting = await older.waiting()
    reply = await saying.part([*waiting, newest])
    if reply is None:
        raise AssertionError("the newest is said or raises")
    return reply


@dataclass(slots=True)
class _Saying:
    """command: of the newest, as it came; doubt: what comes next may have been done, alone or with others"""

    session: VendorSession
    newest: Work
    command: Command
    older: Older
    repeat: Repeat
    doubt: bool

    async def part(self, works: Sequence[Work]) -> Reply | None:
        """In as few calls as can say it, the oldest first. None: the last of them was refused, and is not the newest."""
        reply: Reply | None = None
        while works:
            together, command = await self._together(works)
            reply = await self._call(together, command)
            works = works[len(together) :]
        return reply

    async def _call(self, works: Sequence[Work], command: Command | Exception) -> Reply | None:
        """What the vendor refuses, in two parts: so the fault of one of them keeps none of the others back."""
        *others, last = works
        answer = await self._ask(last, command) if isinstance(command, Command) else command
        if answer is None:
            raise AssertionError("what is said is replied to or refused")
        if isinstance(answer, Reply):
            return await self._done(works, answer)
        if others:
            first = _first_part(works)
            done = await self._done_before(works, first)
            if not done:
                await self.part(works[:first])
            return await self.part(works[done or first :])
        if last is self.newest:
            raise answer
        await self.older.refused(last, answer)
        return None

    async def _done(self, works: Sequence[Work], reply: Reply) -> Reply:
        *others, last = works
        self.newest.doubt = self.doubt = False
        for work in works:
            work.outcome, work.external_id = Done(reply), reply.external_id
        if last is self.newest:
            last.absorbed = others
        else:
            await self.older.said(works)
        return reply

    async def _done_before(self, works: Sequence[Work], first: int) -> int:
        """How many of the oldest an attempt has done that began with one of them: with all that was older, perhaps. Only looked up,
        ahead of the first part, which would put an older state back; 0: none of more than that."""
        for count in range(len(works) - 1, first, -1):
            if self.doubt and self.repeat is not Repeat.ASK and works[count - 1].row.starts:
                together, command = await self._together(works[:count])
                found = await self._ask(together[-1], command, only_look=True) if isinstance(command, Command) else None
                if isinstance(found, Reply):
                    await self._done(together, found)
                    return len(together)
        return 0

    async def _ask(self, last: Work, command: Command, *, only_look: bool = False) -> Reply | AdapterError | None:
        """What the vendor replied, or what is wrong with what it should be told. None: only looked, and it is not done"""
        try:
            last.command = command = await self.older.resolved(command)
            all_mapped(command)
            self.newest.itself = last is self.newest
            self.newest.doubt = self.doubt
            if only_look:
                return await _found(self.session, self.newest, command)
            return await ask_or_execute(self.session, self.newest, command, self.repeat)
        except AdapterError as error:
            if error.fault not in _OF_THE_DATA:
                raise
            return error

    async def _together(self, works: Sequence[Work]) -> tuple[Sequence[Work], Command | Exception]:
        """As many of the oldest as one command can say, and that command; or the oldest, and why it cannot be read."""
        count = 0
        try:
            said = self._read(works[0])
            count = 1
            if len(works) > 1:
                merging = said.data.merging()
            for work in works[1:]:
                await asyncio.sleep(0)  # a year of nights takes milliseconds
                newer = self._read(work)
                merging.add(newer.data)
                said, count = newer, count + 1
        except Exception as error:  # noqa: BLE001 - who cannot be read, or merged, fails none of those beside it
            if not isinstance(error, AdapterError | InvalidCommandError | SealError):
                _log.exception("an older command cannot be said with others", extra=about(**ids(self.newest)))
            if count == 0:
                return works[:1], error
        together = works[:count]
        if count > 1:
            said = replace(said, data=merging.command(), idempotency_key=_key(together))
        return together, said

    def _read(self, work: Work) -> Command:
        return self.command if work is self.newest else self.older.read(work)


def _first_part(works: Sequence[Work]) -> int:
    """How many of the oldest go first: always as many, however many wait behind them, so that after a crash what was said together
    is not said one by one."""
    return 1 << ((len(works) - 1).bit_length() - 1)


def _key(works: Sequence[Work]) -> str:
    """The same for the same commands, another one for each other body."""
    named = hashlib.sha256(b"".join(work.row.id.bytes for work in works))
    return f"{works[-1].row.idempotency_key}/{named.hexdigest()[:16]}"


async def ask_or_execute(session: VendorSession, work: Work, command: Command, repeat: Repeat) -> Reply:
    doubt = work.doubt
    if doubt and repeat is not Repeat.ASK:
        found = await _found(session, work, command)
        if found is not None:
            return found
        # The vendor says that it has not happened. What must not be done twice is asked for again before each further call all the
        # same: the call without an answer may be under way still.
        work.doubt = repeat is Repeat.LOOK_UP
    known = made_before(command)
    if known is not None:
        work.existed = True
        return Reply(known, {"existed": True}, found=True)
    try:
        return await session.adapter.execute(session, command)
    except Transient as error:
        if error.code == NOT_SENT:  # no further call: as much in doubt as before
            work.doubt = doubt
        raise


async def _found(session: VendorSession, work: Work, command: Command) -> Reply | None:
    work.asked = CallKind.READ
    try:
        found = await session.adapter.find(session, command)
    except Rejected as error:  # the question is refused, which says nothing about the command
        problem = f"{error}; it was asked whether {command.event_type} has been done, and that is not known"
        raise Misconfigured(problem, code=error.code, place=error.place) from error
    work.looked_up = True
    work.asked = CallKind.WRITE  # what is done is a sign of life of the vendor's writes, too
    return found
