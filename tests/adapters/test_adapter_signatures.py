"""Webhook signatures."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest

from adapters.errors import SignatureRefused
from adapters.port import Scheme, WebhookAuth, WebhookRequest
from adapters.signatures import sign, verify

VECTORS = (
    Path(__file__).resolve().parents[2].parent / "shared/vendors/samples/webhook-standards/hmac-sha256-hex.vectors.json"
)
HMAC = WebhookAuth(Scheme.HMAC, "X-Vendor-Signature")
STATIC = WebhookAuth(Scheme.STATIC_HEADER, "X-Vendor-Key")
BODY = b'{"id": 1}'
GOOD = hmac.new(b"secret", BODY, hashlib.sha256).hexdigest()


def check(auth: WebhookAuth, *secrets: str, body: bytes = BODY, header: str = "", **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    verify(WebhookRequest("POST", named, {}, body), auth, header or auth.header, secrets or ("secret",))


def test_published_vectors() -> None:
    if not VECTORS.exists():
        pytest.skip(f"the published vectors are not part of this repository: no {VECTORS}")
    for vector in json.loads(VECTORS.read_bytes())["vectors"]:
        key = vector.get("key_text") or bytes.fromhex(vector["key_hex"]).decode("latin-1")
        body = vector["data_text"].encode() if "data_text" in vector else bytes.fromhex(vector["data_hex"])
        assert sign(body, key) == vector["hex"]
        check(HMAC, key, body=body, x_vendor_signature=vector["hex"])
        check(HMAC, key, body=body, x_vendor_signature=f"sha256={vector['hex']}")


@pytest.mark.parametrize("value", [GOOD, GOOD.upper(), f"sha256={GOOD}", f" {GOOD} "])
def test_hex_is_accepted_bare_prefixed_and_in_either_case(value: str) -> None:
    check(HMAC, x_vendor_signature=value)


def test_the_previous_secret_is_accepted_while_it_is_given() -> None:
    check(HMAC, "new", "secret", x_vendor_signature=GOOD)
    with pytest.raises(SignatureRefused, match=r"X-Vendor-Signature: does not match"):
        check(HMAC, "new", x_vendor_signature=GOOD)


@pytest.mark.parametrize("value", ["", "abc", GOOD[:-1], GOOD + "0", f"md5={GOOD}", "é" * 64, "\udcff" * 64, "٣" * 64])
def test_what_is_no_hex_digest_is_refused(value: str) -> None:
    with pytest.raises(SignatureRefused, match="X-Vendor-Signature: not an HMAC"):
        check(HMAC, x_vendor_signature=value)


def test_an_altered_body_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="does not match the body"):
        check(HMAC, body=BODY + b" ", x_vendor_signature=GOOD)


@pytest.mark.parametrize("auth", [HMAC, STATIC])
def test_a_missing_header_is_named(auth: WebhookAuth) -> None:
    with pytest.raises(SignatureRefused, match=f"^{auth.header}: missing$"):
        check(auth)


@pytest.mark.parametrize("auth", [HMAC, STATIC])
@pytest.mark.parametrize("secrets", [(), ("",)])
def test_without_a_secret_nothing_is_accepted(auth: WebhookAuth, secrets: tuple[str, ...]) -> None:
    empty = hmac.new(b"", BODY, hashlib.sha256).hexdigest()
    request = WebhookRequest("POST", {"x-vendor-signature": empty, "x-vendor-key": ""}, {}, BODY)
    with pytest.raises(SignatureRefused, match="no secret is set"):
        verify(request, auth, auth.header, secrets)


def test_the_generic_header_alone_is_enough_for_hmac_only() -> None:
    check(HMAC, x_webhook_signature=GOOD)
    with pytest.raises(SignatureRefused, match="X-Vendor-Key: missing"):
        check(STATIC, x_webhook_signature=GOOD)


@pytest.mark.parametrize(("vendors", "generic"), [(GOOD, "0" * 64), ("0" * 64, GOOD)])
def test_when_both_headers_are_there_both_must_be_right(vendors: str, generic: str) -> None:
    check(HMAC, x_vendor_signature=GOOD, x_webhook_signature=GOOD)
    check(STATIC, x_vendor_key="secret", x_webhook_signature=GOOD)
    with pytest.raises(SignatureRefused):
        check(HMAC, x_vendor_signature=vendors, x_webhook_signature=generic)
    with pytest.raises(SignatureRefused, match="X-Webhook-Signature"):
        check(STATIC, x_vendor_key="secret", x_webhook_signature="0" * 64)


def test_the_static_header_may_have_another_name() -> None:
    check(STATIC, header="X-My-Key", x_my_key="secret")
    with pytest.raises(SignatureRefused, match="X-My-Key: missing"):
        check(STATIC, header="X-My-Key", x_vendor_key="secret")


@pytest.mark.parametrize("value", ["Secret", "secret2", "", "sécret", "\udcff"])
def test_a_wrong_static_value_is_refused(value: str) -> None:
    with pytest.raises(SignatureRefused, match="X-Vendor-Key: wrong value"):
        check(STATIC, x_vendor_key=value)
