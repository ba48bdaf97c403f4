"""The cache of compiled code: a directory that only the user can write to, named by its sources.

Promises:

* **Only the user's code runs.** numba trusts the pickled files in its cache, so another user who
  can write there can run code as this user. The cache is a directory with mode 0700 in the user's
  cache directory, never in the temporary directory. A directory that another user owns, that others
  can write to, or that is a link of another user is refused (`UnsafeCache`).
* **Only current code runs.** numba checks the file of the function that it loads, but not the
  functions that this one calls. So the directory's name is a digest of all sources of the kernel,
  of the modules that it takes constants from, and of numba's version. numba itself distinguishes
  versions of Python and kinds of CPU.
* **Equal sources are compiled once**, wherever they are installed (`KernelLocator`).

The environment variable `NUMBA_CACHE_DIR` replaces the user's cache directory. It is not checked
itself; the directories made in it are. Where no directory can be made (a read-only home), each
process compiles for itself, after a warning.
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
from numba.core.caching import UserProvidedCacheLocator

from tidemill.features.errors import UnsafeCache

_KERNEL: Final = Path(__file__).resolve().parent
# Modules outside the kernel that compiled functions take constants from.
_CONSTANTS: Final = ("definitions/aggregations.py", "contract.py")
_UNUSED_S: Final = 30 * 24 * 3600.0
"""The compiled code of other sources is removed after this time."""


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
    """Return the user's cache directory.

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
    """Return the directory for compiled code; make it if it is missing.

    Returns:
        The directory; None, after a warning, where none can be made.

    Raises:
        UnsafeCache: Another user can write to it.
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


class KernelLocator(UserProvidedCacheLocator):
    """Tells numba where below its directory the code of a function is kept.

    numba names the place by the absolute path of the source, so each environment would compile the
    kernel for itself. Here a source of the kernel is named by its place in the kernel, which is
    enough in a directory whose name is a digest of all of them.
    """

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """Return the folder for a source file's functions."""
        folder = Path(py_file).resolve().parent
        if folder.is_relative_to(_KERNEL):
            return "_".join(folder.relative_to(_KERNEL.parent).parts)
        return str(super().get_suitable_cache_subpath(py_file))


LOCATOR: Final = f"{KernelLocator.__module__}.{KernelLocator.__name__}"
"""What numba's setting ``CACHE_LOCATOR_CLASSES`` calls it."""


def _require_private(directory: Path) -> None:
    """Check that no other user but root can write to a directory.

    Raises:
        UnsafeCache: Another user can.
    """
    if sys.platform == "win32":
        # Access control lists protect a profile; mode and owner have no meaning.
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
    """Remove the compiled code of other sources that no process has used for 30 days.

    A process that uses a directory sets its modification time, so two checkouts that are both in
    use keep their code.
    """
    os.utime(current)
    oldest = time.time() - _UNUSED_S
    for other in current.parent.iterdir():
        # Another process may remove it at the same time, or it may belong to root.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if other != current and other.lstat().st_mtime < oldest:
                shutil.rmtree(other)
