"""What the scheduler counts for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from adapters.registry import adapters
from store.pool import open_pool
from store.settle import DeadLetterRow, bury
from telemetry import metrics
from workers.letters import letter_without_row
from workers.sessions import Sessions
from workers.upkeep import Upkeep

if TYPE_CHECKING:
    from store.pool import Pool


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, name="test", size=1)
    yield pool
    await pool.close()


def letter(operation: str, vendor: str | None) -> DeadLetterRow:
    row = letter_without_row(operation, None, "x: y", {})
    row.vendor = vendor
    return row


def counted() -> Counter[tuple[str, str]]:
    """Open letters by vendor and operation."""
    found = Counter[tuple[str, str]]()
    for metric in metrics.DEAD_LETTERS.collect():
        for sample in metric.samples:
            found[sample.labels["vendor"], sample.labels["operation"]] += int(sample.value)
    return +found


async def test_what_strangers_call_their_events_is_no_label(pool: Pool) -> None:
    metrics.DEAD_LETTERS.clear()  # of the fleets that ran in this process before
    sessions = Sessions(adapters(), http=lambda _: None, tokens=lambda _: None, now=lambda: None)  # type: ignore[arg-type,return-value]

    async def depths() -> dict[str, int]:
        return {}

    upkeep = Upkeep(pool, None, sessions, depths)  # type: ignore[arg-type] - gauges open no connection
    strangers = [letter(f"pms.made_up_{n}", None) for n in range(30)] + [letter("beds24.odd", None)]
    ours = [letter("pms.booking.create", None), letter("pms.booking.create", "beds24")]
    async with pool.acquire() as connection:
        await bury(connection, [*strangers, *ours, letter("beds24.booking.modified", "beds24")])
    await upkeep.gauge()
    assert counted() == {
        ("none", "other"): 31,
        ("none", "pms.booking.create"): 1,
        ("beds24", "pms.booking.create"): 1,
        ("beds24", "beds24.booking.modified"): 1,
    }
    async with pool.acquire() as connection:
        await connection.execute("UPDATE dead_letters SET status = 'abandoned' WHERE vendor IS NULL")
    await upkeep.gauge()
    assert {vendor for vendor, _ in counted()} == {"beds24"}
