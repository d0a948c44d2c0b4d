"""At most so much of each connection under way at once; what is beyond waits in the table, not in this process.

Whoever was turned away is not remembered, only that somebody was: when there is room again, the table says who is next.
"""

from __future__ import annotations

from collections import Counter


class Window:
    """`most` of each name.

    The caller lets in with `enter` and says `leave` for each that it let in. Where `leave` asks for it, it looks for so many
    in the table, lets in those that it finds with `enter_found`, and then says `topped_up`, which may ask for another look. Until
    a look has found all that wait, who comes waits with them: the table knows who of them is next.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside: Counter[str] = Counter()
        self._behind: set[str] = set()  # who was turned away since the table was last looked at
        self._looking: set[str] = set()

    @property
    def behind(self) -> list[str]:
        """The names of which somebody may still wait in the table, with nobody but us to look."""
        return sorted(self._behind | self._looking)

    def enter(self, name: str | None) -> bool:
        """Whether there is room, and nobody waits for it already; None is not counted."""
        if name is None:
            return True
        if name in self._behind or name in self._looking:
            self._behind.add(name)
            return False
        return self.enter_found(name)

    def enter_found(self, name: str) -> bool:
        if self._inside[name] >= self._most:
            self._behind.add(name)
            return False
        self._inside[name] += 1
        return True

    def leave(self, name: str | None) -> int:
        """How many to look for in the table; mostly 0."""
        if name is None:
            return 0
        self._inside[name] -= 1
        if not self._inside[name]:
            del self._inside[name]
        return self._to_look_for(name)

    def topped_up(self, name: str, *, exhausted: bool) -> int:
        """exhausted: the table had no more; otherwise there may be. returns as `leave`: who was turned away during a look
        that did not see him yet has nobody else to call him, if all the others have left meanwhile"""
        self._looking.discard(name)
        if not exhausted:
            self._behind.add(name)
        return self._to_look_for(name)

    def _to_look_for(self, name: str) -> int:
        # Half empty first: a look for each that leaves would find one at a time.
        inside = self._inside.get(name, 0)
        if name not in self._behind or name in self._looking or inside > self._most // 2:
            return 0
        self._behind.discard(name)
        self._looking.add(name)
        return self._most - inside
