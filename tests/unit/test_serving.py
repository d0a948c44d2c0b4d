"""What the HTTP server makes of odd requests, byte by byte over a socket."""

from __future__ import annotations

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ops.serving import serving

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
LAST = "POST /last HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nend"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"<{request.url.path}: {(await request.body()).decode()}>")


async def answers(sent: str, size: int = 1 << 20) -> str:
    """All that is said to these bytes, so many of which arrive at a time."""
    app = Starlette(routes=[Route("/{path}", echo, methods=["POST", "GET"])])
    async with serving(app, "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size].encode())
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            said = (await reader.read()).decode()
        writer.close()
    return said


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("upgrade", [H2C, H2C.replace("h2c", "websocket"), ""])
async def test_a_body_is_read_whatever_protocol_its_sender_would_rather_speak(
    upgrade: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = f"POST /one HTTP/1.1\r\nHost: a\r\n{upgrade}Content-Length: 5\r\n\r\nhello"
    chunks = (
        f"POST /two HTTP/1.1\r\nHost: a\r\n{upgrade}Transfer-Encoding: chunked\r\n\r\n3\r\nwor\r\n2\r\nld\r\n0\r\n\r\n"
    )
    without = f"GET /three HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"
    said = await answers(lengths + chunks + without + LAST, size)
    assert [said.count(f"<{part}>") for part in ("/one: hello", "/two: world", "/three: ", "/last: end")] == [1] * 4
    assert said.count("HTTP/1.1 200 OK") == 4
    assert caplog.messages == []


async def test_however_many_requests_of_a_packet_ask_for_an_upgrade_each_is_answered() -> None:
    said = await answers("GET /one HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n" * 3000 + LAST)
    assert said.count("</one: >") == 3000
    assert said.endswith("</last: end>")


async def test_a_head_without_end_is_refused_whatever_it_would_rather_speak() -> None:
    said = await answers(f"POST /one HTTP/1.1\r\nHost: a\r\n{H2C}X: {'a' * 70_000}")
    assert said.startswith("HTTP/1.1 400")
    assert "too large" in said


async def test_what_is_no_request_after_a_head_that_asks_for_an_upgrade_is_refused() -> None:
    said = await answers(f"POST /one HTTP/1.1\r\nHost: a\r\n{H2C}Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert "HTTP/1.1 400" in said


async def test_a_tunnel_is_not_made() -> None:
    said = await answers("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n")
    assert said.startswith(("HTTP/1.1 4", "HTTP/1.1 5"))
