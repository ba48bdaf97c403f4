"""Files that a repeat must write again with the same content.

An engine that recovers repeats what it has written. A name says which output a file holds, so the
repeat finds the file: an equal one stays, and another one is an error, never a second copy.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tidemill.features.errors import OutputConflict
from tidemill.serving.files.atomic_write import atomic_write


class _Unchanged(Exception):
    """Ends an `atomic_write` without replacing the file."""


def equal_bytes(one: Path, two: Path) -> bool:
    """Tell whether two files have equal bytes."""
    return filecmp.cmp(one, two, shallow=False)


@contextmanager
def write_once(
    path: Path, remedy: str, same: Callable[[Path, Path], bool] = equal_bytes
) -> Iterator[Path]:
    """Write a file atomically, or keep the file that is there if the block writes the same.

    Of two writers at the same time both may find no file; then the later one replaces the file of
    the earlier one, which is the same.

    Args:
        path: The file; its folder is created if it does not exist.
        remedy: What to do if the file differs, such as "run `tidemill stream` again".
        same: Tells whether the file that is there and the file that the block has written are the
            same output.

    Yields:
        The path to write to.

    Raises:
        OutputConflict: The file is there with other content; it is unchanged.
        FileError: As `serving.files.atomic_write.atomic_write`.
    """
    try:
        with atomic_write(path) as unfinished:
            yield unfinished
            if path.exists():
                if not same(path, unfinished):
                    raise OutputConflict(
                        f"{path} was written before with other content: this output was repeated, "
                        "and a repeat must be the same; the input, the definitions or the software "
                        f"have changed in between: {remedy}"
                    )
                raise _Unchanged
    except _Unchanged:
        pass
