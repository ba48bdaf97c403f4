"""Times in printed text that are not ISO 8601 in UTC with a Z."""

from __future__ import annotations

import re
from typing import Final

_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_OTHERS: Final = (
    # Microseconds and seconds since 1970 of the years 2011 to 2033; also with commas.
    re.compile(r"(?<![\w.])1[3-9]\d{14}(?![\w.])"),
    re.compile(r"(?<![\w.])1[3-9]\d{8}(?![\w.])"),
    re.compile(r"(?<![\w.,])1,[3-9]\d\d(,\d{3}){4}(?![\w,])"),
    re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*"),
    re.compile(r"[+-]00:00"),
    re.compile(r"datetime\.\w+\("),
)


def other_times(text: str) -> list[str]:
    """Return every time in a text that is written otherwise, with what stands before it."""
    left = _ISO.sub("", text)
    return [
        left[max(found.start() - 60, 0) : found.end()].strip()
        for pattern in _OTHERS
        for found in pattern.finditer(left)
    ]
