"""What a connection may be given: settings and secrets by the vendor's manifest, and where secrets come from.

A secret is never a word of the command line: those are kept by shells and shown by `ps`.
"""

from __future__ import annotations

import re
import secrets as random_secrets
import sys
import warnings
from dataclasses import dataclass
from getpass import GetPassWarning
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import Refused, note, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adapters.port import Manifest

WEBHOOK_AUTH = "webhook_auth"  # a setting of every vendor; its values are in the manifest
WEBHOOK_SECRET = "webhook_secret"  # noqa: S105 - the name of a secret

Prompted = Annotated[list[str] | None, typer.Option("--secret", metavar="NAME", help="Ask for this secret.")]
FromFile = Annotated[
    list[str] | None, typer.Option("--secret-file", metavar="NAME=PATH", help="Read a secret from a file.")
]
FromStdin = Annotated[str | None, typer.Option("--secret-stdin", metavar="NAME", help="Read a secret from stdin.")]
Generated = Annotated[
    list[str] | None, typer.Option("--generate", metavar="NAME", help="Make up a secret and print it, this once.")
]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the secrets come from, by name."""

    prompted: Sequence[str]
    files: Sequence[str]
    stdin: str | None
    generated: Sequence[str]

    def names(self) -> list[str]:
        """raises typer.BadParameter for NAME=PATH without a path, and for a name given twice"""
        in_files = [_pair(given, "--secret-file", "NAME=PATH")[0] for given in self.files]
        names = [*self.prompted, *in_files, *([self.stdin] if self.stdin else []), *self.generated]
        if twice := [name for name in names if names.count(name) > 1]:
            raise typer.BadParameter(f"{twice[0]}: is given twice")
        return names

    def read(self) -> dict[str, str]:
        """Asks, reads, makes up. raises Refused, typer.Abort"""
        values = {name: _ask(name) for name in self.prompted}
        for given in self.files:
            name, path = _pair(given, "--secret-file", "NAME=PATH")
            values[name] = _file(name, Path(path))
        if self.stdin:
            values[self.stdin] = sys.stdin.read()
        values |= {name: random_secrets.token_urlsafe(32) for name in self.generated}
        return {name: _usable(name, value) for name, value in values.items()}

    def tell(self, values: dict[str, str]) -> None:
        """Prints those that were made up: nobody else knows them."""
        for name in self.generated:
            note(f"{name}, shown once, keep it now:")
            say(values[name])


def pairs(given: Iterable[str], option: str) -> dict[str, str]:
    """raises typer.BadParameter"""
    return dict(_pair(one, option, "NAME=VALUE") for one in given)


def check_settings(manifest: Manifest, given: dict[str, str]) -> None:
    """raises typer.BadParameter, which names the settings that there are"""
    settings = {field.name: field for field in manifest.fields if not field.secret}
    secret = {field.name for field in manifest.fields if field.secret}
    for name, value in given.items():
        if name in secret:
            raise typer.BadParameter(f"{name}: is a secret; use --secret {name}, --secret-file or --secret-stdin")
        if name not in settings and name != WEBHOOK_AUTH:
            known = ", ".join(sorted({*settings, WEBHOOK_AUTH}))
            raise typer.BadParameter(f"{name}: {manifest.title} has no such setting; known: {known}")
        field = settings.get(name)
        if field is not None and field.form is not None and not re.fullmatch(field.form, value):
            raise typer.BadParameter(f"{name}: has another form. {field.help}")
    schemes = [auth.scheme.value for auth in manifest.webhook_auth]
    if given.get(WEBHOOK_AUTH, schemes[0] if schemes else "") not in schemes and WEBHOOK_AUTH in given:
        raise typer.BadParameter(f"{WEBHOOK_AUTH}: one of {', '.join(schemes) or 'none: it sends no webhooks'}")


def check_secret_names(manifest: Manifest, names: Iterable[str]) -> None:
    """raises typer.BadParameter, which names the secrets that there are"""
    known = sorted(field.name for field in manifest.fields if field.secret)
    for name in names:
        if name not in known:
            raise typer.BadParameter(
                f"{name}: {manifest.title} has no such secret; known: {', '.join(known) or 'none'}"
            )


def check_required(manifest: Manifest, given: Iterable[str]) -> None:
    """raises typer.BadParameter"""
    missing = {field.name for field in manifest.fields if field.required and field.default is None} - set(given)
    if missing:
        raise typer.BadParameter(f"{', '.join(sorted(missing))}: needed by {manifest.title}")


def _pair(given: str, option: str, form: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not (name and equals and value):
        # The text is not repeated: it may be a secret in the wrong place.
        raise typer.BadParameter(f"{option}: the form is {form}")
    return name.strip(), value.strip()


def _ask(name: str) -> str:
    try:
        with warnings.catch_warnings():
            # Without a terminal Python would warn and go on, and the secret would be seen.
            warnings.simplefilter("error", GetPassWarning)
            return str(typer.prompt(name, hide_input=True, err=True))
    except (GetPassWarning, EOFError, typer.Abort):
        raise Refused(
            f"{name}: was not given, nothing was changed; without a terminal read it from a file or stdin"
        ) from None


def _file(name: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{name}: {path} cannot be read ({type(error).__name__})") from error


def _usable(name: str, value: str) -> str:
    """Without the line end that files and pipes add."""
    value = value.strip()
    if not value:
        raise Refused(f"{name}: is empty; nothing was changed")
    if len(value) > 10_000 or not value.isprintable():
        raise Refused(f"{name}: is not one line of text of at most 10,000 characters; nothing was changed")
    return value
