"""Each line of a log is JSON, and quotes no error's text and no argument, whoever writes it."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import orjson
import pytest

from telemetry.logs import JsonLines, about, of_loop

GUEST = "Hildegard"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [orjson.loads(JsonLines("test").format(record)) for record in caplog.records]


async def fail() -> None:
    raise ValueError(f"no room for {GUEST}")


def take(_arguments: Any) -> None:
    raise ValueError(f"no room for {GUEST}")


async def test_what_an_event_loop_says_of_what_nobody_waited_for_quotes_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(of_loop)
    task = asyncio.create_task(fail(), name="a task")
    await asyncio.wait([task])
    del task
    gc.collect()
    loop.call_soon(take, {"firstName": GUEST})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    told = lines(caplog)
    assert [(line["message"], line["error_type"]) for line in told] == [
        ("Task exception was never retrieved", "ValueError"),
        ("Exception in callback take", "ValueError"),
    ]
    assert told[0]["task"] == "a task"
    assert all("test_log_lines" in str(line["stack"]) for line in told)
    assert GUEST not in str(told)


@pytest.mark.parametrize("odd", ["\ud800", 2**70])
def test_what_is_no_plain_json_is_a_line_all_the_same(odd: Any, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("test").warning("odd", extra=about(event_id="e", said=odd))
    (line,) = lines(caplog)
    assert (line["message"], line["event_id"]) == ("odd", "e")
