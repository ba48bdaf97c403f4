"""Directories that appear whole or not at all.

A directory is written beside the others under a name that no reader opens, and renamed. Several
writers may run at once: each has a directory of its own, and they rename one after the other. A
writer that is killed leaves its directory; the next one removes it, because the lock that the dead
writer held on it is free. Locks (``flock``) need a local file system.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.files.file_errors import named_for
from tidemill.serving.files.folder_lock import folder_lock

_WRITING: Final = ".writing-"
_REPLACED: Final = ".replaced-"


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Make a directory to write to; it is removed at the end, unless `publish` has renamed it.

    Args:
        parent: The directory that it is to be published in; created if it does not exist.

    Yields:
        The new directory, empty.
    """
    parent.mkdir(parents=True, exist_ok=True)
    scratch = parent / f"{_WRITING}{uuid.uuid4().hex}"
    with folder_lock(parent):
        _remove_abandoned(parent)
        scratch.mkdir()
        lock = os.open(scratch, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield scratch
    finally:
        with folder_lock(parent):  # no other writer removes it at the same time
            os.close(lock)
            if scratch.exists():
                shutil.rmtree(scratch)


def publish(scratch: Path, place: Path, is_whole: Callable[[Path], bool]) -> None:
    """Give a finished directory its name; a power cut, too, leaves it whole or without that name.

    Args:
        scratch: A `scratch_directory`.
        place: Its name, in the same parent directory.
        is_whole: Whether a directory that has this name already is whole. Then it stays, and
            nothing is published; else it is replaced.
    """
    for path in scratch.rglob("*"):
        wait_for_disk(path)
    wait_for_disk(scratch)
    with folder_lock(place.parent):
        if place.exists():
            if is_whole(place):
                return
            place.rename(place.with_name(f"{_REPLACED}{uuid.uuid4().hex}"))
        scratch.rename(place)
        wait_for_disk(place.parent)
        _remove_abandoned(place.parent)


def retire(place: Path) -> None:
    """Remove a directory that `publish` has named: no reader finds part of it.

    Args:
        place: The directory.

    Raises:
        FileError: It cannot be removed.
    """
    with named_for(place), folder_lock(place.parent):
        place.rename(place.with_name(f"{_REPLACED}{uuid.uuid4().hex}"))
        _remove_abandoned(place.parent)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of writers that died, and those that were replaced."""
    for path in (*parent.glob(f"{_WRITING}*"), *parent.glob(f"{_REPLACED}*")):
        directory = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its writer lives
        else:
            shutil.rmtree(path)
        finally:
            os.close(directory)
