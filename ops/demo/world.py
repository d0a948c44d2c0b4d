"""What the scenes act on and look at: the simulator and its levers, the core PMS, the gateway's HTTP, its rows."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg
    import httpx

    from simulators.beds24.app import Beds24
    from simulators.beds24.faults import Call
    from simulators.core_pms import CorePms, Heard

    from .children import Children
    from .seed import Tenant

T = TypeVar("T")
OPEN = "('received', 'processing', 'retrying')"
FIRST_NAME, LAST_NAME, EMAIL = (
    "Quill",
    "Madeupname",
    "quill.madeupname@example.invalid",
)  # looked for where they must not be


class NotSeenError(Exception):
    """What a scene waited for and did not come."""


@dataclass
class World:
    db: asyncpg.Connection[asyncpg.Record]
    http: httpx.AsyncClient
    sim: Beds24
    sim_url: str
    core: CorePms
    children: Children
    tenant: Tenant
    admin: dict[str, str]  # the header that opens the administration
    _results: set[str] = field(default_factory=set)

    # ------------------------------------------------------------------ Beds24

    async def lever(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Somebody acts at Beds24, by the simulator's control API."""
        answer = await self.http.request(method, f"{self.sim_url}/_sim{path}", json=body or {})
        answer.raise_for_status()
        return answer.json()

    async def webhooks_after(self, act: Callable[[], Awaitable[T]]) -> tuple[T, list[int | None]]:
        """What `act` gives, and what ingress answered to the webhooks that it set off."""
        before = len(self.sim.sender.attempts)
        done = await act()
        await self.sim.sender.drain()
        return done, [attempt.status for attempt in list(self.sim.sender.attempts)[before:]]

    def calls_since(self, number: int) -> list[Call]:
        """API calls since there were `number` of them, without those that only fetch a token."""
        return [call for call in self.sim.account.calls[number:] if "authentication" not in call.operation]

    # ------------------------------------------------------------------ the gateway

    def ingress(self, path: str) -> str:
        return self.children["ingress"].url + path

    async def ask_admin(self, method: str, path: str) -> Any:
        answer = await self.http.request(method, self.ingress(path), headers=self.admin)
        answer.raise_for_status()
        return answer.json()

    async def until(self, what: str, question: Callable[[], Awaitable[T | None]], timeout: float = 20) -> T:
        """The first answer that is not None. Asked again and again: nothing announces a row.

        raises  NotSeenError, ChildEndedError
        """
        deadline = time.monotonic() + timeout
        while (answer := await question()) is None:
            self.children.check()
            if time.monotonic() > deadline:
                raise NotSeenError(f"{what}: not within {timeout:g} s")
            await asyncio.sleep(0.03)
        return answer

    async def settled(self) -> None:
        """Nothing of the company's is on its way any more."""

        async def none_open() -> bool | None:
            count = await self.db.fetchval(
                f"SELECT count(*) FROM channel_events WHERE company_id = $1 AND status IN {OPEN}",  # noqa: S608 - fixed words
                self.tenant.company,
            )
            return True if count == 0 else None

        await self.until("all events settled", none_open, 30)

    async def readable_guests(self) -> list[str]:
        """Tables and logs in which the demo's guests can be read: none should be."""
        found = []
        for table in ("channel_events", "int_reservations", "int_guests", "core_events", "sync_log", "dead_letters"):
            count = await self.db.fetchval(
                f"SELECT count(*) FROM {table} t WHERE company_id = $1 AND to_jsonb(t)::text ILIKE ANY ($2)",  # noqa: S608 - named above
                self.tenant.company,
                [f"%{LAST_NAME}%", f"%{EMAIL}%"],
            )
            found += [f"{table}: {count}"] if count else []
        logs = self.children.logs()
        return [*found, "logs"] if LAST_NAME in logs or EMAIL in logs else found

    # ------------------------------------------------------------------ the core PMS

    async def publish(self, command: str, subject: str, data: dict[str, Any], key: str) -> None:
        await self.core.publish(command, subject, self.tenant.company, data, key)

    def results(self, command: str, subject: str) -> list[Heard]:
        """The core.command.… events about one command, each counted once."""
        return [
            event
            for event in self.core.events
            if event.type.startswith("core.command.")
            and event.company == self.tenant.company
            and event.subject == subject
            and event.data["command"] == command
        ]

    async def result(self, command: str, subject: str, timeout: float = 20) -> Heard:
        """The next core.command.… event about it that no earlier call has returned. raises NotSeenError"""

        async def fresh() -> Heard | None:
            return next((event for event in self.results(command, subject) if event.id not in self._results), None)

        found = await self.until(f"the result of {command} {subject}", fresh, timeout)
        self._results.add(found.id)
        return found


async def next_second() -> None:
    """Beds24 counts modifications in whole seconds: two within one could not be told apart."""
    await asyncio.sleep(1.02 - time.time() % 1)
