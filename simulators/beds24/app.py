"""The HTTP face: authorise, charge, perform, record, and break the answer where a fault says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from simulators.beds24.control import control_routes
from simulators.beds24.faults import Call, Fault, FaultKind, Faults
from simulators.beds24.operations import OPERATIONS, Answer, Ask, Operation
from simulators.beds24.query import BadRequest, Query
from simulators.beds24.state import Account
from simulators.beds24.webhooks import WebhookSender
from simulators.server import DROP

PREFIXES = ("/api/v2", "/v2")  # beds24.com/api/v2 (measured) and api.beds24.com/v2 (in the wiki)
MOST_BYTES = 1_000_000
LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Login</title></head><body><h1>Please log in</h1></body></html>"
NOT_FOUND = "<html><head><title>404 Not Found</title></head><body><h1>404 Not Found</h1></body></html>"
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
PAGES = {
    FaultKind.HTML_200: (200, LOGIN_PAGE),
    FaultKind.HTML_404: (404, NOT_FOUND),
    FaultKind.HTML_502: (502, BAD_GATEWAY),
}


class Beds24:
    """The simulator in one hand: `account` (state, `account.calls`), `faults`, `sender` (webhooks).

    sleep  used by slow answers; injectable
    """

    def __init__(
        self,
        account: Account | None = None,
        *,
        sender: WebhookSender | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.account = account or Account()
        self.faults = Faults()
        self.sender = sender or WebhookSender(self.account)
        self.sleep = sleep

    def fire_events(self) -> None:
        for event in self.account.take_events():
            self.sender.fire(event)

    async def serve(self, operation: Operation, request: Request) -> Response:
        raw = await request.body()
        body = parsed(raw)
        call = Call(
            self.account.clock(),
            request.method,
            request.url.path,
            request.url.query,
            operation.name,
            request.headers.get("x-idempotency-key"),
            body,
        )
        self.account.calls.append(call)
        fault = self.faults.take(operation.name)
        call.fault = fault.kind if fault else None
        ask = Ask(Query(request.query_params), request.headers, body, request.url, client(request))
        if fault is not None and fault.kind is FaultKind.REFUSE_ITEM:
            ask.refuse = fault
        if fault is not None and fault.kind is FaultKind.SLOW and not fault.commits:
            await self._wait(fault.seconds or 0.0, request)
        response: Response = NoAnswer(close=False)
        if fault is None or fault.commits or fault.kind in {FaultKind.REFUSE_ITEM, FaultKind.SLOW}:
            response = self.perform(operation, ask, call, len(raw))
            self.fire_events()
        if fault is not None:
            response = await self.break_answer(fault, response, request)
        call.status = None if isinstance(response, NoAnswer) else response.status_code
        return response

    def perform(self, operation: Operation, ask: Ask, call: Call, size: int) -> Response:
        """No await in here: between looking at the credits and spending them nothing else may run."""
        refused = self._refusal(operation, ask, size)
        if refused is not None:
            return self.respond(refused)
        try:
            answer = operation.handler(self.account, ask)
        except BadRequest as error:
            return self.respond(failure(400, str(error)))  # costs nothing
        self.account.credits.spend(operation.cost)
        call.effects.extend(answer.effects)
        return self.respond(answer, operation.cost)

    async def break_answer(self, fault: Fault, response: Response, request: Request) -> Response:
        """What the caller gets instead of `response`, which is empty when the fault came before the work."""
        kind = fault.kind
        if kind in {FaultKind.TIMEOUT_AFTER_COMMIT, FaultKind.TIMEOUT_BEFORE_COMMIT}:
            return NoAnswer(close=fault.close)
        if kind in {FaultKind.REFUSE_ITEM, FaultKind.SLOW}:
            if kind is FaultKind.SLOW and fault.commits:
                await self._wait(fault.seconds or 0.0, request)
            return response
        if kind is FaultKind.CUT_JSON:
            return cut(response)
        if kind is FaultKind.EXPIRED_TOKEN:
            self.account.access.expire_all()
            return self.respond(failure(401, "Token is not valid"))
        if kind is not FaultKind.RATE_LIMITED:
            return plain_failure(fault)
        limited = self.respond(failure(429, "Credit limit exceeded"))
        limited.headers["x-five-min-limit-remaining"] = "0"
        if fault.seconds is not None:
            limited.headers["x-five-min-limit-resets-in"] = f"{fault.seconds:g}"
        return limited

    def respond(self, answer: Answer, cost: Decimal = Decimal(0)) -> Response:
        """JSON with the credit headers under the names seen on the wire, not those of the specification."""
        headers = {
            "x-five-min-limit-remaining": plain(self.account.credits.remaining()),
            "x-five-min-limit-resets-in": str(self.account.credits.resets_in()),
            "x-request-cost": plain(cost),
        }
        return Response(orjson.dumps(answer.body), answer.status, headers, "application/json")

    def _refusal(self, operation: Operation, ask: Ask, size: int) -> Answer | None:
        """Why the call may not even begin: token, scope, credits, size."""
        if operation.scope is not None:
            text = ask.headers.get("token")
            ask.token = self.account.access.valid(text) if text else None
            if ask.token is None:
                return failure(401, "Token is not valid" if text else "Token is missing")
            if not ask.token.may(*operation.scope):
                return failure(403, f"Token does not have the scope {':'.join(operation.scope)}")
        if not self.account.credits.affords(operation.cost):
            return failure(429, "Credit limit exceeded")
        return failure(400, "Request body is too long") if size > MOST_BYTES else None

    async def _wait(self, seconds: float, request: Request) -> None:
        """Be slow, but not longer than the caller waits."""
        slow = asyncio.ensure_future(self.sleep(seconds))
        gone = asyncio.ensure_future(request.receive())
        await asyncio.wait({slow, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in (slow, gone):
            task.cancel()
        await asyncio.gather(slow, gone, return_exceptions=True)


class NoAnswer(Response):
    """Never answers: keeps the caller waiting until it hangs up, or cuts the connection."""

    def __init__(self, *, close: bool) -> None:
        super().__init__()
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - nothing is sent
        drop = scope.get("extensions", {}).get(DROP)
        if self.close and drop is not None:
            drop()
        while (await receive())["type"] != "http.disconnect":
            pass


def create_app(sim: Beds24 | None = None) -> Starlette:
    """The app; the simulator is `app.state.sim`."""
    sim = sim or Beds24()

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await sim.sender.close()

    routes = [
        Route(prefix + operation.path, _endpoint(sim, operation), methods=[operation.method])
        for prefix in PREFIXES
        for operation in OPERATIONS
    ]
    app = Starlette(routes=[*routes, *control_routes(sim)], lifespan=lifespan)
    app.state.sim = sim
    return app


def _endpoint(sim: Beds24, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await sim.serve(operation, request)

    return endpoint


def failure(status: int, text: str) -> Answer:
    return Answer(status, {"success": False, "type": "error", "code": status, "error": text})


def plain_failure(fault: Fault) -> Response:
    kind = fault.kind
    if kind is FaultKind.RATE_LIMITED_BARE:
        return PlainTextResponse("Too Many Requests", 429, {"retry-after": f"{fault.seconds or 0:g}"})
    if kind in PAGES:
        status, page = PAGES[kind]
        return HTMLResponse(page, status)
    if kind is FaultKind.EMPTY_200:
        return Response(status_code=200)
    if kind is FaultKind.UNAVAILABLE:
        return PlainTextResponse("Service Unavailable", 503)
    error = failure(400, "Bad request") if kind is FaultKind.REFUSED else failure(500, "Internal server error")
    return Response(orjson.dumps(error.body), error.status, media_type="application/json")


def cut(response: Response) -> Response:
    """Half of the body with the length of the half: the transfer looks whole, the JSON is not."""
    content = bytes(response.body) or b'{"success": true, "data": ['
    return Response(content[: len(content) // 2], response.status_code, media_type="application/json")


def parsed(raw: bytes) -> object:
    try:
        return orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return None


def plain(value: Decimal) -> str:
    """ "95.9", "79": as measured, no trailing zeros and no exponent."""
    return format(value.normalize(), "f")


def client(request: Request) -> str:
    return request.client.host if request.client else "127.0.0.1"
