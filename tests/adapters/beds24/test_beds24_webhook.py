"""What Beds24 sends becomes facts."""

from __future__ import annotations

import json

import orjson
import pytest

from adapters.beds24.webhook import parse
from adapters.errors import CardDataRefused, Malformed
from adapters.port import Fact, WebhookRequest
from schemas.vocabulary import EntityType
from tests.adapters.beds24.examples import BOOKING, PROPERTY, ROOM, body, connection, post

HERE = connection()


def only(document: object) -> Fact:
    (fact,) = parse(post(document), HERE)
    return fact


def key(document: object) -> str | None:
    return only(document).idempotency_key


def test_a_booking_webhook_is_one_fact_with_the_whole_object_as_payload() -> None:
    fact = only(body())
    assert (fact.event_type, fact.entity_type) == ("beds24.booking.modified", EntityType.RESERVATION)
    assert (fact.external_id, fact.property_external_id) == (str(BOOKING), str(PROPERTY))
    assert fact.payload == body()


def test_an_array_of_one_and_the_bare_object_are_the_same_fact() -> None:
    assert only([body()]) == only(body())


def test_an_array_of_several_gives_several_facts() -> None:
    facts = parse(post([body(), body({"id": 7}), {"booking": {"id": 8}}]), HERE)
    assert [fact.external_id for fact in facts] == [str(BOOKING), "7", "8"]


@pytest.mark.parametrize(
    ("changes", "verb"),
    [
        ({"bookingTime": "2026-05-01T11:58:30Z"}, "created"),
        ({}, "modified"),
        ({"status": "cancelled"}, "cancelled"),
        ({"status": "cancelled", "bookingTime": "2026-05-01T11:58:30Z"}, "cancelled"),
        ({"bookingTime": "", "modifiedTime": ""}, "modified"),
    ],
)
def test_the_event_type_tells_what_happened(changes: dict[str, object], verb: str) -> None:
    assert only(body(changes)).event_type == f"beds24.booking.{verb}"


def test_a_resend_has_the_same_key() -> None:
    assert key(body(retries=3, timeStamp="2026-05-01T13:00:00Z")) == key(body())


@pytest.mark.parametrize(
    "other",
    [
        body({"modifiedTime": "2026-05-01T11:58:31Z"}),
        body({"status": "cancelled"}),
        body({"id": BOOKING + 1}),
        body({"departure": "2026-06-14"}),  # within the same second
        body(messages=[{"id": 4, "message": "and breakfast?"}]),
        body(infoItems=[]),
        body(invoiceItems=[]),
    ],
)
def test_another_fact_has_another_key(other: dict[str, object]) -> None:
    """A guest's message leaves modifiedTime alone, and two changes may fall into one second."""
    assert key(other) != key(body())


def test_two_connections_to_one_account_have_their_own_facts() -> None:
    from dataclasses import replace

    (fact,) = parse(post(body()), replace(HERE, id="conn-2"))
    assert fact.idempotency_key != key(body())


@pytest.mark.parametrize("name", ["id", "bookId", "bookid", "bookingId"])
@pytest.mark.parametrize("id_", [BOOKING, str(BOOKING)])
def test_an_id_alone_is_a_hint_without_a_key(name: str, id_: object) -> None:
    assert only({name: id_}) == Fact(
        "beds24.booking.hinted", EntityType.RESERVATION, str(BOOKING), {"id": str(BOOKING)}, None
    )


def test_a_wrapped_id_is_a_hint() -> None:
    assert only({"booking": {"id": BOOKING}}).event_type == "beds24.booking.hinted"


def test_a_hint_has_no_key_also_where_it_tells_a_time() -> None:
    """Its time has whole seconds: of two changes in one, the second must be fetched, too."""
    assert key({"booking": {"id": 5}, "timeStamp": "2026-05-01T11:58:31Z"}) is None
    assert key({"booking": {"id": 5, "modifiedTime": "2026-05-01T11:58:31Z", "status": "new"}}) is None


def test_version_one_webhooks_are_hints_by_get() -> None:
    request = WebhookRequest("GET", {}, {"bookid": "77", "status": "new"}, b"")
    assert parse(request, HERE) == [
        Fact("beds24.booking.hinted", EntityType.RESERVATION, "77", {"id": "77", "status": "new"}, None)
    ]


def test_the_inventory_webhook_names_its_room() -> None:
    sent = {"roomId": str(ROOM), "propId": str(PROPERTY), "ownerId": "1", "action": "SYNC_ROOM"}
    assert only(sent) == Fact("beds24.inventory.changed", EntityType.AVAILABILITY, str(ROOM), sent, None, str(PROPERTY))


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b"", "body"),
        (b"not json", "body"),
        (b'{"booking": ', "body"),
        (b"\xff\xfe", "body"),
        (b'{"booking": {"id": 1, "firstName": "\\ud800"}}', "body"),
        (b"[" * 500 + b"]" * 500, "body"),
        (b"[" * 100_000, "body"),
        ([], "body"),
        ([[]], "body"),
        (3, "body"),
        ({}, "body"),
        ({"booking": 3}, "booking"),
        ({"booking": {}}, "booking.id"),
        (body({"id": "abc"}), "booking.id"),
        (body({"id": True}), "booking.id"),
        (body({"id": -4}), "booking.id"),
        (body({"id": 1e30}), "booking.id"),
        (body({"id": None}), "booking.id"),
        (body({"propertyId": "x"}), "booking.propertyId"),
        ([body(), body({"id": "x"})], "1.booking.id"),
        ({"id": {}}, "id"),
        ({"action": "OTHER", "roomId": "1"}, "action"),
        ({"action": "SYNC_ROOM"}, "roomId"),
        ({"action": "SYNC_ROOM", "roomId": "1", "propId": "?"}, "propId"),
    ],
)
def test_what_is_not_a_webhook_is_malformed_and_says_where(sent: object, field: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(post(sent), HERE)
    assert caught.value.field == field


def test_a_member_that_is_nested_too_deep_is_malformed() -> None:
    """JSON writers and Postgres have limits of their own, which would show only later."""
    deep: object = "x"
    for _ in range(200):
        deep = [deep]
    with pytest.raises(Malformed, match="nested deeper"):
        parse(post(body(unknownMember=deep)), HERE)


def test_a_version_one_webhook_without_an_id_is_malformed() -> None:
    with pytest.raises(Malformed, match=r"query\.bookid: missing"):
        parse(WebhookRequest("GET", {}, {"status": "new"}, b""), HERE)


def test_nul_characters_are_replaced_and_emoji_kept() -> None:
    """Postgres keeps no NUL in text or jsonb."""
    fact = only(body({"notes": "a\x00b 🏖", "new\x00member": ["\x00"]}))
    assert fact.payload["booking"]["notes"] == "a\ufffdb 🏖"
    assert fact.payload["booking"]["new\ufffdmember"] == ["\ufffd"]
    assert b"\\u0000" not in orjson.dumps(fact.payload)


@pytest.mark.parametrize(
    "name", ["cvc", "CVC", "cvv2", "cardNumber", "card_number", "ccNumber", "cardExpiry", "ccExpDate"]
)
@pytest.mark.parametrize("place", ["booking", "top", "deep"])
def test_card_data_is_refused_with_hints_in_its_place(name: str, place: str) -> None:
    sent = body()
    {"booking": sent["booking"], "top": sent, "deep": sent["infoItems"][0]}[place][name] = "4111"
    with pytest.raises(CardDataRefused) as caught:
        parse(post([sent, body({"id": 9})]), HERE)
    hints = caught.value.hints
    assert [hint.external_id for hint in hints] == [str(BOOKING), "9"]
    assert {hint.event_type for hint in hints} == {"beds24.booking.hinted"}
    assert hints[0].payload == {
        "id": str(BOOKING),
        "modifiedTime": "2026-05-01T11:58:30Z",
        "status": "confirmed",
        "timeStamp": "2026-05-01T11:58:31Z",
    }
    assert "4111" not in str(caught.value)


def test_card_data_whose_name_is_spelled_with_escapes_is_refused() -> None:
    raw = json.dumps(body({"cvc": "123"})).replace('"cvc"', '"\\u0063vc"').encode()
    with pytest.raises(CardDataRefused):
        parse(post(raw), HERE)


def test_card_data_as_a_tagged_text_is_refused() -> None:
    with pytest.raises(CardDataRefused):
        parse(post(body(infoItems=[{"code": "CVC", "text": "123"}])), HERE)


def test_card_data_in_what_is_no_webhook_at_all_is_still_refused() -> None:
    """The ingress keeps a malformed body for study, so this must not be merely malformed."""
    whole = json.dumps(body({"cvc": "123"})).encode()
    for sent in (whole[:-1], whole + b"}", b'[1, {"cvc": "123"}]', b'{"\\u0063vc": "123"', b'["cardNumber" :4111'):
        with pytest.raises(CardDataRefused):
            parse(post(sent), HERE)


def test_empty_card_members_are_no_card_data() -> None:
    assert only(body({"cvc": "", "cardNumber": None}, card={})).payload["booking"]["cvc"] == ""


def test_card_tokens_are_dropped_before_anything_is_recorded() -> None:
    fact = only(body({"stripeToken": "tok_1", "pcibookingToken": "pci_1"}))
    assert (fact.payload["booking"]["stripeToken"], fact.payload["booking"]["pcibookingToken"]) == (None, None)
    assert fact.idempotency_key == key(body())
