"""The live log: the rows of live sources since the build, and the polls that brought them.

A live reader writes each poll down before it is sent (`pipelines.io.live.poll_log`). `LiveLog.seal`
(`pipelines.io.live.seal`) turns those polls into what a replay, a proof and a resumed stream read:

* the rows of each partition, in files with digests that go on with the log of the build
  (`pipelines.io.log.Log`, with this folder as its ``live``);
* the *cuts*: of each poll its number, when it was received, and per partition the position, the
  watermark and the broker's offset after it (`pipelines.io.live.sealed_polls`);
* the records that were rejected while it was read, with what their messages carried;
* what became of mended messages (`pipelines.io.live.mended`);
* what topics have lost and a person has accepted (`pipelines.io.live.lost`).

The promises of `pipelines.io.live.seal` hold; and a log that takes over another one has its polls.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pyarrow as pa

from tidemill.features.contract import TIME_MAX
from tidemill.features.definitions import Project
from tidemill.pipelines.io.live.live_records import POLLS, LiveRecords, Sealed
from tidemill.pipelines.io.live.poll_files import CUTS, LOST, MENDED, REJECTED
from tidemill.pipelines.io.live.poll_log import PollLog
from tidemill.pipelines.io.live.seal import seal_polls
from tidemill.pipelines.io.live.sealed_polls import SealedPolls

LIVE: Final = "live"
"""The name of the folder below that of a generation."""


class LiveLog(SealedPolls):
    """The live log of a generation.

    Args:
        folder: Its folder; it need not exist.
        project: The project, which declares the columns of its sources.
    """

    def __init__(self, folder: Path, project: Project) -> None:
        super().__init__(folder)
        self.polls = PollLog(folder / POLLS)
        self._project = project

    def seal(self, build: Path, before_us: int = TIME_MAX, *, until: int | None = None) -> Sealed:
        """Seal the polls of the poll log; return how far the log is sealed then.

        Args:
            build: The folder of the build, with whose log these rows go on.
            before_us: Only polls that were received before this instant are sealed: a stream that
                goes on from here repeats the others from the poll log.
            until: The number of the last poll to seal; None for no such limit.

        Raises:
            DamagedState: The poll log is damaged, or has lost polls that are sealed.
            DamagedFile: The live rows are damaged, or fewer than were sealed.
        """
        return seal_polls(self, self.polls, self._project, build, before_us, until)

    def take_cuts(self, other: SealedPolls) -> None:
        """Take over the sealed cuts of another live log, as links."""
        self.files(CUTS).link(other.files(CUTS))

    def take_rejected(self, other: SealedPolls, change: Callable[[pa.Table], pa.Table]) -> None:
        """Take over rejected records, what became of mended ones, and what was lost.

        Args:
            other: Another live log.
            change: Changes rejected and mended records.
        """
        for kind in (REJECTED, MENDED):
            self.files(kind).copy(other.files(kind), change)
        # Records name partitions of topics, which stay the same.
        self.files(LOST).copy(other.files(LOST), lambda records: records)


def inherited_from(folder: Path) -> str | None:
    """Return the generation whose rows a live log has taken over and not yet gone on with.

    Args:
        folder: The folder of the live log.

    Returns:
        None if there is no live log, it has taken over nothing, or a stream has read more since.

    Raises:
        StateError: A record cannot be read.
    """
    origin = LiveRecords(folder).origin()
    if origin.generation is None:
        return None
    last = PollLog(folder / POLLS).last()
    return None if last is not None and last.number > origin.number else origin.generation
