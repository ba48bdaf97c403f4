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
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import choose_engine, make_runner, run
from tidemill.pipelines.engines.options import pipeline_options
from tidemill.pipelines.ingest.accepted_rows import AcceptedRows, Arrived
from tidemill.pipelines.ingest.rejected_shares import (
    EXAMPLE_COLUMNS,
    EXAMPLES,
    examples,
    too_many,
)
from tidemill.pipelines.ingest.repaired_records import Mending, mended_files
from tidemill.pipelines.ingest.source_digests import digested
from tidemill.pipelines.io.event_counts import EventCounter, EventCounts
from tidemill.pipelines.io.files.judged_rows import Counts, read_stream, request_ids
from tidemill.pipelines.io.log import Log, LogWriter, log_schema, one_batch
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.scratch import scratch_folder
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.read_files import read_json

REJECTED: Final = "rejected"
COUNTS: Final = "counts"
_COUNTS: Final = "counts"
_COUNTED: Final = "counted"
_RUNS: Final = "runs"


@dataclass
class ReadSource:
    """Reads a source's files, and its mended records, in bounded memory.

    Attributes:
        config: The configuration.
        name: The stream's or the request's name.
        work: A folder for the rows of a large source.
        counts: How many rows of the files were kept, dropped and rejected.
        mended: How many rejected records are replaced by mended ones; known when `rejected` ends.
        repeated: How many accepted rows are requests whose id an earlier request has; None of a
            source whose rows cannot be that. Known when `rejected` ends.
    """

    config: Configuration
    name: str
    work: Path
    counts: Counts = field(default_factory=Counts)
    mended: int = 0
    repeated: int | None = None

    def __post_init__(self) -> None:
        self._definition = self.config.project.definition(self.name)
        self._accepted = AcceptedRows(
            self._definition, self.config.sources[self.name], self.work, self.config.read_until_us
        )
        self._mended_parts: list[tuple[pa.RecordBatch, Int64Array]] = []

    def rejected(self) -> Iterator[pa.RecordBatch]:
        """Read all rows; yield the rejected records on the way."""
        source, definition = self.config.sources[self.name], self._definition
        mending = Mending(self.config.root, self.name)
        files = source.find_files()
        partitions = 1
        ids = request_ids(definition, files) if isinstance(definition, Request) else None
        for batch in read_stream(
            definition,
            files,
            format=source.format,
            nulls=source.nulls,
            zone=source.zone,
            ambiguous=source.ambiguous,
            transform=source.transform,
            received=source.received,
            replaced=mending.replaces,
            ids=ids,
        ):
            self.counts += batch.counts
            partitions = max(partitions, batch.partition + 1)
            self._accepted.add(batch)
            if (left := mending.take(batch.rejected)).num_rows:
                yield left
        settled = mending.settle(definition, source, self._accepted.all_rows, partitions, ids)
        self.mended = settled.mended
        if ids is not None and not ids.rejects:
            self.repeated = self.counts.repeated + settled.repeated
        until_us = self.config.read_until_us
        for rows, received in settled.parts:
            stop = len(rows)
            if until_us is not None:
                stop = int(np.searchsorted(received, until_us, "left"))
            self._mended_parts.append((one_batch(rows.slice(0, stop)), received[:stop]))
        if settled.rejected.num_rows:
            yield settled.rejected

    @property
    def lengths(self) -> list[int]:
        """The number of rows of each partition of the log; mended records are the last ones."""
        return [*self._accepted.lengths, *(rows.num_rows for rows, _ in self._mended_parts)]

    def arrived(self) -> Iterator[Arrived]:
        """Yield the rows of each partition in order of arrival, after `rejected` has ended."""
        yield from self._accepted.arrived()
        first = len(self._accepted.lengths)
        for partition, (rows, received) in enumerate(self._mended_parts, start=first):
            yield partition, rows, received

    def write_log(self, build: Path | None) -> EventCounts | None:
        """Write the log, after `rejected` has ended.

        Args:
            build: The folder of the build; None only counts.

        Returns:
            The counts of a stream's events; None for the request.
        """
        definition, counter = self._definition, None
        if isinstance(definition, EventStream):
            views = self.config.project.views_of(definition.name)
            counter = EventCounter(definition, views, self.work / _COUNTED)
        with ExitStack() as files:
            writers: list[LogWriter] = []
            if build is not None:
                writers = [
                    files.enter_context(Log(build).writing(definition, partition, rows))
                    for partition, rows in enumerate(self.lengths)
                ]
            for partition, rows, received in self.arrived():
                if writers:
                    writers[partition].write(rows, received)
                if counter is not None:
                    counter.take(rows, received)
        return None if counter is None else counter.counts()


@dataclass(frozen=True)
class LogPartition:
    """A partition of a source's log.

    Attributes:
        partition: The partition's number.
        rows: The declared columns, in order of arrival.
        received_us: int64, ``(rows,)``: when each row arrived.
    """

    partition: int
    rows: pa.Table
    received_us: Int64Array


@dataclass(frozen=True, eq=False)
class SourceRead:
    """All rows of a source.

    Attributes:
        parts: The partitions of the log, mended records included.
        counts: How many rows of the files were kept, dropped and rejected.
    """

    parts: list[LogPartition]
    counts: Counts


def read_log(config: Configuration, name: str) -> SourceRead:
    """Read a source's files, and its mended records, into memory, as its log has them.

    Args:
        config: The configuration.
        name: The stream's or the request's name.
    """
    with scratch_folder(config.root, "read") as work:
        return _read_log(config, name, work)


def _read_log(config: Configuration, name: str, work: Path) -> SourceRead:
    read = ReadSource(config, name, work)
    for _ in read.rejected():
        pass
    schema = log_schema(config.project.definition(name))
    declared = pa.schema([schema.field(column) for column in schema.names[:-2]])
    rows: list[list[pa.RecordBatch]] = [[] for _ in read.lengths]
    received: list[list[Int64Array]] = [[np.zeros(0, np.int64)] for _ in read.lengths]
    for partition, batch, times in read.arrived():
        rows[partition].append(batch)
        received[partition].append(times)
    parts = [
        LogPartition(
            partition,
            pa.Table.from_batches(rows[partition], schema=declared),
            np.concatenate(received[partition]),
        )
        for partition in range(len(rows))
    ]
    return SourceRead(parts, read.counts)


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Ingest(beam.DoFn):
    """Reads one source; writes its log, emits its rejected records and its counts as JSON.

    Attributes:
        config: The configuration.
        build: The folder of the build that the log belongs to; None only validates the source.
        work: A folder for the rows of large sources.
    """

    config: Configuration
    build: Path | None
    work: Path

    def process(self, name: str) -> Iterator[Any]:
        """Ingest the source with this name."""
        source = ReadSource(self.config, name, self.work / name)
        reasons: Counter[str] = Counter()
        seen: list[pa.RecordBatch] = []
        read = [*self.config.sources[name].find_files(), *mended_files(self.config.root, name)]
        with digested(read) as files:
            for batch in source.rejected():
                reasons.update(batch.column("reason").to_pylist())
                seen.append(batch.select(list(EXAMPLE_COLUMNS)))
                yield beam.pvalue.TaggedOutput(REJECTED, batch)
        row = {
            "source": name,
            "read": source.counts.read,
            "dropped": source.counts.dropped,
            "kept": source.counts.kept,
            "mended": source.mended,
            "rejected": sum(reasons.values()),
            "reasons": dict(reasons),
        }
        if self.config.sources[name].ambiguous is not None:
            row["repeated_local_times"] = source.counts.resolved
        if (counts := source.write_log(self.build)) is not None:
            row |= counts.as_figures()
        if source.repeated is not None:
            row["repeated_request_ids"] = source.repeated
        if seen:
            row[EXAMPLES] = examples(seen)
        if self.build is not None:
            row["logged"] = sum(source.lengths)
            row["files"] = [asdict(file) for file in files]
        shutil.rmtree(source.work, ignore_errors=True)
        yield json.dumps(row)


def ingest(
    config: Configuration, progress: Progress, *, work: Path, build: Path | None
) -> dict[str, Any]:
    """Read all sources; write the log and the rejected records.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        work: A folder of this run, for the rejected records (`replace_rejected`) and the rows of
            large sources.
        build: The folder of the build whose log is written; None only validates the sources.

    Returns:
        Counts by source: read, kept, dropped, rejected, mended, and rejected by reason; and, where
        the source declares a rule for them, the kept rows with a repeated local time; of requests
        that are declared ``repeated="count"``, those with a repeated id. Of a stream also its
        `pipelines.io.event_counts.EventCounts`. Of a source with rejected records also an example
        for each reason and column.
    """
    choice = choose_engine(None, streaming=False)
    collected = work / _COUNTS
    with progress.stage("ingest", total=len(config.sources), unit="sources") as stage:
        stage.note(choice.why)
        pipeline = beam.Pipeline(
            runner=make_runner(choice),
            options=pipeline_options(config.project.name, choice, "ingest"),
        )
        out = (
            pipeline
            | beam.Create(sorted(config.sources))
            | beam.Reshuffle()
            | beam.ParDo(Ingest(config, build, work / _RUNS)).with_outputs(REJECTED, main=COUNTS)
        )
        write = WriteParquet(work / paths.REJECTED, ("stage", "stream", "partition", "position"))
        _ = out[REJECTED] | "Rejected" >> beam.ParDo(write)
        _ = out[COUNTS] | "Counts" >> beam.Map(_write_counts, str(collected))
        run(pipeline, choice)
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


def _write_counts(counts: str, folder: str) -> None:
    write_text(Path(folder, f"{json.loads(counts)['source']}.json"), counts)
