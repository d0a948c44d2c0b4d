"""The rhythm of a worker's batches: nothing waits when little comes, and after a batch that was not small the next waits for
company. And what a message that came back goes through."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import pytest

from schemas.event import BATCH_CONTENT_TYPE, CONTENT_TYPE, wake_ups
from schemas.ids import uuid7
from store.gather import BUSY
from topology.consumer import Incoming
from workers.intake import Intake
from workers.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from schemas.event import Event, Malformed
    from topology.announce import WakeUp

TYPE = "beds24.booking.modified"


class Stage:
    """Keeps the size of each batch, and what ran alone; broken: which of these fail."""

    def __init__(self, broken: Collection[str] = ()) -> None:
        self.broken = broken
        self.sizes: list[int] = []
        self.alone: list[str] = []

    async def process(self, events: Sequence[Event]) -> None:
        self.sizes.append(len(events))

    async def process_alone(self, event: Event) -> None:
        self.alone.append(event.id)
        if event.id in self.broken:
            raise RuntimeError(f"{event.id} finds a hole")

    async def drain(self, grace: float) -> None:
        pass


class Verdicts:
    """In the consumer's place: counts what is acknowledged, and given back."""

    def __init__(self) -> None:
        self.settled = 0
        self.given_back = 0

    def settle(self, _: Incoming) -> None:
        self.settled += 1

    def give_back(self, _: Incoming) -> None:
        self.given_back += 1


class Kept:
    """What was malformed, by its place."""

    def __init__(self, fails: int = 0) -> None:
        self.places: list[int | None] = []
        self.fails = fails

    async def __call__(self, _: Incoming, malformed: Sequence[Malformed]) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("the database refuses it")
        self.places += [one.place for one in malformed]


def message(events: int = 1) -> Incoming:
    body = wake_ups(TYPE, [(uuid7(), "acme", None, None) for _ in range(events)])
    return Incoming(body, CONTENT_TYPE, TYPE, TYPE, None, {}, False, None, 1, 1)


async def turns(n: int = 8) -> None:
    """Of the loop, in which what may go would have gone."""
    for _ in range(n):
        await asyncio.sleep(0)


async def test_after_a_batch_that_was_not_small_the_next_waits_for_company() -> None:
    stage, verdicts = Stage(), Verdicts()
    intake = Intake(stage, queue="q", keep=Kept(), linger=0.02)
    intake.attach(verdicts)  # type: ignore[arg-type]

    async def settled(count: int) -> None:
        async with asyncio.timeout(10):
            while verdicts.settled < count:
                await asyncio.sleep(0.001)

    intake.take(message())
    await turns()
    assert stage.sizes == [1]  # at once
    intake.take(message(BUSY))
    await turns()
    assert stage.sizes == [1, BUSY]
    intake.take(message())
    await turns()
    assert stage.sizes == [1, BUSY]  # it waits
    intake.take(message())
    await settled(4)
    assert stage.sizes == [1, BUSY, 2]
    intake.take(message())
    await turns()
    assert stage.sizes == [1, BUSY, 2, 1]  # after a small one nobody waits
    await intake.drain(1)
    assert stage.alone == []


async def test_an_event_that_fails_alone_stops_none_of_those_behind_it() -> None:
    ids = [uuid7() for _ in range(4)]
    stage, verdicts = Stage(broken={str(ids[0]), str(ids[2])}), Verdicts()
    intake = Intake(stage, queue="q", keep=Kept())
    intake.attach(verdicts)  # type: ignore[arg-type]
    body = wake_ups(TYPE, [(id_, "acme", None, None) for id_ in ids])
    intake.take(Incoming(body, CONTENT_TYPE, TYPE, TYPE, None, {}, True, 2, 1, 1))
    await turns()
    assert stage.alone == [str(id_) for id_ in ids]
    assert (verdicts.given_back, verdicts.settled) == (1, 0)  # as a whole, when all had their turn
    await intake.drain(1)


@pytest.mark.parametrize("came_back", [False, True])
async def test_a_message_is_done_with_when_its_malformed_events_are_kept(came_back: bool) -> None:
    stage, verdicts, kept = Stage(), Verdicts(), Kept(fails=1)
    intake = Intake(stage, queue="q", keep=kept)
    intake.attach(verdicts)  # type: ignore[arg-type]
    good = {"id": "a", "type": TYPE}
    body = orjson.dumps([good, {"type": TYPE}, {**good, "id": "b"}, 7])
    for settled in (0, 1):
        intake.take(Incoming(body, BATCH_CONTENT_TYPE, TYPE, TYPE, None, {}, came_back, 2 if came_back else None, 1, 1))
        await turns()
        assert (verdicts.given_back, verdicts.settled) == (1, settled)
    assert kept.places == [1, 3]
    assert (stage.alone if came_back else stage.sizes) == (["a", "b"] * 2 if came_back else [2, 2])
    await intake.drain(1)


@pytest.mark.parametrize("came_back", [False, True])
async def test_what_nobody_can_read_is_done_with_when_it_is_kept(came_back: bool) -> None:
    stage, verdicts, kept = Stage(), Verdicts(), Kept()
    intake = Intake(stage, queue="q", keep=kept)
    intake.attach(verdicts)  # type: ignore[arg-type]
    for body in (b"{no event", orjson.dumps([7]), b""):
        intake.take(Incoming(body, CONTENT_TYPE, TYPE, TYPE, None, {}, came_back, 2 if came_back else None, 1, 1))
    await turns(16)
    assert (kept.places, verdicts.settled, verdicts.given_back) == ([None] * 3, 3, 0)
    assert (stage.sizes, stage.alone) == ([], [])  # nothing of it for the stage
    await intake.drain(1)


async def test_what_cannot_be_kept_yet_holds_up_no_batch_but_its_own() -> None:
    """Its keeping waits for the database; more than a batch takes of what nobody can read is another batch's."""
    stage, verdicts, away = Stage(), Verdicts(), asyncio.Event()

    async def keep(_: Incoming, __: Sequence[Malformed]) -> None:
        await away.wait()

    intake = Intake(stage, queue="q", keep=keep, most=2, flights=2)
    intake.attach(verdicts)  # type: ignore[arg-type]
    good = message()
    for incoming in (good, replace(good, body=b"?"), message(2)):
        intake.take(incoming)
    await turns()
    assert stage.sizes == [1, 2]
    assert verdicts.settled == 2  # its neighbour, and what came after
    away.set()
    await turns()
    assert (verdicts.settled, verdicts.given_back) == (3, 0)
    await intake.drain(1)


async def test_what_waits_at_the_recorder_when_its_channel_is_lost_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes again: what can have no row would be two dead letters."""
    recorder, verdicts = Recorder(None, None, None, "q", now=None), Verdicts()  # type: ignore[arg-type]
    recorded: list[int] = []

    async def record(_: Recorder, incoming: Incoming) -> list[WakeUp]:
        recorded.append(incoming.generation)
        return []

    async def announced(*_: object) -> list[UUID]:
        return []

    monkeypatch.setattr(Recorder, "_record", record)
    monkeypatch.setattr("workers.recorder.announce", announced)
    recorder.take(message())
    recorder.take(message())
    recorder.forget()
    recorder.take(replace(message(), generation=2))
    running = asyncio.create_task(recorder.run(verdicts))  # type: ignore[arg-type]
    await turns()
    running.cancel()
    assert (recorded, verdicts.settled) == ([2], 1)
