"""The least level of what Tidemill logs, which a stream that runs can change."""

from __future__ import annotations

import logging
from typing import Final

_TIDEMILL: Final = "tidemill"


def set_level(level: str | None, log_format: str) -> None:
    """Set the least level of Tidemill's records in this process.

    Args:
        level: One of `config.choices.LOG_LEVELS`; None for that of the format.
        log_format: ``text``, which shows warnings, or ``json``, which also shows what happens.
    """
    default = logging.INFO if log_format == "json" else logging.NOTSET
    logging.getLogger(_TIDEMILL).setLevel(default if level is None else level.upper())
