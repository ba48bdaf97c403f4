"""Ingest: raw files to the log and the rejected records, on Beam.

A source with a ``received`` column is a log: each file is a partition, its rows are in order of
arrival, and ingest rejects the rows that come too late or too far ahead. A source without one is
history read as a table: it has no order of arrival, so no row is late; its log is sorted by time
and id.

Rejected records that were mended (`pipelines.ingest.repaired_records`) follow the rows of the files
in the log: ``read = kept + dropped + rejected + mended``.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.ingest.read_source import ReadSource, alike, read_together
from tidemill.pipelines.ingest.rejected_shares import (
    EXAMPLE_COLUMNS,
    EXAMPLES,
    examples,
    too_many,
)
from tidemill.pipelines.ingest.repaired_records import mended_files
from tidemill.pipelines.ingest.source_digests import digested
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.io.steps import Elements, step
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.read_files import read_json

REJECTED: Final = "rejected"
COUNTS: Final = "counts"
STEP: Final = "ingest"
_COUNTS: Final = "counts"
_RUNS: Final = "runs"


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Ingest(beam.DoFn):
    """Reads sources of the same files; writes their logs, emits rejected records, and counts.

    Attributes:
        config: The configuration.
        build: The folder of the build that the logs belong to; None only validates the sources.
        work: A folder for the rows of large sources.
        live: The rows that streams have read of topics; None for none.
    """

    config: Configuration
    build: Path | None
    work: Path
    live: LiveRows | None = None

    def process(self, names: str) -> Iterator[Any]:
        """Ingest the sources with these names, a JSON list; emit the counts of each as JSON."""
        group = json.loads(names)
        found = self.config.sources[group[0]].find_files()
        sources = [ReadSource(self.config, name, self.work / name, found) for name in group]
        reasons = {source.name: Counter[str]() for source in sources}
        seen: dict[str, list[pa.RecordBatch]] = {source.name: [] for source in sources}
        mended = {source.name: mended_files(self.config.root, source.name) for source in sources}
        read = dict.fromkeys([*found, *itertools.chain(*mended.values())])
        with digested(list(read)) as digests:
            for source, batch in read_together(sources):
                reasons[source.name].update(batch.column("reason").to_pylist())
                seen[source.name].append(batch.select(list(EXAMPLE_COLUMNS)))
                yield beam.pvalue.TaggedOutput(REJECTED, batch)
        files = dict(zip(read, digests, strict=True))
        for source in sources:
            row = self._counts(source, reasons[source.name])
            if seen[source.name]:
                row[EXAMPLES] = examples(seen[source.name])
            if self.build is not None:
                of_topic = 0 if self.live is None else sum(self.live.lengths(source.name))
                row["logged"] = sum(source.lengths) + of_topic
                if of_topic:
                    row["live"] = of_topic
                mine = [*found, *mended[source.name]]
                row["files"] = [asdict(files[path]) for path in mine]
            shutil.rmtree(source.work, ignore_errors=True)
            yield json.dumps(row)

    def _counts(self, source: ReadSource, reasons: Counter[str]) -> dict[str, Any]:
        """Write the log of a source that is read; return its counts."""
        row = {
            "source": source.name,
            "read": source.counts.read,
            "dropped": source.counts.dropped,
            "kept": source.counts.kept,
            "mended": source.mended,
            "rejected": sum(reasons.values()),
            "reasons": dict(reasons),
        }
        if self.config.sources[source.name].ambiguous is not None:
            row["repeated_local_times"] = source.counts.resolved
        if (counts := source.write_log(self.build, self.live)) is not None:
            row |= counts.as_figures()
        if source.repeated is not None:
            row["repeated_request_ids"] = source.repeated
        return row


def wire(
    config: Configuration,
    work: Path,
    build: Path | None,
    live: LiveRows | None,
    pipeline: beam.Pipeline,
) -> None:
    """Wire the job; see `ingest`."""
    out = (
        pipeline
        | "Sources" >> Elements([json.dumps(names) for names in alike(config)])
        | "Deal" >> beam.Reshuffle()
        | step("Ingest", Ingest(config, build, work / _RUNS, live)).with_outputs(
            REJECTED, main=COUNTS
        )
    )
    write = WriteParquet(work / paths.REJECTED, ("stage", "stream", "partition", "position"))
    _ = out[REJECTED] | step("Rejected", write)
    _ = out[COUNTS] | step("Counts", _WriteCounts(work / _COUNTS))


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
    collected = work / _COUNTS
    with progress.stage("ingest", total=len(config.sources), unit="sources") as stage:
        stage.note(jobs.choice.why)

        def clear() -> None:
            for folder in (collected, work / _RUNS, work / paths.REJECTED):
                shutil.rmtree(folder, ignore_errors=True)
            if build is not None:
                shutil.rmtree(build / paths.LOG, ignore_errors=True)

        jobs.run(STEP, partial(wire, config, work, build, live), clear)
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
        write_text(self._folder / f"{json.loads(element)['source']}.json", element)
