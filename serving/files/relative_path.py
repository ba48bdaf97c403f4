"""Paths as files name them: from the file's own folder, so that the folder can be moved."""

from __future__ import annotations

import os
from pathlib import Path


def relative_path(path: Path, folder: Path) -> str:
    """Return how a file in a folder names a path, with ``..`` where the path is not below it.

    Args:
        path: Absolute path.
        folder: Absolute path of the folder.

    >>> relative_path(Path("/data/run/online.db"), Path("/data/run"))
    'online.db'
    >>> relative_path(Path("/data/ca.crt"), Path("/data/run"))
    '../ca.crt'
    """
    return os.path.relpath(path, folder)
