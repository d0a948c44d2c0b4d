"""Pools, and what kind of failure a database error is."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
    Warm = Callable[[Connection], Coroutine[Any, Any, None]]

WORKER_ROLE = "staybus_worker"
API_ROLE = "staybus_api"

WARM = 4  # sessions: two batches under way, and the marks of what was published and told

# The database could not do it now, whatever the data: the same again later. Everything else is about the data or a bug.
OUTAGES = (
    OSError,
    TimeoutError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,  # shutdown, cannot connect now, cancelled
    asyncpg.exceptions.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.exceptions.TransactionRollbackError,  # deadlock, serialization
    asyncpg.exceptions.PostgresSystemError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,  # a standby after a failover
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,  # a password being rotated
    asyncpg.exceptions.InvalidCatalogNameError,  # the database is being restored
    asyncpg.exceptions.ObjectNotInPrerequisiteStateError,  # … or taken out of service: it lets nobody in
    asyncpg.InternalClientError,  # a session that was ended in the middle of an exchange leaves the client's protocol so
)


def is_outage(error: BaseException) -> bool:
    """True: nothing was decided about the data; the same transaction may be tried again."""
    if isinstance(error, asyncpg.InterfaceError):
        # The client's own errors have one class for a lost connection and for a wrong argument, which is wrong for good.
        return "closed" in str(error) or "closing" in str(error)
    return isinstance(error, OUTAGES)


async def open_pool(
    database_url: str,
    *,
    role: str = WORKER_ROLE,
    name: str,
    size: int = 4,
    command_timeout: float = 30,
    warm: Warm | None = None,
) -> Pool:
    """A pool whose sessions run as `role`.

    warm    is done on each new session: has statements planned that should not be when somebody waits for them; WARM sessions
            are open from the start then, so that none is begun when much comes at once
    raises  what asyncpg raises when the database cannot be reached
    """

    async def keep(connection: Any) -> None:
        """No reset on release: our sessions set nothing that outlives a transaction, and it would cost a round trip."""

    settings = {"role": role, "application_name": f"staybus {name}", "timezone": "UTC", "jit": "off"}
    lasting: dict[str, Any] = {}
    if role == WORKER_ROLE:
        # Our statements are few and have one good plan. Left to itself the server plans those over arrays anew each time,
        # because it takes a short array for a cheaper plan: 2 ms a webhook at low load, more than all the rest together.
        settings["plan_cache_mode"] = "force_generic_plan"
        # A plan made while the tables were empty would read them whole, to hash or to merge them, for as long as nothing
        # analyses them. Every statement of ours goes from a short list by index, row by row.
        settings |= dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_material"), "off")
        # These plans are dear and do not age: a session is not given up for having worked much, nor a plan after five minutes.
        lasting = {"max_queries": 10**9, "max_cached_statement_lifetime": 0}
    pool: Pool = await asyncpg.create_pool(
        database_url,
        min_size=min(WARM if warm else 2, size),
        max_size=size,
        command_timeout=command_timeout,
        init=warm,
        reset=keep,
        server_settings=settings,
        **lasting,
    )
    return pool


@asynccontextmanager
async def as_company(pool: Pool, company_id: str | None) -> AsyncIterator[Connection]:
    """A transaction that sees one company's rows only; None is an operator of the whole installation."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT set_config('staybus.company_id', $1, true)", company_id or "*")
        yield connection
