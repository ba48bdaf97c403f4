"""The exit status of a worker that does not reach the exchange, by which its program knows why.

Such a worker has no other way to tell: a TaskManager says no more of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from tidemill.features.errors import (
    ExchangeError,
    ExchangeRefused,
    ExchangeUnreachable,
    ExpiredCredentials,
    NoSuchBucket,
    TidemillError,
)

_OTHER: Final = 1
_STATUS: Final[Mapping[type[TidemillError], int]] = {
    NoSuchBucket: os.EX_NOINPUT,
    ExchangeUnreachable: os.EX_UNAVAILABLE,
    ExpiredCredentials: os.EX_TEMPFAIL,
    ExchangeRefused: os.EX_NOPERM,
}
_MEANT: Final = {status: kind for kind, status in _STATUS.items()}
_SAID: Final[Mapping[type[TidemillError], str]] = {
    NoSuchBucket: "finds no bucket, or not what the program has written: it has another storage",
    ExchangeUnreachable: "gets no answer of the storage",
    ExpiredCredentials: "has credentials that have expired",
    ExchangeRefused: "is refused by the storage: its credentials are wrong, or lack a right",
}


def exit_status(error: TidemillError) -> int:
    """Return the exit status of a worker that takes up no work because of an error."""
    return _STATUS.get(type(error), _OTHER)


def error_of_status(status: int, exchange: str) -> ExchangeError | None:
    """Return the error that an exit status tells; None if it tells none.

    Args:
        status: The exit status of a worker of a job with an exchange.
        exchange: The URL of the exchange, as errors show it.
    """
    if (kind := _MEANT.get(status)) is None:
        return None
    error = kind(
        f"a worker cannot use the exchange {exchange}: it {_SAID[kind]}; the TaskManager's log has "
        "the storage's own words; what the worker's command has in its environment (\"env\" of "
        "--environment_config) must reach the storage as this program does"
    )
    assert isinstance(error, ExchangeError)
    return error
