"""Shares: whoever fills a late queue waits, nobody else does, and with a queue in time nobody at all."""

from __future__ import annotations

import logging

import pytest

from ingress.fairness import BLIND, COMPANY, LAG, LEAST, QUIET, Shares
from schemas.ids import uuid7
from telemetry import metrics
from topology.announce import WakeUp

MARK = 0.5  # seconds between two marks


class Bench:
    """An ingress without one: what is sent between two marks, and what of it still waits at the second."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.shares = Shares(lambda: self.now)

    def send(self, vendor: str = "beds24", **companies: int) -> dict[str, int]:
        """returns how many of each were announced"""
        type_ = f"{vendor}.booking.modified"
        wakes = [WakeUp(uuid7(), name, type_, type_) for name, count in companies.items() for _ in range(count)]
        admitted = [wake.company_id for wake in self.shares.admit(wakes)]
        return {name: admitted.count(name) for name in companies}

    def mark(self, **waiting: int) -> None:
        self.now += MARK
        self.shares.learn(waiting)

    def round(self, *, settled: float = 0.0, **companies: int) -> dict[str, int]:
        """One in which this share is settled."""
        announced = self.send(**companies)
        self.mark(beds24=round(sum(announced.values()) * (1 - settled)))
        return announced


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_in_a_late_queue_who_fills_it_gets_half_of_what_is_settled_and_the_others_never_wait(bench: Bench) -> None:
    announced = [bench.round(noisy=1_000, quiet=5, settled=0.5) for _ in range(6)]
    assert [one["noisy"] for one in announced] == [1_000, 251, 64, LEAST, LEAST, LEAST]
    assert {one["quiet"] for one in announced} == {5}


def test_a_share_is_never_more_than_half_of_the_last(bench: Bench) -> None:
    announced = [bench.round(noisy=1_000, quiet=5, settled=0.7) for _ in range(4)]
    assert [one["noisy"] for one in announced] == [1_000, 351, 124, 45]


def test_in_a_queue_that_stands_still_who_fills_it_gets_the_least(bench: Bench) -> None:
    announced = [bench.round(noisy=1_000, quiet=5) for _ in range(3)]
    assert announced == [{"noisy": 1_000, "quiet": 5}, *[{"noisy": LEAST, "quiet": 5}] * 2]


def test_with_a_queue_in_time_nobody_waits(bench: Bench) -> None:
    for _ in range(5):
        assert bench.send(noisy=5_000, quiet=5) == {"noisy": 5_000, "quiet": 5}
        bench.mark(beds24=1_200)  # fewer than a quarter of those who had time: some always do


def test_who_is_alone_never_waits(bench: Bench) -> None:
    assert [bench.round(noisy=1_000)["noisy"] for _ in range(5)] == [1_000] * 5


def test_who_comes_now_and_then_is_a_neighbour_in_between(bench: Bench) -> None:
    bench.round(noisy=1_000, quiet=1)
    assert bench.round(noisy=1_000)["noisy"] == LEAST
    for _ in range(int(COMPANY / MARK)):
        bench.round(noisy=1_000)
    assert bench.round(noisy=1_000)["noisy"] == 1_000


def test_two_who_fill_it_wait_alike(bench: Bench) -> None:
    announced = [bench.round(first=800, second=700, quiet=5, settled=0.4) for _ in range(3)]
    assert announced[1:] == [{"first": 301, "second": 301, "quiet": 5}, {"first": 121, "second": 121, "quiet": 5}]


def test_many_who_send_little_never_wait(bench: Bench) -> None:
    many = {f"company-{n}": LEAST for n in range(50)}
    assert [bench.round(**many) for _ in range(3)] == [many] * 3


def test_a_burst_just_before_the_mark_does_not_make_a_queue_late(bench: Bench) -> None:
    bench.send(noisy=30, quiet=5)
    bench.now += MARK - LAG / 2
    bench.send(noisy=900)
    bench.now += LAG / 2
    bench.shares.learn({"beds24": 900})
    assert bench.send(noisy=1_000, quiet=5)["noisy"] == 1_000


def test_what_waits_longer_than_that_does(bench: Bench) -> None:
    bench.send(noisy=300, quiet=5)
    bench.now += MARK - LAG / 2
    bench.send(noisy=900)
    bench.now += LAG / 2
    bench.shares.learn({"beds24": 1_000})
    assert bench.send(noisy=1_000, quiet=5)["noisy"] == 102


def test_in_time_again_the_bound_grows_by_half_until_it_binds_nobody(bench: Bench) -> None:
    for _ in range(4):
        bench.round(noisy=800, quiet=5)
    announced = []
    for _ in range(8):
        announced.append(bench.send(noisy=800, quiet=5)["noisy"])
        bench.mark()
    assert announced == [20, 30, 45, 67, 101, 151, 227, 341]
    for _ in range(3):
        bench.send(noisy=800, quiet=5)
        bench.mark()
    assert bench.send(noisy=5_000)["noisy"] == 5_000


def test_a_burst_that_is_over_leaves_nothing_behind(bench: Bench) -> None:
    for _ in range(4):
        bench.round(noisy=800, quiet=5)
    bench.send(noisy=10, quiet=5)
    bench.mark()
    assert bench.send(noisy=800, quiet=5)["noisy"] == 800


def test_another_vendors_queue_is_another_matter(bench: Bench) -> None:
    for _ in range(3):
        bench.send("smoobu", noisy=500, quiet=5)
        bench.round(noisy=500, quiet=5)
    assert bench.send("smoobu", noisy=500)["noisy"] == 500
    assert bench.send(noisy=500)["noisy"] == LEAST


def test_without_marks_nothing_is_known_and_nobody_waits(bench: Bench) -> None:
    """The broker was away, say: nothing was announced, so nothing is marked."""
    for _ in range(4):
        bench.round(noisy=800, quiet=5)
    assert bench.send(noisy=800)["noisy"] == LEAST
    bench.now += BLIND / 2
    assert bench.send(noisy=800)["noisy"] == 0
    bench.now += BLIND
    assert bench.send(noisy=800)["noisy"] == 800


def test_what_is_held_back_is_counted_and_told_once_a_minute(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ingress.fairness")
    before = metrics.HELD_BACK.labels("beds24")._value.get()
    rounds = int(QUIET / MARK)
    announced = sum(bench.round(noisy=100, quiet=1)["noisy"] for _ in range(rounds))
    assert metrics.HELD_BACK.labels("beds24")._value.get() - before == 100 * rounds - announced
    assert len(caplog.records) == 1
    bench.round(noisy=100, quiet=1)
    assert len(caplog.records) == 2
