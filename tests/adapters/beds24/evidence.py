"""Evidence for the contract kit: webhooks made from the documented members, and the vendor's simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from adapters.port import Hint, WebhookRequest
from schemas.commands import parse_command
from schemas.connection import Connection
from schemas.vocabulary import EntityType
from simulators.beds24 import Beds24, Fault, FaultKind, create_app
from simulators.server import SimServer
from tests.adapters.beds24.examples import GUEST, body, connection, post
from tests.contract.evidence import RESETS_IN, Break, Evidence, Sample, Seen

PROPERTY, ROOM = 345754, 713992  # the simulator's own

SENT = {
    "firstName": "Ludmila-Sent",
    "lastName": "Brožová-Sent",
    "email": "ludmila.sent@example.invalid",
    "phone": "+420606123456",
}
NOTES = "arrives with the neighbour's parrot"

STAY = {"propertyId": "p1", "roomTypeId": "rt1", "checkIn": "2027-03-10", "checkOut": "2027-03-13"}
COMMANDS = {
    "pms.booking.create": STAY
    | {"reservationId": "new", "guest": SENT, "notes": NOTES, "totalPrice": 31350, "currency": "EUR"},
    "pms.booking.update": {"reservationId": "r1", "checkOut": "2027-02-09", "guest": SENT, "notes": NOTES},
    "pms.booking.cancel": {"reservationId": "r1"},
    "pms.availability.update": {
        "propertyId": "p1",
        "roomTypeId": "rt1",
        "periods": [{"first": "2027-05-01", "last": "2027-05-31", "available": 1, "price": 12000, "minStay": 2}],
    },
}
KINDS: Mapping[Break, FaultKind] = {
    Break.TOKEN_EXPIRED: FaultKind.EXPIRED_TOKEN,
    Break.TOKEN_DEAD: FaultKind.EXPIRED_TOKEN,
    Break.RATE_LIMITED: FaultKind.RATE_LIMITED,
    Break.RATE_LIMITED_BARE: FaultKind.RATE_LIMITED_BARE,
    Break.SERVER_ERROR: FaultKind.SERVER_ERROR,
    Break.HTML_200: FaultKind.HTML_200,
    Break.EMPTY_200: FaultKind.EMPTY_200,
    Break.HTML_404: FaultKind.HTML_404,
    Break.HTML_502: FaultKind.HTML_502,
    Break.CUT_JSON: FaultKind.CUT_JSON,
    Break.TIMEOUT_DONE: FaultKind.TIMEOUT_AFTER_COMMIT,
    Break.TIMEOUT_NOT_DONE: FaultKind.TIMEOUT_BEFORE_COMMIT,
}


class World:
    """One property with one booking by a guest."""

    def __init__(self, sim: Beds24, url: str) -> None:
        self.sim = sim
        booked = sim.account.book({"roomId": ROOM, "arrival": "2027-02-01", "departure": "2027-02-04", **GUEST})
        assert booked.id, booked.errors
        sim.account.take_events()
        self.booking = booked.id
        self.connection = Connection(
            id="conn-sim",
            company_id="company-1",
            vendor="beds24",
            name="Simulated",
            config={"base_url": f"{url}/api/v2"},
            currencies={str(PROPERTY): "EUR"},
        )
        self.credentials = {"invite_code": sim.account.access.invite()}
        self.external = {
            (EntityType.PROPERTY, "p1"): str(PROPERTY),
            (EntityType.ROOM_TYPE, "rt1"): str(ROOM),
            (EntityType.RESERVATION, "r1"): str(self.booking),
        }
        self.hints = (Hint(EntityType.RESERVATION, str(self.booking)), Hint(EntityType.AVAILABILITY, str(ROOM)))
        self.gone = (Hint(EntityType.RESERVATION, "404404"), Hint(EntityType.AVAILABILITY, "404405"))

    def webhooks(self) -> Sequence[WebhookRequest]:
        return [post(self.sim.account.webhook_body(self.booking))]

    def fail(self, how: Break, event_type: str | None) -> None:
        operation = "GET /bookings"
        if event_type is not None:
            calendar = event_type == "pms.availability.update"
            operation = "POST /inventory/rooms/calendar" if calendar else "POST /bookings"
        if how is Break.REFUSED:
            self._refuse(event_type)
            return
        count = None if how is Break.TOKEN_DEAD else 1
        seconds = RESETS_IN if how in {Break.RATE_LIMITED, Break.RATE_LIMITED_BARE} else None
        self.sim.faults.add(Fault(KINDS[how], operation, count=count, seconds=seconds))

    def _refuse(self, event_type: str | None) -> None:
        """By taking away what the command is about: a refusal by the simulator's own judgement."""
        if event_type in {"pms.booking.update", "pms.booking.cancel"}:
            self.sim.account.erase(self.booking)
        else:
            self.sim.account.rooms.pop(ROOM)

    def mend(self) -> None:
        self.sim.faults.clear()

    def seen(self) -> Sequence[Seen]:
        return [
            Seen(call.method, call.path, call.idempotency_key, call.body)
            for call in self.sim.account.calls
            if "/authentication/" not in call.path
        ]

    def effects(self) -> int:
        return self.sim.account.effects()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    sim = Beds24()
    async with SimServer(create_app(sim)) as server:
        yield World(sim, server.url)


def _get(**query: str) -> WebhookRequest:
    return WebhookRequest("GET", {}, query, b"")


def _room(**members: Any) -> WebhookRequest:
    return post({"roomId": "713992", "propId": "345754", "ownerId": "1", "action": "SYNC_ROOM"} | members)


evidence = Evidence(
    connection=connection(),
    samples=(
        Sample(
            "a booking with guest data",
            post(body()),
            resends=(post(body(retries=1, timeStamp="2026-05-01T12:20:00Z")), post([body(retries=2)])),
            others=(
                post(body({"modifiedTime": "2026-05-01T12:05:00Z"})),
                post(body({"status": "cancelled"})),
                post(body({"departure": "2026-06-20"})),
                post(body(messages=[{"id": 9, "message": "one more question"}])),
            ),
        ),
        Sample("a new booking", post(body({"bookingTime": "2026-05-01T11:58:30Z"}))),
        Sample("a cancellation", post(body({"status": "cancelled"}))),
        Sample("no personal data", post(body(dict.fromkeys(GUEST, ""), messages=[], infoItems=[]))),
        Sample("two at once", post([body(), body({"id": 5})])),
        Sample("a hint with a time", post({"booking": {"id": 5}, "timeStamp": "2026-05-01T12:00:00Z"}), keyed=False),
        Sample("a bare hint", post({"id": "5"}), keyed=False),
        Sample("version one", _get(bookid="5", status="new"), keyed=False),
        Sample("inventory", _room(), keyed=False),
    ),
    guest_values=frozenset(
        {*GUEST.values(), *SENT.values(), NOTES, "comes with a dog", "is there parking?", "one more question"}
    ),
    commands={name: parse_command(name, data) for name, data in COMMANDS.items()},
    world=world,
    card_data=(
        post(body({"cvc": "123"})),
        post(body(cardNumber="4111111111111111")),
        post([body(), body({"id": 6}, infoItems=[{"code": "ccExpiry", "text": "12/30"}])]),
    ),
    bad_credentials={"invite_code": "used-up-code", "refresh_token": "revoked-refresh-token"},
)
