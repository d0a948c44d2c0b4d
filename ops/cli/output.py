"""How commands speak: results on stdout (tables, or JSON with --json), everything else on stderr."""

# ruff: noqa: PLC0415 - what only one command needs is imported when it runs: `--help` must be quick
from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

FOUND = 3  # exit code of commands that look for something, and found it

AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

WIDE = 400  # columns of a table that goes into a file or a pipe: nothing is cut there
LEAST = 10  # characters of a column that is folded: a table that would need narrower ones is told row by row


class Refused(Exception):  # noqa: N818 - named for what happened
    """It was not done; the text says who, what, and what to do."""


def noun(help_: str) -> typer.Typer:
    """A group of commands about one kind of thing."""
    return typer.Typer(help=help_, no_args_is_help=True, rich_markup_mode=None)


def example(*lines: str) -> str:
    """An epilog that is printed as it stands."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


def say(text: str) -> None:
    print(text)


def note(text: str) -> None:
    """Beside the result, so that `--json` and pipes stay clean."""
    print(text, file=sys.stderr)


def emit(document: Any) -> None:
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
    sys.stdout.write(orjson.dumps(document, option=options, default=_plain).decode())


def listing(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str = "none") -> None:
    """The rows with all that they have as JSON, or these columns as a table; `name=member` gives a column its own name."""
    documents = [dict(row) for row in rows]
    if as_json:
        emit(documents)
        return
    if not documents:
        note(empty)
        return
    parts = [column.partition("=") for column in columns]
    table(
        [name for name, _, _ in parts],
        ([document.get(member or name) for name, _, member in parts] for document in documents),
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    given = [list(row) for row in rows]
    texts = [[cell(value) for value in row] for row in given]
    # markup=False: what comes from vendors is text
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)
    if _needs(headers, texts) > console.width:
        for row in given:
            facts(dict(zip(headers, row, strict=True)), as_json=False)
            print()
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        drawn.add_column(header, no_wrap=_is_whole(header), overflow="fold")
    for row in texts:
        drawn.add_row(*row)
    console.print(drawn)


def _is_whole(header: str) -> bool:
    """Ids are for copying: they are never broken or cut, whatever the width."""
    return header.endswith("id") or header in {"fingerprint", "status"}


def _needs(headers: Sequence[str], texts: Sequence[Sequence[str]]) -> int:
    """Characters a line, with columns as narrow as they may be."""
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    least = (width if _is_whole(header) else min(width, LEAST) for header, width in zip(headers, widths, strict=True))
    return sum(least) + 2 * (len(headers) - 1)


def facts(document: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing: a line for each of its members that has a value."""
    if as_json:
        emit(document)
        return
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        if value not in (None, "", [], {}):
            print(f"{name:<{width}}  {cell(value)}")


def cell(value: Any) -> str:
    """Text for a person; a vendor's text cannot steer the terminal."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case list() | tuple() | set() | frozenset():
            return ", ".join(cell(one) for one in value) or "-"
        case dict():
            return ", ".join(f"{name}={cell(one)}" for name, one in value.items()) or "-"
        case _:
            return "".join(letter if letter.isprintable() else " " for letter in str(value))


def confirm(question: str, *, yes: bool) -> None:
    """raises Refused on a no and when nobody can be asked, KeyboardInterrupt"""
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except (EOFError, typer.Abort) as error:
        # typer has one word for Ctrl-C and for the end of what is typed.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise Refused(f"{question} Nobody answered, so nothing was done: say --yes") from None
    if not agreed:
        raise Refused("nothing was done")


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while somebody looks; it is told how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def doing(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """As progress, of what this process does by itself: whoever breaks it off hears how far it came."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        advance(more)

    try:
        with progress(what, total) as advance:
            yield count
    except BaseException:
        note(f"{what}: broken off after {done} of {total}; what was done stays done")
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)
