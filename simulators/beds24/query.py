"""Reading query strings the vendor's way: repeated names for lists, unknown names ignored, bad values refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

from starlette.datastructures import QueryParams

from simulators.beds24.members import day


class BadRequest(Exception):  # noqa: N818 - named for the status it becomes
    """400: nothing was done and nothing is charged."""


@dataclass(frozen=True, slots=True)
class Query:
    params: QueryParams

    def has(self, *names: str) -> bool:
        return any(self.texts(name) for name in names)

    def texts(self, name: str) -> list[str]:
        """All values; `id=1&id=2` and `id[]=1&id[]=2` mean the same."""
        return [*self.params.getlist(name), *self.params.getlist(f"{name}[]")]

    def text(self, name: str) -> str | None:
        values = self.texts(name)
        return values[-1] if values else None

    def ints(self, name: str) -> set[int]:
        try:
            return {int(value) for value in self.texts(name)}
        except ValueError:
            raise BadRequest(f"{name} is not valid") from None

    def choices(self, name: str, allowed: tuple[str, ...]) -> set[str]:
        """Values of an enum; `a,b` is one unknown value (measured: 400)."""
        values = set(self.texts(name))
        if not values <= set(allowed):
            raise BadRequest(f"{name} is not valid")
        return values

    def flag(self, name: str) -> bool:
        value = self.text(name)
        known: Mapping[str | None, bool] = {None: False, "true": True, "1": True, "false": False, "0": False}
        if value not in known:
            raise BadRequest(f"{name} is not valid")
        return known[value]

    def day(self, name: str) -> date | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return date.fromisoformat(day(value))
        except ValueError:
            raise BadRequest(f"{name} is not valid") from None

    def moment(self, name: str) -> datetime | None:
        """A date or an ISO time; without a zone it is UTC."""
        value = self.text(name)
        if value is None:
            return None
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise BadRequest(f"{name} is not valid") from None
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)

    def page(self) -> int:
        value = self.text("page") or "1"
        if not value.isdigit() or int(value) < 1:
            raise BadRequest("page is not valid")
        return int(value)
