"""Files that are written completely or not at all.

A reader sees the file before the write or after it, never a part of it. Of two concurrent writers
of one file, the later one wins. A writer that is killed leaves ``NAME.*.unfinished`` beside the
file, which no reader opens.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.serving.files.file_errors import named_for

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Replace a file by what the block writes; after an error in the block the file is unchanged.

    Args:
        path: The file; its folder is created if it does not exist.
        durable: Wait for the disk. Then a power cut, too, leaves the file before the write or
            after it, and the file after it once this has returned.

    Yields:
        The path to write to.

    Raises:
        FileError: The disk is full, the folder read-only, ...; the error names the file.
    """
    with named_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
        try:
            yield unfinished
            if durable:
                wait_for_disk(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        if durable:
            wait_for_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: Buffer) -> None:
    """Write a file atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(data)


def link_again(path: Path, other: Path) -> None:
    """Give a file another name; what has that name is replaced, and its folder is made."""
    other.parent.mkdir(parents=True, exist_ok=True)
    other.unlink(missing_ok=True)
    os.link(path, other)


def wait_for_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
