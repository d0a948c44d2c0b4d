"""Logs: one JSON object a line on stderr.

Extra fields are passed with `extra=`, through `about()`. Only ids, types, counts and fixed words belong there; texts of
errors come from our own error classes, which carry neither guest data nor secrets.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

_FIELDS = "staybus_fields"
_log = logging.getLogger(__name__)


def about(**fields: Any) -> dict[str, Any]:
    """`log.info("settled", extra=about(company_id=…, event_id=…, vendor=…))`; None values are left out."""
    return {_FIELDS: {name: value for name, value in fields.items() if value is not None}}


class JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, _FIELDS, {}))
        if record.exc_info and record.exc_info[1] is not None:
            # Type and place, not the text: a library's error text may quote what it choked on.
            error = record.exc_info[1]
            line["error_type"] = type(error).__name__
            line["stack"] = _places(error)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # what is no UTF-8, or no 64-bit number: `logging` would print the record as it is
            return json.dumps(line, default=str, ensure_ascii=False).encode(errors="replace").decode()


def of_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler. Its own words quote arguments and texts of errors, as no other line does."""
    words = re.split(r"[<({]", context["message"])[0].strip()
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else None
    _log.error(words, exc_info=context.get("exception"), extra=about(task=name))


def configure(process: str, level: str = "INFO") -> None:
    """Once per process, by ops."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These log whole frames, URLs with queries or every request at INFO.
    for noisy in ("aio_pika", "aiormq", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _places(error: BaseException) -> list[str]:
    places = []
    frame = error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        places.append(f"{code.co_filename}:{frame.tb_lineno} {code.co_qualname}")
        frame = frame.tb_next
    return places[-12:]
