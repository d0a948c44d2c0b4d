"""Whatever JSON arrives, every item gets its answer: nothing a client sends can break the simulator."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import URL, Headers, QueryParams

from simulators.beds24 import Account
from simulators.beds24.access import ALL_SCOPES, Token
from simulators.beds24.members import CALENDAR_DAY, INVOICE_ITEM, WRITABLE
from simulators.beds24.operations import Ask, post_bookings, post_calendar, post_messages, post_properties
from simulators.beds24.query import Query
from tests.simulators.beds24_kit import START, STAY
from tests.simulators.beds24_spec import SPEC, validate_response

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SUB_ITEM = st.dictionaries(st.sampled_from(["id", "code", "text", *INVOICE_ITEM]), ANYTHING, max_size=4) | ANYTHING
MEMBER = st.sampled_from(["id", "actions", "bookingId", "message", "source", "webhooks", *WRITABLE])
ITEM = st.one_of(
    ANYTHING,
    st.dictionaries(MEMBER, ANYTHING, max_size=4),
    st.dictionaries(MEMBER, ANYTHING, max_size=2).map(lambda extra: STAY | extra),
    st.lists(SUB_ITEM, max_size=3).map(lambda items: {"id": 90_923_001, "invoiceItems": items, "infoItems": items}),
    st.dictionaries(st.sampled_from(["from", "to", *CALENDAR_DAY]), ANYTHING, max_size=4).map(
        lambda entry: {"roomId": 713992, "calendar": [{"from": "2026-12-01", "to": "2026-12-02"} | entry]}
    ),
    ANYTHING.map(lambda any_id: {"roomId": any_id, "bookingId": any_id, "id": any_id, "message": "x", "calendar": []}),
)


@settings(max_examples=300)
@given(items=st.lists(ITEM, max_size=4))
def test_every_item_gets_an_answer(items: list[Any]) -> None:
    account = Account(clock=lambda: START)
    charged = STAY | {"invoiceItems": [{"amount": 1}], "infoItems": [{"code": "a"}]}
    assert account.book(charged).id == 90_923_001
    token = Token("t", frozenset(ALL_SCOPES), START, None, START)
    ask = Ask(Query(QueryParams()), Headers(), items, URL("http://beds24.test"), "127.0.0.1", token)
    for path, operation in (
        ("/bookings", post_bookings),
        ("/inventory/rooms/calendar", post_calendar),
        ("/bookings/messages", post_messages),
        ("/properties", post_properties),
    ):
        answer = operation(account, ask)
        assert (answer.status, len(answer.body)) == (201, len(items))
        if SPEC.exists():
            validate_response("POST", path, 201, answer.body)
