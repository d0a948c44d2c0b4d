"""Webhooks: verify over the raw bytes → parse → record (batched, durable) → answer → publish.

The answer waits for the commit, not for the broker. Whatever a request brings, it leaves a line in `webhook_log`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.datastructures import QueryParams

from adapters.errors import CardDataRefused, Malformed, SignatureRefused
from adapters.port import Fact, WebhookAuth, WebhookRequest
from adapters.signatures import verify
from store.gather import Gather, GatherFull
from store.ingest import FactOutcome, FactRow, RequestRow, fact_row, record
from store.marks import Marks
from store.pool import is_outage
from store.seal import SealError
from telemetry import metrics
from telemetry.logs import about
from telemetry.trace import begin
from topology.announce import WakeUp, announce

from .crowding import Crowding
from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.types import Receive, Scope

    from adapters.port import Adapter
    from store.directory import Directory, Known
    from store.pool import Pool
    from topology.publisher import Publisher

    from .fairness import Shares

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_log = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024  # bytes; the largest real webhook seen has 20 KB
_KEPT_BODY = 64 * 1024  # of a verified body that could not be parsed
WAITING = 5_000  # requests that may wait for the database; beyond that 429, while each wait is still short


@dataclass(slots=True)
class Arrival:
    """One request on its way, and what its log line will say."""

    vendor: str
    connection_id: str
    method: str
    received_at: datetime
    size: int = 0
    signature: str = "unchecked"
    known: Known | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """status 202: something new was recorded; 200: all of it was known."""

    status: int
    outcomes: Sequence[FactOutcome] = field(default_factory=list)

    @property
    def word(self) -> str:
        return "recorded" if self.status == 202 else "duplicate"


class Webhooks:
    def __init__(
        self,
        pool: Pool,
        directory: Directory,
        adapters: Mapping[str, Adapter],
        publisher: Publisher,
        shares: Shares,
        attempts: Mapping[str, int],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """attempts: vendor → attempts in all that its inbound events get"""
        self._pool = pool
        self._directory = directory
        self._adapters = adapters
        self._publisher = publisher
        self._shares = shares
        self._crowding = Crowding()
        self._marks = Marks(pool, shares.mark)
        self._attempts = attempts
        self._now = now
        self._records: Gather[RequestRow, list[FactOutcome]] = Gather(self._record, waiting=WAITING)
        self._publishing: set[asyncio.Task[None]] = set()

    async def receive(self, scope: Scope, receive: Receive, vendor: str, connection_id: str) -> Accepted:
        """raises Problem"""
        began = time.perf_counter()
        # What is not an id can be nobody's, and is not repeated in logs.
        arrival = Arrival(
            vendor if _ID.match(vendor) else "?",
            connection_id if _ID.match(connection_id) else "?",
            scope["method"],
            self._now(),
        )
        try:
            accepted = await self._accept(scope, receive, arrival)
        except Problem as problem:
            await self._log_refusal(arrival, problem)
            raise
        finally:
            metrics.WEBHOOK_ACK.observe(time.perf_counter() - began)
        metrics.WEBHOOKS.labels(arrival.vendor, accepted.word).inc()
        return accepted

    async def stop(self) -> None:
        await self._records.drain()
        if self._publishing:
            await asyncio.wait(set(self._publishing), timeout=5)
        await self._marks.stop()

    # ------------------------------------------------------------------ accept

    async def _accept(self, scope: Scope, receive: Receive, arrival: Arrival) -> Accepted:
        adapter, known = await self._addressee(arrival)
        # Of a name that comes twice the first value counts, as with the framework's own headers.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        body = await _read(receive, headers, arrival)
        if arrival.method == "POST":
            _expect_json(headers)
        asked = QueryParams(scope["query_string"]).items() if scope["query_string"] else ()
        webhook = WebhookRequest(arrival.method, headers, {name.lower(): value for name, value in asked}, body)
        arrival.trace = begin(headers.get("traceparent"))
        known = await self._verify(webhook, adapter, known, arrival)
        try:
            facts = adapter.parse(webhook, known.connection)
        except CardDataRefused as refused:
            # The body is not stored; what it is about is, so that the booking is fetched instead of lost.
            hints = [hint for hint in refused.hints if isinstance(hint, Fact)]
            await self._submit(self._row(arrival, hints, 400, "card data in the body"))
            raise Problem(
                400, "card-data-refused", str(refused), field=refused.field, hints_recorded=len(hints), logged=True
            ) from refused
        except Malformed as malformed:
            kept = known.cipher.seal_bytes(body[:_KEPT_BODY])
            await self._submit(self._row(arrival, [], 400, str(malformed), kept))
            raise Problem(400, "malformed", str(malformed), field=malformed.field, logged=True) from malformed
        patience = self._crowding.patience(known.connection.company_id)
        outcomes = await self._submit(self._row(arrival, facts, adapter.manifest.webhook_answer), patience)
        fresh = any(outcome.recorded for outcome in outcomes)
        return Accepted(adapter.manifest.webhook_answer if fresh else 200, outcomes)

    async def _addressee(self, arrival: Arrival) -> tuple[Adapter, Known]:
        adapter = self._adapters.get(arrival.vendor)
        known = await self._directory_get(arrival.connection_id) if adapter is not None else None
        if adapter is None or known is None or known.connection.vendor != arrival.vendor:
            raise Problem(
                404,
                "no-such-connection",
                "this address belongs to no connection; `staybus connection list` shows the addresses that do",
            )
        if known.connection.status == "disabled":
            raise Problem(404, "connection-disabled", "this connection is disabled")
        arrival.known = known
        if arrival.method not in adapter.manifest.webhook_methods:
            allowed = ", ".join(adapter.manifest.webhook_methods)
            problem = Problem(405, "method-not-allowed", f"{adapter.manifest.title} sends {allowed}")
            problem.headers = {"Allow": allowed}
            raise problem
        return adapter, known

    async def _directory_get(self, connection_id: str) -> Known | None:
        try:
            return await self._directory.get(connection_id)
        except SealError as error:
            raise _locked(connection_id, error) from error
        except Exception as error:
            if not is_outage(error):
                raise
            raise _unavailable() from error

    async def _verify(self, webhook: WebhookRequest, adapter: Adapter, known: Known, arrival: Arrival) -> Known:
        """A signature that does not fit may be of a secret that was just rotated: looked up once more."""
        try:
            _check(webhook, adapter, known)
        except SignatureRefused as first:
            try:
                known = await self._directory.again(known.connection.id) or known
                _check(webhook, adapter, known)
            except SignatureRefused:
                arrival.signature = "invalid" if _is_signed(webhook, adapter, known) else "missing"
                metrics.SIGNATURE_FAILURES.labels(arrival.vendor).inc()
                raise Problem(403, "signature-refused", str(first)) from first
            except SealError as error:
                raise _locked(known.connection.id, error) from error
            except Exception as error:
                if not is_outage(error):
                    raise
                raise _unavailable() from error
        arrival.signature = "valid"
        return known

    # ------------------------------------------------------------------ record

    def _row(
        self, arrival: Arrival, facts: Sequence[Fact], status: int, error: str | None = None, body: bytes | None = None
    ) -> RequestRow:
        known = arrival.known
        return RequestRow(
            received_at=arrival.received_at,
            platform=arrival.vendor,
            connection_id=known.connection.id if known else arrival.connection_id,
            company_id=known.connection.company_id if known else None,
            method=arrival.method,
            status=status,
            signature=arrival.signature,
            error=error,
            size=arrival.size,
            body=body,
            facts=[self._fact(fact, known, arrival) for fact in facts] if known else (),
        )

    def _fact(self, fact: Fact, known: Known, arrival: Arrival) -> FactRow:
        vendor = known.connection.vendor
        personal = self._adapters[vendor].manifest.personal
        return fact_row(fact, known, personal, trace=arrival.trace, max_attempts=self._attempts[vendor])

    async def _submit(self, row: RequestRow, patience: float = 0.0) -> list[FactOutcome]:
        try:
            return await self._records.submit(row, patience)
        except GatherFull:
            raise Problem(
                429, "overloaded", "too many webhooks wait to be recorded; send again", retry_after=2
            ) from None
        except Exception as error:
            if not is_outage(error):
                raise
            raise _unavailable() from error

    async def _log_refusal(self, arrival: Arrival, problem: Problem) -> None:
        metrics.WEBHOOKS.labels(arrival.vendor if arrival.vendor in self._adapters else "unknown", problem.code).inc()
        _log.info(
            "webhook refused",
            extra=about(
                vendor=arrival.vendor,
                connection_id=arrival.connection_id,
                company_id=arrival.known.connection.company_id if arrival.known else None,
                status=problem.status,
                code=problem.code,
            ),
        )
        if problem.code in {"overloaded", "not-durable"} or problem.members.pop("logged", False):
            return  # the log's own database is what is away, or the line is written already
        try:
            await self._submit(self._row(arrival, [], problem.status, problem.detail[:500]))
        except Problem:
            _log.warning("refused webhook not logged: database away")

    async def _record(self, rows: Sequence[RequestRow]) -> list[list[FactOutcome]]:
        async with self._pool.acquire() as connection:
            outcomes = await record(connection, rows)
        wakes = [
            WakeUp(outcome.id, fact.company_id, fact.event_type, fact.event_type, fact.trace)
            for row, results in zip(rows, outcomes, strict=True)
            for fact, outcome in zip(row.facts, results, strict=True)
            if outcome.recorded
        ]
        if wakes:
            task = asyncio.create_task(self._publish(wakes))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
        return outcomes

    async def _publish(self, wakes: Sequence[WakeUp]) -> None:
        self._marks.add(await announce(self._publisher, self._shares.admit(wakes)))


async def _read(receive: Receive, headers: Mapping[str, str], arrival: Arrival) -> bytes:
    """raises Problem 413 before the body is read where its length is declared, and while it is read otherwise"""
    declared = headers.get("content-length", "").lstrip("0")  # may be any number of them; `int` reads 4300
    if declared.isdigit() and int(declared) > MAX_BODY:
        arrival.size = min(int(declared), 2**31 - 1)
        raise _too_large()
    body = b""
    more = True
    while more:  # not `request.stream()`: an asynchronous generator costs more than the body
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "cut-off", "the connection ended before the body did")
        body += message.get("body", b"")
        arrival.size = len(body)
        if arrival.size > MAX_BODY:
            raise _too_large()
        more = message.get("more_body", False)
    return body


def _too_large() -> Problem:
    return Problem(413, "body-too-large", f"at most {MAX_BODY} bytes are accepted")


def _unavailable() -> Problem:
    return Problem(503, "not-durable", "the webhook could not be recorded; send it again", retry_after=5)


def _locked(connection_id: str, error: SealError) -> Problem:
    """The sender can do nothing about it but send again; what is wrong is for the operator's eyes."""
    _log.error("connection cannot be opened", extra=about(connection_id=connection_id, error=str(error)))
    return Problem(
        503,
        "connection-locked",
        "staybus cannot check this connection's webhooks now; its log says why; send the webhook again",
        retry_after=60,
    )


def _expect_json(headers: Mapping[str, str]) -> None:
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media and media != "application/json" and not media.endswith("+json"):
        raise Problem(415, "not-json", "content-type: application/json is expected")


def _auth(adapter: Adapter, known: Known) -> tuple[WebhookAuth, str]:
    """How this connection's webhooks are verified, and in which header."""
    config = known.connection.config
    wanted = config.get("webhook_auth", adapter.manifest.webhook_auth[0].scheme.value)
    for auth in adapter.manifest.webhook_auth:
        if auth.scheme.value == wanted:
            return auth, str(config.get("webhook_header") or auth.header)
    raise SignatureRefused(f"the connection's webhook_auth {wanted!r} is not one that {adapter.manifest.title} has")


def _check(webhook: WebhookRequest, adapter: Adapter, known: Known) -> None:
    auth, header = _auth(adapter, known)
    verify(webhook, auth, header, known.webhook_secrets)


def _is_signed(webhook: WebhookRequest, adapter: Adapter, known: Known) -> bool:
    try:
        _, header = _auth(adapter, known)
    except SignatureRefused:
        return True
    return header.lower() in webhook.headers
