"""Sends what Beds24 sends: booking webhooks (version one and two) and the inventory webhook.

Beds24 does not sign. The static custom header is its only authentication, so that is the default here; the HMAC header
`X-Beds24-Signature` exists for gateways that were promised a signature, and is sent only with a secret set.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import httpx
import orjson

from simulators.beds24.members import Json
from simulators.beds24.state import Account, BookingChanged, Event, without_personal

SIGNATURE_HEADER = "X-Beds24-Signature"
RETRY_DELAYS = (2.0, 10.0, 60.0, 300.0)  # seconds; number and spacing are unpublished
PARALLEL = 50


def sign(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Target:
    """What the vendor has no setting for; URL, version and custom header are the property's webhook settings.

    secret         adds the HMAC header
    wrap_in_array  the shape of the one public capture: the body inside an array
    inventory_url  the account's inventory webhook, "" for none; `inventory_header` is its custom header
    """

    secret: str | None = None
    wrap_in_array: bool = False
    inventory_url: str = ""
    inventory_header: str = ""


@dataclass(slots=True)
class Chaos:
    """Shares (0…1) of deliveries that come twice or late, and how late (seconds)."""

    duplicates: float = 0.0
    late: float = 0.0
    late_by: float = 0.2


@dataclass(frozen=True, slots=True)
class Delivery:
    kind: Literal["booking", "inventory"]
    property_id: int
    body: Json


@dataclass(frozen=True, slots=True)
class Attempt:
    """status None: no answer in time, or no connection."""

    at: datetime
    kind: str
    url: str
    retries: int
    status: int | None


@dataclass
class WebhookSender:
    """Delivers in background tasks; `drain()` waits until nothing is under way.

    delays  seconds before each repetition; when they are used up the delivery is given up
    sleep   injectable, so that tests need not wait
    """

    account: Account
    target: Target = field(default_factory=Target)
    chaos: Chaos = field(default_factory=Chaos)
    delays: Sequence[float] = RETRY_DELAYS
    timeout: float = 10.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    rng: random.Random = field(default_factory=lambda: random.Random(24))  # noqa: S311 - reproducible disorder
    client: httpx.AsyncClient | None = None
    attempts: deque[Attempt] = field(default_factory=lambda: deque(maxlen=50_000))
    history: deque[Delivery] = field(default_factory=lambda: deque(maxlen=50_000))
    _held: list[Delivery] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PARALLEL))

    def fire(self, event: Event) -> None:
        """Start delivering an event; needs a running loop. Does nothing while no URL is set for it."""
        if isinstance(event, BookingChanged):
            delivery = Delivery("booking", event.property_id, event.body)
        else:
            body = {
                "roomId": str(event.room_id),
                "propId": str(event.property_id),
                "ownerId": str(self.account.owner_id),
                "action": "SYNC_ROOM",
            }
            delivery = Delivery("inventory", event.property_id, body)
        if not self._url(delivery):
            return
        self.history.append(delivery)
        if self._held is not None:
            self._held.append(delivery)
            return
        for _ in range(1 + (self.rng.random() < self.chaos.duplicates)):
            late = self.chaos.late_by if self.rng.random() < self.chaos.late else 0.0
            self._start(self._deliver(delivery, late))

    def hold(self) -> None:
        """Keep deliveries back until `release`."""
        self._held = self._held or []

    async def release(self, *, shuffle: bool = False, duplicates: float = 0.0) -> int:
        """Send what was held, one after another in the resulting order; returns how many were sent."""
        held, self._held = self._held or [], None
        return await self._send_all(held, shuffle=shuffle, duplicates=duplicates, rng=self.rng)

    async def replay(
        self, *, last: int | None = None, shuffle: bool = False, duplicates: float = 0.0, seed: int | None = None
    ) -> int:
        """Send the last deliveries (all by default) again, their bodies as they were then."""
        past = list(self.history)[-last if last else 0 :]
        rng = self.rng if seed is None else random.Random(seed)  # noqa: S311 - reproducible disorder
        return await self._send_all(past, shuffle=shuffle, duplicates=duplicates, rng=rng)

    async def drain(self) -> None:
        """Wait until every started delivery is acknowledged or given up."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.client is not None:
            await self.client.aclose()
            self.client = None

    async def _send_all(
        self, deliveries: list[Delivery], *, shuffle: bool, duplicates: float, rng: random.Random
    ) -> int:
        order = [d for d in deliveries for _ in range(1 + (rng.random() < duplicates))]
        if shuffle:
            rng.shuffle(order)
        for delivery in order:
            if not await self._attempt(delivery, 0):
                self._start(self._repeat(delivery))
        return len(order)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: Delivery, late: float) -> None:
        if late:
            await self.sleep(late)
        if not await self._attempt(delivery, 0):
            await self._repeat(delivery)

    async def _repeat(self, delivery: Delivery) -> None:
        for retries, delay in enumerate(self.delays, start=1):
            await self.sleep(delay)
            if await self._attempt(delivery, retries):
                return

    async def _attempt(self, delivery: Delivery, retries: int) -> bool:
        if self.client is None:
            self.client = httpx.AsyncClient(timeout=self.timeout)
        request = self._request(self.client, delivery, retries)
        status: int | None = None
        async with self._slots:
            try:
                status = (await self.client.send(request)).status_code
            except httpx.HTTPError:
                status = None
        self.attempts.append(Attempt(self.account.clock(), delivery.kind, str(request.url), retries, status))
        return status is not None and status < 400

    def _request(self, client: httpx.AsyncClient, delivery: Delivery, retries: int) -> httpx.Request:
        """Settings are read now, not when the event happened: a repaired URL takes effect with the next repetition."""
        url, settings = self._url(delivery), self.account.properties[delivery.property_id]["webhooks"]
        if delivery.kind == "inventory":
            return self._post(client, url, delivery.body, self.target.inventory_header)
        booking = delivery.body["booking"]
        if settings["version"] == "one":
            query = {"bookid": str(booking["id"]), "status": str(booking["status"])}
            headers = custom_headers(settings["customHeader"])
            return client.build_request("GET", httpx.URL(url).copy_merge_params(query), headers=headers)
        body = delivery.body | {"retries": retries}
        if settings["version"] == "twoNoPersonalData":
            body |= {"booking": without_personal(booking), "messages": []}
        return self._post(client, url, [body] if self.target.wrap_in_array else body, settings["customHeader"])

    def _post(self, client: httpx.AsyncClient, url: str, body: object, custom_header: str) -> httpx.Request:
        content = orjson.dumps(body)
        headers = {"Content-Type": "application/json", **custom_headers(custom_header)}
        if self.target.secret:
            headers[SIGNATURE_HEADER] = sign(self.target.secret, content)
        return client.build_request("POST", url, content=content, headers=headers)

    def _url(self, delivery: Delivery) -> str:
        if delivery.kind == "inventory":
            return self.target.inventory_url
        return str(self.account.properties[delivery.property_id]["webhooks"]["url"])


def custom_headers(setting: str) -> dict[str, str]:
    """The panel's text: `name: value`, several on separate lines."""
    pairs = (line.partition(":") for line in setting.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
