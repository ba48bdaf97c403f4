"""Counts of the files that a run of the stream leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import Request
from tidemill.features.definitions.requests import COUNT
from tidemill.features.errors import SequenceError
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.rejected_by_stream import are_of_log, read_rejected
from tidemill.serving.files.read_files import read_table, row_count
from tidemill.serving.files.segment_names import segment_prefix

_MEND: Final = "run `tidemill stream` again"


def _rows(folder: Path) -> int:
    return sum(row_count(path, _MEND) for path in folder.glob("**/*.parquet"))


def count_outcome(root: Path, request: Request) -> dict[str, Any]:
    """Count the output of a run of the stream.

    Args:
        root: The run's folder.
        request: The request.
    """
    releases = read_releases(root)
    last = {(entry["view"], entry["shard"]): entry for entry in releases}
    seen = {
        name: sum(entry["seen"][name] for entry in last.values())
        for name in ("late", "late_requests")
    }
    frontiers: dict[str, int] = {}
    for (view, _), entry in last.items():
        frontiers[view] = min(frontiers.get(view, entry["frontier_us"]), entry["frontier_us"])
    refused = read_rejected(root / paths.REJECTED_BY_STREAM)
    return {
        "predictions": _rows(root / paths.PREDICTIONS),
        "doubled": _doubled(root / paths.PREDICTIONS),
        **_repeated(root / paths.PREDICTIONS, request),
        "unanswered": _unanswered(refused, request),
        "rejected": refused.num_rows,
        "publications": sum(entry["publications"] for entry in releases),
        "releases": len(releases),
        **seen,
        "overflows": sum(entry["kernel"]["overflows"] for entry in last.values()),
        "frontiers_us": frontiers,
        "latency_ms": _latency(root / paths.PREDICTIONS),
        "as_of_distance_ms": _distance(root / paths.PREDICTIONS, sorted(frontiers)),
    }


class Outputs:
    """Counts what the segments of a run have written, file by file and each file once.

    Args:
        stream: The folder of the stream.
        request: The request.
    """

    def __init__(self, stream: Path, request: Request) -> None:
        self._stream, self._request = stream, request
        self._counted: dict[Path, int] = {}

    def requests(self, segment: int) -> int:
        """Return how many requests a segment has answered or rejected."""
        prefix = f"{segment_prefix(segment)}*.parquet"
        answered = sorted((self._stream / paths.PREDICTIONS).glob(prefix))
        refused = sorted((self._stream / paths.REJECTED_BY_STREAM).glob(prefix))
        for path in answered:
            if path not in self._counted:
                self._counted[path] = row_count(path, _MEND)
        for path in refused:
            if path not in self._counted:
                self._counted[path] = _unanswered(read_table(path, _MEND), self._request)
        return sum(self._counted[path] for path in (*answered, *refused))

    def releases(self, segment: int) -> int:
        """Return how many releases a segment has recorded."""
        files = (self._stream / paths.RELEASES).glob(f"{segment_prefix(segment)}*.jsonl")
        return sum(1 for _ in files)

    def forget(self, segment: int) -> None:
        """Forget the files of a segment, which is complete."""
        prefix = segment_prefix(segment)
        for path in [path for path in self._counted if path.name.startswith(prefix)]:
            del self._counted[path]


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
    if (found := Outputs(stream, request).requests(segment)) != expected:
        raise SequenceError(
            f"{expected} requests went in, {found} predictions and rejected requests came out: the "
            "engine lost or doubled batches"
        )


def _unanswered(refused: pa.Table, request: Request) -> int:
    """Count the requests of the log that were not answered."""
    of_request = pc.equal(refused.column("stream"), request.name).to_numpy(zero_copy_only=False)
    return int((of_request & are_of_log(refused)).sum())


def _read(folder: Path, columns: list[str]) -> pa.Table | None:
    """Read columns of all Parquet files in a folder; None if there are none."""
    parts = [read_table(path, _MEND, columns=columns) for path in folder.glob("*.parquet")]
    return pa.concat_tables(parts) if parts else None


def _doubled(folder: Path) -> int:
    """Count the second and further predictions for a request."""
    places = _read(folder, ["partition", "position"])
    if places is None:
        return 0
    return int(places.num_rows - places.group_by(["partition", "position"]).aggregate([]).num_rows)


def _repeated(folder: Path, request: Request) -> dict[str, int]:
    """Count the predictions with the id of an earlier request, where such requests are answered."""
    if request.repeated != COUNT:
        return {}
    ids = _read(folder, ["request_id"])
    distinct = 0 if ids is None else pc.count_distinct(ids["request_id"]).as_py()
    return {"repeated_request_ids": (0 if ids is None else ids.num_rows) - distinct}


def _latency(folder: Path) -> dict[str, float]:
    """Return quantiles of the wall time from poll to prediction, in milliseconds."""
    table = _read(folder, ["sent_us", "created_us"])
    if table is None:
        return {}
    took = (table["created_us"].to_numpy() - table["sent_us"].to_numpy()) / 1_000
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 90, 99)}


def _distance(folder: Path, views: list[str]) -> dict[str, float]:
    """Return quantiles of how far after its time a request was answered, in milliseconds.

    Of the views of an answer the one with the latest ``as_of`` counts. In exact mode the distance
    is that of requests which came late.
    """
    table = _read(folder, ["request_time", *(f"as_of__{view}" for view in views)])
    if table is None or not views:
        return {}
    latest = np.max([table[f"as_of__{view}"].to_numpy() for view in views], axis=0)
    distance = (latest - table["request_time"].cast(pa.int64()).to_numpy()) / 1_000
    return {
        "p50": float(np.percentile(distance, 50)),
        "p99": float(np.percentile(distance, 99)),
        "max": float(distance.max()),
    }
