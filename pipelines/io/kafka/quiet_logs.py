"""kafka-python's logs without what it sends: at the level DEBUG they would hold passwords."""

from __future__ import annotations

import logging
from typing import Final

_WIRE_LOGS: Final = ("kafka.protocol.parser", "kafka.net.connection")


def hide_what_is_sent() -> None:
    """Drop the records of single requests and bytes; warnings and errors stay."""
    for name in _WIRE_LOGS:
        logging.getLogger(name).addFilter(_above_debug)


def _above_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG
