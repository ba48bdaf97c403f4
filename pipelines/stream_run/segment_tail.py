"""What a segment has written so far, read as it is appended to parts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.features.definitions import Request
from tidemill.features.errors import SequenceError
from tidemill.pipelines.io.output_parts import PART, Appended, Output, read_part
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.recovery.release_log import place_of
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import (
    predictions_of,
    publications_of,
    rejected_of,
    releases_of,
)
from tidemill.pipelines.stream.rejected_by_stream import unanswered
from tidemill.pipelines.stream.release_line import LINE
from tidemill.serving.files.segment_names import segment_prefix


class SegmentTail:
    """What a segment has written so far; what is written down is read once.

    Args:
        stream: The folder of the stream.
        request: The request.
        segment: The number of the segment.

    Attributes:
        requests: How many requests were answered or rejected.
        refused: The names of the outputs with rejected records.
        releases: The evidence of each release, by view, shard and number.
        published: The releases whose publications are logged, likewise.
    """

    def __init__(self, stream: Path, request: Request, segment: int) -> None:
        self._request = request
        self._predictions = _Tail(predictions_of(stream), segment)
        self._rejected = _Tail(rejected_of(stream), segment)
        self._releases = _Tail(releases_of(stream), segment)
        self._stream, self._segment = stream, segment
        self._publications: dict[str, _Tail] = {}
        self.requests = 0
        self.refused: set[str] = set()
        self.releases: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.published: set[tuple[str, int, int]] = set()

    def look(self) -> None:
        """Read what was written since the last look.

        Raises:
            DamagedState: It is not what a stream writes.
        """
        self.requests += sum(rows for _, rows in self._predictions.named())
        for output in self._rejected.outputs():
            table = pa.Table.from_batches([output.rows])
            self.requests += unanswered(table, self._request)
            self.refused.add(output.name)
        for output in self._releases.outputs():
            for line in output.rows.column(LINE).to_pylist():
                entry = json.loads(line)
                self.releases[place_of(entry)] = entry
        for folder in (self._stream / paths.PUBLICATIONS).glob("*"):
            if folder.name not in self._publications:
                of_view = publications_of(self._stream, folder.name)
                self._publications[folder.name] = _Tail(of_view, self._segment)
        for view, tail in self._publications.items():
            for name, _ in tail.named():
                number, _, shard = name.partition("-")
                self.published.add((view, int(shard), int(number)))


class _Tail:
    """The outputs of a segment in a folder, as they are appended."""

    def __init__(self, folder: OutputFolder, segment: int) -> None:
        self._folder, self._segment = folder, segment
        self._read: dict[Path, int] = {}
        self._names: set[str] = set()

    def named(self) -> Iterator[tuple[str, int]]:
        """Yield names and numbers of rows of what is new."""
        for appended in self._appended():
            for name, rows in zip(appended.names, appended.rows, strict=True):
                if self._is_new(name):
                    yield name, rows

    def outputs(self) -> Iterator[Output]:
        """Yield what is new."""
        for appended in self._appended():
            for output in appended.outputs():
                if self._is_new(output.name):
                    yield output

    def _is_new(self, name: str) -> bool:
        before = len(self._names)
        self._names.add(name)
        return len(self._names) > before

    def _appended(self) -> Iterator[Appended]:
        prefix = segment_prefix(self._segment)
        for path in sorted(self._folder.path.glob(f"{prefix}*{PART}")):
            for appended in read_part(path, self._read.get(path, 0)):
                yield appended
                self._read[path] = appended.stop


def check_end(stream: Path, request: Request, segment: int, expected: int) -> None:
    """Check that the last segment of a stream has answered or rejected every request.

    Args:
        stream: The folder of the stream.
        request: The request.
        segment: The number of the segment.
        expected: How many requests waited before it or came in it.

    Raises:
        SequenceError: It has not.
    """
    tail = SegmentTail(stream, request, segment)
    tail.look()
    if (found := tail.requests) != expected:
        raise SequenceError(
            f"{expected} requests went in, {found} predictions and rejected requests came out: the "
            "engine lost or doubled batches"
        )
