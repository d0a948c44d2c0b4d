"""What a lane wants, said in parts: to a vendor that refuses some of it, by workers that die."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import Misconfigured, Rejected
from adapters.port import Command, Repeat, Reply
from schemas.commands import parse_command
from schemas.vocabulary import EntityType
from workers.delivery_rows import Work
from workers.say import PAGE, say

NOW = datetime(2026, 11, 21, tzinfo=UTC)
MAPPED = {(EntityType.PROPERTY, "P"): "1", (EntityType.ROOM_TYPE, "R"): "2"}


class Died(Exception):  # noqa: N818
    pass


@dataclass
class Lane:
    """say.Older, and the vendor. Each command says one night of its own: a call's periods are the numbers of its commands.
    All of them say another night, too: what was said last is found there, and nothing older.

    page     so many wait at once
    bad      those that the vendor refuses, and whatever they are said with
    priced   those with a price in another currency than the price before: no one command says both
    dies_at  the call of this number is done, and nothing is settled of it
    asks     whether the vendor takes look-ups
    """

    page: int
    bad: set[int]
    priced: set[int]
    dies_at: int
    open: list[Work] = field(default_factory=list)
    done: list[list[int]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    calls: int = 0
    asks: bool = True

    def add(self, number: int, starts: int = 0) -> None:
        row: Any = SimpleNamespace(id=UUID(int=number), idempotency_key=str(number), starts=starts)
        self.open.append(Work(row, NOW))

    async def waiting(self) -> list[Work]:
        return self.open[:-1][: self.page]

    def read(self, older: Work) -> Command:
        number = older.row.id.int
        night = f"2027-01-{number:02d}"
        period = {"first": night, "last": night, "available": number}
        more: dict[str, Any] = {"currency": "EUR"}
        if number in self.priced:
            period["price"], more["currency"] = 1, "EUR" if number % 2 else "USD"
        data = {"propertyId": "P", "roomTypeId": "R", "periods": [period], **more}
        return Command(older.row.id, "", str(number), "", parse_command("pms.availability.update", data), MAPPED)

    async def resolved(self, command: Command) -> Command:
        return command

    async def execute(self, _session: Any, command: Command) -> Reply:
        self.calls += 1
        numbers = _numbers(command)
        if self.bad.intersection(numbers):
            raise Rejected("no")
        self.done.append(numbers)
        if len(self.done) == self.dies_at:
            raise Died
        return Reply("2")

    async def find(self, _session: Any, command: Command) -> Reply | None:
        self.calls += 1
        if not self.asks:
            raise Rejected("no such question")
        known = {number for numbers in self.done for number in numbers}
        numbers = _numbers(command)
        last = self.done[-1][-1] if self.done else 0
        return Reply("2", found=True) if numbers[-1] == last and known.issuperset(numbers) else None

    async def said(self, part: Sequence[Work]) -> None:
        self.open = [work for work in self.open if work not in part]

    async def refused(self, older: Work, error: Exception) -> None:
        assert isinstance(error, Rejected)
        self.refusals.append(older.row.id.int)
        self.open.remove(older)

    def attempt(self) -> None:
        newest = self.open[-1]
        newest.row.starts += 1
        newest.doubt = newest.row.starts > 1
        newest.command = self.read(newest)
        session: Any = SimpleNamespace(adapter=self)
        asyncio.run(self._say(session, newest))

    async def _say(self, session: Any, newest: Work) -> None:
        try:
            await say(session, newest, self, Repeat.SAFE)
        except Rejected:
            self.refusals.append(newest.row.id.int)
            self.open.remove(newest)
        else:
            assert self.open == [*newest.absorbed, newest]
            self.open = []


def _numbers(command: Command) -> list[int]:
    return [n for p in command.data.periods for n in range(p.first.day, p.last.day + 1)]  # type: ignore[attr-defined]


@settings(derandomize=True, database=None, max_examples=600)
@given(
    st.sampled_from((1, 2, 4, PAGE)),
    st.integers(1, 14),
    st.integers(0, 6),
    st.sets(st.integers(1, 20), max_size=5),
    st.sets(st.integers(1, 20), max_size=8),
    st.integers(0, 9),
)
def test_whatever_is_refused_and_whenever_a_worker_dies_nothing_is_said_twice_nor_older_behind_newer(
    page: int, first: int, later: int, bad: set[int], priced: set[int], dies_at: int
) -> None:
    lane = Lane(page, bad, priced, dies_at)
    for number in range(1, first + 1):
        lane.add(number)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("workers.say.PAGE", page)
        try:
            lane.attempt()
        except Died:
            for number in range(first + 1, first + later + 1):
                lane.add(number)
            lane.attempt()
    said = [numbers[-1] for numbers in lane.done]
    assert said == sorted(said)
    known: set[int] = set()
    for numbers in lane.done:
        assert not known.issuperset(numbers)
        known.update(numbers)
    everybody = set(range(1, first + (later if len(lane.done) >= dies_at > 0 else 0) + 1))
    assert set(lane.refusals) == bad & everybody
    assert {number for numbers in lane.done for number in numbers} == everybody - bad


@settings(derandomize=True, database=None, max_examples=600)
@given(st.integers(2, 31), st.data())
def test_what_an_outage_left_in_doubt_is_looked_up_before_parts_of_it_are_said(count: int, data: st.DataObject) -> None:
    """Each was the newest of an attempt. One of these was done, or none; since then the vendor refuses one of them."""
    done = data.draw(st.integers(0, count - 1))
    bad = data.draw(st.integers(done + 1, count))
    lane = Lane(PAGE, {bad}, set(), 0)
    for number in range(1, count + 1):
        lane.add(number, starts=1)
    if done:
        lane.done.append(list(range(1, done + 1)))
    lane.attempt()
    assert lane.refusals == [bad]
    said = [numbers[-1] for numbers in lane.done]
    assert said == sorted(said)
    assert {number for numbers in lane.done for number in numbers} == {*range(1, count + 1)} - {bad}
    assert lane.calls <= count + 2 * count.bit_length() + 2


def test_a_refused_look_up_ends_the_attempt_and_refuses_none_of_what_waits() -> None:
    lane = Lane(PAGE, set(), set(), 0, asks=False)
    for number in range(1, 5):
        lane.add(number, starts=1)
    with pytest.raises(Misconfigured, match="that is not known"):
        lane.attempt()
    assert lane.calls == 1
    assert not lane.refusals
    assert not lane.done
    assert lane.open[-1].doubt
