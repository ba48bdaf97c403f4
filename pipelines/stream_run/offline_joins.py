"""Joining, in a thread, the files that a live stream adds to the offline log.

A stream adds a file for each release, shard and day. When a savepoint counts, those from before it
become one, and later one with those of other savepoints (`serving.offline.merge`). Nothing waits
for it: a join that fails is said, and tried again at the next savepoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from tidemill.features.errors import TidemillError
from tidemill.pipelines.run.newest import Newest
from tidemill.serving.offline.log import OfflineLog
from tidemill.serving.offline.merge import SegmentJoiner

_CLOSE_S: Final = 30.0

_log = logging.getLogger(__name__)


class OfflineJoins:
    """Joins the files of logs up to the newest savepoint.

    Args:
        logs: View to its log, to which the stream adds.
        join_keys: View to the join key of its entity.
    """

    def __init__(self, logs: Mapping[str, OfflineLog], join_keys: Mapping[str, str]) -> None:
        self._joiners: Sequence[tuple[str, SegmentJoiner]] = [
            (view, SegmentJoiner(log, join_keys[view])) for view, log in logs.items()
        ]
        self._newest = Newest(self._join, "offline-joins", _CLOSE_S)

    def note(self, segment: int) -> None:
        """Let the files up to a segment be joined soon: its savepoint counts."""
        self._newest.note(segment)

    def close(self) -> None:
        """Join what is noted, if that does not take long, and end the thread."""
        self._newest.close()

    def _join(self, until: int) -> None:
        for view, joiner in self._joiners:
            try:
                joiner.join(until)
            except (TidemillError, OSError) as error:
                _log.warning("files of the offline log of %r are not joined: %s", view, error)
