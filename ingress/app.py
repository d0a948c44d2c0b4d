"""The routes, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from store.pool import OUTAGES

from .problems import Problem, on_error, on_http_exception, on_outage, on_problem, response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from .admin import Admin
    from .webhooks import Webhooks


class Ingress:
    """The ASGI app: webhooks, and the rest.

    Webhooks are the hot path, and go past the layers that Starlette puts around a route: they cost a tenth of the whole. Every
    method comes here: the adapter says which are allowed, and a refusal is logged like any other.
    """

    def __init__(self, webhooks: Webhooks, rest: Starlette) -> None:
        self._webhooks = webhooks
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = scope["path"].rstrip("/").split("/") if scope["type"] == "http" else []
        match way:
            case ["", "webhooks", vendor, connection_id]:
                await self._webhook(vendor, connection_id, scope, receive, send)
            case _:
                await self._rest(scope, receive, send)

    async def _webhook(self, vendor: str, connection_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            accepted = await self._webhooks.receive(scope, receive, vendor, connection_id)
        except Problem as problem:
            await response(problem)(scope, receive, send)
            return
        except Exception as error:  # noqa: BLE001 - a bug of ours has an answer, too
            await (await on_error(Request(scope), error))(scope, receive, send)
            return
        body = orjson.dumps({"status": accepted.word, "events": [str(outcome.id) for outcome in accepted.outcomes]})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": accepted.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def create_app(
    webhooks: Webhooks,
    admin: Admin,
    ready: Callable[[], Awaitable[dict[str, bool]]],
) -> Ingress:
    """ready: what must answer for this process to be of use, and whether it does"""

    rest = Starlette(
        routes=[
            Route("/admin/events", admin.list_events, methods=["GET"]),
            Route("/admin/events/{id}", admin.show_event, methods=["GET"]),
            Route("/admin/events/{id}/retry", admin.retry_event, methods=["POST"]),
            Route("/admin/dead-letters", admin.list_dead_letters, methods=["GET"]),
            Route("/admin/dead-letters/{id}/abandon", admin.abandon, methods=["POST"]),
            *health_routes(ready),
        ],
        exception_handlers={
            **dict.fromkeys((*OUTAGES, asyncpg.InterfaceError), on_outage),
            Problem: on_problem,
            HTTPException: on_http_exception,
            Exception: on_error,
        },
    )
    return Ingress(webhooks, rest)


def health_routes(
    ready: Callable[[], Awaitable[dict[str, bool]]], alive: Callable[[], bool] = lambda: True
) -> list[Route]:
    """/healthz: is it worth keeping this process; /readyz: can it do its work now; /metrics: for Prometheus."""

    async def healthz(_request: Request) -> Response:
        good = alive()
        return _status("ok" if good else "not consuming", {}, 200 if good else 503)

    async def readyz(_request: Request) -> Response:
        parts = await ready()
        good = all(parts.values())
        return _status("ready" if good else "not ready", parts, 200 if good else 503)

    async def metrics(_request: Request) -> Response:
        alive()  # keeps the gauge of consuming queues current
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})

    return [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]


def _status(word: str, parts: dict[str, bool], status: int) -> Response:
    return Response(orjson.dumps({"status": word, **parts}), status, media_type="application/json")
