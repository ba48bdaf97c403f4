"""What the segments of a stream have written, read beside the stream: the only place that does.

Only segments that have ended are read: a stream that goes on, also after a crash, does not write
their outputs again. Files of ended segments may be joined meanwhile (`pipelines.io.outputs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.rows import rejected
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.recovery.savepoints import Savepoint, last_segment
from tidemill.pipelines.stream.output_folders import rejected_of
from tidemill.pipelines.verify.outputs.logged_publications import LoggedPublications, Place
from tidemill.pipelines.verify.served import predictions_between


@dataclass(frozen=True)
class Published:
    """The publications of a release.

    Attributes:
        view: The view.
        shard: The shard.
        number: The number of the release.
        rows: The publications (`serving.publications.schema`).
    """

    view: str
    shard: int
    number: int
    rows: pa.Table


def complete_segment(stream: Path, run: StreamRun) -> int:
    """Return the last segment of a stream that has ended; 0 if none has.

    Args:
        stream: The stream's folder.
        run: Its record.
    """
    if run.ended:
        return last_segment(stream)
    savepoint = Savepoint.read(stream)
    return 0 if savepoint is None else savepoint.segment


class SegmentOutputs:
    """Reads the outputs of segments.

    Args:
        stream: The stream's folder.
        project: The project.
    """

    def __init__(self, stream: Path, project: Project) -> None:
        self._stream, self._project = stream, project

    def releases(self, segment: int) -> list[dict[str, Any]]:
        """Return the releases of a segment, by view, shard and number."""
        return read_releases(self._stream, segment, segment)

    def predictions(self, segments: Sequence[int]) -> pa.Table | None:
        """Return the predictions of segments; None if there are none."""
        tables = [
            table
            for segment in segments
            if (table := predictions_between(self._stream, self._project, segment, segment))
            is not None
        ]
        return pa.concat_tables(tables) if tables else None

    def rejected(self, segments: Sequence[int]) -> pa.Table:
        """Return the rejected records of segments."""
        folder = rejected_of(self._stream)
        found = [folder.read(since=segment, until=segment) for segment in segments]
        tables = [table for table in found if table is not None]
        return pa.concat_tables([rejected.SCHEMA.empty_table(), *tables])

    def publications(
        self, segments: Sequence[int], releases: Mapping[tuple[str, int, int], Any]
    ) -> list[Published]:
        """Return the publications of releases of some segments."""
        logs = [LoggedPublications(self._stream, segment, segment) for segment in segments]
        return [
            Published(view, shard, number, rows)
            for view, shard, number in releases
            for log in logs
            for _, rows in log.take(Place(view, shard, number))
        ]
