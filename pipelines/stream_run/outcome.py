"""Counts of the files that a run of the stream leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import Request
from tidemill.features.definitions.requests import COUNT
from tidemill.features.errors import SequenceError
from tidemill.pipelines.io.output_parts import PART, Appended, Output, read_part
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.recovery.release_log import count_releases, last_releases, place_of
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import (
    predictions_of,
    publications_of,
    rejected_of,
    releases_of,
)
from tidemill.pipelines.stream.rejected_by_stream import are_of_log, read_rejected
from tidemill.pipelines.stream.release_line import LINE
from tidemill.serving.files.segment_names import segment_prefix


def count_outcome(stream: Path, request: Request, shards: int, recent: int = 0) -> dict[str, Any]:
    """Count the outputs of a stream.

    Args:
        stream: The folder of the stream.
        request: The request.
        shards: How many (view, shard) it has.
        recent: The segment from which on latencies are measured, and doubled predictions and
            repeated ids are looked for: a stream that has run for days has too many rows to be read
            while it stops.
    """
    last = last_releases(stream, shards)
    predictions = predictions_of(stream)
    seen = {
        name: sum(entry["seen"][name] for entry in last.values())
        for name in ("late", "late_requests")
    }
    frontiers: dict[str, int] = {}
    for (view, _), entry in last.items():
        frontiers[view] = min(frontiers.get(view, entry["frontier_us"]), entry["frontier_us"])
    refused = read_rejected(stream / paths.REJECTED_BY_STREAM)
    logs = [publications_of(stream, path.name) for path in (stream / paths.PUBLICATIONS).glob("*")]
    return {
        "predictions": predictions.count(),
        "doubled": _doubled(predictions, recent),
        **_repeated(predictions, request, recent),
        "unanswered": _unanswered(refused, request),
        "rejected": refused.num_rows,
        "publications": sum(log.count() for log in logs),
        "releases": count_releases(stream),
        **seen,
        "overflows": sum(entry["kernel"]["overflows"] for entry in last.values()),
        "frontiers_us": frontiers,
        "latency_ms": _latency(predictions, recent),
        "as_of_distance_ms": _distance(predictions, sorted(frontiers), recent),
    }


class SegmentOutputs:
    """What a segment has written so far; what is written down is read once.

    Args:
        stream: The folder of the stream.
        request: The request.
        segment: The number of the segment.

    Attributes:
        requests: How many requests were answered or rejected.
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
            self.requests += _unanswered(table, self._request)
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
    outputs = SegmentOutputs(stream, request, segment)
    outputs.look()
    if (found := outputs.requests) != expected:
        raise SequenceError(
            f"{expected} requests went in, {found} predictions and rejected requests came out: the "
            "engine lost or doubled batches"
        )


def _unanswered(refused: pa.Table, request: Request) -> int:
    """Count the requests of the log that were not answered."""
    of_request = pc.equal(refused.column("stream"), request.name).to_numpy(zero_copy_only=False)
    return int((of_request & are_of_log(refused)).sum())


def _doubled(folder: OutputFolder, since: int) -> int:
    """Count the second and further predictions for a request."""
    places = folder.read(["partition", "position"], since)
    if places is None:
        return 0
    return int(places.num_rows - places.group_by(["partition", "position"]).aggregate([]).num_rows)


def _repeated(folder: OutputFolder, request: Request, since: int) -> dict[str, int]:
    """Count the predictions with the id of an earlier request, where such requests are answered."""
    if request.repeated != COUNT:
        return {}
    ids = folder.read(["request_id"], since)
    distinct = 0 if ids is None else pc.count_distinct(ids["request_id"]).as_py()
    return {"repeated_request_ids": (0 if ids is None else ids.num_rows) - distinct}


def _latency(folder: OutputFolder, since: int) -> dict[str, float]:
    """Return quantiles of the wall time from poll to prediction, in milliseconds."""
    table = folder.read(["sent_us", "created_us"], since)
    if table is None:
        return {}
    took = (table["created_us"].to_numpy() - table["sent_us"].to_numpy()) / 1_000
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 90, 99)}


def _distance(folder: OutputFolder, views: list[str], since: int) -> dict[str, float]:
    """Return quantiles of how far after its time a request was answered, in milliseconds.

    Of the views of an answer the one with the latest ``as_of`` counts. In exact mode the distance
    is that of requests which came late.
    """
    table = folder.read(["request_time", *(f"as_of__{view}" for view in views)], since)
    if table is None or not views:
        return {}
    latest = np.max([table[f"as_of__{view}"].to_numpy() for view in views], axis=0)
    distance = (latest - table["request_time"].cast(pa.int64()).to_numpy()) / 1_000
    return {
        "p50": float(np.percentile(distance, 50)),
        "p99": float(np.percentile(distance, 99)),
        "max": float(distance.max()),
    }
