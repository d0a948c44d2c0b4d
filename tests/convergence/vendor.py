"""Beds24 as its simulator has it, without a server: the account, its clock, what it sends, and how calls to it end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import URL, QueryParams

from adapters.errors import Transient, Unknown
from adapters.port import Request, Response, WebhookRequest
from adapters.transport import NOT_SENT
from simulators.beds24.access import RESOURCES, Token
from simulators.beds24.faults import Fault, FaultKind
from simulators.beds24.operations import Ask, get_bookings, get_calendar, post_bookings, post_calendar
from simulators.beds24.query import Query
from simulators.beds24.state import Account, Author, BookingChanged, without_personal

if TYPE_CHECKING:
    from simulators.beds24.members import Json

BASE = "http://vendor"
START = datetime(2026, 11, 1, 8, 0, 0, tzinfo=UTC)
_TOKEN = Token("t", frozenset(f"all:{name}" for name in RESOURCES), START, None, START)
_URL = URL("http://vendor/bookings")


@dataclass(slots=True)
class Clock:
    """skew: how far ours is ahead of the vendor's."""

    skew: timedelta
    at: datetime = START

    def vendors(self) -> datetime:
        return self.at

    def ours(self) -> datetime:
        return self.at + self.skew

    def pass_by(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Fate(Enum):
    """What becomes of a call to the vendor."""

    ANSWERED = auto()
    NOT_SENT = auto()
    LOST = auto()  # on the way there
    ANSWER_LOST = auto()  # done
    BUSY = auto()  # 503, nothing done
    BROKEN = auto()  # 500, done
    LIMITED = auto()
    UNAUTHORIZED = auto()
    REFUSED = auto()  # of a write: the vendor says no to it


class Form(Enum):
    """What a webhook tells."""

    FULL = auto()
    NO_GUEST = auto()
    ID_ONLY = auto()
    BARE_ID = auto()  # nothing to tell it from the next one
    VERSION_ONE = auto()


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the vendor took, or that was found to be so already.

    at      the place in the vendor's order
    key     of our command; None: its own user's
    """

    at: int
    key: str | None
    booking: int | None
    members: Json


@dataclass(slots=True)
class Letter:
    """A webhook on its way. body: what it tells, as JSON; resent with another time stamp where the vendor does so."""

    form: Form
    body: bytes
    restamps: bool
    sent: int = 0

    def request(self, now: datetime) -> WebhookRequest:
        self.sent += 1
        if self.form is Form.VERSION_ONE:
            booking = orjson.loads(self.body)
            return WebhookRequest("GET", {}, {"bookid": str(booking["id"]), "status": booking["status"]}, b"")
        if self.sent == 1:
            return WebhookRequest("POST", {}, {}, self.body)
        body = orjson.loads(self.body)
        if "retries" in body:
            body["retries"] = self.sent - 1
        if self.restamps and "timeStamp" in body:
            body["timeStamp"] = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        return WebhookRequest("POST", {}, {}, orjson.dumps(body))


@dataclass
class Vendor:
    """port.Http over the account.

    echoes    our own writes come back as webhooks, too
    restamps  see Letter
    distinct  no booking ever looks again as it did before, and webhooks tell of guests: nothing is left to a pull
    """

    clock: Clock
    echoes: bool = False
    restamps: bool = False
    distinct: bool = False
    fates: deque[Fate] = field(default_factory=deque)
    letters: list[Letter] = field(default_factory=list)
    log: list[Write] = field(default_factory=list)
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        self.account = Account(clock=self.clock.vendors)

    # ------------------------------------------------------------------ what its users do

    def book(self, members: Json, form: Form) -> None:
        self._user(members, form)

    def change(self, booking: int, members: Json, form: Form) -> None:
        self._user({"id": booking, **members}, form)

    def message(self, booking: int, text: str, form: Form) -> None:
        """A guest writes; the booking's modification time stays."""
        self.account.add_message(booking, text, "guest")
        self._send(form)

    def _user(self, item: Json, form: Form) -> None:
        if self.distinct:
            item = {**item, "flagText": f"{len(self.log)}"}
        outcome = self.account.write_booking(item, Author(api=False))
        assert not outcome.errors, outcome.errors
        if outcome.changed:
            self.note(None, outcome.id, item)
        self._send(form)

    def _send(self, form: Form) -> None:
        if self.distinct and form is Form.NO_GUEST:
            form = Form.FULL
        for event in self.account.take_events():
            if isinstance(event, BookingChanged):
                self.letters.append(Letter(form, orjson.dumps(_told(event.body, form)), self.restamps))

    # ------------------------------------------------------------------ what we ask of it

    def note(self, key: str | None, booking: int | None, item: Json) -> None:
        """A write is taken; or a look-up said that all is as this command wants it."""
        members = {name: value for name, value in item.items() if name != "id"}
        self.log.append(Write(len(self.log), key, booking, members))

    def took(self, key: str, item: Json, result: Json, *, calendar: bool) -> None:
        """A command, the vendor's answer to it."""
        if not result["success"]:
            return
        booking = None if calendar else item.get("id") or result["new"]["id"]
        delivery, _, _ = key.partition("/")  # what was said with older ones of its lane has a key of its own beside it
        self.note(delivery, booking, item)
        if self.echoes and booking is not None:
            self.letters.append(Letter(Form.FULL, orjson.dumps(self.account.webhook_body(booking)), self.restamps))

    async def send(self, request: Request) -> Response:
        fate = self.fates.popleft() if self.fates else Fate.ANSWERED
        lost = Transient if request.method == "GET" else Unknown
        match fate:
            case Fate.NOT_SENT:
                raise Transient("beds24: not sent", code=NOT_SENT)
            case Fate.LOST:
                raise lost("beds24: no answer")
            case Fate.BUSY:
                return Response(503, {}, None)
            case Fate.UNAUTHORIZED:
                return Response(401, {}, {"success": False})
            case Fate.LIMITED:
                return Response(429, {"x-five-min-limit-resets-in": "2"}, {"success": False})
            case _:
                answer = self._do(request, refused=fate is Fate.REFUSED)
        if fate is Fate.ANSWER_LOST:
            raise lost("beds24: no answer")
        return Response(500, {}, {"success": False}) if fate is Fate.BROKEN else answer

    def _do(self, request: Request, *, refused: bool) -> Response:
        ask = Ask(Query(QueryParams(list(request.params))), {}, request.json, _URL, "", _TOKEN)
        calendar = request.url.endswith("/calendar")
        if request.method == "GET":
            return Response(200, {}, (get_calendar if calendar else get_bookings)(self.account, ask).body)
        if self.distinct:
            self.clock.pass_by(1)
        ask.refuse = Fault(FaultKind.REFUSE_ITEM) if refused else None
        answer = (post_calendar if calendar else post_bookings)(self.account, ask)
        self.took(request.headers["X-Idempotency-Key"], request.json[0], answer.body[0], calendar=calendar)
        return Response(answer.status, {}, orjson.loads(orjson.dumps(answer.body)))


def _told(body: Json, form: Form) -> Json:
    booking = body["booking"]
    match form:
        case Form.FULL:
            return body
        case Form.NO_GUEST:
            return body | {"booking": without_personal(booking), "messages": []}
        case Form.ID_ONLY:
            return {"timeStamp": body["timeStamp"], "booking": {"id": booking["id"]}}
        case Form.BARE_ID:
            return {"id": booking["id"]}
        case Form.VERSION_ONE:
            return {"id": booking["id"], "status": booking["status"]}


def nights(entry: Json) -> dict[tuple[date, str], Any]:
    """(night, member) → value, of one entry of a calendar as it is sent."""
    first, last = date.fromisoformat(entry["from"]), date.fromisoformat(entry["to"])
    said = {name: value for name, value in entry.items() if name not in {"from", "to"}}
    return {
        (first + timedelta(days=day), name): value
        for day in range((last - first).days + 1)
        for name, value in said.items()
    }
