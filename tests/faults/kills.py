"""kill -9 at every step: which process dies where is dealt from the seed, several processes at a time, under load."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.faults.load import Load
from tests.faults.steps import POINTS, Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.ground import Ground, Verdict

# Deaths of one process in one stretch. An event that was begun by four workers that died is a poison by our own rule, so
# no more of them may meet the same event.
MOST = {"ingress": 5, "inbound": 2, "outbound": 2, "scheduler": 3}
_DEATHS = frozenset({"death", "expired"})
_DEATH = next(point for point in POINTS if point.name == "outbound.create.during")
_RETURN = next(point for point in POINTS if point.name == "inbound.load.after")


@dataclass(frozen=True, slots=True)
class Strike:
    """point, and at which of its calls"""

    point: Point
    hit: int

    @property
    def name(self) -> str:
        return f"{self.point.name}#{self.hit}"


@dataclass(frozen=True, slots=True)
class Deal:
    """The strikes of one stretch, by process, in the order in which they come."""

    name: str
    seed: int
    strikes: dict[str, tuple[Strike, ...]]

    @property
    def size(self) -> int:
        return sum(map(len, self.strikes.values()))


class _Deck:
    """One process's points in a diced order, and in another when they are used up."""

    def __init__(self, dice: random.Random, points: Sequence[Point]) -> None:
        self._dice, self._points = dice, points
        self._left: list[Strike] = []

    def draw(self, size: int, alone: frozenset[str] = frozenset()) -> tuple[Strike, ...]:
        """alone: a strike with one of these needs is the only one of its hand; the others come again."""
        if not self._points:
            return ()
        while len(self._left) < size:
            shuffled = self._dice.sample(self._points, len(self._points))
            self._left += [Strike(point, self._dice.randint(1, point.step.most)) for point in shuffled]
        hand, self._left = self._left[:size], self._left[size:]
        if lonely := next((strike for strike in hand if strike.point.step.needs in alone), None):
            self._left = [strike for strike in hand if strike is not lonely] + self._left
            return (lonely,)
        # Those with needs of their own come first: they wait for something, and the others would disturb them.
        return tuple(sorted(hand, key=lambda strike: strike.point.step.needs == ""))


def deal(seed: int, kills: int, points: Sequence[Point] = POINTS) -> list[Deal]:
    """Stretches that bring at least this many kills; from 500 on every point is among them."""
    wanted = {point.name for point in points} if kills >= 500 else set()
    dice = random.Random(seed)
    decks = {process: _Deck(dice, [p for p in points if p.step.process == process]) for process in MOST}
    dealt: list[Deal] = []
    while wanted or sum(each.size for each in dealt) < kills:
        strikes = {"ingress": decks["ingress"].draw(MOST["ingress"])}
        strikes["inbound"] = decks["inbound"].draw(MOST["inbound"], frozenset({"returned"}))
        if any(strike.point.step.needs == "returned" for strike in strikes["inbound"]):
            # Alone from the second return on.
            strikes["inbound"] = (Strike(_RETURN, 1), Strike(_RETURN, 1), *strikes["inbound"])
        # Nobody begins a pull of a connection while it seems that another scheduler is at it.
        strikes["scheduler"] = decks["scheduler"].draw(MOST["scheduler"], _DEATHS | {"pull"})
        if any(strike.point.step.needs in _DEATHS for strike in strikes["scheduler"]):
            # The scheduler is armed, then a worker dies in the middle of a call; and nobody else disturbs the two.
            strikes["outbound"] = (Strike(_DEATH, 1),)
        else:
            # A death takes one of three attempts, and so may a token that the vendor has forgotten.
            refused = any(strike.point.step.needs == "token" for strike in strikes["inbound"])
            strikes["outbound"] = decks["outbound"].draw(1 if refused else MOST["outbound"], frozenset({"doubt"}))
        wanted -= {strike.point.name for hand in strikes.values() for strike in hand}
        dealt.append(Deal(f"kills-{len(dealt) + 1}", dice.randrange(2**31), strikes))
    return dealt


@dataclass(slots=True)
class Struck:
    """What came of a deal: the strikes that hit and those that never came to their point."""

    hits: list[Strike]
    misses: list[Strike]
    verdict: Verdict


async def strike_all(ground: Ground, dealt: Deal, *, pace: float = 1.0, echoes: bool = False) -> Struck:
    load = Load(ground, random.Random(dealt.seed))
    stop = asyncio.Event()
    hits: list[Strike] = []
    misses: list[Strike] = []

    async def hurt(process: str, strikes: Sequence[Strike]) -> None:
        for strike in strikes:
            if process == "outbound" and strike.point is _DEATH and strike.hit == 1:
                await asyncio.sleep(1.5)  # whoever shall find it dead is up
            struck = await ground.kill_at(strike.point, strike.hit, load)
            (hits if struck else misses).append(strike)
        ground.begin(process)

    async with asyncio.TaskGroup() as pumping:
        pumping.create_task(load.run(stop, pace=pace))
        async with asyncio.TaskGroup() as hurting:
            for process, strikes in dealt.strikes.items():
                hurting.create_task(hurt(process, strikes))
        for process in dealt.strikes:
            await ground.ensure(process)
        stop.set()
    return Struck(hits, misses, await ground.judge(load, echoes=echoes))
