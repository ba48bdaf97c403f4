"""Stream: replay the log from the handed-over state; features, publications, predictions.

The same definitions, kernel and transform graph as in batch. The engine only carries batches: what
is counted here at the end (requests in, predictions out, every release) does not rest on it.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import rejected
from features.errors import SequenceError, StateMismatch
from features.kernel import hashing
from pipelines.backfill import source_partitions
from pipelines.coders import RecordBatchCoder
from pipelines.configuration import Configuration
from pipelines.featurize import (
    ANSWERS,
    PUBLICATIONS,
    RELEASES,
    UNANSWERED,
    Featurize,
    FeaturizeOptions,
)
from pipelines.infer import Infer
from pipelines.log import POSITION, Log
from pipelines.meter import METER
from pipelines.operator import Mode
from pipelines.options import pipeline_options, stream_engine
from pipelines.progress import Progress
from pipelines.publish import Publish
from pipelines.replay import Replay, ReplayLog, ReplayOptions
from pipelines.runners import make_runner, run
from pipelines.shard import Shard
from pipelines.sink import WriteParquet
from pipelines.train import current_bundle
from pipelines.validate import POLLS, REJECTED, Validate
from serving import online_places
from serving.registration import open_store

_WATCH_SECONDS: Final = 0.25
_OUTPUTS: Final = ("predictions", "releases", "publications", "rejected_by_stream")


def stream(
    config: Configuration,
    progress: Progress,
    speed: float | None = None,
    engine: str | None = None,
    mode: str | None = None,
) -> dict[str, Any]:
    """Replay everything received between the evaluation's end and the stream's end.

    Args:
        config: The configuration; its root holds log, handed-over state and bundle.
        progress: Where progress is shown.
        speed: Times real time; None for as fast as possible.
        engine: ``fnapi`` or ``prism``; None for the configured one.
        mode: ``exact`` or ``eager``; None for the configured one.

    Returns:
        Counts, figures, and the engine with the reason for it.

    Raises:
        StateMismatch: The handed-over state is of other definitions.
        SequenceError: Requests got lost between log and predictions.
    """
    project, root = config.project, config.root
    _check_handoff(config)
    bundle = current_bundle(root)
    _clear(config)
    # Registered here, once: workers only write.
    open_store(project, root, clock="replay", place=config.online_store)
    choice = stream_engine(config, engine)
    options = ReplayOptions(
        root=root,
        start_us=config.splits.evaluate_until_us,
        stop_us=config.splits.stream_until_us,
        poll_rows=config.stream.poll_rows,
        speed=speed if speed is not None else config.stream.speed,
    )
    featurize = FeaturizeOptions(
        run=uuid.uuid4().hex,
        shards=config.shards,
        partitions=source_partitions(Log(root), project),
        mode=Mode(mode or config.stream.mode),
        gap_batches=config.stream.gap_batches,
        answer_within_us=config.stream.answer_within_us,
        handoff=root / "states",
    )
    replayed = ReplayLog(project, options)
    requests = replayed.rows_of(project.request.name)
    began = time.perf_counter()
    with (
        progress.stage("stream", total=requests, unit="requests") as stage,
        _watched(featurize.run, stage),
    ):
        stage.note(choice.why)
        pipeline = beam.Pipeline(
            runner=make_runner(choice), options=pipeline_options(config, choice, "stream")
        )
        wire(pipeline, config, options, featurize, bundle)
        run(pipeline, choice)
    seconds = time.perf_counter() - began
    summary = {
        "engine": choice.name,
        "why": choice.why,
        "mode": featurize.mode.value,
        "speed": options.speed,
        "bundle": bundle.name,
        "requests": requests,
        "events": replayed.rows - requests,
        "seconds": seconds,
        "rows_per_s": replayed.rows / seconds,
        **_outcome(config),
    }
    if summary["doubled"] or summary["predictions"] + summary["unanswered"] != requests:
        raise SequenceError(
            f"{requests} requests went in, {summary['predictions']} predictions "
            f"({summary['doubled']} of them doubled) and {summary['unanswered']} rejected requests "
            f"came out: the engine {choice.name!r} lost or doubled batches"
        )
    return summary


def wire(
    pipeline: beam.Pipeline,
    config: Configuration,
    replay: ReplayOptions,
    featurize: FeaturizeOptions,
    bundle: Path,
) -> None:
    """Wire source, sharding, features, publications, inference and sinks."""
    project, root = config.project, config.root
    valid = pipeline | Replay(project, replay) | Validate(project)
    out = valid[POLLS] | Shard(project, config.shards) | Featurize(project, featurize)
    _ = (
        out[ANSWERS]
        | Infer(project, bundle, featurize.run)
        | "Predictions" >> WriteParquet(root / "predictions", ("partition", "position"))
    )
    _ = out[PUBLICATIONS] | Publish(project, root, config.online_store, config.shards)
    _ = out[RELEASES] | "Releases" >> beam.ParDo(_WriteLines(root / "releases"))
    unanswered = out[UNANSWERED] | "Reject" >> beam.ParDo(_Reject(project.request.name))
    _ = (
        (valid[REJECTED], unanswered)
        | "Rejected" >> beam.Flatten()
        | "WriteRejected"
        >> WriteParquet(root / "rejected_by_stream", ("stage", "stream", "partition", "position"))
    )


class _WriteLines(beam.DoFn):
    """Writes texts, one per line, to a file per bundle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: list[str] = []

    def start_bundle(self) -> None:
        self._lines = []

    def process(self, element: str) -> None:
        self._lines.append(element)

    def finish_bundle(self) -> None:
        if self._lines:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            path.write_text("\n".join(self._lines) + "\n")


class _Reject(beam.DoFn):
    """Turns requests that were not answered into rejected records."""

    def __init__(self, request: str) -> None:
        self._request = request

    def process(self, element: tuple[bytes, int, tuple[str, ...]]) -> Iterator[pa.RecordBatch]:
        rows, partition, views = element
        batch = RecordBatchCoder().decode(rows)
        positions = hashing.bits(batch.column(POSITION))
        payloads = [json.dumps(row, default=str).encode() for row in batch.to_pylist()]
        count = batch.num_rows
        yield rejected.batch(
            rejected.Stage.ANSWER,
            stream=self._request,
            partition=partition,
            positions=positions,
            reasons=[rejected.Reason.NO_ANSWER] * count,
            details=[f"views {', '.join(views)} did not answer in time"] * count,
            origins=[f"{self._request}/{partition}:{at}" for at in positions.tolist()],
            payloads=payloads,
        )


def _check_handoff(config: Configuration) -> None:
    path = config.root / "states" / "handoff.json"
    if not path.exists():
        raise StateMismatch(f"there is no handed-over state at {path}; run `tidemill backfill`")
    handoff = json.loads(path.read_text())
    for view in config.project.views:
        made_for = handoff["views"].get(view.name)
        if made_for != view.hash:
            raise StateMismatch(
                f"view {view.name!r}: the handed-over state was made for definition {made_for}, "
                f"this is {view.hash}; run `tidemill backfill` again"
            )
    if handoff["shards"] != config.shards:
        raise StateMismatch(
            f"the handed-over state has {handoff['shards']} shards, the configuration says "
            f"{config.shards}; run `tidemill backfill` again"
        )
    if handoff["as_of_us"] != config.splits.evaluate_until_us:
        raise StateMismatch(
            "the handed-over state ends at another instant than splits.evaluate_until; run "
            "`tidemill backfill` again"
        )


def _clear(config: Configuration) -> None:
    """Remove what an earlier run of the stream left."""
    for name in _OUTPUTS:
        shutil.rmtree(config.root / name, ignore_errors=True)
    online_places.remove(config.online_store)


@contextmanager
def _watched(run_name: str, stage: Any) -> Iterator[None]:
    """Show a run's predictions while it goes on."""
    done = threading.Event()

    def watch() -> None:
        shown = 0
        while not done.wait(_WATCH_SECONDS):
            seen = METER.read(run_name, "predictions")
            stage.advance(seen - shown)
            shown = seen
        stage.advance(METER.read(run_name, "predictions") - shown)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def read_releases(root: Path) -> list[dict[str, Any]]:
    """Read the evidence of a run: one entry per release, by view, shard and number.

    A release that the engine repeated stands once.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    for path in sorted((root / "releases").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["view"], entry["shard"], entry["number"]] = entry
    return [found[key] for key in sorted(found)]


def read_rejected(folder: Path) -> pa.Table:
    """Read the rejected records in a folder."""
    paths = sorted(folder.glob("*.parquet"))
    return pa.concat_tables([rejected.SCHEMA.empty_table(), *map(pq.read_table, paths)])


def _rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.glob("**/*.parquet"))


def _outcome(config: Configuration) -> dict[str, Any]:
    """Count what a run left on disk."""
    root = config.root
    releases = read_releases(root)
    last = {(entry["view"], entry["shard"]): entry for entry in releases}
    seen = {
        name: sum(entry["seen"][name] for entry in last.values())
        for name in ("late", "late_requests", "duplicates", "conflicts", "repeats", "early")
    }
    frontiers: dict[str, int] = {}
    for (view, _), entry in last.items():
        frontiers[view] = min(frontiers.get(view, entry["frontier_us"]), entry["frontier_us"])
    refused = read_rejected(root / "rejected_by_stream")
    by_source = refused.column("stream").to_pylist()
    unanswered = by_source.count(config.project.request.name)
    return {
        "predictions": _rows(root / "predictions"),
        "doubled": _doubled(root / "predictions"),
        "unanswered": unanswered,
        "rejected": len(by_source),
        "publications": sum(entry["publications"] for entry in releases),
        "releases": len(releases),
        **seen,
        "overflows": sum(entry["kernel"]["overflows"] for entry in last.values()),
        "frontiers": frontiers,
        "latency_ms": _latency(root / "predictions"),
    }


def _read(folder: Path, columns: list[str]) -> pa.Table | None:
    """Read columns of all Parquet files in a folder; None when there is none."""
    parts = [pq.read_table(path, columns=columns) for path in folder.glob("*.parquet")]
    return pa.concat_tables(parts) if parts else None


def _doubled(folder: Path) -> int:
    """Count the predictions that are not the first for their request."""
    places = _read(folder, ["partition", "position"])
    if places is None:
        return 0
    return int(places.num_rows - places.group_by(["partition", "position"]).aggregate([]).num_rows)


def _latency(folder: Path) -> dict[str, float]:
    """Return quantiles of the wall time from a poll to its predictions, in milliseconds."""
    table = _read(folder, ["sent_us", "created_us"])
    if table is None:
        return {}
    took = (table["created_us"].to_numpy() - table["sent_us"].to_numpy()) / 1_000
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 90, 99)}
