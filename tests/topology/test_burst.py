"""The frames that are packed here are those that the library would write."""

from types import SimpleNamespace
from typing import Any, cast

from aiormq.abc import AbstractChannel
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from topology.burst import Outgoing, _frames

LIMIT = 50  # bytes of a body frame, so that bodies are cut
CHANNEL = cast("AbstractChannel", SimpleNamespace(number=3, max_content_size=LIMIT))

words = st.text(min_size=1, max_size=40)
messages = st.builds(
    Outgoing,
    routing_key=words,
    body=st.binary(max_size=3 * LIMIT),
    content_type=words,
    correlation_id=st.none() | words,
    headers=st.none() | st.dictionaries(words, words, max_size=3),
    type=st.none() | words,
    mandatory=st.booleans(),
)


@given(messages)
def test_a_message_is_framed_as_the_library_frames_it(message: Outgoing) -> None:
    properties = Basic.Properties(
        content_type=message.content_type,
        headers=cast("dict[str, Any]", message.headers) or None,
        delivery_mode=2,
        correlation_id=message.correlation_id,
        message_id="an-id",
        message_type=message.type or message.routing_key,
    )
    body = message.body
    expected = [
        marshal(Basic.Publish(exchange="pms.events", routing_key=message.routing_key, mandatory=message.mandatory), 3),
        marshal(ContentHeader(properties=properties, body_size=len(body)), 3),
        *(marshal(ContentBody(body[start : start + LIMIT]), 3) for start in range(0, len(body), LIMIT)),
    ]
    assert b"".join(_frames(CHANNEL, "pms.events", message, "an-id")) == b"".join(expected)
