"""When a stage writes a snapshot of its state instead of another log entry."""

from __future__ import annotations

from typing import Final, NamedTuple

SNAPSHOT_EVENTS: Final = 50_000
SNAPSHOT_TILES: Final = 4
"""A snapshot is written when the log has more events than `SNAPSHOT_EVENTS`, more than this for
each tile, and more than half as many as are remembered. Then its cost, which grows with the state,
is small beside that of the events."""
JOINER_LOG_BYTES: Final = 4 * 2**20
"""The joining stage writes a snapshot when its log is larger than this and than twice the last
snapshot."""


def operator_snapshot_due(events: int, tiles: int, remembered: int) -> bool:
    """Tell whether an operator's log is long enough for a snapshot.

    Args:
        events: Events in the log since the last snapshot.
        tiles: Tiles in the operator's state.
        remembered: Events that it remembers, to recognize their repeats.
    """
    return events > _least(tiles, remembered)


def base_due(events: int, tiles: int, remembered: int, shard: int, shards: int) -> bool:
    """Tell whether a savepoint writes an operator's whole state again.

    Those of many shards, which take about as many events each, do not become due at once.

    Args:
        events: Events since the whole state was last written.
        tiles: Tiles in the operator's state.
        remembered: Events that it remembers, to recognize their repeats.
        shard: The operator's shard.
        shards: The number of shards of its view.
    """
    return events > _least(tiles, remembered) * (1 + shard / shards)


def _least(tiles: int, remembered: int) -> int:
    return max(SNAPSHOT_EVENTS, SNAPSHOT_TILES * tiles, remembered // 2)


class JoinerLog(NamedTuple):
    """The size of the joining stage's log since the last snapshot.

    Attributes:
        entries: The number of entries: one for each bundle.
        size: Their bytes.
        most: The next snapshot is due when the log has more bytes than this.
    """

    entries: int
    size: int
    most: int

    @staticmethod
    def after_snapshot(state: bytes = b"", entries: int = 0, size: int = 0) -> JoinerLog:
        """Return the log after a snapshot; by default it is empty."""
        return JoinerLog(entries, size, max(JOINER_LOG_BYTES, 2 * len(state)))

    def with_entry(self, entry: bytes) -> JoinerLog:
        """Return the log with one more entry."""
        return JoinerLog(self.entries + 1, self.size + len(entry), self.most)

    @property
    def snapshot_due(self) -> bool:
        """Whether the log is long enough for a snapshot."""
        return self.size > self.most
