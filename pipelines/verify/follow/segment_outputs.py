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
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.rejected_by_stream import read_rejected
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
        """Return the predictions of successive segments; None if there are none."""
        return predictions_between(self._stream, self._project, segments[0], segments[-1])

    def rejected(self, segments: Sequence[int]) -> pa.Table:
        """Return the rejected records of successive segments."""
        folder = self._stream / paths.REJECTED_BY_STREAM
        return read_rejected(folder, segments[0], segments[-1])

    def publications(
        self, segments: Sequence[int], releases: Mapping[tuple[str, int, int], Any]
    ) -> list[Published]:
        """Return the publications of releases of successive segments."""
        log = LoggedPublications(self._stream, segments[0], segments[-1])
        return [
            Published(view, shard, number, rows)
            for view, shard, number in releases
            for _, rows in log.take(Place(view, shard, number))
        ]
