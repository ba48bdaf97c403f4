"""Where compiled code is kept: a directory that only the user can write to, named by its sources.

Promises:

* **Only the user's code runs.** numba trusts the pickled files it finds in its cache, so whoever
  can write there runs code as the user. The cache is a directory of the user, mode 0700, below the
  user's cache directory, and never the temporary directory. A directory that another user owns,
  that others can write to, or that is somebody else's link is refused (`UnsafeCache`).
* **Only today's code runs.** numba knows the file of the function that it loads, not the functions
  that this one calls. So the directory's name is a digest of all sources of the kernel, of the
  modules that it takes constants from, and of numba's version. numba itself tells versions of
  Python and kinds of CPU apart.

`NUMBA_CACHE_DIR` in the environment takes the place of the user's cache directory; what it names
is the user's choice and is not checked, the directories made in it are. Where no directory can be
made (a read-only home), code is compiled in each process, and a warning says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import sys
import time
import warnings
from pathlib import Path
from typing import Final

import numba

from tidemill.features.errors import UnsafeCache

_KERNEL: Final = Path(__file__).resolve().parent
# What compiled functions take constants from, outside the kernel.
_CONSTANTS: Final = ("definitions/aggregations.py", "contract.py")
_UNUSED_S: Final = 30 * 24 * 3600.0
"""Age after which the compiled code of other sources is removed."""


def sources() -> list[Path]:
    """Return every file that compiled code depends on."""
    return [
        *sorted(_KERNEL.rglob("*.py")),
        *(_KERNEL.parent / name for name in _CONSTANTS),
    ]


@functools.cache
def digest() -> str:
    """Return a digest of numba's version and of all sources, 16 hexadecimal digits."""
    found = hashlib.sha256(numba.__version__.encode())
    for source in sources():
        text = source.read_bytes()
        name = source.relative_to(_KERNEL.parent).as_posix()
        found.update(f"\n{name} {len(text)}\n".encode())
        found.update(text)
    return found.hexdigest()[:16]


def user_cache() -> Path:
    """Return the directory in which programs of this user cache what they can make again.

    Raises:
        RuntimeError: The user has no home directory.
    """
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is invalid and must be ignored.
    return configured if configured.is_absolute() else Path.home() / ".cache"


@functools.cache
def code_cache() -> Path | None:
    """Return the directory for compiled code, made where it was missing.

    Returns:
        The directory; None, after a warning, where none can be made.

    Raises:
        UnsafeCache: Somebody else could put code there.
    """
    try:
        chosen = os.environ.get("NUMBA_CACHE_DIR")
        base = Path(chosen).absolute() if chosen else user_cache()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = base
        for name in ("tidemill", "kernel", digest()):
            made = made / name
            made.mkdir(mode=0o700, exist_ok=True)
            _require_private(made)
        if not os.access(made, os.W_OK | os.X_OK):
            raise PermissionError(f"{made} is not writable")
    except UnsafeCache:
        raise
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"the kernel is compiled anew in every process, because compiled code can be kept "
            f"nowhere ({error}): make that directory writable, or set NUMBA_CACHE_DIR to a "
            "directory that only you can write to",
            stacklevel=2,
        )
        return None
    remove_unused(made)
    return made


def _require_private(directory: Path) -> None:
    """Refuse a directory in which another user (but root) could put files.

    Raises:
        UnsafeCache: It is one.
    """
    if sys.platform == "win32":
        # Profiles are private by their access control lists; modes and owners say nothing.
        return
    link, found = directory.lstat(), directory.stat()
    ours = (os.geteuid(), 0)
    problem = None
    if link.st_uid not in ours:
        kind = "link" if stat.S_ISLNK(link.st_mode) else "directory"
        problem = f"is a {kind} of user {link.st_uid}"
    elif found.st_uid not in ours:
        problem = f"belongs to user {found.st_uid}"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be written to by others (mode {stat.S_IMODE(found.st_mode):04o})"
    if problem is not None:
        raise UnsafeCache(
            f"the cache of compiled code {directory} {problem}, expected a directory that only "
            f"user {ours[0]} can write to, because code is run from it: see who made it, then "
            "remove it, or set NUMBA_CACHE_DIR to a directory of your own"
        )


def remove_unused(current: Path) -> None:
    """Remove the compiled code of other sources that no process has opened for 30 days.

    A directory counts as opened when a process chooses it (its time of modification says when), so
    two checkouts that are both in use keep their code.
    """
    os.utime(current)
    oldest = time.time() - _UNUSED_S
    for other in current.parent.iterdir():
        # Another process may remove it at the same time, or root may have made it.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if other != current and other.lstat().st_mtime < oldest:
                shutil.rmtree(other)
