"""Card data and personal members in vendors' documents."""

from __future__ import annotations

import pytest

from adapters.documents import card_member, without_card_data

CARD_NAMES = ["cvc", "CVV2", "csc", "pan", "cardNumber", "card_number", "creditCardNumber", "ccNumber", "ccExpiryDate"]
CARD_NAMES += ["cardholderName", "card-holder", "vccNumber", "Card", "cardSecurityCode", "expCardNumber"[3:]]
HARMLESS_NAMES = [
    "cc",
    "account",
    "discard",
    "cardinal",
    "postcard",
    "scorecard",
    "company",
    "rateDescription",
    "panorama",
]


@pytest.mark.parametrize("name", CARD_NAMES)
def test_card_members_are_found_at_any_depth(name: str) -> None:
    assert card_member({name: "1"}) == name
    assert card_member([{"a": [{"b": {name: "1"}}]}]) == f"0.a.0.b.{name}"
    assert without_card_data({"a": [{name: "1", "b": 2}]}) == {"a": [{"b": 2}]}


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_other_members_are_left_alone(name: str) -> None:
    assert card_member({name: "1"}) is None
    assert without_card_data({name: "1"}) == {name: "1"}


def test_a_name_that_came_empty_is_still_found_later() -> None:
    for value, place in (("", None), ("123", "cardCvc"), ("", None), ("123", "cardCvc")):
        assert card_member({"cardCvc": value}) == place


def test_strangers_cannot_fill_the_memory_with_names() -> None:
    from adapters import documents

    for number in range(6000):
        assert card_member({f"stranger{number}": 1}) is None
    assert len(documents._HARMLESS) <= 4096
    assert card_member({"cvc": 1}) == "cvc"
