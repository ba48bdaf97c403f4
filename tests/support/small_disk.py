"""A disk of its own for a test, which can be full: a tmpfs, which only root can mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

_SIZE: Final = 4 << 30
_PAGE: Final = 4_096


class SmallDisk:
    """A tmpfs.

    Args:
        folder: Where it is mounted; the folder is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tidemill-test", str(folder))

    def fill(self) -> None:
        """Let it be as large as what is in it: nothing more can be written."""
        while True:
            found = os.statvfs(self._folder)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            try:
                _mount("-o", f"remount,size={max(used, _PAGE)}", str(self._folder))
            except subprocess.CalledProcessError:
                continue  # more was written meanwhile
            return

    def make_room(self) -> None:
        """Let it be large again."""
        _mount("-o", f"remount,size={_SIZE}", str(self._folder))

    def close(self) -> None:
        """Unmount it; what is in it is gone."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
