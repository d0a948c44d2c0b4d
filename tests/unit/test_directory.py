"""What is known of connections is not older than it may be."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

from store.directory import Directory
from store.seal import KeyFile

KEYS = KeyFile(os.urandom(32))
DATA_KEY = KEYS.new_data_key()


class Database:
    """One connection, with this secret."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.asked: list[str] = []

    async def fetchrow(self, _sql: str, connection_id: str) -> dict[str, Any]:
        self.asked.append(connection_id)
        said = {"id": "c", "company_id": "acme", "vendor": "beds24", "name": "C", "status": "active", "config": "{}"}
        secret = KEYS.cipher("acme", DATA_KEY).seal_bytes(self.secret.encode())
        none = dict.fromkeys(("external_account_id", "currencies", "previous_secret"))
        return said | none | {"data_key": DATA_KEY, "webhook_secret": secret}


class Story:
    def __init__(self) -> None:
        self.seconds = 1000.0
        self.database = Database("old")
        self.directory = Directory(cast("Any", self.database), KEYS, clock=lambda: self.seconds)

    async def secret(self) -> str:
        known = await self.directory.get("c")
        assert known is not None
        return known.webhook_secrets[0]


async def test_after_a_long_rest_the_first_look_is_at_what_is_true_now() -> None:
    """A secret that was replaced, or a connection that was disabled, lets nobody in once more."""
    story = Story()
    assert await story.secret() == "old"
    story.database.secret = "new"
    story.seconds += 3600
    assert await story.secret() == "new"


async def test_under_way_nobody_waits_for_the_database_and_a_change_is_seen_in_seconds() -> None:
    story = Story()
    await story.secret()
    story.database.secret = "new"
    story.seconds += 3
    assert await story.secret() == "old"
    for _ in range(3):  # turns of the loop, in which it is read
        await asyncio.sleep(0)
    assert await story.secret() == "new"


async def test_what_many_connections_wait_for_is_read_at_once_and_what_is_known_not_again() -> None:
    story = Story()
    await story.secret()
    story.directory.ahead(["c", "d", "e"])
    await asyncio.sleep(0)
    assert story.database.asked == ["c", "d", "e"]
    assert await story.directory.get("d") is not None
    assert await story.directory.get("e") is not None
    assert story.database.asked == ["c", "d", "e"]
