"""Joining, in a thread, the files that a live stream adds to the offline log.

A stream adds a file for each release, shard and day. When a savepoint counts, those from before it
become one, and later one with those of other savepoints (`serving.offline.merge`). Nothing waits
for it: a join that fails is said, and tried again at the next savepoint.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from tidemill.features.errors import TidemillError
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
        self._changed = threading.Condition()
        self._until: int | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="offline-joins")
        if self._joiners:
            self._thread.start()

    def note(self, segment: int) -> None:
        """Let the files up to a segment be joined soon: its savepoint counts."""
        with self._changed:
            self._until = segment
            self._changed.notify_all()

    def close(self) -> None:
        """Join what is noted, if that does not take long, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._joiners:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._until is not None or self._is_closed)
                until, self._until = self._until, None
            if until is None:
                return
            for view, joiner in self._joiners:
                try:
                    joiner.join(until)
                except (TidemillError, OSError) as error:
                    _log.warning("files of the offline log of %r are not joined: %s", view, error)
