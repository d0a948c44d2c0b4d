"""The work of one event, in one place for all peers, so that only the library around it differs.

Ingress: check the signature over the raw bytes, record the event once, publish it, answer 202.
Consumer: lock the event's row, stop when it is done; write the booking, mark the event done, commit; then ack.
"""

from __future__ import annotations

import hmac
import os
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

import asyncpg
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

DATABASE_URL = os.environ.get("PEER_DATABASE_URL", "")
AMQP_URL = os.environ.get("PEER_AMQP_URL", "")
SECRET = os.environ.get("PEER_SECRET", "").encode()
QUEUE_TYPE = os.environ.get("PEER_QUEUE_TYPE", "quorum")  # or classic

EXCHANGE = "events"  # topic, durable
QUEUE = "bookings"  # durable
BINDING = "beds24.#"
ROUTING_KEY = "beds24.booking"
PREFETCH = 50
POOL = 10  # connections of a process to Postgres

KEY = "x-idempotency-key"
SIGNATURE = "x-beds24-signature"

SCHEMA = """
CREATE TABLE channel_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key text NOT NULL UNIQUE,
    vendor text NOT NULL,
    payload jsonb NOT NULL,
    status text NOT NULL DEFAULT 'received',
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    processed_at timestamptz
);
CREATE TABLE bookings (
    property_id bigint NOT NULL,
    booking_id bigint NOT NULL,
    room_id bigint NOT NULL,
    status text NOT NULL,
    arrival date NOT NULL,
    departure date NOT NULL,
    guest_name text NOT NULL,
    guest_email text NOT NULL,
    price_cents bigint NOT NULL,
    modified_at timestamptz NOT NULL,
    event_key text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (property_id, booking_id)
);
"""
RECORD = (
    "INSERT INTO channel_events (idempotency_key, vendor, payload) VALUES ($1, 'beds24', $2)"
    " ON CONFLICT (idempotency_key) DO NOTHING RETURNING id"
)
LOCK = "SELECT status FROM channel_events WHERE idempotency_key = $1 FOR UPDATE"
UPSERT = (
    "INSERT INTO bookings (property_id, booking_id, room_id, status, arrival, departure, guest_name, guest_email,"
    " price_cents, modified_at, event_key) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    " ON CONFLICT (property_id, booking_id) DO UPDATE SET room_id = EXCLUDED.room_id, status = EXCLUDED.status,"
    " arrival = EXCLUDED.arrival, departure = EXCLUDED.departure, guest_name = EXCLUDED.guest_name,"
    " guest_email = EXCLUDED.guest_email, price_cents = EXCLUDED.price_cents, modified_at = EXCLUDED.modified_at,"
    " event_key = EXCLUDED.event_key, updated_at = clock_timestamp()"
)
FINISH = "UPDATE channel_events SET status = 'done', processed_at = clock_timestamp() WHERE idempotency_key = $1"


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)


class Booking(_Wire):
    """Beds24's booking as the load shows it."""

    id: int
    property_id: int
    room_id: int
    unit_id: int
    status: str
    sub_status: str
    arrival: date
    departure: date
    num_adult: int
    num_child: int
    first_name: str
    last_name: str
    email: str
    phone: str
    mobile: str
    address: str
    city: str
    state: str
    postcode: str
    country: str
    arrival_time: str
    comments: str
    lang: str
    channel: str
    api_reference: str
    reference: str
    booking_time: datetime
    modified_time: datetime
    cancel_time: datetime | None
    price: Decimal
    deposit: Decimal
    tax: Decimal
    commission: Decimal
    rate_description: str


class Webhook(_Wire):
    """What is posted, and published as it came."""

    time_stamp: datetime
    booking: Booking
    info_items: list[Any]
    invoice_items: list[Any]
    messages: list[Any]
    retries: int

    @cached_property
    def key(self) -> str:
        """As the header has it. From here, because FastStream takes longer to hand over a message's id than to make this."""
        return f"{self.booking.id}-{self.booking.modified_time:%Y-%m-%dT%H:%M:%SZ}"


def genuine(body: bytes, signature: str | None) -> bool:
    expected = f"sha256={hmac.digest(SECRET, body, 'sha256').hex()}"
    return hmac.compare_digest(expected, signature or "")


def row(webhook: Webhook) -> tuple[object, ...]:
    """The arguments of UPSERT."""
    booking = webhook.booking
    return (
        booking.property_id,
        booking.id,
        booking.room_id,
        booking.status,
        booking.arrival,
        booking.departure,
        f"{booking.first_name} {booking.last_name}",
        booking.email,
        int(booking.price * 100),
        booking.modified_time,
        webhook.key,
    )


async def settle(pool: asyncpg.Pool, webhook: Webhook) -> None:
    """The consumer's transaction; ack when it returns."""
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval(LOCK, webhook.key) == "done":
            return
        await connection.execute(UPSERT, *row(webhook))
        await connection.execute(FINISH, webhook.key)


async def open_pool() -> asyncpg.Pool:
    return await asyncpg.create_pool(DATABASE_URL, min_size=POOL, max_size=POOL)
