"""The only list of vendors: the packages beside this module, and those that others install.

A distribution adds an adapter by an entry point of group `staybus.adapters` that names its adapter object.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType

from .port import Adapter, Manifest

GROUP = "staybus.adapters"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PURE = ("parse", "interpret")
_IO = ("fetch", "execute", "find", "grant", "check")


class RegistryError(RuntimeError):
    """An adapter cannot be used; the text names it, where it comes from, and what is wrong."""


class UnknownVendorError(LookupError):
    """No adapter has that name."""


@cache
def adapters() -> Mapping[str, Adapter]:
    """Every adapter by its vendor's name. raises RegistryError"""
    return collect([*_own(), *_installed()])


def adapter(name: str) -> Adapter:
    """raises UnknownVendorError"""
    found = adapters().get(name)
    if found is None:
        raise UnknownVendorError(f"no adapter is called {name!r}; known: {', '.join(sorted(adapters())) or 'none'}")
    return found


def collect(candidates: Iterable[tuple[str, object]]) -> Mapping[str, Adapter]:
    """The mapping of (where it comes from, adapter) pairs. raises RegistryError: wrong shape, or a name taken twice"""
    found: dict[str, Adapter] = {}
    origins: dict[str, str] = {}
    for origin, candidate in candidates:
        checked = _checked(origin, candidate)
        name = checked.manifest.name
        if name in found:
            raise RegistryError(f"{origin}: the name {name!r} is taken by {origins[name]}")
        found[name], origins[name] = checked, origin
    return MappingProxyType(dict(sorted(found.items())))


def _own() -> Iterator[tuple[str, object]]:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg:
            origin = f"{__package__}.{module.name}"
            package = importlib.import_module(origin)
            exported = getattr(package, "adapter", None)
            manifest = getattr(exported, "manifest", None)
            if isinstance(manifest, Manifest) and manifest.name != module.name:
                raise RegistryError(f"{origin}: its manifest is called {manifest.name!r}")
            yield origin, exported


def _installed() -> Iterator[tuple[str, object]]:
    for point in entry_points(group=GROUP):
        origin = f"entry point {point.name} ({point.value})"
        try:
            yield origin, point.load()
        except (ImportError, AttributeError) as error:
            raise RegistryError(f"{origin}: cannot be loaded: {error}") from error


def _checked(origin: str, candidate: object) -> Adapter:
    if candidate is None:
        raise RegistryError(f"{origin}: exports no `adapter`")
    for name in (*_PURE, *_IO):
        method = getattr(candidate, name, None)
        if not callable(method):
            raise RegistryError(f"{origin}: has no method `{name}`")
        if inspect.iscoroutinefunction(method) != (name in _IO):
            raise RegistryError(f"{origin}: `{name}` must {'be' if name in _IO else 'not be'} a coroutine function")
    manifest = getattr(candidate, "manifest", None)
    if not isinstance(manifest, Manifest):
        raise RegistryError(f"{origin}: `manifest` is not a Manifest")
    if problem := _problem(manifest):
        raise RegistryError(f"{origin}: manifest: {problem}")
    return candidate  # type: ignore[return-value]  # checked just now, member by member


def _problem(manifest: Manifest) -> str | None:
    """What is wrong with the data of a manifest, in words; None when nothing is."""
    name = manifest.name
    if not _NAME.fullmatch(name):
        return f"name {name!r} must be lower-case letters, digits and _"
    if not manifest.webhook_auth and manifest.inbound:
        return "webhooks are received but webhook_auth is empty: there is no scheme `none`"
    if stray := [pattern for pattern in manifest.inbound if pattern.split(".")[0] != name]:
        return f"inbound pattern {stray[0]!r} must start with {name + '.'!r}, or it takes others' events"
    if strangers := manifest.commands_with_marker - manifest.commands.keys():
        return f"commands_with_marker names {min(strangers)!r}, which is not in commands"
    for entity, pattern in manifest.external_ids.items():
        try:
            re.compile(pattern)
        except re.error as error:
            return f"external_ids of {entity}: not a regular expression: {error}"
    return None
