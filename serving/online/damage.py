"""Records and rows of an online store that were changed behind its back: a named error."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import InputError, StoreError

DAMAGE: Final = (
    InputError,
    KeyError,
    IndexError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)
"""Errors that changed bytes raise in what decodes them."""


def damaged(store: str, what: str, error: Exception) -> StoreError:
    """Return the error of something in a store that cannot be decoded.

    Args:
        store: The name of the store.
        what: What it is, such as a fill's record.
        error: What the code that decodes it has raised.
    """
    why = " ".join(str(error).split())[:120] or type(error).__name__
    return StoreError(
        f"{store}: {what} was changed and cannot be read ({why}); restore the store from a copy, "
        "or empty it and publish everything again from state: `tidemill republish`"
    )


@contextmanager
def decoding(store: str, what: str) -> Iterator[None]:
    """Turn the errors of decoding something in a store into a `StoreError`; as `damaged`."""
    try:
        yield
    except StoreError:
        raise
    except DAMAGE as error:
        raise damaged(store, what, error) from error
