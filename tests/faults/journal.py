"""What the vendor's simulator was asked to do, when, and whether it did it: the ground on which repeats are counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from simulators.beds24.faults import Call as SeenCall
from tests.faults.oracle import Call

if TYPE_CHECKING:
    from starlette.requests import Request

    from simulators.beds24.app import Beds24
    from simulators.beds24.operations import Operation

_WRITES = frozenset({"POST /bookings", "POST /inventory/rooms/calendar"})
_DONE = frozenset({200, 201})


class Journal:
    """Every write from now on, in the order of arrival."""

    def __init__(self, sim: Beds24) -> None:
        self._sim = sim
        self._serve = sim.serve
        self._entries: list[_Entry] = []
        sim.serve = self._note  # type: ignore[method-assign]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def under_way(self) -> int:
        return sum(entry.ended is None for entry in self._entries)

    def calls(self, start: int = 0) -> list[Call]:
        """From the n-th on; what is under way ends now."""
        return [entry.call() for entry in self._entries[start:]]

    async def _note(self, operation: Operation, request: Request) -> Response:
        if operation.name not in _WRITES:
            return await self._serve(operation, request)
        try:
            await request.body()
        except ClientDisconnect:
            return Response()  # what never arrives whole is no call
        # With the body there, the simulator makes its record of the call before anything else can run.
        entry = _Entry(self._sim.account.calls, len(self._sim.account.calls), time.monotonic())
        self._entries.append(entry)
        try:
            return await self._serve(operation, request)
        finally:
            entry.ended = time.monotonic()


@dataclass(slots=True)
class _Entry:
    record: list[SeenCall]  # the simulator's
    position: int
    began: float
    ended: float | None = None

    def call(self) -> Call:
        seen = self.record[self.position]
        item = seen.body[0] if isinstance(seen.body, list) and seen.body else {}
        creates = seen.operation == "POST /bookings" and "id" not in item
        # A change to what is already so has no effect, and was done nevertheless: then its answer says so.
        applied = bool(seen.effects) or (not creates and seen.fault is None and seen.status in _DONE)
        ended = time.monotonic() if self.ended is None else self.ended
        said = seen.idempotency_key or "none"
        key = said.partition("/")[0]  # of the delivery, whatever it was said with
        return Call(key, self.began, ended, applied, created=creates and applied, said=said)
