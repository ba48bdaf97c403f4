"""Segments of a stream, in the names of the files that they write.

A run that goes on after a kill, or starts over, removes what the segments that do not count have
written; so the number of the segment stands in front of the name of everything that is written.
"""

from __future__ import annotations

import re
from typing import Final

_PREFIX: Final = re.compile(r"(\d{5,})-")


def segment_prefix(segment: int) -> str:
    """Return how the names begin of the files that a segment of a stream writes.

    >>> segment_prefix(3)
    '00003-'
    """
    return f"{segment:05d}-"


def segment_of(name: str) -> int | None:
    """Return the segment that wrote a file; None where it was something else than a segment.

    >>> segment_of("00003-00000-of-00008-17.parquet"), segment_of("history-00000.parquet")
    (3, None)
    """
    found = _PREFIX.match(name)
    return None if found is None else int(found[1])
