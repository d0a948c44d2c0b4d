"""A window never holds more than it may, asks for others when there is room, and forgets nobody."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from workers.window import Window


def fill(window: Window, name: str, most: int) -> None:
    assert all(window.enter(name) for _ in range(most))


def test_what_is_beyond_waits_until_the_window_is_half_empty() -> None:
    window = Window(4)
    fill(window, "a", 4)
    assert not window.enter("a")
    assert window.leave("a") == 0  # three are inside
    assert window.leave("a") == 2
    assert window.leave("a") == 0  # a look is under way
    assert window.enter_found("a")
    assert window.topped_up("a", exhausted=True) == 0


def test_under_low_load_nobody_looks() -> None:
    window = Window(4)
    for _ in range(3):
        fill(window, "a", 4)
        assert [window.leave("a") for _ in range(4)] == [0] * 4
    assert window.behind == []


def test_one_that_is_full_turns_away_nobody_elses() -> None:
    window = Window(2)
    fill(window, "a", 2)
    assert not window.enter("a")
    assert window.enter("b")
    assert window.behind == ["a"]


def test_who_waits_is_not_passed_by_those_who_come_later() -> None:
    """However many come: each would take the room of the one that has just left, and the table would never be asked."""
    window = Window(4)
    fill(window, "a", 4)
    assert not window.enter("a")
    looks = []
    for _ in range(4):
        looks.append(window.leave("a"))
        assert not window.enter("a")
    assert looks == [0, 2, 0, 0]
    assert window.topped_up("a", exhausted=False) == 4
    assert window.topped_up("a", exhausted=True) == 0
    assert window.enter("a")


def test_what_has_no_name_is_not_counted() -> None:
    window = Window(1)
    assert all(window.enter(None) for _ in range(3))
    assert window.leave(None) == 0


def test_a_look_that_did_not_find_all_is_followed_by_another() -> None:
    window = Window(2)
    fill(window, "a", 2)
    window.enter("a")
    assert window.leave("a") == 1
    assert window.enter_found("a")
    assert window.topped_up("a", exhausted=False) == 0  # full: the next to leave tells
    assert window.leave("a") == 1


def test_who_is_turned_away_during_a_look_is_looked_for_though_all_others_have_left() -> None:
    """The look may have been before he came; and nobody is left whose leaving would call him."""
    window = Window(2)
    fill(window, "a", 2)
    assert not window.enter("a")
    assert window.leave("a") == 1  # the look begins
    assert window.enter_found("a")
    assert not window.enter("a")  # came later than the look
    assert window.leave("a") == 0
    assert window.leave("a") == 0
    assert window.topped_up("a", exhausted=True) == 2
    assert window.enter_found("a")
    assert window.topped_up("a", exhausted=True) == 0


class Table:
    """The window's user as a machine of small steps: arrivals, looks that take a while, calls that end.

    waiting  who is recorded and not being done, by name; what a look sees is what was there when it began
    """

    def __init__(self, most: int, seed: int) -> None:
        self.most = most
        self.rng = random.Random(seed)
        self.window = Window(most)
        self.waiting: dict[str, deque[int]] = {name: deque() for name in "abc"}
        self.inside: Counter[str] = Counter()
        self.looks: list[tuple[str, int, list[int]]] = []
        self.fullest = 0

    def arrive(self, name: str, number: int) -> None:
        self.waiting[name].append(number)
        if self.window.enter(name):
            self.begin(name, number)

    def begin(self, name: str, number: int) -> None:
        self.inside[name] += 1
        self.fullest = max(self.fullest, self.inside[name])
        if number in self.waiting[name]:
            self.waiting[name].remove(number)
        else:  # another process was quicker: it leaves at once
            self.end(name)

    def end(self, name: str) -> None:
        self.inside[name] -= 1
        self.look(name, self.window.leave(name))

    def look(self, name: str, free: int) -> None:
        if free:
            self.looks.append((name, free, list(self.waiting[name])[:free]))

    def answer(self) -> None:
        name, free, found = self.looks.pop(self.rng.randrange(len(self.looks)))
        entered = [number for number in found if self.window.enter_found(name)]
        self.look(name, self.window.topped_up(name, exhausted=len(found) < free))
        for number in entered:
            self.begin(name, number)

    def step(self, number: int) -> None:
        busy = [name for name, count in self.inside.items() if count]
        match self.rng.choice(("arrive", "arrive", "end", "end", "answer", "elsewhere")):
            case "arrive":
                self.arrive(self.rng.choice("aaabc"), number)
            case "end" if busy:
                self.end(self.rng.choice(busy))
            case "answer" if self.looks:
                self.answer()
            case "elsewhere":
                queue = self.waiting[self.rng.choice("abc")]
                if queue and self.rng.random() < 0.2:
                    queue.popleft()

    def finish(self) -> None:
        while self.looks or any(self.inside.values()):
            if self.looks:
                self.answer()
            else:
                self.end(next(name for name, count in self.inside.items() if count))


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_any_schedule_ends_with_nobody_forgotten_and_never_too_many_inside(most: int) -> None:
    for seed in range(500):
        table = Table(most, seed)
        for number in range(60):
            table.step(number)
        table.finish()
        assert table.fullest <= most, seed
        assert not any(table.waiting.values()), f"seed {seed}: {table.waiting}"
