"""The one way out to vendors' servers: HTTP with time limits, and every lower error turned into one of ours.

What decides is the moment of the failure: before anything was written it is Transient (surely not sent); after that a
read may be tried again (Transient) but nobody knows what became of a write (Unknown). Nothing of a request but its
operation, method and status is ever logged: headers hold tokens, queries and bodies hold guests.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import ssl
import time
from collections.abc import Callable
from enum import Enum
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import httpx
import orjson

from .documents import decode
from .errors import AdapterError, Malformed, Misconfigured, Transient, Unknown
from .port import Request, Response

logger = logging.getLogger(__name__)

NOT_SENT = "not_sent"  # the code of a Transient that is sure to have left the vendor untouched

OnResponse = Callable[[str, str, str, float], None]
"""(vendor, operation, status or fault, seconds)"""


class Moment(Enum):
    """What a failure of the lower library says about the request."""

    NOT_SENT = "not sent"
    SETTINGS = "cannot be sent as it is set up"
    NO_ANSWER = "sent, at least in part, and not answered"


# By class, most special first in each class's ancestry; a test asserts that every class of httpx is decided here.
MOMENTS: dict[type[Exception], Moment] = {
    httpx.ConnectError: Moment.NOT_SENT,
    httpx.ConnectTimeout: Moment.NOT_SENT,
    httpx.PoolTimeout: Moment.NOT_SENT,
    httpx.ProxyError: Moment.NOT_SENT,
    httpx.UnsupportedProtocol: Moment.SETTINGS,
    httpx.InvalidURL: Moment.SETTINGS,
    httpx.LocalProtocolError: Moment.SETTINGS,  # such as a line break in a token
    httpx.ReadTimeout: Moment.NO_ANSWER,
    httpx.WriteTimeout: Moment.NO_ANSWER,  # the last bytes may have arrived
    httpx.ReadError: Moment.NO_ANSWER,
    httpx.WriteError: Moment.NO_ANSWER,
    httpx.CloseError: Moment.NO_ANSWER,
    httpx.RemoteProtocolError: Moment.NO_ANSWER,  # also a kept connection that the server closed as we wrote
    httpx.DecodingError: Moment.NO_ANSWER,
    httpx.TooManyRedirects: Moment.NO_ANSWER,
    httpx.RequestError: Moment.NO_ANSWER,  # what a later httpx may add
}

MOST_BYTES = 32 * 1024 * 1024  # of an answer, decoded: what is longer is no usable answer

_READS = frozenset({"GET", "HEAD", "OPTIONS"})

# More than a process ever has under way to one vendor (256 deliveries, or 64 fetches): a call that found no socket would look
# like a vendor that does not answer.
MAX_CONNECTIONS = 300
KEPT = 100  # of them, while idle


@cache
def _authorities() -> ssl.SSLContext:
    """Whom we trust, of all clients of the process: to read it takes 30 ms each time."""
    return httpx.create_ssl_context()


class TooLargeError(httpx.RequestError):
    """An answer of more than MOST_BYTES."""


class HttpTransport:
    """`port.Http` over one httpx client for each vendor, shared by its connections: a vendor that does not answer must not
    take the others' sockets.

    connect, total  seconds; total bounds the whole exchange, so that a server that drips cannot hold a worker
    on_response     told once for every request, whatever came of it
    """

    def __init__(
        self,
        vendor: str = "vendor",
        *,
        connect: float = 5.0,
        total: float = 30.0,
        max_connections: int = MAX_CONNECTIONS,
        on_response: OnResponse | None = None,
        clock: Callable[[], float] = time.monotonic,
        lower: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        for name in ("httpx", "httpcore"):  # they log URLs at INFO and headers at DEBUG
            logging.getLogger(name).setLevel(logging.WARNING)
        self._vendor = vendor
        self._total = total
        self._on_response = on_response
        self._clock = clock
        self._make: Callable[[], httpx.AsyncClient] = lambda: httpx.AsyncClient(
            timeout=httpx.Timeout(total, connect=connect, pool=connect),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=min(KEPT, max_connections)),
            headers={"user-agent": f"staybus/{_version()}", "accept": "application/json"},
            follow_redirects=False,
            # One client serves all tenants: a cookie set for one must never travel with another's request.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            verify=_authorities(),
            transport=lower,
        )
        self._client = self._make()
        self._siblings: dict[str, HttpTransport] = {}

    def for_vendor(self, vendor: str) -> HttpTransport:
        """The same settings, a client of its own, under the name that metrics and errors shall use."""
        sibling = self._siblings.get(vendor)
        if sibling is None:
            sibling = self._siblings[vendor] = copy.copy(self)
            sibling._vendor, sibling._client = vendor, self._make()  # noqa: SLF001 - of our own class
        return sibling

    async def close(self) -> None:
        """Close the client, and that of every sibling."""
        for transport in (self, *self._siblings.values()):
            await transport._client.aclose()  # noqa: SLF001 - of our own class

    async def send(self, request: Request) -> Response:
        """Any status is returned, with document None where an error's body is not JSON.

        raises  Transient (code `not_sent`, or `http_5xx`: an answer of that status that is not JSON), Unknown (a
                write without a readable answer), Misconfigured (the URL or a header cannot be sent)
        """
        began = self._clock()
        outcome = "cancelled"
        try:
            response = await self._exchange(request)
            outcome = str(response.status)
        except AdapterError as error:
            outcome = error.fault.value
            raise
        else:
            return response
        finally:
            seconds = self._clock() - began
            logger.debug("%s %s %s: %s in %.3f s", self._vendor, request.operation, request.method, outcome, seconds)
            if self._on_response is not None:
                self._on_response(self._vendor, request.operation, outcome, seconds)

    async def _exchange(self, request: Request) -> Response:
        built = self._build(request)
        answer: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._total):
                answer = await self._client.send(built, stream=True)
                try:
                    body = await _read(answer)
                finally:
                    await answer.aclose()
        except TimeoutError as error:
            self._no_answer(request, f"no answer within {self._total:g} s", error)
        except httpx.RequestError as error:
            if answer is None or not 400 <= answer.status_code < 500:
                self._failed(request, error)
            body = b""  # a refusal stays one, whatever became of its text
        return Response(
            status=answer.status_code,
            headers={name.lower(): value for name, value in answer.headers.items()},
            document=self._document(request, answer.status_code, body),
        )

    def _build(self, request: Request) -> httpx.Request:
        headers = dict(request.headers)
        content = None
        if request.json is not None:
            content = orjson.dumps(request.json)
            headers["content-type"] = "application/json"
        try:
            return self._client.build_request(
                request.method, request.url, params=list(request.params) or None, headers=headers, content=content
            )
        except (httpx.InvalidURL, ValueError) as error:
            # from None: these errors quote the URL, or the token in which a character is wrong
            raise Misconfigured(
                f"{self._label(request)}: cannot be sent; check base URL and credentials ({type(error).__name__})"
            ) from None

    def _document(self, request: Request, status: int, body: bytes) -> Any:
        if not body.strip():
            return None
        try:
            return decode(body)
        except Malformed as error:
            if status >= 500:
                raise Transient(f"{self._label(request)}: {status} without JSON", code=f"http_{status}") from error
            if status >= 300:
                return None
            self._no_answer(request, f"{status}, but its body is not JSON", error)

    def _failed(self, request: Request, error: httpx.RequestError) -> NoReturn:
        kind = type(error).__name__
        match moment_of(error):
            case Moment.NOT_SENT:
                raise Transient(f"{self._label(request)}: not sent ({kind})", code=NOT_SENT) from error
            case Moment.SETTINGS:
                raise Misconfigured(
                    f"{self._label(request)}: cannot be sent; check base URL and credentials ({kind})"
                ) from None  # its text may quote a header
            case Moment.NO_ANSWER:
                self._no_answer(request, f"no answer ({kind})", error)

    def _no_answer(self, request: Request, what: str, error: Exception) -> NoReturn:
        fault = Transient if request.method.upper() in _READS else Unknown
        raise fault(f"{self._label(request)}: {what}") from error

    def _label(self, request: Request) -> str:
        return f"{self._vendor} {request.operation}"


async def _read(answer: httpx.Response) -> bytes:
    """raises TooLargeError: half a megabyte of gzip can be gigabytes, and an encoding of an encoding any number of them"""
    if "," in answer.headers.get("content-encoding", ""):
        raise TooLargeError("encoded more than once")
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise TooLargeError(f"more than {MOST_BYTES} bytes")
    return bytes(body)


def moment_of(error: Exception) -> Moment:
    return next(MOMENTS[kind] for kind in type(error).__mro__ if kind in MOMENTS)


def _version() -> str:
    try:
        return version("staybus")
    except PackageNotFoundError:  # run from a tree that is not installed
        return "0"
