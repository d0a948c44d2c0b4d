"""Ids tell the order in which they were made: lists by id are lists by time."""

from __future__ import annotations

import time
from itertools import count
from uuid import RFC_4122

import pytest

from schemas.ids import uuid7


def test_what_was_made_later_is_greater_also_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time_ns()
    ticks = count(began, 250)  # ns
    monkeypatch.setattr("schemas.ids.time.time_ns", lambda: next(ticks))
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(id_.version, id_.variant) for id_ in made} == {(7, RFC_4122)}
    assert [id_.int >> 80 for id_ in (made[0], made[-1])] == [began // 10**6, (began + 250 * 19_999) // 10**6]
