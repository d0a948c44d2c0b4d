"""Dead letters of what has no event row: the broker's, and messages that nobody could record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from schemas.event import encode
from schemas.vocabulary import Fault, Owner
from store.settle import DeadLetterRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.event import Event, Malformed
    from store.seal import Cipher

_KEPT_BYTES = 64 * 1024  # of a message that is malformed as a whole


def stranger(event: Event, problem: str, cipher: Cipher, company_id: str | None = None) -> DeadLetterRow:
    """An event that can have no row: kept whole, sealed for its company, or for the installation if it may belong to nobody."""
    letter = letter_without_row(event.type, company_id, problem, {"id": event.id, "source": event.source})
    whole = encode(event)
    letter.sealed, letter.digest = cipher.seal_bytes(whole), cipher.digest(whole)
    return letter


def unreadable(malformed: Malformed, queue: str, routing: Mapping[str, Any], cipher: Cipher) -> DeadLetterRow:
    """What is no event. One of a batch is kept whole, so that it can be sent again without the others.

    routing: where it came from, its `key` among it
    """
    of_batch = malformed.place is not None
    said = {**routing, "place": malformed.place} if of_batch else routing
    letter = letter_without_row(routing["key"], None, malformed.problem, said)
    letter.queue = queue
    letter.error_code = "unreadable_message"
    letter.sealed = cipher.seal_bytes(malformed.raw if of_batch else malformed.raw[:_KEPT_BYTES])
    # With its place: a batch may say the same twice, and so may two types.
    letter.digest = cipher.digest(f"{routing['key']} {malformed.place}\n".encode() + malformed.raw)
    return letter


def letter_without_row(
    event_type: str, company_id: str | None, problem: str, routing: Mapping[str, Any]
) -> DeadLetterRow:
    """For what could not become an event row; routing says where it came from."""
    said = {name: _storable(value) if isinstance(value, str) else value for name, value in routing.items()}
    return DeadLetterRow(
        event_id=None,
        company_id=company_id,
        connection_id=None,
        vendor=None,
        queue=None,
        operation=_storable(event_type),
        entity_type=None,
        entity_external_id=None,
        entity_internal_id=None,
        error_class=Fault.INVALID.value,
        error_code="not_recorded",
        error_message=problem,
        attempts=1,
        first_attempt_at=None,
        owner=Owner.TENANT.value,
        routing=orjson.dumps(said).decode(),
    )


def _storable(text: str) -> str:
    """No Postgres text holds a NUL; the sealed part has it as it came."""
    return text.replace("\0", "\ufffd")
