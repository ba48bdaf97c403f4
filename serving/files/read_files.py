"""Files that a stage reads back: whole, or a `DamagedFile` that names the file and the mend.

Whatever is wrong with the bytes (cut off, empty, changed, other JSON than was written), a reader
meets one error, which says which file it is and which command writes it again.
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
"""What damaged bytes raise in JSON, Arrow, Parquet and code that expects what was written."""


@contextmanager
def reading(path: Path, mend: str) -> Iterator[None]:
    """Name what goes wrong while a file is read and taken apart.

    Args:
        path: The file.
        mend: What to do where it is damaged, such as "run `tidemill stream` again".

    Raises:
        DamagedFile: The bytes are not what was written.
        FileError: The system refuses to read them.
    """
    try:
        yield
    except TidemillError:
        raise
    except OSError as error:
        # Arrow raises an OSError without a number for bytes that it cannot make sense of.
        if error.errno is None:
            raise _damaged(path, error, mend) from error
        raise file_error(error, path) from error
    except _DAMAGE as error:
        raise _damaged(path, error, mend) from error


def _damaged(path: Path, error: BaseException, mend: str) -> DamagedFile:
    why = " ".join(str(error).replace(str(path), path.name).split()) or type(error).__name__
    if isinstance(error, KeyError):
        why = f"there is no {why}"
    size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
    return DamagedFile(f"{path} is damaged ({size}): {why[:120].rstrip('.')}; {mend}")


def read_json(path: Path, take: Callable[[Any], T], mend: str) -> T:
    """Read a JSON file that a stage has written.

    Args:
        path: The file; UTF-8.
        take: Takes what it needs out of the parsed JSON; what it raises over a missing key or
            another type counts as damage.
        mend: What to do where it is damaged.

    Returns:
        What ``take`` returned.

    Raises:
        DamagedFile: It is no JSON, or not what was written.
        FileError: It cannot be read.
    """
    with reading(path, mend):
        return take(json.loads(path.read_bytes().decode("utf-8")))


def read_json_lines(path: Path, take: Callable[[Any], T], mend: str) -> list[T]:
    """Read a file with one JSON value a line, at least one; as `read_json`, line by line."""
    with reading(path, mend):
        found = [take(json.loads(line)) for line in path.read_bytes().decode("utf-8").splitlines()]
        if not found:
            raise ValueError("there is no line in it")
        return found


def read_table(path: Path, mend: str, **options: Any) -> pa.Table:
    """Read a Parquet file that a stage has written.

    Args:
        path: The file.
        mend: What to do where it is damaged.
        **options: As for ``pyarrow.parquet.read_table``.

    Raises:
        DamagedFile: It is no Parquet file, or lacks a column that was asked for.
        FileError: It cannot be read.
    """
    with reading(path, mend):
        if path.is_dir():  # Arrow would read it as an empty table
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return pq.read_table(path, **options)


def row_count(path: Path, mend: str) -> int:
    """Return how many rows a Parquet file says it has; errors as for `read_table`."""
    with reading(path, mend):
        return int(pq.read_metadata(path).num_rows)
