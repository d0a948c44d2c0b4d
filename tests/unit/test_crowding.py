"""Who sends much beside others waits for more of its own; while many come all wait a moment; nobody else does."""

from __future__ import annotations

from ingress.crowding import BRISK, MANY, MOMENT, PATIENCE, Crowding


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def waits(
    crowding: Crowding, clock: Clock, company: str, rate: float, seconds: float = 1.0, how_long: float = PATIENCE
) -> int:
    """Of its webhooks, at so many a second, how many may wait so long."""
    found = 0
    for _ in range(int(rate * seconds)):
        clock.at += 1 / rate
        found += crowding.patience(company) == how_long
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


def test_while_many_come_all_wait_a_moment() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    assert waits(crowding, clock, "one", 0.9 * BRISK, how_long=0) == int(0.9 * BRISK)
    waits(crowding, clock, "one", 2 * BRISK, 2)
    assert crowding.patience("one") == MOMENT  # alone
    assert crowding.patience("quiet") == MOMENT
    clock.at += 2
    assert crowding.patience("quiet") == 0.0


def test_many_that_are_of_many_companies_wait_a_moment_too() -> None:
    clock = Clock()
    crowding = Crowding(clock)
    rates = [crowding.patience(f"company {n % 100}") for n in range(2 * BRISK)]
    assert set(rates) == {0.0, MOMENT}
    assert rates[BRISK:] == [MOMENT] * BRISK
