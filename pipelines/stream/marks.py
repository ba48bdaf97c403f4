"""Marks: each release has an id that names it and all releases before it.

``id(n) = SHA-256(id(n-1), n, positions, frontier)``, and ``id(0)`` is a hash of the operator's key
and of the positions and the frontier of the state that the stream began with. So two operators
of one generation whose releases have one id have applied the same rows, cut into the same polls. A
store keeps the id of the last release that it has taken as its *mark*.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from tidemill.pipelines.stream.operator_key import OperatorKey

MARK_BYTES: Final = 16
_BEGIN: Final = b"tidemill release 0\0"


def first_mark(key: OperatorKey, positions: Sequence[int], frontier_us: int) -> bytes:
    """Return the mark of a state from which a stream begins.

    Args:
        key: The operator: view, definition, shard and shard count.
        positions: The next position of each partition, first of events and then of requests.
        frontier_us: The state's frontier; int64 microseconds UTC.

    Returns:
        `MARK_BYTES` bytes.
    """
    return _hash(_BEGIN + key.text.encode() + b"\0", [*positions, frontier_us])


def next_mark(before: bytes, number: int, positions: Sequence[int], frontier_us: int) -> bytes:
    """Return the mark of a release.

    Args:
        before: The mark of the release before it.
        number: The release's number.
        positions: As for `first_mark`, after the release.
        frontier_us: The release's frontier.
    """
    return _hash(before, [number, *positions, frontier_us])


def _hash(begin: bytes, numbers: Sequence[int]) -> bytes:
    words = struct.pack(f"<{len(numbers)}q", *numbers)
    return hashlib.sha256(begin + words).digest()[:MARK_BYTES]
