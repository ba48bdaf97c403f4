"""How far a live stream had come when its proof began: what was read before, and came after it.

The proof of a stream reads the live log, which savepoints seal. A stream that runs, or was killed,
has also put out what comes of polls that are not sealed yet, and goes on while its files are read.
So the live log and the savepoint are looked at before any output is read, and what belongs to later
polls is left out and counted (`Beyond`). It is left out only up to the last poll that is written
down when all is read: an output of a poll that was never written down is a mismatch, and so is each
one beyond the log of a stream that was stopped in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray
from tidemill.features.definitions import Project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.live_records import Sealed
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.stream.rejected_by_stream import are_of_log
from tidemill.pipelines.verify.outputs.extent import Extent, complete_polls


@dataclass(frozen=True)
class Reach:
    """How far a live stream had come.

    Attributes:
        live: The live log of its generation.
        sealed: How far it was sealed.
        complete: The outputs of the stream's polls up to this number must be there.
    """

    live: LiveLog
    sealed: Sealed
    complete: int

    @staticmethod
    def now(config: Configuration, run: StreamRun) -> Reach | None:
        """Return how far a stream has come; None for one that replays files.

        Args:
            config: The configuration, with the folders of the stream.
            run: Its record.

        Raises:
            StateError: A record of the live log cannot be read.
        """
        live = LiveLog(config.current.folder / LIVE, config.project)
        if not (config.is_live and live.exists):
            return None
        complete = complete_polls(config.current, run)
        return Reach(live, live.sealed(), complete)

    @property
    def is_at_rest(self) -> bool:
        """Whether the stream has written down nothing beyond this: it was stopped in order."""
        return self._written == self.sealed.number

    @property
    def _written(self) -> int:
        last = self.live.polls.last()
        return self.sealed.number if last is None else max(last.number, self.sealed.number)

    def beyond(self, before: int) -> Beyond:
        """Return what may be beyond the log; all outputs that are judged by it have been read.

        Args:
            before: The number in the live log of the poll before the stream's first one.
        """
        return Beyond(self, self.sealed.number - before, self._written - before)


@dataclass
class Beyond:
    """Outputs of polls that were not sealed when the proof began.

    Attributes:
        reach: How far the stream had come.
        sealed: The number of the stream's last sealed poll.
        written: The number of the last one that is written down.
        count: How many outputs were left out.
    """

    reach: Reach
    sealed: int
    written: int
    count: int = 0

    @property
    def extent(self) -> Extent:
        """What must be there, and what may be there."""
        return Extent(min(self.reach.complete, self.sealed), self.sealed)

    def numbers(self, numbers: Iterable[int]) -> list[bool]:
        """Tell of which outputs the releases are beyond the log, and count them."""
        found = [self.sealed < number <= self.written for number in numbers]
        self.count += sum(found)
        return found

    def predictions(self, predictions: pa.Table, project: Project) -> pa.Table:
        """Return the predictions whose releases are all in the log."""
        newest = np.zeros(len(predictions), np.int64)
        for view in project.views:
            numbers = predictions.column(f"release__{view.name}")
            newest = np.maximum(newest, pc.fill_null(numbers, 0).to_numpy())
        later = np.array(self.numbers(newest.tolist()), np.bool_)
        return predictions.filter(pa.array(~later)) if later.any() else predictions

    def rejected(self, records: pa.Table) -> BoolArray:
        """Tell which rejected records are of rows or messages beyond the log, and count them.

        Args:
            records: Rejected records (`features.rows.rejected.SCHEMA`).
        """
        found: BoolArray = np.zeros(len(records), np.bool_)
        if self.sealed == self.written:
            return found
        topics, of_log = self.reach.live.topics(), are_of_log(records)
        columns = (records.column(name).to_pylist() for name in ("stream", "partition", "position"))
        for row, (source, partition, position) in enumerate(zip(*columns, strict=True)):
            if source not in topics or partition < topics[source].first:
                continue
            ends = (self.reach.sealed.positions if of_log[row] else self.reach.sealed.offsets)[
                source
            ]
            at = partition - topics[source].first
            found[row] = at < len(ends) and position >= ends[at]
        self.count += int(found.sum())
        return found
