"""Runs one process of the fleet as it is, and kills it at one point, or breaks it, as the variable FAULTS says.

    FAULTS='{"point": "inbound.finish.before", "hit": 2, "mark": "/tmp/x"}' python -m tests.faults.crashing inbound

point, hit   killed with SIGKILL at the n-th call of the step; `mark` is then a file that names the point
broken       a breakage of `tests.faults.breakages`: the oracle must find it
clock        seconds by which the process's wall clock jumps at SIGUSR1, and back at the next
poison       [place, id]: whoever comes to this place with an event about that id is killed
unanswered   places where every second answer of the database is lost, after what it answered was committed
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from ops import fleet
from ops.settings import load
from tests.faults import breakages, clock
from tests.faults.steps import POINTS, Moment, Point


def resolve(place: str) -> tuple[Any, str]:
    """The object that holds the function, and its name there. raises AttributeError, ImportError"""
    module, _, path = place.partition(":")
    holder: Any = importlib.import_module(module)
    *holders, name = path.split(".")
    for part in holders:
        holder = getattr(holder, part)
    getattr(holder, name)
    return holder, name


def replace(place: str, make: Callable[[Any], Any]) -> None:
    """Puts make(the function) in its place."""
    holder, name = resolve(place)
    setattr(holder, name, make(getattr(holder, name)))


def die(mark: str, text: str) -> None:
    Path(mark).write_text(text)
    os.kill(os.getpid(), signal.SIGKILL)


class Striker:
    """The end of the process at the n-th call of a step."""

    def __init__(self, point: Point, hit: int, mark: str) -> None:
        self._point, self._left, self._mark = point, hit, mark

    def arm(self) -> None:
        replace(self._point.step.place, self._around)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            if not self._concerned(args):
                return original(*args, **kwargs)
            if self._point.moment is Moment.BEFORE and self._is_it():
                die(self._mark, self._point.name)
            if self._point.moment is Moment.DURING and self._is_it():
                asyncio.get_running_loop().call_later(self._point.step.into, die, self._mark, self._point.name)
            result = original(*args, **kwargs)
            if inspect.isawaitable(result):
                return self._after(result)
            self._returned(result)
            return result

        return stepped

    def _concerned(self, args: tuple[Any, ...]) -> bool:
        if self._point.step.where is None:
            return True
        name, value = self._point.step.where
        return any(getattr(argument, name, None) == value for argument in args)

    async def _after(self, pending: Awaitable[Any]) -> Any:
        result = await pending
        self._returned(result)
        return result

    def _returned(self, result: Any) -> None:
        counts = self._point.moment is Moment.AFTER and (result or not self._point.step.found)
        if counts and self._is_it():
            die(self._mark, self._point.name)

    def _is_it(self) -> bool:
        self._left -= 1
        return self._left == 0


def poison(place: str, id_: str, mark: str) -> None:
    def is_it(given: Any) -> bool:
        works = given if isinstance(given, Mapping) else [given]
        names = ("entity_external_id", "entity_internal_id")
        return any(getattr(work.row, name, None) == id_ for work in works for name in names)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def handle(stage: Any, given: Any) -> Any:
            if is_it(given):
                die(mark, f"poison {id_}")
            return original(stage, given)

        async def call(stage: Any, given: Any) -> Any:
            if is_it(given):
                await asyncio.sleep(0.3)  # by then the others are in the middle of theirs
                die(mark, f"poison {id_}")
            return await original(stage, given)

        return call if inspect.iscoroutinefunction(original) else handle

    replace(place, around)


def unanswered(place: str) -> None:
    calls = itertools.count(1)

    def around(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            answer = await original(*args, **kwargs)
            if next(calls) % 2:
                raise asyncpg.ConnectionDoesNotExistError("the connection was closed in the middle of an operation")
            return answer

        return call

    replace(place, around)


def main() -> None:
    process = sys.argv[1]
    plan = orjson.loads(os.environ.get("FAULTS", "{}"))
    if "point" in plan:
        point = next(point for point in POINTS if point.name == plan["point"])
        Striker(point, plan["hit"], plan["mark"]).arm()
    if "poison" in plan:
        poison(*plan["poison"], plan["mark"])
    for place in plan.get("unanswered", ()):
        unanswered(place)
    if "broken" in plan:
        breakages.BREAKAGES[plan["broken"]]()
    if "clock" in plan:
        clock.jump_at_signal(plan["clock"])
    fleet.run(process, load())


if __name__ == "__main__":
    main()
