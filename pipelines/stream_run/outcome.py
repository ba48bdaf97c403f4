"""Counts of the files that a run of the stream leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.features.definitions import Request
from tidemill.features.definitions.requests import COUNT
from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.io.request_ids import count_repeated
from tidemill.pipelines.recovery.release_log import count_releases, last_releases
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.output_folders import (
    predictions_of,
    publications_of,
)
from tidemill.pipelines.stream.rejected_by_stream import read_rejected, unanswered


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
        "unanswered": unanswered(refused, request),
        "rejected": refused.num_rows,
        "publications": sum(log.count() for log in logs),
        "releases": count_releases(stream),
        **seen,
        "overflows": sum(entry["kernel"]["overflows"] for entry in last.values()),
        "frontiers_us": frontiers,
        "latency_ms": _latency(predictions, recent),
        "as_of_distance_ms": _distance(predictions, sorted(frontiers), recent),
    }


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
    found = folder.read(["request_id", "request_time"], since)
    return {"repeated_request_ids": 0 if found is None else count_repeated(request, found)}


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
