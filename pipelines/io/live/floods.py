"""Floods of rejected rows, which a person has to see at once.

A bad row stops nothing, so a producer that sends nothing but bad rows would go unseen. The promise:
as soon as more of a source's rows are rejected than it allows, and at least `LEAST` of them, it is
said with the most frequent reason and an example, and again at most every `AGAIN_S` while it lasts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

LEAST: Final = 20
"""So many rejected rows within `AGAIN_S` may be a flood; fewer are none, whatever their share."""
AGAIN_S: Final = 10.0
_SHOWN: Final = 300
"""The most characters of an example's detail."""


@dataclass
class _Span:
    """What was read of a source since an instant."""

    began_s: float
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    is_said: bool = False


class Floods:
    """Watches the rejected rows of live sources.

    Args:
        say: Tells a person.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._spans: dict[str, _Span] = {}

    def note(
        self, name: str, allowed: float, read: int, rejected: pa.RecordBatch | None, now_s: float
    ) -> None:
        """Note what was read of a source.

        Args:
            name: The source.
            allowed: The share of its rows that may be rejected.
            read: How many rows were read.
            rejected: Those of them that are rejected (`features.rows.rejected.SCHEMA`).
            now_s: The time, in seconds of a clock that never steps back.
        """
        span = self._spans.get(name)
        if span is None or now_s - span.began_s >= AGAIN_S:
            span = self._spans[name] = _Span(now_s)
        span.read += read
        if rejected is None or not rejected.num_rows:
            return
        span.reasons.update(rejected.column("reason").to_pylist())
        count = span.reasons.total()
        if span.is_said or count < LEAST or count <= allowed * span.read:
            return
        span.is_said = True
        reason, of_reason = span.reasons.most_common(1)[0]
        one = rejected.slice(rejected.num_rows - 1).to_pylist()[0]
        self._say(
            f"{count:,} of the last {span.read:,} rows of {name!r} are rejected, {of_reason:,} as "
            f"{reason}; such as {one['origin']}: {one['detail'][:_SHOWN]}. The stream goes on; "
            "correct the producer, and mend the records with `tidemill replay-rejected`"
        )
