"""SQLite's errors, turned into a `StoreError` with the store and a remedy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidemill.features.errors import NoKeySpace, StoreError, StoreUnavailable

_TRANSIENT: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
)
"""Primary result codes of errors that may pass: another writer, or the disk."""
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MEND: Final = (
    "restore the file from a copy, or remove it and publish everything again from state: "
    "`tidemill republish`"
)


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turn the errors of reading or writing a file into a `StoreError`.

    Raises:
        NoKeySpace: The file does not exist.
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
        raise _explained(store, error) from error
    except UnicodeDecodeError as error:
        # The module decodes the message of a damaged schema, which quotes its bytes.
        raise StoreError(f"{store}: {error.object.decode(errors='replace')}; {_MEND}") from error
    except OSError as error:
        raise StoreError(f"{store}: {error}") from error


def _explained(store: str, error: sqlite3.Error) -> StoreError:
    # An error of the Python module itself has no code.
    code = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if code in _TRANSIENT:
        return StoreUnavailable(
            f"{store}: {error}; nothing was written: try again, after making room on the "
            "disk or ending the writer that keeps the lock"
        )
    if code in _DAMAGED or str(error).startswith("malformed"):
        return StoreError(f"{store}: {error}; {_MEND}")
    return StoreError(f"{store}: {error}")
