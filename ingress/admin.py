"""Administration over HTTP: look at events and dead letters, retry, abandon. Row-level security keeps companies apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from starlette.responses import Response

from schemas.vocabulary import DeadLetterStatus, EventStatus, Fault, Owner
from store import connections, dead_letters, events
from store.pool import as_company

from .access import authorise
from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg
    from starlette.requests import Request

    from store.pool import Connection, Pool

MOST = 500
MAX_BODY = 16 * 1024  # bytes; 500 characters of a reason, each of them escaped, are less than half of it


class Admin:
    """workers: the pool that may read keys; api: the pool whose role sees one company at a time."""

    def __init__(self, workers: Pool, api: Pool) -> None:
        self._workers = workers
        self._api = api

    async def list_events(self, request: Request) -> Response:
        caller = await authorise(request, self._workers, "admin")
        query = _Query(request, {"status", "vendor", "company", "type", "limit", "before"})
        wanted = events.Filter(
            status=query.word("status", EventStatus), vendor=query.text("vendor"), company_id=query.text("company"),
            event_type=query.text("type"),
        )  # fmt: skip
        limit, before = query.number("limit", 50, MOST), query.id("before")
        async with as_company(self._api, caller.company_id) as connection:
            try:
                rows = await events.find(connection, wanted, limit, before)
            except events.UnknownCursorError:
                raise _no_cursor() from None
            total = await events.count(connection, wanted)
        return _json(
            {
                "events": _documents(rows),
                "total": total,
                "total_is_exact": total < events.COUNTED,
                "next": str(rows[-1]["id"]) if len(rows) == limit else None,
            }
        )

    async def show_event(self, request: Request) -> Response:
        caller = await authorise(request, self._workers, "admin")
        id_ = _path_id(request)
        async with as_company(self._api, caller.company_id) as connection:
            row = await events.show(connection, id_)
            if row is None:
                raise _no_event()
            document = dict(row)
            document["payload"] = orjson.Fragment(document["payload"])
            document["history"] = _documents(await events.attempts(connection, id_))
            document["deliveries"] = _documents(await events.deliveries(connection, id_))
        return _json(document)

    async def retry_event(self, request: Request) -> Response:
        """A fresh budget for a failed event; its history stays."""
        caller = await authorise(request, self._workers, "admin")
        id_ = _path_id(request)
        async with as_company(self._api, caller.company_id) as connection:
            row = await events.show(connection, id_)
            if row is None:
                raise _no_event()
            requeued = await dead_letters.requeue(connection, [id_], caller.name)
            if not requeued:
                raise _not_retried(row["status"])
            await connections.audit(connection, caller.name, row["company_id"], "event.retry", str(id_), {})
            again = await events.show(connection, id_)
        return _json({"id": id_, "status": again["status"] if again else "received", "attempts": 0}, 202)

    async def list_dead_letters(self, request: Request) -> Response:
        caller = await authorise(request, self._workers, "admin")
        query = _Query(
            request, {"status", "vendor", "company", "type", "error", "fingerprint", "owner", "limit", "before"}
        )
        wanted = dead_letters.Filter(
            status=query.word("status", DeadLetterStatus), vendor=query.text("vendor"),
            company_id=query.text("company"), operation=query.text("type"), error_class=query.word("error", Fault),
            fingerprint=query.text("fingerprint"), owner=query.word("owner", Owner),
        )  # fmt: skip
        limit = query.number("limit", 50, MOST)
        async with as_company(self._api, caller.company_id) as connection:
            rows = await dead_letters.find(connection, wanted, limit, query.id("before"))
        return _json({"dead_letters": _documents(rows), "next": str(rows[-1]["id"]) if len(rows) == limit else None})

    async def abandon(self, request: Request) -> Response:
        """By its own id or its event's. Body: {"reason": "…"}."""
        caller = await authorise(request, self._workers, "admin")
        id_ = _path_id(request)
        reason = await _reason(request)
        async with as_company(self._api, caller.company_id) as connection:
            known = await dead_letters.show(connection, id_)
            letters = [known["id"]] if known is not None else []
            rows = await dead_letters.abandon(connection, letters, caller.name, reason)
            if not rows:
                raise await _not_abandoned(connection, id_)
            letter = rows[0]["id"]
            await connections.audit(
                connection, caller.name, rows[0]["company_id"], "dead_letter.abandon", str(letter), {"reason": reason}
            )
        return _json({"id": letter, "status": "abandoned"})


class _Query:
    """The query's parameters, read with words for what does not fit."""

    def __init__(self, request: Request, allowed: set[str]) -> None:
        self._given = request.query_params
        unknown = sorted(set(self._given) - allowed)
        if unknown:
            raise Problem(400, "unknown-parameter", f"{unknown[0]}: not known; allowed: {', '.join(sorted(allowed))}")
        if repeated := next((name for name in self._given if len(self._given.getlist(name)) > 1), None):
            raise Problem(400, "bad-parameter", f"{repeated}: given more than once", field=repeated)

    def text(self, name: str) -> str | None:
        value = self._given.get(name)
        if value is not None and ("\0" in value or len(value) > 200):
            raise Problem(400, "bad-parameter", f"{name}: at most 200 characters of text", field=name)
        return value

    def word(self, name: str, words: Iterable[str]) -> str | None:
        value = self._given.get(name)
        allowed = [str(word) for word in words]
        if value is not None and value not in allowed:
            raise Problem(400, "bad-parameter", f"{name}: one of {', '.join(allowed)}", field=name)
        return value

    def number(self, name: str, default: int, most: int) -> int:
        value = self._given.get(name, str(default))
        if not (value.isascii() and value.isdigit()) or len(value) > 6 or not 1 <= int(value) <= most:
            raise Problem(400, "bad-parameter", f"{name}: a whole number from 1 to {most}", field=name)
        return int(value)

    def id(self, name: str) -> UUID | None:
        value = self._given.get(name)
        return _uuid(value, name) if value is not None else None


def _uuid(value: str, name: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise Problem(400, "bad-parameter", f"{name}: a UUID", field=name) from None


def _path_id(request: Request) -> UUID:
    return _uuid(request.path_params["id"], "id")


async def _reason(request: Request) -> str:
    body = await _body(request)
    try:
        reason = orjson.loads(body)["reason"].strip()
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        reason = ""
    if not 1 <= len(reason) <= 500 or "\0" in reason:
        raise Problem(400, "reason-missing", 'send {"reason": "why"} with 1 to 500 characters of text', field="reason")
    return str(reason)


async def _body(request: Request) -> bytes:
    """raises Problem 413 as soon as it is too much"""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise Problem(413, "body-too-large", f"at most {MAX_BODY} bytes are accepted")
    return body


async def _not_abandoned(connection: Connection, id_: UUID) -> Problem:
    letter = await dead_letters.show(connection, id_)
    if letter is not None and letter["status"] in {DeadLetterStatus.PENDING, DeadLetterStatus.RETRYING}:
        return Problem(409, "being-sent", "its event is with a worker just now; look again when that has ended")
    return Problem(404, "no-open-dead-letter", "there is no open dead letter with this id")


def _not_retried(status: str) -> Problem:
    if status in {EventStatus.FAILED, EventStatus.ABANDONED}:
        detail = (
            "something newer about the same thing went out since, or is to, and would be undone; "
            "send the present state instead"
        )
        return Problem(409, "overtaken", detail)
    return Problem(409, "not-failed", f"only failed or abandoned events are retried; this one is {status}")


def _no_cursor() -> Problem:
    detail = "before: there is no event with this id any more, so the listing cannot go on from it; begin again"
    return Problem(400, "unknown-cursor", detail, field="before")


def _no_event() -> Problem:
    return Problem(404, "no-such-event", "there is no event with this id")


def _documents(rows: list[asyncpg.Record]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]


def _json(document: Any, status: int = 200) -> Response:
    # default: asyncpg's UUIDs are a subclass, which orjson leaves to it
    return Response(orjson.dumps(document, default=str), status, media_type="application/json")
