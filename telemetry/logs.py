"""Logs: one JSON object a line on stderr.

Extra fields are passed with `extra=`, through `about()`. Only ids, types, counts and fixed words belong there; texts of
errors come from our own error classes, which carry neither guest data nor secrets.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

_FIELDS = "staybus_fields"


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
        return orjson.dumps(line, default=str).decode()


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
