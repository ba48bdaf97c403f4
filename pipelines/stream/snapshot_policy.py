"""When a stage writes a snapshot of its state, and not one more entry of its log."""

from __future__ import annotations

from typing import Final, NamedTuple

SNAPSHOT_EVENTS: Final = 50_000
SNAPSHOT_TILES: Final = 4
"""A snapshot is written once the log has more events than both allow: its cost, which is that of
the whole state, is then small beside theirs, and so is replaying the log after a restart."""
JOINER_LOG_BYTES: Final = 4 * 2**20
"""The joining stage logs what came until that is more than this and twice the last snapshot."""


def operator_snapshot_due(events: int, tiles: int) -> bool:
    """Tell whether an operator's log has become long enough for a snapshot.

    Args:
        events: Events in the log since the last snapshot.
        tiles: Tiles in the operator's state.
    """
    return events > max(SNAPSHOT_EVENTS, SNAPSHOT_TILES * tiles)


class JoinerLog(NamedTuple):
    """What the joining stage's log holds since the last snapshot.

    Attributes:
        entries: How many bundles.
        size: Their bytes.
        most: At how many bytes the next snapshot is due.
    """

    entries: int
    size: int
    most: int

    @staticmethod
    def after_snapshot(state: bytes = b"", entries: int = 0, size: int = 0) -> JoinerLog:
        """Return the log that follows a snapshot: empty, or of so many entries already."""
        return JoinerLog(entries, size, max(JOINER_LOG_BYTES, 2 * len(state)))

    def with_entry(self, entry: bytes) -> JoinerLog:
        """Return the log with one more entry."""
        return JoinerLog(self.entries + 1, self.size + len(entry), self.most)

    @property
    def snapshot_due(self) -> bool:
        """Whether the log is longer than a snapshot would cost."""
        return self.size > self.most
