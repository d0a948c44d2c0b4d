"""Does a webhook prove where it comes from? Pure, over the raw bytes, in constant time.

Two schemes (port.Scheme). Besides the vendor's header there is our own generic one, `X-Webhook-Signature`, an HMAC for
senders that cannot name their header: alone it is enough where the scheme is HMAC; next to the vendor's header it must
be right too, so that adding a header never makes a request easier to forge.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from .errors import SignatureRefused
from .port import Scheme, WebhookAuth, WebhookRequest

GENERIC_HEADER = "X-Webhook-Signature"

_HEX = re.compile(r"(?:sha256=)?([0-9a-f]{64})", re.IGNORECASE)


def verify(request: WebhookRequest, auth: WebhookAuth, header: str, secrets: Sequence[str]) -> None:
    """Return when the request is the vendor's.

    header   the name to look at: the connection's own, else `auth.header`
    secrets  the current one and, while it is being rotated, the previous one
    raises   SignatureRefused, which names the header
    """
    keys = [secret.encode() for secret in secrets if secret]
    if not keys:
        raise SignatureRefused(f"{header}: no secret is set for this connection")
    given = request.headers.get(header.lower())
    generic = request.headers.get(GENERIC_HEADER.lower())
    if given is None and (generic is None or auth.scheme is not Scheme.HMAC):
        raise SignatureRefused(f"{header}: missing")
    if given is not None:
        check = _check_hmac if auth.scheme is Scheme.HMAC else _check_static
        check(header, given, request.body, keys)
    if generic is not None and header.lower() != GENERIC_HEADER.lower():
        _check_hmac(GENERIC_HEADER, generic, request.body, keys)


def sign(body: bytes, secret: str) -> str:
    """Lower-case hex HMAC-SHA256 of the raw body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _check_hmac(header: str, given: str, body: bytes, keys: Sequence[bytes]) -> None:
    match = _HEX.fullmatch(given.strip())
    if match is None:
        raise SignatureRefused(f"{header}: not an HMAC-SHA256 in hex")
    digest = bytes.fromhex(match[1])
    if not _any_equal(digest, [hmac.digest(key, body, "sha256") for key in keys]):
        raise SignatureRefused(f"{header}: does not match the body")


def _check_static(header: str, given: str, body: bytes, keys: Sequence[bytes]) -> None:
    del body
    # surrogatepass: servers hand over header bytes that are not text in more than one way; none may raise here
    if not _any_equal(given.strip().encode("utf-8", "surrogatepass"), keys):
        raise SignatureRefused(f"{header}: wrong value")


def _any_equal(given: bytes, expected: Sequence[bytes]) -> bool:
    """Compares with each, so that time does not tell which one matched."""
    results = [hmac.compare_digest(given, one) for one in expected]
    return any(results)
