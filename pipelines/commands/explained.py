"""What the command line says of an error: what was found, where, and what to do, in three lines.

What is explained is every error of the tree (`features.errors`), whatever the operating system
refuses (a full disk, a read-only folder, a missing right), also where a library or an engine has
put its words into an error of its own, and the end of the machine's memory. Anything else is a
fault of the program, or of the project's own code, and shows its traceback.
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
    """Say in one paragraph what an error means.

    Args:
        error: The error.
        root: Where the command was writing, for errors that name no path.

    Returns:
        The paragraph, in at most `LINES` lines of `COLUMNS` columns; None where the error is one
        that only its traceback explains.
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
    r"""Write a message as one paragraph that fits, its beginning and its end kept.

    >>> in_short("found nothing:\n  look elsewhere")
    'error: found nothing: look elsewhere'
    """
    whole = f"error: {' '.join(text.split())}"
    most = LINES * COLUMNS
    if len(whole) <= most:
        return whole
    head = whole[: most - _TAIL - len(_CUT)]
    words = head.rpartition(" ")[0]
    # A path may be longer than all of this: its beginning says which disk or folder it is.
    head = words if len(head) - len(words) < _TAIL // 2 else head
    tail = whole[-_TAIL:].partition(" ")[2]
    return f"{head}{_CUT}{tail}"
