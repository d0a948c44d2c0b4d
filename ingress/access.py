"""Who may call the administration: bearer API keys with scopes, of one company or of the whole installation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from store import connections

from .problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from store.pool import Pool


@dataclass(frozen=True, slots=True)
class Caller:
    """company_id None: an operator, who sees every company."""

    name: str
    company_id: str | None


async def authorise(request: Request, pool: Pool, scope: str) -> Caller:
    """raises Problem 401 (no or unknown key), 403 (known key without the scope)"""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not key.strip():
        raise _unknown("send `Authorization: Bearer <api key>`; `staybus apikey create` makes one")
    async with pool.acquire() as connection:
        found = await connections.find_api_key(connection, key.strip())
    if found is None:
        raise _unknown("this API key is not known or was revoked")
    if scope not in found.scopes:
        raise Problem(403, "scope-missing", f"this API key lacks the scope {scope!r}")
    return Caller(f"key:{found.id}", found.company_id)


def _unknown(detail: str) -> Problem:
    problem = Problem(401, "not-authorised", detail)
    problem.headers = {"WWW-Authenticate": "Bearer"}
    return problem
