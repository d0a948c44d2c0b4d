"""Ids tell the order in which they were made: lists by id are lists by time."""

from __future__ import annotations

import time
import uuid
from itertools import count
from uuid import RFC_4122

import pytest

from schemas.ids import derived, named, read_uuid, uuid7


def test_what_was_made_later_is_greater_also_within_a_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time_ns()
    ticks = count(began, 250)  # ns
    monkeypatch.setattr("schemas.ids.time.time_ns", lambda: next(ticks))
    made = [uuid7() for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {(id_.version, id_.variant) for id_ in made} == {(7, RFC_4122)}
    assert [id_.int >> 80 for id_ in (made[0], made[-1])] == [began // 10**6, (began + 250 * 19_999) // 10**6]


def test_named_ids_are_those_of_the_standard_library() -> None:
    space = uuid.UUID("0d2b6a5e-6c0f-5b5e-9a58-0f6f2f9b7f10")
    for name in ("", "beds24-acme\n1", "Zürich"):
        assert named(space, name) == uuid.uuid5(space, name)


def test_derived_ids_lie_beside_their_origin() -> None:
    origin = uuid7()
    made = derived(origin, "beds24-acme")
    assert made == derived(origin, "beds24-acme") != derived(origin, "beds24-other")
    assert (made.version, made.variant, made.bytes[:6]) == (8, RFC_4122, origin.bytes[:6])


def test_what_is_no_uuid_is_none() -> None:
    assert read_uuid("01920a7e-6b2c-7d3e-8f40-112233445566") == uuid.UUID("01920a7e-6b2c-7d3e-8f40-112233445566")
    for text in ("", "a", "01920a7e-6b2c-7d3e-8f40-11223344556", "01920a7e-6b2c-7d3e-8f40-112233445566x", "ü" * 16):
        assert read_uuid(text) is None
