"""An operator's edit of an event: a JSON merge patch (RFC 7396) laid over the payload when the event runs.

The event's own payload stays as it came. The edit stands with its dead letter: what is readable of it as JSON, its personal
values sealed, by path, like those of the payload itself.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Any

import orjson

from .seal import join, split

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from .seal import Cipher

Paths = tuple[tuple[str, ...], ...]


def document(payload: str, sealed: bytes | None, overlay: str | None, cipher: Cipher) -> dict[str, Any]:
    """What an event says, personal values put back in and its edit applied.

    overlay  as the statements give it: {"readable": the patch, "sealed": its personal part in base64}
    raises   SealError
    """
    found = join(orjson.loads(payload), cipher.open(sealed))
    if overlay is None:
        return found
    edit = orjson.loads(overlay)
    sealed_edit = b64decode(edit["sealed"]) if edit["sealed"] else None
    return dict(merged(found, patch(edit["readable"], sealed_edit, cipher)))


def patch(readable: Mapping[str, Any] | None, sealed: bytes | None, cipher: Cipher) -> dict[str, Any]:
    """An edit as a whole. raises SealError"""
    return join(dict(readable or {}), cipher.open(sealed))


def parts(
    edit: Mapping[str, Any], personal: Paths, secret: Collection[str], cipher: Cipher
) -> tuple[dict[str, Any], bytes | None]:
    """(readable, sealed): an edit as it is kept. secret: names that are sealed with their values, also with none"""
    readable, private = split(edit, personal)
    private |= {name: readable.pop(name) for name in secret if name in readable}
    return readable, cipher.seal(private)


def merged(target: Any, edit: Any) -> Any:
    """RFC 7396: objects are merged, null removes a member, all else replaces. Neither argument is changed."""
    if not isinstance(edit, dict):
        return edit
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in edit.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch from one document to the other; `after` has no nulls that `before` has not at the same place."""
    edit: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            if inner := difference(known, value):
                edit[name] = inner
        elif name not in before or _text(known) != _text(value):
            edit[name] = value
    return edit


def paths(edit: Mapping[str, Any], say: Callable[[str], str], above: str = "") -> Iterator[str]:
    """Dotted, of every value that an edit sets or removes. say: what a member is called there"""
    for name, value in edit.items():
        if isinstance(value, dict) and value:
            yield from paths(value, say, f"{above}{say(name)}.")
        else:
            yield f"{above}{say(name)}"


def _text(value: Any) -> bytes:
    """To compare by: in Python 1 equals true and 1.0."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
