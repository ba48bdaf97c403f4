"""Explanations of errors, at most three lines each: what was found, where, and what to do.

The command line explains every error of the tree (`features.errors`), every refusal of the
operating system (a full disk, a read-only folder, a missing permission), also one that a library or
an engine has wrapped, and the lack of memory. Any other error is a fault of Tidemill or of the
project's own code, and shows its traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.features.errors import TidemillError
from tidemill.serving.files.file_errors import file_error, named_in_text

COLUMNS: Final = 100
LINES: Final = 3
_CUT: Final = " [...] "
_TAIL: Final = 100


def explanation(error: BaseException, root: Path | None) -> str | None:
    """Explain an error in one paragraph.

    Returns:
        The paragraph, at most `LINES` lines of `COLUMNS` columns; None for any other error.
    """
    if isinstance(error, TidemillError):
        return in_short(str(error))
    if isinstance(error, MemoryError):
        return in_short(
            f"the machine has no memory left for this ({error}); end other programs, give the "
            "machine more, or give the source more files or partitions"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return in_short(str(file_error(error, root)))
    found = named_in_text(str(error), root)
    return None if found is None else in_short(str(found))


def in_short(text: str) -> str:
    r"""Write a message as one paragraph; shorten one that is too long in the middle.

    >>> in_short("found nothing:\n  look elsewhere")
    'error: found nothing: look elsewhere'
    """
    whole = f"error: {' '.join(text.split())}"
    most = LINES * COLUMNS
    if len(whole) <= most:
        return whole
    head = whole[: most - _TAIL - len(_CUT)]
    words = head.rpartition(" ")[0]
    # Cut inside a path that is too long: its beginning names the disk and the folder.
    head = words if len(head) - len(words) < _TAIL // 2 else head
    tail = whole[-_TAIL:].partition(" ")[2]
    return f"{head}{_CUT}{tail}"
