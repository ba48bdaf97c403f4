"""Files that are written whole or not at all.

Whoever reads meets the file before the write or after it, never half of it; two writers of one
file never share anything, and the later one stands. A writer that is killed leaves
``NAME.*.unfinished`` beside the file, which nobody reads.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidemill.serving.files.file_errors import named_for


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Replace a file by what the block writes; after an error there the file is what it was.

    Args:
        path: The file; its folder is made if it is not there.
        durable: Wait for the disk: a power cut, too, leaves the file before the write or after
            it, and after it once this has returned.

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
                _wait_for_disk(unfinished)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        if durable:
            _wait_for_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(text.encode())


def _wait_for_disk(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
