"""Gathering: nothing waits when nothing is under way, what gathers is one batch, everybody gets their own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from store.gather import BUSY, CROWD, Gather, GatherFull


class Recorder:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def act(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.go.wait()
        if -1 in items:
            raise ValueError("a bad item")
        return [item * 10 for item in items]


async def test_what_comes_while_batches_are_under_way_is_the_next_batch() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=1)
    first = gather.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [gather.submit(n) for n in (2, 3, 4)]
    recorder.go.set()
    assert await first == 10
    assert [await future for future in later] == [20, 30, 40]
    assert recorder.batches == [[1], [2, 3, 4]]


async def turns(n: int = 5) -> None:
    """Of the loop, in which what may go would have gone."""
    for _ in range(n):
        await asyncio.sleep(0)


async def test_after_a_batch_that_was_not_small_only_one_is_under_way() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=2)
    futures = [gather.submit(n) for n in range(BUSY)]
    await turns()
    futures.append(gather.submit(100))
    await turns()
    assert len(recorder.batches) == 1
    recorder.go.set()
    await asyncio.gather(*futures)
    assert recorder.batches[1:] == [[100]]
    recorder.go.clear()
    small = [gather.submit(200)]
    await turns()
    small.append(gather.submit(201))
    await turns()
    assert recorder.batches[2:] == [[200], [201]]
    recorder.go.set()
    await asyncio.gather(*small)


async def test_when_many_wait_they_go_beside_a_large_batch() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=2)
    futures = [gather.submit(n) for n in range(BUSY)]
    await turns()
    futures += [gather.submit(n) for n in range(CROWD - 1)]
    await turns()
    assert [len(batch) for batch in recorder.batches] == [BUSY]
    futures.append(gather.submit(CROWD))
    await turns()
    assert [len(batch) for batch in recorder.batches] == [BUSY, CROWD]
    futures += [gather.submit(n) for n in range(2 * CROWD)]
    await turns()
    assert len(recorder.batches) == 2
    recorder.go.set()
    await asyncio.gather(*futures)
    assert [len(batch) for batch in recorder.batches] == [BUSY, CROWD, 2 * CROWD]


async def test_what_has_patience_goes_with_the_first_that_has_none() -> None:
    recorder = Recorder()
    recorder.go.set()
    gather = Gather(recorder.act)
    patient = [gather.submit(n, patience=60) for n in (1, 2)]
    await turns()
    assert recorder.batches == []
    assert await gather.submit(3) == 30
    assert [await future for future in patient] == [10, 20]
    assert recorder.batches == [[1, 2, 3]]


async def test_patience_ends_also_when_it_began_while_a_batch_was_under_way() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=1)
    first = gather.submit(1)
    await turns()
    later = [gather.submit(n, patience=0.001) for n in (2, 3)]
    recorder.go.set()
    assert await asyncio.wait_for(asyncio.gather(first, *later), 5) == [10, 20, 30]
    assert recorder.batches == [[1], [2, 3]]


async def test_a_batch_that_is_full_waits_for_nobody() -> None:
    recorder = Recorder()
    recorder.go.set()
    gather = Gather(recorder.act, most=2)
    assert await asyncio.gather(*(gather.submit(n, patience=60) for n in (1, 2))) == [10, 20]
    waits = gather.submit(3, patience=60)
    await gather.drain()  # a stop does not wait either
    assert await waits == 30


async def test_a_batch_has_at_most_so_many() -> None:
    recorder = Recorder()
    recorder.go.set()
    gather = Gather(recorder.act, most=3)
    assert [await future for future in [gather.submit(n) for n in range(8)]] == [n * 10 for n in range(8)]
    assert [len(batch) for batch in recorder.batches] == [3, 3, 2]


async def test_an_error_goes_to_the_callers_of_its_batch_only() -> None:
    recorder = Recorder()
    recorder.go.set()
    gather = Gather(recorder.act)
    with pytest.raises(ValueError, match="a bad item"):
        await gather.submit(-1)
    assert await gather.submit(5) == 50


async def test_more_waiting_than_allowed_is_refused_and_nobody_else_suffers() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=1, waiting=2)
    under_way = gather.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [gather.submit(2), gather.submit(3)]
    with pytest.raises(GatherFull):
        gather.submit(4)
    recorder.go.set()
    assert [await under_way, *[await future for future in waiting]] == [10, 20, 30]


async def test_a_caller_that_went_away_disturbs_nobody() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=1)
    gone, stays = gather.submit(1), gather.submit(2)
    gone.cancel()
    recorder.go.set()
    assert await stays == 20


async def test_drain_waits_for_everything() -> None:
    recorder = Recorder()
    gather = Gather(recorder.act, flights=1, most=1)
    futures = [gather.submit(n) for n in range(3)]
    recorder.go.set()
    await gather.drain()
    assert all(future.done() for future in futures)
