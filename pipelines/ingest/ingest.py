"""Ingest: raw files to the log and the rejected records, on Beam.

A source with a ``received`` column is a log: each file is a partition, its rows are in order of
arrival, and ingest rejects the rows that come too late or too far ahead. A source without one is
history read as a table: it has no order of arrival, so no row is late; its log is sorted by time
and id.

Rejected records that were mended (`pipelines.ingest.repaired_records`) follow the rows of the files
in the log: ``read = kept + dropped + rejected + mended``.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final

import apache_beam as beam

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.ingest.ingest_elsewhere import (
    COUNTED,
    NAMED_BY,
    IngestElsewhere,
    needs,
    write_counts,
)
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.ingest.read_source import alike
from tidemill.pipelines.ingest.read_sources import REJECTED, Ingest
from tidemill.pipelines.ingest.rejected_shares import (
    too_many,
)
from tidemill.pipelines.io.exchange.task_place import TaskPlace
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.io.steps import Elements, step
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.serving.files.read_files import read_json

COUNTS: Final = "counts"
STEP: Final = "ingest"
_RUNS: Final = "runs"


def wire(
    config: Configuration,
    work: Path,
    build: Path | None,
    live: LiveRows | None,
    pipeline: beam.Pipeline,
    place: TaskPlace | None,
) -> None:
    """Wire the job; see `ingest`."""
    does = Ingest(config, build, work / _RUNS, live)
    groups = alike(config)
    if place is not None:
        tasks = [json.dumps([number, names]) for number, names in enumerate(groups)]
        dealt = pipeline | "Sources" >> Elements(tasks) | "Deal" >> beam.Reshuffle()
        _ = dealt | step("Ingest", IngestElsewhere(does, work, place))
        return
    out = (
        pipeline
        | "Sources" >> Elements([json.dumps(names) for names in groups])
        | "Deal" >> beam.Reshuffle()
        | step("Ingest", does).with_outputs(REJECTED, main=COUNTS)
    )
    write = WriteParquet(work / paths.REJECTED, NAMED_BY)
    _ = out[REJECTED] | step("Rejected", write)
    _ = out[COUNTS] | step("Counts", _WriteCounts(work / COUNTED))


def ingest(
    config: Configuration,
    progress: Progress,
    *,
    work: Path,
    build: Path | None,
    live: LiveRows | None = None,
    jobs: BatchJobs | None = None,
) -> dict[str, Any]:
    """Read all sources; write the log and the rejected records.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        work: A folder of this run, for the rejected records (`replace_rejected`) and the rows of
            large sources.
        build: The folder of the build whose log is written; None only validates the sources.
        live: The rows that streams have read of topics, for the log; None for none.
        jobs: Runs the job; None for the default engine.

    Returns:
        Counts by source: read, kept, dropped, rejected, mended, and rejected by reason; and, where
        the source declares a rule for them, the kept rows with a repeated local time; of requests
        that are declared ``repeated="count"``, those with a repeated id. Of a stream also its
        `pipelines.io.event_counts.EventCounts`. Of a source with rejected records also an example
        for each reason and column.
    """
    jobs = BatchJobs.on(None, config.project.name) if jobs is None else jobs
    collected = work / COUNTED
    with progress.stage("ingest", total=len(config.sources), unit="sources") as stage:
        stage.note(jobs.choice.why)

        def clear() -> None:
            for folder in (collected, work / _RUNS, work / paths.REJECTED):
                shutil.rmtree(folder, ignore_errors=True)
            if build is not None:
                shutil.rmtree(build / paths.LOG, ignore_errors=True)

        gives = needs(config, build, live) if jobs.end is not None else {}
        jobs.run(STEP, partial(wire, config, work, build, live), clear, gives)
        counts = [read_json(path, dict, "run again") for path in sorted(collected.glob("*.json"))]
        stage.advance(len(counts))
    return {row.pop("source"): row for row in counts}


def validate_sources(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Read all sources and replace the root's rejected records; see `ingest`.

    Raises:
        TooManyRejected: More of a source's rows are rejected than it allows.
    """
    with scratch_folder(config.root, "validate") as work:
        counts = ingest(config, progress, work=work, build=None)
        replace_rejected(work, config.root)
    if (error := too_many(config, counts)) is not None:
        raise error
    return counts


def replace_rejected(work: Path, root: Path) -> None:
    """Replace the rejected records of a root by those of an `ingest`."""
    target = root / paths.REJECTED
    target.mkdir(parents=True, exist_ok=True)
    # The folder also holds exported files that the user may have edited: keep them.
    for stale in target.glob("*.parquet"):
        stale.unlink()
    for fresh in (work / paths.REJECTED).glob("*.parquet"):
        fresh.rename(target / fresh.name)


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str)
class _WriteCounts(beam.DoFn):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def process(self, element: str) -> None:
        write_counts(self._folder, element)
