"""The only I/O of Beds24: one method per thing that the port asks for, one function that calls."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from adapters.errors import (
    AdapterError,
    Malformed,
    Misconfigured,
    NoCredentials,
    RateLimited,
    Rejected,
    Transient,
    Unauthorized,
    Unknown,
    Unsupported,
)
from adapters.port import (
    Budget,
    Command,
    Effects,
    Fact,
    Grant,
    Hint,
    Http,
    Page,
    Recorded,
    Repeat,
    Reply,
    Request,
    Response,
    Session,
    WebhookRequest,
)
from adapters.transport import NOT_SENT
from schemas.connection import Connection
from schemas.vocabulary import EntityType

from . import mapping, webhook
from .manifest import AVAILABILITY, CREATE, DEFAULT_BASE_URL, MANIFEST

IDS_PER_CALL = 100  # also the page size that was reported
ROOMS_PER_CALL = 20  # a year of nights each
MAX_LOOKED_UP = 8  # spans of nights, a call each: twice what a command without gaps may need
MAX_PAGES = 50  # an end for a server that always has a next page
MAX_PULLED = 2_000  # pages: years of a large account's changes
PASSES = 5  # over a list that loses something in each of them
HORIZON = timedelta(days=364)  # with today: 365 nights

# Left out by default: `cancelled`. A comma list and an unknown word are refused, so each is named.
ALL_STATUSES = tuple(("status", word) for word in ("confirmed", "request", "new", "cancelled", "black", "inquiry"))

# On the wire, then as in the vendor's specification (names that nobody has seen yet).
_REMAINING = ("x-five-min-limit-remaining", "x-fivemincreditlimit-remaining")
_RESETS_IN = ("x-five-min-limit-resets-in", "x-fivemincreditlimit-resetsin")
_WINDOW = 300.0  # seconds

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9 _.-]{0,59}")
_WITHHELD = "(text withheld)"


class Beds24:
    """port.Adapter"""

    manifest = MANIFEST

    def parse(self, request: WebhookRequest, connection: Connection) -> list[Fact]:
        return webhook.parse(request, connection)

    def interpret(self, fact: Recorded, connection: Connection) -> Effects | Hint:
        return mapping.interpret(fact, connection)

    async def fetch(self, session: Session, hints: Sequence[Hint]) -> Mapping[Hint, Effects]:
        wanted = dict.fromkeys(hints)
        found: dict[Hint, Effects] = {}
        for entity_type, size, read in (
            (EntityType.RESERVATION, IDS_PER_CALL, self._bookings),
            (EntityType.AVAILABILITY, ROOMS_PER_CALL, self._calendars),
        ):
            ids = [hint.external_id for hint in wanted if hint.entity_type is entity_type]
            for start in range(0, len(ids), size):
                effects = await read(session, ids[start : start + size])
                found |= {Hint(entity_type, id_): effect for id_, effect in effects.items()}
        return {hint: found[hint] for hint in wanted if hint in found}

    async def changes(self, session: Session, since: datetime) -> AsyncGenerator[Page]:
        """Until now and no `modifiedTo`, so that a booking that changes again while pages are read stays in the list.

        One that leaves it all the same (deleted), or moves to its end, has those behind it move forward, and the first of them
        over to a page that was read already. So a list of several pages is read again, until a pass was whole.
        """
        start = _moment(since)
        params = [("modifiedFrom", start), *ALL_STATUSES]
        blocks = ("includeInvoiceItems", "includeInfoItems", "includeBookingGroup")  # as in a webhook
        params += [(block, "true") for block in blocks]
        unreadable: Malformed | None = None
        began = first_began = session.now()
        told: set[str | None] = {None}
        before: Mapping[Any, str] | None = None
        whole = False
        for _ in range(PASSES):
            seen: dict[Any, str] = {}
            several = False
            async for page, more in _each_page(session, "bookings.pull", "/bookings", params, most=MAX_PULLED):
                facts, fault = _facts(page, session.connection, began)
                unreadable = fault or unreadable
                seen |= _modified(page)
                whole = not more and (not several or _lost_nothing(before, seen, _moment(first_began)))
                several = more
                yield Page([fact for fact in facts if fact.idempotency_key not in told], not whole)
                told |= {fact.idempotency_key for fact in facts}
                began = session.now()
            if whole:
                break
            before = seen
        if unreadable is not None:
            raise unreadable
        if not whole:
            raise Transient(f"beds24 bookings.pull: the list lost something each of {PASSES} times that it was read")

    async def execute(self, session: Session, command: Command) -> Reply:
        if command.event_type not in MANIFEST.commands:
            raise Unsupported(f"beds24: {command.event_type} cannot be said to Beds24")
        body = mapping.body_of(command, session.connection)
        operation, path = ("calendar.update", "/inventory/rooms/calendar")
        if command.event_type != AVAILABILITY:
            operation, path = f"bookings.{command.event_type.rpartition('.')[2]}", "/bookings"
        response = await _call(
            session,
            operation,
            "POST",
            path,
            json=body,
            headers={"X-Idempotency-Key": command.idempotency_key},
            safe=MANIFEST.commands[command.event_type].repeat is Repeat.SAFE,
            secret_texts=mapping.personal_texts(command.data),
        )
        result = _item(operation, response)
        if command.event_type == CREATE:
            return _created(operation, result, mapping.personal_texts(command.data))
        if result.get("success") is not True:
            raise _refused(operation, result, mapping.personal_texts(command.data))
        external = body[0].get("id", body[0].get("roomId"))
        return Reply(external_id=str(external), response=_told(result))

    async def find(self, session: Session, command: Command) -> Reply | None:
        """A create by its marker; all else is done when the vendor's state is what the command wants."""
        if command.event_type == CREATE:
            return await self._created_before(session, command)
        (body,) = mapping.body_of(command, session.connection)
        if command.event_type == AVAILABILITY:
            return await self._calendar_as_wanted(session, body)
        params = [("id", str(body["id"])), *ALL_STATUSES]
        for booking in await _pages(session, "bookings.find", "/bookings", params):
            if isinstance(booking, dict) and mapping.is_as_wanted(booking, body):
                said = {name: booking.get(name) for name in ("id", "status", "modifiedTime")}
                return Reply(external_id=str(body["id"]), response=said, found=True)
        return None

    async def _calendar_as_wanted(self, session: Session, body: Mapping[str, Any]) -> Reply | None:
        spans = mapping.spans(body["calendar"])
        if len(spans) > MAX_LOOKED_UP:  # to say it once more does no harm, and is one call
            return None
        blocks = [(block, "true") for block in ("includeNumAvail", "includePrices", "includeMinStay")]
        documents = []
        for first, last in spans:
            params = [("roomId", str(body["roomId"])), ("startDate", first.isoformat()), ("endDate", last.isoformat())]
            documents += await _pages(session, "calendar.find", "/inventory/rooms/calendar", [*params, *blocks])
        try:
            if not mapping.nights_are_as_wanted(documents, body["calendar"]):
                return None
        except Malformed:  # then nobody knows, and to say it once more does no harm
            return None
        return Reply(external_id=str(body["roomId"]), response={"roomId": body["roomId"]}, found=True)

    async def _created_before(self, session: Session, command: Command) -> Reply | None:
        params = [("apiReference", command.marker), *ALL_STATUSES]
        for booking in await _pages(session, "bookings.find", "/bookings", params):
            if isinstance(booking, dict) and booking.get("apiReference") == command.marker:
                if not _is_id(booking.get("id")):
                    raise Transient(
                        "beds24 bookings.find: the booking is there, but its id cannot be one", code="no_id"
                    )
                said = {name: booking.get(name) for name in ("id", "status", "modifiedTime")}
                return Reply(external_id=str(booking["id"]), response=said, found=True)
        return None

    async def grant(self, http: Http, connection: Connection, credentials: Mapping[str, str]) -> Grant:
        """The refresh token first; an invite code serves when there is none, or when it is refused."""
        refresh, invite = credentials.get("refresh_token"), credentials.get("invite_code")
        refused = ""
        for operation, path, header, value in (
            ("authentication.token", "/authentication/token", "refreshToken", refresh),
            ("authentication.setup", "/authentication/setup", "code", invite),
        ):
            if not value:
                continue
            url = _base_url(connection) + path
            response = _as_it_says(await http.send(Request(operation, "GET", url, headers={header: value})))
            if response.status == 200:
                return _granted(operation, response.document, kept=header == "code")
            if response.status not in {400, 401, 403, 404} or not _is_refusal(response):
                raise _failure(operation, response, safe=True)
            name = "refresh_token" if header == "refreshToken" else "invite_code"
            refused = f"beds24 {operation}: {name} was refused ({response.status}); create a new invite code in Beds24"
        if not refused:
            raise NoCredentials(
                "beds24: neither refresh_token nor invite_code is set; create an invite code in Beds24",
                code="credentials",
            )
        raise Misconfigured(refused, code="credentials")

    async def check(self, session: Session) -> Mapping[str, Any]:
        operation = "authentication.details"
        for last in (False, True):  # this one call answers 200 to a dead token, too: renew it once
            response = await _call(session, operation, "GET", "/authentication/details")
            document = response.document if isinstance(response.document, dict) else {}
            token = document.get("token") if document.get("validToken") is True else None
            if isinstance(token, dict):
                names = ("ownerId", "scopes", "expiresIn", "linkedProperties", "onlyPropertyId", "whiteListOnly")
                return {name: token[name] for name in names if name in token}
            if not last:
                await session.renew_token(await session.access_token())
        raise Unauthorized(f"beds24 {operation}: Beds24 does not call the token valid", code="token")

    async def _bookings(self, session: Session, ids: Sequence[str]) -> Mapping[str, Effects]:
        began = session.now()
        params = [("id", id_) for id_ in ids] + [*ALL_STATUSES]
        params += [("includeInvoiceItems", "true"), ("includeInfoItems", "true")]
        found = {}
        for document in await _pages(session, "bookings.read", "/bookings", params):
            try:
                sourced = mapping.reservation(mapping.as_webhook(document), session.connection, began, asked=True)
            except Malformed as error:
                id_ = document.get("id") if isinstance(document, dict) else None
                which = f"booking {id_}" if isinstance(id_, int) else "a booking without an id"
                raise Malformed(error.field, f"{error.problem} ({which})") from error
            if sourced is None:
                raise Malformed("booking.modifiedTime", "missing in an answer of the API")
            found[sourced.entity.external_id] = Effects(reservations=(sourced,))
        return found

    async def _calendars(self, session: Session, rooms: Sequence[str]) -> Mapping[str, Effects]:
        began = session.now()
        # A day of the property's zone may be ahead of or behind UTC's: yesterday's night does no harm.
        first = began.astimezone(UTC).date()
        last = first + HORIZON
        params = [("roomId", room) for room in rooms]
        params += [("startDate", first.isoformat()), ("endDate", last.isoformat())]
        blocks = ("includeNumAvail", "includePrices", "includeMinStay", "includeOverride")
        params += [(block, "true") for block in blocks]
        found: dict[str, Effects] = {}
        for document in await _pages(session, "calendar.read", "/inventory/rooms/calendar", params):
            room, nights = mapping.availability(document, session.connection, began, first, last)
            earlier = found.get(room, Effects()).availability
            found[room] = Effects(availability=(*earlier, *nights))
        return found


# ------------------------------------------------------------------------------------------------ calling


async def _call(
    session: Session,
    operation: str,
    method: str,
    path: str,
    *,
    params: Sequence[tuple[str, str]] = (),
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    safe: bool = True,
    secret_texts: Sequence[str] = (),
) -> Response:
    """One call, and one more with a newer token if the first was refused (401: nothing was done)."""
    url = _base_url(session.connection) + path
    token = await _token(session)
    for renew in (True, False):
        request = Request(operation, method, url, headers={**(headers or {}), "token": token}, params=params, json=json)
        try:
            response = _as_it_says(await session.http.send(request))
        except Transient as error:
            if safe or error.code == NOT_SENT:
                raise
            raise Unknown(f"{error}; it may have been done", code=error.code) from error
        if (budget := _budget(response)) is not None:
            session.spent(budget)
        if response.status != 401:
            break
        if renew:
            token = await _token(session, refused=token)
    if 200 <= response.status < 300:
        return response
    raise _failure(operation, response, safe=safe, secret_texts=secret_texts)


def _as_it_says(response: Response) -> Response:
    """With the status that an error's document names, where it came with that of a success."""
    document = response.document
    if 200 <= response.status < 300 and isinstance(document, dict) and document.get("success") is False:
        code = document.get("code")
        if isinstance(code, int) and 400 <= code < 600:
            return replace(response, status=code)
    return response


async def _token(session: Session, refused: str | None = None) -> str:
    """raises Transient with `not_sent`: whatever became of the token's own request, the call that needs it did not go out"""
    try:
        return await (session.access_token() if refused is None else session.renew_token(refused))
    except RateLimited:
        raise
    except Transient as error:
        raise Transient(str(error), code=NOT_SENT, retry_after=error.retry_after) from error


async def _pages(session: Session, operation: str, path: str, params: Sequence[tuple[str, str]]) -> list[Any]:
    """The items of all pages."""
    return [item async for page, _ in _each_page(session, operation, path, params, most=MAX_PAGES) for item in page]


async def _each_page(
    session: Session, operation: str, path: str, params: Sequence[tuple[str, str]], *, most: int
) -> AsyncGenerator[tuple[list[Any], bool]]:
    """(items, whether there is another page). An answer without the envelope says nothing of what was asked for: Transient."""
    for page in range(1, most + 1):
        paged = [*params, ("page", str(page))] if page > 1 else params
        document = (await _call(session, operation, "GET", path, params=paged)).document
        usable = isinstance(document, dict) and document.get("success") is not False
        if not usable or not isinstance(document.get("data"), list):
            raise Transient(f"beds24 {operation}: an answer without a list in data", code="no_data")
        pages = document.get("pages")
        more = isinstance(pages, dict) and pages.get("nextPageExists") is True
        yield document["data"], more
        if not more:
            return
    raise Transient(f"beds24 {operation}: more than {most} pages")


def _facts(page: Sequence[Any], connection: Connection, began: datetime) -> tuple[list[Fact], Malformed | None]:
    """What of a page can be read, and why the rest cannot."""
    facts, unreadable = [], None
    for document in page:
        try:
            item = mapping.as_webhook(document) | {webhook.PULLED: began.isoformat()}
            facts.append(webhook.booking_fact(item, item["booking"], connection))
        except Malformed as error:
            unreadable = error
    return facts, unreadable


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _modified(page: Sequence[Any]) -> dict[Any, str]:
    """When each booking was modified last, by its id."""
    return {
        document["id"]: str(document.get("modifiedTime"))
        for document in page
        if isinstance(document, dict) and isinstance(document.get("id"), int | str)
    }


def _lost_nothing(before: Mapping[Any, str] | None, seen: Mapping[Any, str], first_began: str) -> bool:
    """Whether all that the pass before saw is there still, and nothing that it must have seen, too, is new. Then nothing moved forward
    under it. What was modified since the first pass began may have come into the list by that.
    """
    if before is None:
        return False
    return before.keys() <= seen.keys() and all(
        id_ in before or modified >= first_began for id_, modified in seen.items()
    )


def _failure(operation: str, response: Response, *, safe: bool, secret_texts: Sequence[str] = ()) -> AdapterError:
    """What a status that is not a success means.

    Only the API's own words are a refusal. What stands before it, or for it during a deploy, answers with pages and
    redirects and has judged nothing.
    """
    status = response.status
    code, where = str(status), f"beds24 {operation}: {status}"
    failure: AdapterError
    if status == 429:
        failure = RateLimited(f"{where}: out of credits", code=code, retry_after=_resets_in(response))
    elif status in {408, 425}:
        failure = Transient(where, code=code)
    elif status >= 500 or not _is_refusal(response):
        said = where if status >= 500 else f"{where}: not an answer of the API; if it stays so, check base_url"
        failure = Transient(said, code=code) if safe else Unknown(f"{said}; it may have been done", code=code)
    elif status == 401:
        failure = Unauthorized(
            f"{where}: the token is not accepted, nor is a new one; if it stays so, create a new invite code", code=code
        )
    elif status == 403:
        failure = Misconfigured(f"{where}: not allowed; check the token's scopes and IP white list", code=code)
    else:
        failure = Rejected(f"{where}: {_vendors_words(response.document.get('error'), secret_texts)}", code=code)
    return failure


def _is_refusal(response: Response) -> bool:
    """Whether it is the API that says no: it does so in its error envelope."""
    document = response.document
    return 400 <= response.status < 500 and isinstance(document, dict) and document.get("success") is False


def _item(operation: str, response: Response) -> Mapping[str, Any]:
    """The result of the one item of a POST."""
    document = response.document
    if isinstance(document, list) and document and isinstance(document[0], dict):
        return document[0]
    raise Unknown(f"beds24 {operation}: {response.status} without a result; it may have been done", code="no_result")


def _created(operation: str, result: Mapping[str, Any], secret_texts: Sequence[str]) -> Reply:
    """A booking that has an id was made, also when the vendor adds that a part of it was refused."""
    new = result.get("new")
    id_ = new.get("id") if isinstance(new, dict) else None
    if id_ is None:
        raise _refused(operation, result, secret_texts)
    if not _is_id(id_):
        raise Unknown(f"beds24 {operation}: new.id cannot be a booking's; it may have been done", code="no_id")
    return Reply(external_id=str(id_), response=_told(result))


def _is_id(id_: Any) -> bool:
    return not isinstance(id_, bool) and bool(re.fullmatch(MANIFEST.external_ids[EntityType.RESERVATION], str(id_)))


def _refused(operation: str, result: Mapping[str, Any], secret_texts: Sequence[str]) -> Rejected | Unknown:
    """Why an item is not done: refused where the vendor says so in a word, else nobody knows."""
    if result.get("success") is not False:
        return Unknown(f"beds24 {operation}: no word of what became of it; it may have been done", code="no_result")
    errors = _dicts(result.get("errors")) or [{}]
    fields = [
        _vendors_words(str(error.get("field") or error.get("action") or "item")[:60], secret_texts)
        for error in errors[:5]
    ]
    words = [_vendors_words(error.get("message"), secret_texts) for error in errors[:5]]
    said = "; ".join(f"{field}: {word}" for field, word in zip(fields, words, strict=True))
    done = result.get("modified") or result.get("new")
    changed = f"; changed nevertheless: {', '.join(sorted(map(str, done)))[:200]}" if isinstance(done, dict) else ""
    message = errors[0].get("message")
    code = message if isinstance(message, str) and _CODE.fullmatch(message) else None
    if code is not None and _vendors_words(code, secret_texts) == _WITHHELD:
        code = None
    return Rejected(
        f"beds24 {operation}: refused: {said}{changed}",
        code=code or "refused",
        place=f"beds24 {operation}: {', '.join(sorted(set(fields)))}",
    )


def _vendors_words(text: Any, secret_texts: Sequence[str]) -> str:
    """A vendor's text if it can hold nothing of a guest's: no address, no long number, nothing that we sent."""
    if not isinstance(text, str) or not text:
        return "no reason given"
    lowered = text.lower()
    if len(text) > 200 or "@" in text or re.search(r"\d{6}", text):
        return _WITHHELD
    return _WITHHELD if any(said.lower() in lowered for said in secret_texts if len(said) > 1) else text


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    """The answer for the sync log: which members, never their values."""
    told: dict[str, Any] = {"success": result.get("success") is True}
    for name in ("new", "modified"):
        if isinstance(members := result.get(name), dict):
            told[name] = sorted(str(member) for member in members)
    for name in ("errors", "warnings"):
        if entries := _dicts(result.get(name)):
            told[name] = [{key: entry[key] for key in ("action", "field") if key in entry} for entry in entries]
    return told


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _granted(operation: str, document: Any, *, kept: bool) -> Grant:
    """kept: the answer holds a refresh token to be sealed."""
    try:
        token, expires_in = document["token"], float(document["expiresIn"])
        credentials = {"refresh_token": document["refreshToken"]} if kept else {}
    except (TypeError, KeyError, ValueError) as error:
        raise Transient(f"beds24 {operation}: an answer without token, expiresIn or refreshToken") from error
    return Grant(access_token=str(token), expires_in=expires_in, credentials=credentials)


def _budget(response: Response) -> Budget | None:
    """A 429 says that nothing is left, with or without the headers."""
    remaining = 0.0 if response.status == 429 else _number(response.headers, _REMAINING)
    return None if remaining is None else Budget(remaining=max(remaining, 0.0), resets_in=_resets_in(response))


def _resets_in(response: Response) -> float:
    names = (*_RESETS_IN, "retry-after") if response.status == 429 else _RESETS_IN
    found = _number(response.headers, names)
    return _WINDOW if found is None else min(max(found, 0.0), _WINDOW)


def _number(headers: Mapping[str, str], names: Sequence[str]) -> float | None:
    """The first of these headers that holds a number: credits are decimal ("95.9"), and overdrawn by the last call's cost."""
    for name in names:
        if re.fullmatch(r"-?\d{1,9}(\.\d{1,6})?", text := headers.get(name, "")):
            return float(text)
    return None


def _base_url(connection: Connection) -> str:
    url = str(connection.config.get("base_url") or DEFAULT_BASE_URL).rstrip("/")
    if not url.startswith(("https://", "http://")):
        raise Misconfigured("beds24: base_url must begin with https://", code="base_url")
    return url
