"""What a stranger puts into the properties of a message never costs the connection, and so never the messages behind it."""

from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any

import aio_pika
import pytest
from aiormq.abc import AbstractChannel
from pamqp import decode
from pamqp.commands import Basic
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from tests.topology.conftest import Inbox
from tests.topology.odd_frames import ODD, give_up, header_frame, publish
from topology.apply import apply
from topology.consumer import Consumer
from topology.declared import VendorRoutes
from topology.declared import topology as declare
from topology.lenient import read_everything

SMALL = declare([VendorRoutes("beds24", ("beds24.#",))])
NANOSECONDS = 1_700_000_000 * 10**9


@pytest.fixture(autouse=True)
def library() -> None:
    """As it comes, whoever connected before in this process."""
    decode.METHODS |= {
        "shortstr": decode.short_str,
        "timestamp": decode.timestamp,
        "table": decode.field_table,
        "array": decode.field_array,
    }
    decode.TABLE_MAPPING |= {b"T": decode.timestamp, b"F": decode.field_table, b"A": decode.field_array}


def properties(odd: str) -> Any:
    read_everything()
    frame: Any = unmarshal(header_frame(1, 5, ODD[odd][1]))[2]
    assert frame.properties.delivery_mode == 2, "what comes behind the odd value is read from its right place"
    return frame.properties


def test_a_number_that_is_no_time_stays_a_number() -> None:
    assert properties("timestamp in ns").timestamp == NANOSECONDS
    assert properties("timestamp in us").timestamp == NANOSECONDS // 1000
    assert properties("timestamp beyond all").timestamp == 2**64 - 1
    assert properties("header with a time in ns").headers == {"sent": NANOSECONDS}


def test_what_is_not_utf_8_is_read_with_marks_in_its_place() -> None:
    assert properties("message_id in latin-1").message_id == "caf\ufffd"
    assert properties("header named in latin-1").headers == {"caf\ufffd": "x"}
    assert properties("header in a table, named so").headers == {"a": {"caf\ufffd": "x"}}


def test_what_is_nested_too_deep_is_left_out_from_there_on() -> None:
    value, depth = properties("header nested too deep").headers["a"], 0
    while value:
        (value,), depth = value, depth + 1
    assert 50 < depth < 2000


def test_everything_else_is_read_as_the_library_reads_it() -> None:
    read_everything()
    at = datetime.fromisoformat("2026-07-01T10:00:00Z")
    said = Basic.Properties(message_id="café", timestamp=at, headers={"at": at, "in": {"list": [1, {"a": "b"}]}})
    frame: Any = unmarshal(marshal(ContentHeader(properties=said), 1))[2]
    assert frame.properties == said


def test_the_library_decodes_by_the_tables_that_are_changed() -> None:
    """Another version may name them otherwise: then what is put there is asked by nobody, and this says so first."""
    read_everything()
    ours = "topology.lenient"
    domains = {name for name, decoder in decode.METHODS.items() if decoder.__module__ == ours}
    types = {name for name, decoder in decode.TABLE_MAPPING.items() if decoder.__module__ == ours}
    assert (domains, types) == ({"shortstr", "timestamp", "table", "array"}, {b"T", b"F", b"A"})
    # All that can come in a frame: a new one needs a look at what it raises.
    assert set(decode.METHODS) - domains == {
        "bit", "boolean", "byte_array", "decimal", "double", "float", "long", "longlong", "longstr", "octet", "short", "void"
    }  # fmt: skip
    assert b"".join(sorted(set(decode.TABLE_MAPPING) - types)) == b"\x00BDILSVbdfilstux"


@pytest.fixture
async def unconfirmed(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aio_pika.connect(amqp_url)
    yield await (await connection.channel(publisher_confirms=False)).get_underlay_channel()
    await connection.close()


async def test_each_of_them_is_delivered_alive_and_dead_and_its_neighbours_go_on(
    amqp_url: str, unconfirmed: AbstractChannel
) -> None:
    await apply(amqp_url, SMALL)
    lost: list[str] = []
    work, dead = Inbox(), Inbox()
    consumers = [
        Consumer(amqp_url, queue, inbox, prefetch=5, name="test", on_lost=partial(lost.append, queue))
        for queue, inbox in (("beds24.inbound", work), ("beds24.dlq", dead))
    ]
    for consumer in consumers:
        await consumer.start(wait=10)
    for name, (last, of) in ODD.items():
        await publish(unconfirmed, name.encode(), b"beds24." + last, of)
        await publish(unconfirmed, b"neighbour", b"beds24.a")
        message, neighbour = await work.take(2)
        assert (message.body, message.redelivered) == (name.encode(), False)
        assert (neighbour.body, neighbour.redelivered) == (b"neighbour", False)
        consumers[0].settle(message)
        consumers[0].settle(neighbour)
        await consumers[0].pause()
        await publish(unconfirmed, name.encode(), b"beds24." + last, of)
        await give_up(unconfirmed, "beds24.inbound")
        await consumers[0].resume()
        letter = await dead.next()
        assert (letter.body, letter.headers["x-death"][0]["queue"]) == (name.encode(), "beds24.inbound")
        consumers[1].settle(letter)
    for consumer in consumers:
        await consumer.stop()
    assert sorted(lost) == ["beds24.dlq", "beds24.inbound"], "once each, by the stop"
