"""The transport, over real sockets where there is something to send, and a table for the rest."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest

from adapters.errors import AdapterError, Misconfigured, Transient, Unknown
from adapters.port import Request, Response
from adapters.transport import MOMENTS, MOST_BYTES, NOT_SENT, HttpTransport, Moment, moment_of

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(status: str = "200 OK", body: bytes = b"{}", extra: str = "", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n{extra}\r\n".encode() + body


@asynccontextmanager
async def server(*answers: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers each request with the next of `answers`, then hangs up; None: keeps silent until the caller leaves."""
    heard: list[bytes] = []
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        heard.append(head + await reader.readexactly(size))
        said = left.pop(0)
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", heard
    finally:
        listening.close()
        await listening.wait_closed()


async def send(url: str, method: str = "POST", total: float = 5.0, **members: object) -> Response:
    http = HttpTransport("acme", total=total)
    try:
        return await http.send(Request("things.make", method, url, **members))  # type: ignore[arg-type]
    finally:
        await http.close()


async def test_a_request_goes_out_as_it_is_said() -> None:
    async with server(answer("201 Created", b'{"a": "\\u0000"}', "X-Left: 9\r\n")) as (url, heard):
        response = await send(
            f"{url}/things", params=[("id", "1"), ("id", "2")], json=[{"n": 1.5}], headers={"token": "t"}
        )
    assert (response.status, response.document, response.headers["x-left"]) == (201, {"a": "\ufffd"}, "9")
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /things?id=1&id=2 HTTP/1.1\r\n")
    assert b"\r\nuser-agent: staybus/" in head.lower()
    assert b"\r\ntoken: t" in head
    assert body == b'[{"n":1.5}]'


async def test_an_empty_body_is_no_document() -> None:
    async with server(answer("200 OK", b"")) as (url, _):
        assert (await send(url)).document is None


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "302 Found"])
async def test_a_refusal_stays_one_without_json_and_redirects_are_not_followed(status: str) -> None:
    async with server(answer(status, b"<html>", "Location: /elsewhere\r\n")) as (url, heard):
        response = await send(url)
    assert (response.status, response.document, len(heard)) == (int(status[:3]), None, 1)


async def test_a_refusal_stays_one_when_its_body_is_cut() -> None:
    async with server(answer("422 Unprocessable", b'{"err', length=900)) as (url, _):
        assert (await send(url)).status == 422


async def test_an_error_with_json_is_returned() -> None:
    async with server(answer("500 Oops", b'{"error": "x"}')) as (url, _):
        assert (await send(url)).document == {"error": "x"}


@pytest.mark.parametrize(
    ("said", "read", "write"),
    [
        (answer("502 Bad Gateway", b"<html>"), Transient, Transient),
        (answer("200 OK", b"<html>"), Transient, Unknown),
        (answer("201 Created", b'[{"success": tr'), Transient, Unknown),
        (answer("201 Created", b'[{"success": tr', length=500), Transient, Unknown),
        (answer("500 Oops", b'{"err', length=500), Transient, Unknown),
        (b"", Transient, Unknown),
        (b"nonsense\r\n\r\n", Transient, Unknown),
        (answer(body=b"not gzip", extra="Content-Encoding: gzip\r\n"), Transient, Unknown),
        (None, Transient, Unknown),
    ],
)
async def test_without_a_readable_answer_a_read_may_be_repeated_but_of_a_write_nobody_knows(
    said: bytes | None, read: type[AdapterError], write: type[AdapterError]
) -> None:
    for method, expected in (("GET", read), ("POST", write)):
        async with server(said) as (url, _):
            with pytest.raises(AdapterError, match=r"^acme things\.make: ") as caught:
                await send(url, method, total=0.3 if said is None else 5.0)
        assert type(caught.value) is expected


BOMB = gzip.compress(b'["' + b"a" * (MOST_BYTES + 1) + b'"]')


@pytest.mark.parametrize(
    "said",
    [
        answer(body=BOMB, extra="Content-Encoding: gzip\r\n"),
        answer(body=gzip.compress(gzip.compress(b"{}")), extra="Content-Encoding: gzip, gzip\r\n"),
        answer("500 Oops", BOMB, "Content-Encoding: gzip\r\n"),
    ],
    ids=["gzip", "gzip twice", "an error"],
)
async def test_an_answer_that_is_too_large_is_none(said: bytes) -> None:
    for method, expected in (("GET", Transient), ("POST", Unknown)):
        async with server(said) as (url, _):
            with pytest.raises(AdapterError, match="TooLarge") as caught:
                await send(url, method)
        assert type(caught.value) is expected


async def test_a_refusal_that_is_too_large_stays_one_and_the_largest_answer_is_read() -> None:
    async with server(answer("422 Unprocessable", BOMB, "Content-Encoding: gzip\r\n")) as (url, _):
        assert (await send(url)).document is None
    largest = b'"' + b"a" * (MOST_BYTES - 2) + b'"'
    async with server(answer(body=gzip.compress(largest), extra="Content-Encoding: gzip\r\n")) as (url, _):
        assert len((await send(url)).document) == MOST_BYTES - 2


async def test_a_server_that_drips_is_given_up_after_the_total_time() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(b" ")
            await asyncio.wait({gone}, timeout=0.02)
        writer.close()

    listening = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with listening:
        with pytest.raises(Unknown, match=r"no answer within 0\.3 s"):
            await send(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", total=0.3)


async def test_a_refused_connection_was_surely_not_sent() -> None:
    async with server() as (url, _):
        pass
    with pytest.raises(Transient) as caught:
        await send(url)
    assert caught.value.code == NOT_SENT


@pytest.mark.parametrize("url", ["ftp://example.invalid", "no-scheme", "http://[::", "http://a:port/"])
async def test_an_address_that_is_none_is_misconfigured(url: str) -> None:
    with pytest.raises(Misconfigured, match="base URL"):
        await send(url)


@pytest.mark.parametrize("token", ["secret\r\nX-Evil: 1", "secret-ž", "secret\x00"])
async def test_a_token_that_no_header_can_hold_is_misconfigured_and_not_quoted(token: str) -> None:
    import traceback

    async with server(answer()) as (url, heard):
        with pytest.raises(Misconfigured) as caught:
            await send(url, headers={"token": token})
    assert heard == []
    told = [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    assert "secret" not in "".join(told)


async def test_cookies_of_one_tenant_never_travel_with_another() -> None:
    async with server(answer(extra="Set-Cookie: session=tenant-1; Path=/\r\n"), answer()) as (url, heard):
        http = HttpTransport("acme")
        for _ in range(2):
            await http.send(Request("things.read", "GET", url))
        await http.close()
    assert b"cookie" not in heard[1].lower()


async def test_metrics_are_told_of_everything_and_logs_of_nothing_private(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[tuple[str, str, str]] = []
    times = iter(range(100))
    async with server(answer("404 No", b""), b"") as (url, _):
        http = HttpTransport(
            "acme", on_response=lambda v, o, s, t: told.append((v, o, f"{s} {t:g}")), clock=lambda: float(next(times))
        )
        request = Request(
            "things.find",
            "POST",
            f"{url}/p",
            {"token": "secret-token"},
            [("q", "Guest Name")],
            {"mail": "guest@x.invalid"},
        )
        await http.send(request)
        with pytest.raises(Unknown):
            await http.for_vendor("other").send(request)
        await http.close()
    assert told == [("acme", "things.find", "404 1"), ("other", "things.find", "unknown 1")]
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "acme things.find POST: 404" in text
    assert not [private for private in ("secret-token", "Guest", "guest@", "127.0.0.1:") if private in text]


def errors_of_httpx() -> Iterator[type[Exception]]:
    pending: list[type[Exception]] = [httpx.RequestError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.startswith("httpx") and not kind.__subclasses__():
            yield kind
    yield httpx.InvalidURL


@pytest.mark.parametrize("kind", list(errors_of_httpx()))
async def test_every_error_of_httpx_is_decided_in_the_table(kind: type[Exception]) -> None:
    assert kind in MOMENTS, f"decide what {kind.__name__} says about the request"
    error = kind("with a secret")

    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    expected: dict[Moment, type[AdapterError]] = {
        Moment.NOT_SENT: Transient,
        Moment.SETTINGS: Misconfigured,
        Moment.NO_ANSWER: Unknown,
    }
    if kind is httpx.InvalidURL:
        assert moment_of(error) is Moment.SETTINGS  # raised before the transport is asked; tested above
        return
    http = HttpTransport("acme", lower=httpx.MockTransport(fail))
    with pytest.raises(AdapterError) as caught:
        await http.send(Request("things.make", "POST", "http://acme.invalid/"))
    await http.close()
    assert type(caught.value) is expected[MOMENTS[kind]]
    assert "secret" not in str(caught.value)
