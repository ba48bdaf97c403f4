"""SQLite's errors, turned into a `StoreError` with the store, the key space and a remedy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import NoKeySpace, StoreError, StoreUnavailable
from tidemill.serving.online.database import no_key_space
from tidemill.serving.online.rows import KeySpace

_TRANSIENT: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)
"""Primary result codes of errors that may pass: another writer, or the disk."""


@contextmanager
def named_errors(path: str, spaces: Sequence[KeySpace] = ()) -> Iterator[None]:
    """Turn the errors of reading or writing key spaces of a file into a `StoreError`.

    Raises:
        NoKeySpace: A key space does not exist, or the file itself.
        StoreUnavailable: The same call may succeed later.
        StoreError: The file cannot be read or written.
    """
    store = f"online store {path}"
    try:
        yield
    except FileNotFoundError as error:
        raise NoKeySpace(
            f"there is no online store at {path}; register the project to make it"
        ) from error
    except sqlite3.Error as error:
        raise _explained(store, spaces, error) from error
    except OSError as error:
        raise StoreError(f"{store}: {error}") from error


def _explained(store: str, spaces: Sequence[KeySpace], error: sqlite3.Error) -> StoreError:
    for space in spaces:
        if str(error) == f"no such table: {space.name}":
            return no_key_space(store, space)
    # An error of the Python module itself has no code.
    if getattr(error, "sqlite_errorcode", -1) & 0xFF in _TRANSIENT:
        return StoreUnavailable(
            f"{store}: {error}; nothing was written: try again, after making room on the "
            "disk or ending the writer that keeps the lock"
        )
    if str(error) == "no such table: tidemill_frontiers":
        return NoKeySpace(f"{store}: there is no online store in it; register the project")
    return StoreError(f"{store}: {error}")
