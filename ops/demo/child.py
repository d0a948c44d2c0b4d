"""`python -m ops.demo.child <parent's pid> <module> <words…>`: runs the module's `main(words)`, and ends when its parent does.

A parent that is killed outright cannot end its children itself: on Linux the kernel does it instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib import import_module

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def main(words: list[str]) -> None:
    """One process of the fleet, by its name."""
    from ops.fleet import run  # noqa: PLC0415 - the simulator's process does without
    from ops.settings import load  # noqa: PLC0415

    run(words[0], load())


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    import_module(sys.argv[2]).main(sys.argv[3:])
