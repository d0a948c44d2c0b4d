"""Vendors' JSON documents: reading them safely, and taking card data out of them.

Shared by the transport (answers) and by the vendors' webhook modules. Pure; the webhook side is on the hot path, hence
the cheap tests on raw bytes that come before every walk through a document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from .errors import Malformed

MAX_DEPTH = 64  # far above any vendor's document; keeps every walk clear of Python's recursion limit

_ESCAPED_NUL = b"\\u0000"
_CARD_NAME = re.compile(
    r"(?:credit|debit|payment|guest|virtual)?"
    r"(?:card|(?:card|v?cc)(?:number|no|num|nr|pan|holder(?:name)?|name|exp\w*|valid\w*|cv[cv]2?|csc|code|securitycode))"
    r"|cv[cv]2?|csc|pan"
)
_QUOTED_NAME = re.compile(rb'"([^"]{1,60})"\s*:\s*"?[^",\s]')
_NESTING = frozenset({dict, list})
# Names that were looked at and are no card members: a vendor's are few and always the same, so that after the first
# webhook one set comparison does for a whole object. Bounded, because names also come from strangers.
_HARMLESS: set[str] = set()
_MOST_NAMES = 4096


def decode(body: bytes) -> Any:
    """The JSON in `body`; NUL characters, which no Postgres text can hold, become U+FFFD.

    raises  Malformed: not JSON, not UTF-8, lone surrogates, nested too deep; never with the content
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The decoder's own words name only the rule and the place; its `doc` is not kept.
        raise Malformed("body", f"not JSON: {error}") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper_than(document, MAX_DEPTH):
        raise Malformed("body", f"nested deeper than {MAX_DEPTH}")
    return _without_nul(document) if _ESCAPED_NUL in body else document


def card_member(document: Any) -> str | None:
    """The place of the first member that holds card data; None when there is none."""
    return None if _surely_no_card_data(document) else _card_member(document)


def names_card_data(body: bytes) -> bool:
    """Whether a body that is no JSON still looks as if it held card data, so that it must not be kept for study."""
    return any(b"\\" in name or _is_card_name(name.decode("utf-8", "replace")) for name in _QUOTED_NAME.findall(body))


def without_card_data(document: Any) -> Any:
    """A copy without the members that hold card data: for documents that we asked for, so cannot refuse."""
    if isinstance(document, dict):
        kept = {
            name: without_card_data(value) for name, value in document.items() if not (value and _is_card_name(name))
        }
        return kept if (place := _card_name_as_value(kept)) is None else kept | {place: ""}
    if isinstance(document, list):
        return [without_card_data(value) for value in document]
    return document


def _surely_no_card_data(document: Any) -> bool:
    """True when every name in it is known to be harmless; False means: look closely."""
    pending = [document]
    for item in pending:  # grows as it goes
        if item.__class__ is dict:
            if "code" in item or not item.keys() <= _HARMLESS:
                return False
            if not _NESTING.isdisjoint(map(type, item.values())):
                pending += [value for value in item.values() if value.__class__ in _NESTING]
        elif item.__class__ is list:
            pending += item
    return True


def _card_member(document: Any) -> str | None:
    if isinstance(document, dict):
        for name, value in document.items():
            if _is_card_name(name) and value:  # in this order: empty members teach their names, too
                return str(name)
            if (inner := _card_member(value)) is not None:
                return f"{name}.{inner}"
        return _card_name_as_value(document)
    if isinstance(document, list):
        for index, value in enumerate(document):
            if (inner := _card_member(value)) is not None:
                return f"{index}.{inner}"
    return None


def _is_card_name(name: str) -> bool:
    if name in _HARMLESS:
        return False
    if _CARD_NAME.fullmatch("".join(filter(str.isalnum, name)).lower()) is not None:
        return True
    if len(_HARMLESS) < _MOST_NAMES and len(name) < 100:
        _HARMLESS.add(name)
    return False


def _card_name_as_value(document: Mapping[str, Any]) -> str | None:
    """`{"code": "CVC", "text": "123"}`: vendors keep tagged texts, and tags may be card members."""
    code, text = document.get("code"), document.get("text")
    return "text" if text and isinstance(code, str) and len(code) < 100 and _is_card_name(code) else None


def _deeper_than(document: Any, depth: int) -> bool:
    level = [document]
    for _ in range(depth + 1):
        level = [
            value
            for item in level
            if isinstance(item, dict | list)
            for value in (item.values() if isinstance(item, dict) else item)
            if isinstance(value, dict | list)
        ]
        if not level:
            return False
    return True


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    return value
