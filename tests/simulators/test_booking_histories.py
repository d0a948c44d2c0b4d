"""Generated histories: reproducible, complete, and convergent under any disorder."""

from __future__ import annotations

from itertools import pairwise

from simulators.bookings import deliveries, generate, truth


def test_the_same_seed_gives_the_same_history() -> None:
    assert generate(7, 20, 5) == generate(7, 20, 5)
    assert generate(7, 20, 5) != generate(8, 20, 5)


def test_each_booking_is_created_then_changed_as_often_as_asked() -> None:
    history = generate(1, 30, 4)
    assert len(history) == 30 * 5
    for booking_id in {change.booking_id for change in history}:
        life = [change for change in history if change.booking_id == booking_id]
        assert [change.number for change in life] == [0, 1, 2, 3, 4]
        assert (life[0].verb, {change.verb for change in life[1:-1]}) == ("new", {"modify"})
        assert all(one.modified_time < two.modified_time for one, two in pairwise(life))
        assert all(one.body["booking"] != two.body["booking"] for one, two in pairwise(life))


def test_some_end_cancelled_and_say_so() -> None:
    history = generate(1, 100, 2)
    cancelled = [change for change in history if change.verb == "cancel"]
    assert 5 < len(cancelled) < 40
    assert {change.body["booking"]["status"] for change in cancelled} == {"cancelled"}


def test_deliveries_lose_nothing_repeat_some_and_mix_the_order() -> None:
    history = generate(3, 40, 3)
    arriving = deliveries(history, 9, duplicates=0.3)
    assert arriving == deliveries(history, 9, duplicates=0.3)
    assert {(c.booking_id, c.number) for c in arriving} == {(c.booking_id, c.number) for c in history}
    assert 1.15 < len(arriving) / len(history) < 1.45
    assert arriving[: len(history)] != history
    assert deliveries(history, 9, duplicates=0.0, shuffle=False) == history


def test_taking_the_newest_of_each_booking_ends_at_the_truth() -> None:
    history = generate(3, 40, 3)
    kept: dict[int, dict[str, object]] = {}
    for change in deliveries(history, 5):
        known = kept.get(change.booking_id)
        if known is None or str(known["modifiedTime"]) < change.modified_time:
            kept[change.booking_id] = change.body["booking"]
    assert kept == truth(history)
