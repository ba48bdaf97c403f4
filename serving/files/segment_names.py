"""The number of a stream's segment, at the start of the names of the files that it writes.

A run that resumes after a kill, or starts again, removes the files of the segments that it
discards; so every file's name begins with the number of its segment.
"""

from __future__ import annotations

import re
from typing import Final

_PREFIX: Final = re.compile(r"(\d{5,})-")


def segment_prefix(segment: int) -> str:
    """Return the start of the names of the files that a segment of a stream writes.

    >>> segment_prefix(3)
    '00003-'
    """
    return f"{segment:05d}-"


def segment_of(name: str) -> int | None:
    """Return the segment that wrote a file; None if no segment of a stream did.

    >>> segment_of("00003-00000-of-00008-17.parquet"), segment_of("history-00000.parquet")
    (3, None)
    """
    found = _PREFIX.match(name)
    return None if found is None else int(found[1])
