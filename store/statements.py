"""Reads store/sql/<aggregate>.sql: `-- name: <statement>` opens a statement, comment lines after it tell its purpose."""

from __future__ import annotations

from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPENS = "-- name: "


def statements(aggregate: str) -> Mapping[str, str]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in (files("store") / "sql" / f"{aggregate}.sql").read_text().splitlines():
        if line.startswith(_OPENS):
            lines = found.setdefault(line.removeprefix(_OPENS).strip(), [])
        elif not line.lstrip().startswith("--"):
            lines.append(line)
    return MappingProxyType({name: "\n".join(body).strip() for name, body in found.items()})
