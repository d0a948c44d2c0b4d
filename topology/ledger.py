"""Which deliveries of one channel may be acknowledged, as a pure value: nothing here talks to the broker.

A multiple frame covers *every* outstanding delivery up to its tag. So in tag order, up to the first delivery that is not yet
settled (the hole), each run of one verdict is one frame: what lies before the run has gone out already. What is acked beyond
the hole goes out singly, when the caller says that it has waited long enough: usually the hole closes within milliseconds and
one frame covers everything, but one slow delivery must neither keep the broker from refilling the prefetch window nor make all
the others come again after a crash.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto


class Verdict(Enum):
    ACK = auto()
    REQUEUE = auto()


@dataclass(frozen=True, slots=True)
class Settlement:
    """One frame to the broker. `multiple`: it covers everything outstanding up to the tag."""

    tag: int
    verdict: Verdict
    multiple: bool = False


class AckLedger:
    """Deliveries in tag order. Settlements must be sent in the order in which they are taken."""

    __slots__ = ("_said", "_unsettled")

    def __init__(self) -> None:
        # Ordered: the first key is the hole, and taking one from anywhere is O(1); a plain dict's front is O(removed).
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        self._said: dict[int, Verdict] = {}

    @property
    def unsettled(self) -> tuple[int, ...]:
        """Tags without a verdict, oldest first."""
        return tuple(self._unsettled)

    def __len__(self) -> int:
        """How many deliveries have no verdict yet."""
        return len(self._unsettled)

    @property
    def waiting(self) -> bool:
        """Whether there are verdicts that have not been taken yet."""
        return bool(self._said)

    def deliver(self, tag: int) -> None:
        """A delivery came. Tags only grow on one channel."""
        self._unsettled[tag] = None

    def settle(self, tag: int, verdict: Verdict) -> bool:
        """Record a verdict; False, and nothing changed, if the tag is unknown or has one already."""
        if tag not in self._unsettled:
            return False
        del self._unsettled[tag]
        self._said[tag] = verdict
        return True

    def take(self, *, beyond_hole: bool) -> list[Settlement]:
        """What may be sent now, in this order; it counts as sent.

        beyond_hole   also the acks beyond the first unsettled delivery, one by one
        """
        hole = next(iter(self._unsettled), None)
        before = sorted(tag for tag in self._said if hole is None or tag < hole)
        settlements = []
        # A multiple frame's own tag must still be outstanding at the broker, which answers any other with a closed channel.
        for verdict, run in itertools.groupby(before, key=self._said.__getitem__):
            tags = list(run)
            settlements.append(Settlement(tags[-1], verdict, multiple=len(tags) > 1))
        for tag in before:
            del self._said[tag]
        # What goes back is wanted elsewhere at once; only acks wait for a shared frame.
        beyond = sorted(tag for tag, verdict in self._said.items() if beyond_hole or verdict is not Verdict.ACK)
        settlements += [Settlement(tag, self._said.pop(tag)) for tag in beyond]
        return settlements
