"""Errors as application/problem+json (RFC 9457): who, what, which field, what to do; never a value from the request."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response

from store.pool import is_outage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

_log = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818 - it is the answer itself
    """Raised anywhere under a route; becomes the answer. retry_after in seconds."""

    def __init__(self, status: int, code: str, detail: str, *, retry_after: int | None = None, **members: Any) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers: Mapping[str, str] = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        self.members = members


def response(problem: Problem) -> Response:
    body = {
        "type": f"urn:staybus:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        "detail": problem.detail,
        **problem.members,
    }
    return Response(orjson.dumps(body), problem.status, headers=problem.headers, media_type="application/problem+json")


async def on_problem(_request: Request, problem: Exception) -> Response:
    if not isinstance(problem, Problem):
        raise problem
    return response(problem)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself answers: no such route, wrong method."""
    status: int = getattr(error, "status_code", 500)
    exception: HTTPException = error  # type: ignore[assignment]
    words = {
        404: ("no-such-route", f"there is nothing at {request.url.path}"),
        405: ("method-not-allowed", f"{request.method} is not allowed here"),
    }
    code, detail = words.get(status, ("http-error", HTTPStatus(status).description))
    problem = Problem(status, code, detail)
    problem.headers = dict(exception.headers or {})
    return response(problem)


async def on_outage(_request: Request, error: Exception) -> Response:
    if not is_outage(error):
        raise error
    return response(Problem(503, "database-away", "try again", retry_after=5))


async def on_error(_request: Request, error: Exception) -> Response:
    _log.error("request failed", exc_info=error)
    return response(Problem(500, "internal-error", "staybus failed to answer; the log has the place"))
