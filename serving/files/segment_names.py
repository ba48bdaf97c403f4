"""The number of a stream's segment, at the start of the names of the files that it writes.

A run that resumes after a kill, or starts again, removes the files of the segments that it
discards; so every file's name begins with the number of its segment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

TOGETHER: Final = 32
"""So many files of equally many segments become one."""
_PREFIX: Final = re.compile(r"(\d{5,})-")
_SINCE: Final = re.compile(r"(\d{5,})-since-(\d{5,})(?=[-.])")
T = TypeVar("T")


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


def since_prefix(first: int, last: int) -> str:
    """Return the start of the name of a file with the rows of several segments.

    It begins with the last one, so nobody takes it for a file of segments that may be discarded.

    >>> since_prefix(33, 64)
    '00064-since-00033'
    """
    return f"{segment_prefix(last)}since-{first:05d}"


def segments_of(name: str) -> tuple[int, int] | None:
    """Return the first and the last segment whose rows a file has; None if no stream wrote it.

    >>> segments_of("00064-since-00033.parquet"), segments_of("00012-all.parquet")
    ((33, 64), (12, 12))
    """
    if found := _SINCE.match(name):
        return int(found[2]), int(found[1])
    segment = segment_of(name)
    return None if segment is None else (segment, segment)


def runs_of(
    files: Sequence[T], segments: Callable[[T], int], fits: Callable[[T, T], bool], size: int
) -> Iterator[list[T]]:
    """Yield files that become one: `TOGETHER` in turn that have about equally many segments.

    So of a stream that runs for ever there are some dozen files of each size, and every row is
    written again once for each size.

    Args:
        files: The files, by segment.
        segments: Returns how many segments a file has.
        fits: Tells whether a file can become one with the first of a run; it is asked for the
            first, too.
        size: The least number of segments; files of `TOGETHER` times as many are too large.
    """
    run: list[T] = []
    for file in files:
        is_of_size = size <= segments(file) < size * TOGETHER
        if run and not (is_of_size and fits(file, run[0])):
            run = []
        if is_of_size and (run or fits(file, file)):
            run.append(file)
        if len(run) == TOGETHER:
            yield run
            run = []
