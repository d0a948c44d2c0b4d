"""Sealing: what goes in comes out, for its company only; splitting and joining are inverse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.seal import Cipher, KeyFile, SealError, join, split

KEY = bytes(range(32))


def test_a_value_opens_with_its_key_and_company_only() -> None:
    sealed = Cipher(KEY, "acme").seal({"name": "Zoë 🛎"})
    assert sealed is not None
    assert Cipher(KEY, "acme").open(sealed) == {"name": "Zoë 🛎"}
    for other in (Cipher(KEY, "other"), Cipher(os.urandom(32), "acme")):
        with pytest.raises(SealError):
            other.open(sealed)
    with pytest.raises(SealError):
        Cipher(KEY, "acme").open_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert Cipher(KEY, "acme").seal({}) is None
    assert Cipher(KEY, "acme").open(None) == {}


def test_a_digest_tells_a_value_to_who_has_the_key_only() -> None:
    digest = Cipher(KEY, "acme").digest(b"Zoe")
    assert digest == Cipher(KEY, "acme").digest(b"Zoe")
    others = (Cipher(KEY, "acme").digest(b"Zoa"), Cipher(os.urandom(32), "acme").digest(b"Zoe"))
    assert digest not in others
    assert len(digest) == 16


def test_the_key_file_is_private_never_overwritten_and_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "deep/key"
    KeyFile.create(path)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        KeyFile.create(path)
    keys = KeyFile.read(path)
    wrapped = keys.new_data_key()
    assert keys.cipher("acme", wrapped).open(keys.cipher("acme", wrapped).seal({"a": 1})) == {"a": 1}
    with pytest.raises(SealError, match="no key file"):
        KeyFile.read(tmp_path / "none")
    bad = tmp_path / "bad"
    for text in ("", "not base64!", "c2hvcnQ="):
        bad.write_text(text)
        with pytest.raises(SealError):
            KeyFile.read(bad)


PATHS = (("booking", "firstName"), ("booking", "guests"), ("messages",))
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "booking": st.one_of(
            st.none(),
            st.dictionaries(
                st.sampled_from(["firstName", "guests", "id"]),
                st.one_of(st.none(), st.text(), st.lists(st.integers()), st.booleans(), st.integers()),
            ),
        ),
        "messages": st.lists(st.text(min_size=1)),
        "other": st.integers(),
    },
)


@settings(derandomize=True, database=None)
@given(DOCUMENT)
def test_join_undoes_split_and_split_leaves_its_argument_alone(document: dict[str, Any]) -> None:
    before = repr(document)
    readable, personal = split(document, PATHS)
    assert repr(document) == before
    for path in personal:
        place: Any = readable
        *way, name = path.split(".")
        for step in way:
            place = place[step]
        assert name not in place
    assert join(readable, personal) == document


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01\x02", b"\x02" + b"x" * 40, b"\x01" + b"x" * 40])
def test_what_was_cut_or_altered_is_a_seal_error_and_nothing_else(sealed: bytes) -> None:
    with pytest.raises(SealError):
        Cipher(KEY, "acme").open_bytes(sealed)
