"""What the demo shows: steps with their time, scenes with their checks, and the table at the end. Plain text where it is piped."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH = 100


@dataclass
class Scene:
    """Checks are what the verdict counts; everything else is only told."""

    title: str
    about: str  # for the final table
    console: Console
    checks: list[bool] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(self.checks)

    def say(self, text: str, style: str = "") -> None:
        self._line("", text, style)

    def does(self, text: str) -> None:
        """Something that happens, before it does."""
        self._line("→", text, "bold")

    def check(self, right: bool, text: str, instead: object = "") -> None:
        """instead: what was found, told only when it is not right"""
        self.checks.append(right)
        if right:
            self._line("✓", text, "green")
        else:
            self._line("✗", f"NOT SO: {text}" + (f" (found: {instead})" if instead != "" else ""), "bold red")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Without columns the rows have no head."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, show_header=bool(columns))
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text("-" if value is None else str(value)) for value in row))
        self.console.print(Padding(table, (0, 0, 0, 6), expand=False))

    def _line(self, mark: str, text: str, style: str) -> None:
        grid = Table.grid(padding=(0, 1))  # so that a line that wraps keeps its indent
        grid.add_column(width=3, justify="right")
        grid.add_column()
        marked = style if mark != "→" else ""
        grid.add_row(Text(mark, marked), Text(text, style if mark in {"→", ""} else ("red" if mark == "✗" else "")))
        self.console.print(grid)


class Stage:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or open_console()
        self.scenes: list[Scene] = []
        self._began = time.monotonic()

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(text, "bold cyan"))

    def report(self, line: str) -> None:
        self.console.print(Text(f"  {line}"))

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A slow step: its name when it begins, its time when it is done."""
        began = time.monotonic()
        self.console.print(Text(f"  {text} … "), end="")
        try:
            yield
        except BaseException:
            self.console.print(Text("not done", "red"))
            raise
        self.console.print(Text(f"{time.monotonic() - began:.1f} s", "dim"))

    def scene(self, title: str, about: str) -> Scene:
        self.heading(f"{len(self.scenes) + 1}. {title}")
        scene = Scene(title, about, self.console)
        self.scenes.append(scene)
        return scene

    def verdict(self, story: float) -> bool:
        """The table at the end; true when every check of every scene held. story: seconds after the stack was up"""
        self.console.print()
        table = Table(title_justify="left", show_lines=False, min_width=min(80, self.console.width))
        table.add_column("scenario", no_wrap=True)
        table.add_column("what was checked")
        table.add_column("result", no_wrap=True)
        for scene in self.scenes:
            count = f"{sum(scene.checks)}/{len(scene.checks)}"
            result = Text(f"OK {count}", "green") if scene.passed else Text(f"FAILED {count}", "bold red")
            table.add_row(scene.title.partition(":")[0], scene.about, result)
        self.console.print(table)
        total = time.monotonic() - self._began
        self.console.print(Text(f"{total:.0f} s in all, {story:.0f} s of them after Postgres and RabbitMQ were up"))
        return bool(self.scenes) and all(scene.passed for scene in self.scenes)


def open_console() -> Console:
    """At most 100 columns; a terminal that cannot show a character gets another instead of an error."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    return console


def plain(value: Any) -> str:
    """Money and dates as people read them."""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
