"""Comparing all outputs of a stream with what its polls give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.forget.record import forgotten_rows
from tidemill.pipelines.io.log import PARTITION, POSITION
from tidemill.pipelines.publish.changes import append_changes
from tidemill.pipelines.publish.newest_rows import runs_by_shard
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.repeat import Repeat, Repeated
from tidemill.pipelines.recovery.stream_beginning import repeat_stream
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.stream.wire_format import published
from tidemill.pipelines.verify.findings import Findings
from tidemill.pipelines.verify.outputs.compare_beginning import compare_beginning
from tidemill.pipelines.verify.outputs.compare_publications import PublicationCheck
from tidemill.pipelines.verify.outputs.compare_rejected import RejectedCheck
from tidemill.pipelines.verify.outputs.compare_releases import ReleaseCheck
from tidemill.pipelines.verify.outputs.compare_rows import RowCheck
from tidemill.pipelines.verify.outputs.compare_scores import PredictionCheck
from tidemill.pipelines.verify.outputs.extent import Outputs, find_extent
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.pipelines.verify.outputs.reach import Reach


def compare_outputs(
    config: Configuration,
    run: StreamRun,
    predictions: pa.Table,
    rows: RowCheck | None,
    offline: Path | None,
    reach: Reach | None,
    progress: Progress,
    findings: Findings,
    of_scores: Findings,
) -> Outputs:
    """Repeat a stream, and compare releases, publications, rejected records and predictions.

    Args:
        config: The configuration, with the folders of the stream.
        run: Its record.
        predictions: Its predictions.
        rows: Takes the operators at the releases that the online store names; None if the store
            has rows of something else.
        offline: Where the offline logs are written again, to which the stream adds; None if it
            adds to none.
        reach: How far a live stream had come before anything was read; None for replayed files.
        progress: Where progress is shown.
        findings: Takes the mismatches of releases, publications and rejected records.
        of_scores: Takes those of the predictions.
    """
    stream, project = config.current.stream_folder, config.project
    repeat, begun = repeat_stream(config, run)
    compare_beginning(config, run, begun, findings)
    releases = ReleaseCheck(stream, findings)
    publications = PublicationCheck(stream, project, findings)
    rejected = RejectedCheck(stream, project, findings)
    beyond = None if reach is None else reach.beyond(repeat.polls_before)
    if beyond is None:
        extent = find_extent(
            config.current,
            run,
            releases.found,
            [*publications.numbers, *_named(config, predictions)],
            len(repeat.operators),
            repeat.last_poll,
        )
    else:
        extent = beyond.extent
        for check in (releases, publications, rejected):
            check.leave_out(beyond)
        if rows is not None:
            rows.leave_out(beyond)
        predictions = beyond.predictions(predictions, project)
        if beyond.count:
            progress.say(
                f"{beyond.count:,} outputs of {stream} are of polls that no savepoint has sealed "
                "yet, and are not compared"
            )
    scores = PredictionCheck(
        config.root,
        project,
        predictions,
        of_scores,
        is_scored=run.scored,
        models=run.models,
        has_forgotten=forgotten_rows(config.root, config.current.generation) > 0,
    )
    numbers = {
        bytes.fromhex(entry["mark"]): number
        for (*_, number), entries in releases.found.items()
        for entry in entries
        if isinstance(entry.get("mark"), str) and len(entry["mark"]) == 32
    }
    until, stops = extent.last, {extent.complete}
    if rows is not None:
        rows.take(repeat.operators.values())
        stops |= rows.releases(numbers)
        if any(mark not in numbers for *_, mark in rows.sought):
            # A killed stream may have published a release that it has not recorded.
            until, stops = repeat.last_poll, set(range(extent.complete, repeat.last_poll))
    answered, possible = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    given: dict[tuple[str, int, int], tuple[int, tuple[int, ...]]] = dict(begun.releases)
    frontiers = _frontiers(repeat)
    with progress.stage("repeat the stream", repeat.rows, "rows") as stage:
        for part in repeat.polls(until, stops):
            is_complete = part.last_poll <= extent.complete
            given |= {
                (operator.key.view, operator.key.shard, release.number): (
                    release.frontier_us,
                    release.positions,
                )
                for operator, release in part.releases
            }
            releases.take(part.releases, extent.complete)
            publications.take(part.releases, extent.complete)
            rejected.take(part, is_complete=is_complete)
            for batch in part.answered:
                refused = scores.take(batch, rejected.refused_by(batch))
                rejected.take_records(refused, is_complete=is_complete)
                possible.append(places_of(batch, PARTITION, POSITION))
                if is_complete:
                    answered.append(possible[-1])
            if rows is not None:
                rows.take(repeat.operators.values(), part.releases)
            if offline is not None and part.last_poll <= extent.last:
                _append(config, part, offline)
            if is_complete:
                frontiers = _frontiers(repeat)
            stage.advance(part.rows)
            if part.last_poll >= extent.last and (rows is None or not rows.sought):
                break
    for check in (releases, publications, rejected):
        check.finish()
    return Outputs(
        extent=extent,
        answered=np.concatenate(answered),
        possible=np.concatenate(possible),
        refused=np.array(rejected.requests, np.int64),
        frontiers=frontiers,
        releases=given,
        predictions=predictions,
        figures={
            "releases": releases.compared,
            "publications": publications.rows,
            "rejected": rejected.rows,
            "scores": scores.scores,
            "scores_elsewhere": scores.elsewhere,
            "not_sealed": 0 if beyond is None else beyond.count,
        },
    )


def _named(config: Configuration, predictions: pa.Table) -> list[int]:
    """Return the numbers of the releases that predictions name."""
    columns = [predictions.column(f"release__{view.name}") for view in config.project.views]
    return sorted({number for column in columns for number in pc.unique(column).to_pylist()})


def _frontiers(repeat: Repeat) -> dict[str, int]:
    out: dict[str, int] = {}
    for (view, _), operator in repeat.operators.items():
        out[view] = min(out.get(view, operator.state.frontier_us), operator.state.frontier_us)
    return out


def _append(config: Configuration, part: Repeated, offline: Path) -> None:
    """Append the publications of releases to the logs that are written again."""
    releases = (published(operator, release) for operator, release in part.releases)
    for run in runs_by_shard(releases):
        append_changes(config.project, offline, config.shards, run)
