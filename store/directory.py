"""What a process knows about connections: read when first needed, kept for a short while, read again when in doubt."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from schemas.connection import Connection

from .seal import SealError
from .statements import statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import asyncpg

    from .pool import Connection as Database
    from .pool import Pool
    from .seal import Cipher, KeyFile

_SQL = statements("connections")


@dataclass(frozen=True, slots=True)
class Known:
    """A connection with what opens its sealed values; webhook_secrets: the current one, then a still valid earlier one."""

    connection: Connection
    cipher: Cipher
    webhook_secrets: tuple[str, ...] = field(repr=False)


class Directory:
    """A cache of connections by id.

    A value older than `fresh_for` seconds is still given, while it is read again behind the caller's back, and one older than
    `good_for` is not: whoever has had nothing to do for an hour does not begin with what was true then. `again` reads at once:
    for a signature that does not fit, which may be a secret that was just rotated. Unknown ids are asked for once in `miss_for`
    seconds.
    """

    def __init__(
        self,
        pool: Pool,
        keys: KeyFile,
        *,
        fresh_for: float = 2.0,
        good_for: float = 30.0,
        miss_for: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._fresh_for = fresh_for
        self._good_for = good_for
        self._miss_for = miss_for
        self._clock = clock
        self._known: dict[str, tuple[float, Known | None]] = {}
        self._reading: dict[str, asyncio.Task[Known | None]] = {}
        self._ciphers: dict[str, Cipher] = {}

    @property
    def installation(self) -> Cipher:
        return self._keys.installation

    async def get(self, connection_id: str) -> Known | None:
        """raises SealError: it is not known, or not any more, and what is sealed of it cannot be opened"""
        entry = self._known.get(connection_id)
        if entry is None or self._is_too_old(entry):
            return await self._read(connection_id)
        at, known = entry
        if known is not None and self._clock() - at > self._fresh_for:
            self._begin(connection_id)
        return known

    def ahead(self, connection_ids: Iterable[str]) -> None:
        """Begins to read those for which `get` would wait one after the other."""
        for id_ in connection_ids:
            entry = self._known.get(id_)
            if entry is None or self._is_too_old(entry):
                self._begin(id_)

    async def again(self, connection_id: str) -> Known | None:
        """The value as it is in the database now; callers in a tenth of a second share one read. raises SealError"""
        entry = self._known.get(connection_id)
        age = self._clock() - entry[0] if entry is not None else 1.0
        if age < 0.1:  # read a moment ago: what has changed since is in the next read, which all of these wait for
            await asyncio.sleep(0.1 - age)
        return await self._read(connection_id)

    async def cipher(self, company_id: str, database: Database | None = None) -> Cipher | None:
        """None for a company that does not exist. database: of a caller who holds a session, so that it needs no second one"""
        cipher = self._ciphers.get(company_id)
        if cipher is None:
            wrapped = await (database or self._pool).fetchval(_SQL["company_key"], company_id)
            if wrapped is None:
                return None
            cipher = self._ciphers[company_id] = self._keys.cipher(company_id, wrapped)
        return cipher

    def _is_too_old(self, entry: tuple[float, Known | None]) -> bool:
        at, known = entry
        age = self._clock() - at
        return age >= self._miss_for if known is None else age > self._good_for

    async def _read(self, connection_id: str) -> Known | None:
        return await asyncio.shield(self._begin(connection_id))

    def _begin(self, connection_id: str) -> asyncio.Task[Known | None]:
        task = self._reading.get(connection_id)
        if task is None:
            task = self._reading[connection_id] = asyncio.create_task(self._load(connection_id))
            task.add_done_callback(lambda done: self._finished(connection_id, done))
        return task

    def _finished(self, connection_id: str, task: asyncio.Task[Known | None]) -> None:
        self._reading.pop(connection_id, None)
        if not task.cancelled():
            task.exception()  # a caller that waits has it; a refresh behind the back keeps the old value

    async def _load(self, connection_id: str) -> Known | None:
        row = await self._pool.fetchrow(_SQL["load"], connection_id)
        known = None if row is None else self._opened(row)
        if len(self._known) > 50_000:  # ids from the outside must not grow it without bound
            self._known.clear()
        self._known[connection_id] = (self._clock(), known)
        return known

    def _opened(self, row: asyncpg.Record) -> Known:
        """raises SealError"""
        try:
            cipher = self._ciphers.get(row["company_id"])
            if cipher is None:
                cipher = self._ciphers[row["company_id"]] = self._keys.cipher(row["company_id"], row["data_key"])
            secrets = tuple(
                cipher.open_bytes(sealed).decode()
                for sealed in (row["webhook_secret"], row["previous_secret"])
                if sealed is not None
            )
        except SealError as error:
            raise SealError(
                f"connection {row['id']}: its webhook_secret or the data key of {row['company_id']} cannot be opened;"
                " put back the key file or the row,"
                f" or replace the secret: `staybus secret set {row['id']} webhook_secret`"
            ) from error
        return Known(
            Connection(
                id=row["id"],
                company_id=row["company_id"],
                vendor=row["vendor"],
                name=row["name"],
                status=row["status"],
                external_account_id=row["external_account_id"],
                config=orjson.loads(row["config"]),
                currencies=orjson.loads(row["currencies"] or "{}"),
            ),
            cipher,
            secrets,
        )
