"""The list of vendors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from adapters.port import Manifest
from adapters.registry import RegistryError, UnknownVendorError, adapter, adapters, collect


class Good:
    def __init__(self, **changes: Any) -> None:
        self.manifest: Any = dataclasses.replace(
            adapter("beds24").manifest, name="other", inbound=("other.#",), **changes
        )

    def parse(self, request: Any, connection: Any) -> Any: ...

    def interpret(self, fact: Any, connection: Any) -> Any: ...

    async def fetch(self, session: Any, hints: Any) -> Any: ...

    async def execute(self, session: Any, command: Any) -> Any: ...

    async def find(self, session: Any, command: Any) -> Any: ...

    async def grant(self, http: Any, connection: Any, credentials: Any) -> Any: ...

    async def check(self, session: Any) -> Any: ...


class NoFind(Good):
    find = None  # type: ignore[assignment]


class BlockingFetch(Good):
    def fetch(self, session: Any, hints: Any) -> Any: ...  # type: ignore[override]


class NoManifest(Good):
    def __init__(self) -> None:
        self.manifest = {"name": "other"}


def test_the_packages_beside_the_registry_are_found_once() -> None:
    assert "beds24" in adapters()
    assert adapters() is adapters()
    assert all(isinstance(one.manifest, Manifest) and one.manifest.name == name for name, one in adapters().items())


def test_an_unknown_vendor_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(UnknownVendorError, match=r"'beds42'; known: .*beds24"):
        adapter("beds42")


def test_a_well_shaped_adapter_is_taken() -> None:
    good = Good()
    assert collect([("a package", good)]) == {"other": good}


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (None, "exports no `adapter`"),
        (object(), "has no method `parse`"),
        (NoFind(), "has no method `find`"),
        (BlockingFetch(), "`fetch` must be a coroutine function"),
        (NoManifest(), "`manifest` is not a Manifest"),
        (Good(webhook_auth=()), "webhook_auth is empty"),
        (Good(commands_with_marker=frozenset({"pms.x"})), "'pms.x', which is not in commands"),
        (Good(external_ids={"property": "("}), "not a regular expression"),
    ],
)
def test_a_wrong_shape_is_refused_with_clear_words(candidate: object, words: str) -> None:
    with pytest.raises(RegistryError) as caught:
        collect([("some package", candidate)])
    assert str(caught.value).startswith("some package: ")
    assert words in str(caught.value)


def test_an_adapter_may_not_take_other_vendors_events() -> None:
    greedy = Good()
    greedy.manifest = dataclasses.replace(greedy.manifest, inbound=("#",))
    with pytest.raises(RegistryError, match="takes others' events"):
        collect([("greedy", greedy)])


def test_a_name_is_taken_once() -> None:
    with pytest.raises(RegistryError, match=r"second: the name 'other' is taken by first"):
        collect([("first", Good()), ("second", Good())])
