"""Exchanging two folders in one step, so that who lists them finds the one or the other."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from tidemill.serving.files.atomic_write import wait_for_disk

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(new: Path, old: Path) -> None:
    """Exchange two folders of a file system, and wait for the disk.

    Where the system cannot do that in one step (macOS, some network file systems), ``old`` is
    missing for the instant between two renames; `pipelines.archive.archiving` mends a kill there.

    Raises:
        OSError: A folder cannot be renamed.
    """
    if not _exchanged(new, old):
        aside = new.with_name(f"{new.name}.old")
        old.rename(aside)
        new.rename(old)
        aside.rename(new)
    for folder in {new.parent, old.parent}:
        wait_for_disk(folder)


def _exchanged(new: Path, old: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(old))
