"""The log as JSON: one object in a line, from Tidemill, the project and all libraries alike.

Every line has ``time`` (ISO 8601, UTC), ``level``, ``run`` (the id of the run), ``logger`` and
``message``. An event (`pipelines.telemetry.events`) has its name as ``event``, and its fields; a
record of an exception has ``error``: its class, its text and its traceback.
"""

from __future__ import annotations

import datetime
import json
import logging
import traceback
from typing import Any

from tidemill.pipelines.telemetry.events import EVENT, FIELDS
from tidemill.pipelines.telemetry.run_id import RUN_ID


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "run": RUN_ID,
            "logger": record.name,
        }
        if (event := getattr(record, EVENT, None)) is not None:
            line["event"] = event
        line["message"] = _message(record)
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        line |= {name: value for name, value in fields.items() if name not in line}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
        elif record.exc_text:
            line["error"] = {"traceback": record.exc_text}
        return json.dumps(line, default=str, ensure_ascii=False)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # the arguments do not fit: a fault of whoever logs
        return f"{record.msg} {record.args!r}"


def described(error: BaseException, *, shows_traceback: bool = True) -> dict[str, str]:
    """Describe an exception.

    Args:
        error: The exception.
        shows_traceback: Whether to show where it was raised.
    """
    said = {"class": type(error).__name__, "text": str(error)}
    if shows_traceback:
        said["traceback"] = "".join(traceback.format_exception(error))
    return said
