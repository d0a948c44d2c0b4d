"""Frames that hold what the library cannot decode, read all the same.

Anybody may publish a `timestamp` in nanoseconds, a key or a header's name that is not UTF-8, or a table in a table a thousand
times: the broker passes it all on. The library raises there, before the message is anybody's to settle, and the connection is
lost, again at each delivery: the commands behind it stand still until the delivery limit, and in a dead-letter queue, which
has a high one, for ever. Nobody here reads such a value; the message just has to come through.

The library decodes by two tables, one of the protocol's domains and one of the types of a header's values. What is put there
asks the library first.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from pamqp import decode

if TYPE_CHECKING:
    from pamqp.common import FieldArray, FieldTable, FieldValue

_TIMESTAMP, _SIZE = Struct(">Q"), Struct(">i")


def read_everything() -> None:
    """Before the first connection of a process; safe to repeat."""
    decode.METHODS |= {"shortstr": _short_string, "timestamp": _timestamp, "table": _table, "array": _array}
    decode.TABLE_MAPPING |= {b"T": _timestamp, b"F": _table, b"A": _array}


def _short_string(value: bytes) -> tuple[int, str]:
    try:
        return decode.short_str(value)
    except UnicodeDecodeError:
        end = 1 + value[0]
        return end, value[1:end].decode(errors="replace")


def _timestamp(value: bytes) -> tuple[int, FieldValue]:
    """The number as it came, where it is no time."""
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return _TIMESTAMP.size, _TIMESTAMP.unpack_from(value)[0]


def _table(value: bytes) -> tuple[int, FieldTable]:
    try:
        return decode.field_table(value)
    except UnicodeDecodeError:  # of a name of its own: those of tables in it have been here before
        return _with_odd_names(value)
    except RecursionError:
        return _end(value), {}


def _with_odd_names(value: bytes) -> tuple[int, FieldTable]:
    end, at, table = _end(value), _SIZE.size, {}
    while at < end:
        used, name = _short_string(value[at:])
        at += used
        used, table[name] = decode.embedded_value(value[at:])
        at += used
    return end, table


def _array(value: bytes) -> tuple[int, FieldArray]:
    try:
        return decode.field_array(value)
    except RecursionError:
        return _end(value), []


def _end(value: bytes) -> int:
    size: int = _SIZE.unpack_from(value)[0]
    return _SIZE.size + size
