"""The vendor over HTTP: the simulator, each of its writes noted where it is done, and webhooks held back for the schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import orjson

from simulators.beds24.app import Beds24

from .ending import Look
from .vendor import START, Clock, Vendor

if TYPE_CHECKING:
    from starlette.responses import Response

    from simulators.beds24.faults import Call
    from simulators.beds24.operations import Ask, Operation


@dataclass(slots=True)
class WallClock(Clock):
    """Ours is the machine's. What passes beyond that, passes at the vendor only."""

    def vendors(self) -> datetime:
        return datetime.now(UTC) - self.skew + (self.at - START)

    def ours(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class ServedVendor(Vendor):
    """looks: see ending.Look; moments: when it took each of its writes, as the journal counts"""

    moments: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def note(self, key: str | None, booking: int | None, item: dict[str, Any]) -> None:
        super().note(key, booking, item)
        self.moments.append(time.monotonic())

    def looked(self, of: str) -> None:
        """Keeps a place in the order, for what only the asker knows: whether it found what it wants."""
        self.note(None, None, {})
        self.looks.append(Look(len(self.log) - 1, of, datetime.now(UTC)))


class Simulator(Beds24):
    def __init__(self, vendor: ServedVendor) -> None:
        super().__init__(vendor.account)
        self.account.credits.limit = Decimal(10**9)  # schedules are not about credits
        self.vendor = vendor

    def perform(self, operation: Operation, ask: Ask, call: Call, size: int) -> Response:
        """Nothing else runs between a write and its note."""
        if operation.method == "POST" and self.vendor.distinct:
            self.vendor.clock.pass_by(1)
        response = super().perform(operation, ask, call, size)
        if operation.method == "POST" and response.status_code == 201:
            calendar = operation.name.endswith("/calendar")
            result = orjson.loads(response.body)[0]
            self.vendor.took(call.idempotency_key or "", ask.items()[0], result, calendar=calendar)
        elif operation.name == "GET /bookings" and ask.query.has("id") and not ask.query.has("includeInfoItems"):
            self.vendor.looked(str(ask.query.text("id")))  # a hint's fetch asks for more
        elif operation.name.endswith("/calendar") and not ask.query.has("includeOverride"):
            self.vendor.looked(str(ask.query.text("roomId")))  # the same
        return response
