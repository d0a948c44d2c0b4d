"""Who sends much beside others waits a moment; nobody else does."""

from __future__ import annotations

from ingress.crowding import MANY, PATIENCE, Crowding


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def waits(crowding: Crowding, clock: Clock, company: str, rate: float, seconds: float = 1.0) -> int:
    """Of its webhooks, at so many a second, how many may wait."""
    found = 0
    for _ in range(int(rate * seconds)):
        clock.at += 1 / rate
        found += crowding.patience(company) > 0
    return found


def test_who_sends_much_waits_while_others_are_there() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    assert waits(crowding, clock, "busy", 5 * MANY) == 0  # alone
    crowding.patience("quiet")
    assert waits(crowding, clock, "busy", 5 * MANY) > 3 * MANY
    assert crowding.patience("quiet") == 0.0
    assert crowding.patience("busy") == PATIENCE


def test_after_the_others_are_gone_nobody_waits() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    crowding.patience("quiet")
    assert waits(crowding, clock, "busy", 5 * MANY) > 0
    clock.at += 2
    assert waits(crowding, clock, "busy", 5 * MANY, 3) == 0


def test_a_company_below_the_bound_never_waits() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    for _ in range(5):
        crowding.patience("other")
        assert waits(crowding, clock, "quiet", 0.9 * MANY) == 0


def test_what_was_a_while_ago_does_not_count() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    crowding.patience("quiet")
    waits(crowding, clock, "busy", 5 * MANY, 0.5)
    clock.at += 5
    crowding.patience("quiet")
    assert crowding.patience("busy") == 0.0
