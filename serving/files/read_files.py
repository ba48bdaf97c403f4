"""Files that a stage reads back; a damaged one is a `DamagedFile` with its name and a remedy.

Whatever is wrong with the bytes (truncated, empty, changed, other JSON than was written), a reader
gets one error, which names the file and the command that writes it again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.features.errors import DamagedFile, TidemillError
from tidemill.serving.files.file_errors import file_error

T = TypeVar("T")

_DAMAGE: Final = (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
    EOFError,
    OverflowError,
    pa.ArrowException,
)
"""Errors that damaged bytes raise in JSON, Arrow, Parquet and the code that parses them."""


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Turn the errors of reading and parsing a file into a `FileError`.

    Args:
        path: The file.
        remedy: What to do if it is damaged, such as "run `tidemill stream` again".

    Raises:
        DamagedFile: The bytes are not those that were written.
        FileError: The system refuses to read them.
    """
    try:
        yield
    except TidemillError:
        raise
    except OSError as error:
        # Arrow raises an OSError without a number for bytes that it cannot parse.
        if error.errno is None:
            raise _damaged(path, error, remedy) from error
        raise file_error(error, path) from error
    except _DAMAGE as error:
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: BaseException, remedy: str) -> DamagedFile:
    why = " ".join(str(error).replace(str(path), path.name).split()) or type(error).__name__
    if isinstance(error, KeyError):
        why = f"there is no {why}"
    size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
    return DamagedFile(f"{path} is damaged ({size}): {why[:120].rstrip('.')}; {remedy}")


def read_json(path: Path, take: Callable[[Any], T], remedy: str) -> T:
    """Read a JSON file that a stage has written.

    Args:
        path: The file; UTF-8.
        take: Extracts the result from the parsed JSON; an error over a missing key or another
            type counts as damage.
        remedy: What to do if the file is damaged.

    Raises:
        DamagedFile: The file is not JSON, or not what was written.
        FileError: It cannot be read.
    """
    with reading(path, remedy):
        return take(json.loads(path.read_bytes().decode("utf-8")))


def read_json_lines(path: Path, take: Callable[[Any], T], remedy: str) -> list[T]:
    """Read a file of at least one line, each a JSON value, as `read_json` reads one value."""
    with reading(path, remedy):
        found = [take(json.loads(line)) for line in path.read_bytes().decode("utf-8").splitlines()]
        if not found:
            raise ValueError("there is no line in it")
        return found


def read_table(path: Path, remedy: str, **options: Any) -> pa.Table:
    """Read a Parquet file that a stage has written; options as for ``pyarrow.parquet.read_table``.

    Raises:
        DamagedFile: It is not a Parquet file, or lacks a column that is read.
        FileError: It cannot be read.
    """
    with reading(path, remedy):
        if path.is_dir():  # Arrow would read it as an empty table
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return pq.read_table(path, **options)


def row_count(path: Path, remedy: str) -> int:
    """Return the number of rows that a Parquet file declares; errors as for `read_table`."""
    with reading(path, remedy):
        return int(pq.read_metadata(path).num_rows)
