"""Sealing of personal data and secrets: AES-256-GCM with a data key per company, itself wrapped by the key file.

Deleting a company's data key makes all that was sealed for it unreadable. Form: version byte, 12 bytes nonce,
ciphertext with its tag; the company id is authenticated with it, so that a value cannot be moved between companies.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode, b64encode
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VERSION = b"\x01"
_NONCE = 12
_KEY_BYTES = 32


class SealError(Exception):
    """The key does not fit or the value was altered; names what, never the content."""


class Cipher:
    """Seals, opens and tells values apart for one company."""

    __slots__ = ("_aead", "_context", "_digest_key")

    def __init__(self, key: bytes, context: str) -> None:
        self._aead = AESGCM(key)
        self._context = context.encode()
        self._digest_key = hashlib.blake2b(key=key, person=b"staybus digest").digest()

    def seal_bytes(self, value: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return _VERSION + nonce + self._aead.encrypt(nonce, value, self._context)

    def open_bytes(self, sealed: bytes) -> bytes:
        """raises SealError"""
        if sealed[:1] != _VERSION:
            raise SealError("unknown form of sealed value")
        try:
            return self._aead.decrypt(sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :], self._context)
        except (InvalidTag, ValueError) as error:  # altered, or cut off
            raise SealError("a sealed value cannot be opened with this key") from error

    def digest(self, value: bytes) -> bytes:
        """16 bytes, the same for the same value; whoever has no key can try no values against it."""
        return hashlib.blake2b(value, key=self._digest_key, digest_size=16).digest()

    def seal(self, document: Mapping[str, Any]) -> bytes | None:
        """None for an empty document: most webhooks without personal data need no sealing at all."""
        return self.seal_bytes(orjson.dumps(document)) if document else None

    def open(self, sealed: bytes | None) -> dict[str, Any]:
        document: dict[str, Any] = orjson.loads(self.open_bytes(sealed)) if sealed else {}
        return document


class KeyFile:
    """The master key: wraps the companies' data keys."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(key, "staybus data key")

    @classmethod
    def read(cls, path: Path) -> KeyFile:
        """raises SealError with what to do"""
        try:
            key = b64decode(path.read_text().strip(), validate=True)
        except FileNotFoundError as error:
            raise SealError(f"no key file at {path}: make one with `staybus secret new-key {path}`") from error
        except (OSError, ValueError) as error:
            raise SealError(f"the key file {path} cannot be read: it must hold 32 bytes in base64") from error
        if len(key) != _KEY_BYTES:
            raise SealError(f"the key file {path} holds {len(key)} bytes; 32 are needed")
        return cls(key)

    @staticmethod
    def create(path: Path) -> None:
        """Never overwrites: an old key is the only way to what it sealed. raises FileExistsError"""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(b64encode(os.urandom(_KEY_BYTES)) + b"\n")

    @property
    def installation(self) -> Cipher:
        """For what belongs to no company: messages that nobody could read."""
        return self._cipher

    def new_data_key(self) -> bytes:
        """A fresh data key, wrapped, for `companies.data_key`."""
        return self._cipher.seal_bytes(os.urandom(_KEY_BYTES))

    def cipher(self, company_id: str, wrapped: bytes) -> Cipher:
        return Cipher(self._cipher.open_bytes(wrapped), company_id)


def split(document: Mapping[str, Any], paths: tuple[tuple[str, ...], ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(readable, personal): the values at `paths` taken out; personal maps a dotted path to its value.

    Empty values stay where they are: they tell nothing, and a vendor that sends no personal data sends them empty.
    """
    readable = dict(document)
    personal: dict[str, Any] = {}
    copied: dict[tuple[str, ...], dict[str, Any]] = {(): readable}
    for way, members in _by_parent(paths):
        parent = copied.get(way)
        if parent is None:
            parent = _copy_down(copied, way)
            if parent is None:
                continue
        for name, dotted in members:
            if name in parent:
                value = parent[name]
                if value or value not in _EMPTY:
                    personal[dotted] = value
                    del parent[name]
    return readable, personal


@cache
def _by_parent(paths: tuple[tuple[str, ...], ...]) -> list[tuple[tuple[str, ...], list[tuple[str, str]]]]:
    """(way to an object, its members as (name, dotted path))"""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for path in paths:
        found.setdefault(path[:-1], []).append((path[-1], ".".join(path)))
    return list(found.items())


def join(readable: dict[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of split; changes and returns `readable`."""
    for dotted, value in personal.items():
        way, name = _way(dotted)
        place = readable
        for step in way:
            place = place.setdefault(step, {})
        place[name] = value
    return readable


@lru_cache(maxsize=1024)
def _way(dotted: str) -> tuple[tuple[str, ...], str]:
    *way, name = dotted.split(".")
    return tuple(way), name


_EMPTY: tuple[Any, ...] = (None, "", [], {})


def _copy_down(copied: dict[tuple[str, ...], dict[str, Any]], way: tuple[str, ...]) -> dict[str, Any] | None:
    """The object at `way`, copied once so that the caller's document stays as it is."""
    parent = copied.get(way[:-1])
    if parent is None:
        parent = _copy_down(copied, way[:-1]) if way[:-1] else None
    child = parent.get(way[-1]) if parent is not None else None
    if parent is None or not isinstance(child, dict):
        return None
    copied[way] = parent[way[-1]] = dict(child)
    return copied[way]
