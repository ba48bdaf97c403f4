"""Errors of the operating system, explained: the path, what is wrong, and what to do.

A full disk or a read-only folder appears as an ``OSError`` with its number, or as an error of
DuckDB, SQLite, TensorFlow or Beam whose text holds the system's words. `file_error` and
`named_in_text` turn each into one of our errors.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tidemill.features.errors import FileError, NoAccess, NoSpace, NoSuchFile

_CHANGE_RIGHTS: Final = "change its owner or mode, or name another place (such as --root)"
_REMEDIES: Final[dict[int, tuple[type[FileError], str, str]]] = {
    errno.ENOSPC: (NoSpace, "the disk is full", "make room, or write to another disk with --root"),
    errno.EDQUOT: (NoSpace, "the quota is used up", "make room, or write elsewhere with --root"),
    errno.EFBIG: (
        NoSpace,
        "the file would be larger than this process or this disk may write",
        "raise the limit (`ulimit -f`), or write to another disk with --root",
    ),
    errno.EMFILE: (NoSpace, "too many files are open", "raise the limit with `ulimit -n 4096`"),
    errno.ENFILE: (NoSpace, "too many files are open on this machine", "end other programs"),
    errno.EROFS: (NoAccess, "the file system is read-only", "write elsewhere with --root"),
    errno.EACCES: (NoAccess, "this user has no right to it", _CHANGE_RIGHTS),
    errno.EPERM: (NoAccess, "the system does not permit it", _CHANGE_RIGHTS),
    errno.ENOENT: (NoSuchFile, "it is not there", "bring it back, or run the stage that makes it"),
    errno.ENOTDIR: (
        FileError,
        "it is a file, and a folder was expected",
        "remove the file, or name another place",
    ),
    errno.EISDIR: (
        FileError,
        "it is a folder, and a file was expected",
        "remove the folder, or name another place",
    ),
    errno.EEXIST: (FileError, "it exists already", "remove it, or name another place"),
    errno.ENOTEMPTY: (FileError, "the folder is not empty", "end the programs that write there"),
    errno.ENAMETOOLONG: (FileError, "the name is too long", "take a shorter --root"),
    errno.EIO: (FileError, "the device cannot be read or written", "check the disk"),
    errno.EBUSY: (FileError, "another program uses it", "end that program, and run again"),
}
_WORDS: Final = {
    **{os.strerror(number): number for number in _REMEDIES},
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}
"""The texts of the system and of SQLite for these errors."""
_IN_TEXT: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EPERM}
)
"""Errors that are recognized by their text alone: they are never a fault of the program."""
_PATH: Final = re.compile(r"""['"](/[^'"\n]+)['"]|(?<![\w'"/])(/[^\s'":;,)\]]+)""")


def file_error(
    error: OSError, path: Path | str | None = None, *, believed: bool = True
) -> FileError:
    """Turn an ``OSError`` into a `FileError`: what was found, where, and what to do.

    Args:
        error: The system's error; the `FileError` has the same ``errno``.
        path: The file or folder in use, for errors that do not name one themselves.
        believed: Whether the path that the error names takes precedence over ``path``.
    """
    if isinstance(error, FileError):
        return error
    where = error.filename if path is None or (believed and error.filename) else path
    why = error.strerror or str(error) or type(error).__name__
    return _named(error.errno, why, None if where is None else os.fsdecode(where))


def named_in_text(text: str, path: Path | str | None = None) -> FileError | None:
    """Find a full disk, a read-only place or a missing permission in the text of another error.

    Args:
        text: The message of a library's error.
        path: The file or folder in use, if the text names none.

    Returns:
        The error; None if the text is about something else.
    """
    found = [(text.rfind(words), words) for words in _WORDS if _WORDS[words] in _IN_TEXT]
    at, words = max(found, default=(-1, ""))
    if at < 0:
        return None
    number = _WORDS[words]
    line_start = text.rfind("\n", 0, at) + 1
    line_end = text.find("\n", at)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    paths = [quoted or bare for quoted, bare in _PATH.findall(line)]
    return _named(number, words, paths[-1] if paths else None if path is None else str(path))


def _named(number: int | None, why: str, where: str | None) -> FileError:
    kind, what, remedy = _REMEDIES.get(number or 0, (FileError, why, "correct that, and run again"))
    if number == errno.ENOSPC and where is not None and _lacks_inodes(Path(where)):
        what, remedy = (
            "the disk has no inode left for another file",
            "remove files, or write to another disk with --root",
        )
    place = f"{where}: " if where else ""
    said = "" if what == why else f" ({why})"
    named = kind(f"{place}{what}{said}; {remedy}")
    named.errno = number
    return named


def _lacks_inodes(path: Path) -> bool:
    """Tell whether a disk has room, and takes no more files."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        disk = os.statvfs(path)
    except OSError:
        return False
    return disk.f_files > 0 and disk.f_favail == 0 and disk.f_bavail > 0


@contextmanager
def named_for(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `FileError`; add the path if the error lacks one.

    An error without a number is not the operating system's, and is raised unchanged.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        # An unfinished file has a temporary name: its final name says more.
        temporary = str(error.filename or "").startswith(f"{path}.")
        raise file_error(error, path, believed=not temporary) from error
