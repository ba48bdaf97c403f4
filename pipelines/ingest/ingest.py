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
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import ARROW_TYPES, EventStream, Project, Request
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.engines.choosing import choose_engine, make_runner, run
from tidemill.pipelines.engines.options import pipeline_options
from tidemill.pipelines.ingest.rejected_shares import EXAMPLES, examples, too_many
from tidemill.pipelines.ingest.repaired_records import Mending, mended_files
from tidemill.pipelines.ingest.source_digests import digested
from tidemill.pipelines.io.event_counts import EventCounter, EventCounts
from tidemill.pipelines.io.files.judged_rows import (
    Counts,
    StreamBatch,
    read_stream,
    request_ids,
)
from tidemill.pipelines.io.log import Log, one_batch
from tidemill.pipelines.io.sinks import WriteParquet
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.progress import Progress
from tidemill.serving.files.atomic_write import write_text
from tidemill.serving.files.read_files import read_json

REJECTED: Final = "rejected"
COUNTS: Final = "counts"


_COUNTS: Final = "counts"


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


def log_partitions(
    definition: EventStream | Request,
    source: Source,
    batches: Iterable[StreamBatch],
    until_us: int | None = None,
    mended: Iterable[tuple[pa.Table, Int64Array]] = (),
) -> Iterator[LogPartition]:
    """Put a source's accepted rows in order of arrival, by partition.

    Args:
        definition: The stream or request.
        source: With a ``received`` column each file is a partition. Without one the rows are sorted
            by time and id, and the hash of the id chooses among ``source.partitions``.
        batches: The accepted rows.
        until_us: Leave out rows received at or after this instant; None keeps all.
        mended: Partitions to add: rows, and when each row arrived.
    """
    parts = list(_ordered(definition, source, batches))
    parts += [LogPartition(number, *part) for number, part in enumerate(mended, start=len(parts))]
    for part in parts:
        if until_us is None:
            yield part
        else:
            stop = int(np.searchsorted(part.received_us, until_us, "left"))
            yield LogPartition(part.partition, part.rows.slice(0, stop), part.received_us[:stop])


def _ordered(
    definition: EventStream | Request, source: Source, batches: Iterable[StreamBatch]
) -> Iterator[LogPartition]:
    schema = pa.schema([(name, ARROW_TYPES[d]) for name, d in definition.schema.items()])
    batches = list(batches)
    kept = [batch for batch in batches if batch.batch.num_rows]
    if source.received is not None:
        # A file is a partition also if all its rows were rejected.
        for partition in range(max((b.partition for b in batches), default=0) + 1):
            rows = pa.Table.from_batches(
                [b.batch for b in kept if b.partition == partition], schema=schema
            )
            received = rows.column(source.received).cast(pa.int64()).to_numpy()
            if len(received):
                received = np.maximum.accumulate(received)
            yield LogPartition(partition, rows, received)
        return
    table = pa.Table.from_batches([b.batch for b in kept], schema=schema)
    order = pc.sort_indices(
        table,
        sort_keys=[(definition.time_column, "ascending"), (definition.id_column, "ascending")],
    )
    table = table.take(order)
    ids = hashing.key_bytes(one_batch(table.select([definition.id_column])).column(0))
    dealt = hashing.shard_of(ids, source.partitions)
    for partition in range(source.partitions):
        rows = table.filter(pa.array(dealt == partition))
        times = rows.column(definition.time_column).cast(pa.int64()).to_numpy()
        yield LogPartition(partition, rows, times)


@dataclass(frozen=True, eq=False)
class SourceRead:
    """All rows of a source.

    Attributes:
        parts: The partitions of the log, mended records included.
        rejected: The rejected records.
        counts: How many rows of the files were kept, dropped and rejected.
        mended: How many rejected records are replaced by mended ones.
        repeated: How many accepted rows are requests whose id an earlier request has; None of a
            source whose rows cannot be that.
    """

    parts: list[LogPartition]
    rejected: list[pa.RecordBatch]
    counts: Counts
    mended: int
    repeated: int | None = None


def read_log(config: Configuration, name: str) -> SourceRead:
    """Read a source's files, and its mended records, into the partitions of its log.

    Args:
        config: The configuration.
        name: The stream's or the request's name.
    """
    source = config.sources[name]
    definition = config.project.definition(name)
    mending = Mending(config.root, name)
    counts = Counts()
    kept: list[StreamBatch] = []
    refused: list[pa.RecordBatch] = []
    files = source.find_files()
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
        counts += batch.counts
        kept.append(batch)
        refused.append(mending.take(batch.rejected))
    settled = mending.settle(definition, source, kept, ids)
    refused.append(settled.rejected)
    parts = log_partitions(definition, source, kept, config.read_until_us, settled.parts)
    return SourceRead(
        list(parts),
        [batch for batch in refused if batch.num_rows],
        counts,
        settled.mended,
        None if ids is None or ids.rejects else counts.repeated + settled.repeated,
    )


@beam.typehints.with_input_types(str)
@beam.typehints.with_output_types(str, **{REJECTED: pa.RecordBatch})
@dataclass(eq=False)
class Ingest(beam.DoFn):
    """Reads one source; writes its log, emits its rejected records and its counts as JSON.

    Attributes:
        config: The configuration.
        build: The folder of the build that the log belongs to; None only validates the source.
    """

    config: Configuration
    build: Path | None

    def process(self, name: str) -> Iterator[Any]:
        """Ingest the source with this name."""
        read = [*self.config.sources[name].find_files(), *mended_files(self.config.root, name)]
        with digested(read) as files:
            found = read_log(self.config, name)
        reasons: Counter[str] = Counter()
        for batch in found.rejected:
            reasons.update(batch.column("reason").to_pylist())
            yield beam.pvalue.TaggedOutput(REJECTED, batch)
        row = {
            "source": name,
            "read": found.counts.read,
            "dropped": found.counts.dropped,
            "kept": found.counts.kept,
            "mended": found.mended,
            "rejected": sum(reasons.values()),
            "reasons": dict(reasons),
        }
        if self.config.sources[name].ambiguous is not None:
            row["repeated_local_times"] = found.counts.resolved
        if isinstance(definition := self.config.project.definition(name), EventStream):
            row |= _event_counts(self.config.project, definition, found.parts).as_figures()
        if found.repeated is not None:
            row["repeated_request_ids"] = found.repeated
        if found.rejected:
            row[EXAMPLES] = examples(found.rejected)
        if self.build is not None:
            log = Log(self.build)
            for part in found.parts:
                log.write(definition, part.partition, part.rows, part.received_us)
            row["logged"] = sum(part.rows.num_rows for part in found.parts)
            row["files"] = [asdict(file) for file in files]
        yield json.dumps(row)


def _event_counts(
    project: Project, stream: EventStream, parts: Iterable[LogPartition]
) -> EventCounts:
    counter = EventCounter(stream, project.views_of(stream.name))
    for part in parts:
        counter.take(one_batch(part.rows), part.received_us)
    return counter.counts()


def ingest(
    config: Configuration, progress: Progress, *, work: Path, build: Path | None
) -> dict[str, Any]:
    """Read all sources; write the log and the rejected records.

    Args:
        config: The configuration.
        progress: Where progress is shown.
        work: A folder of this run, for the rejected records (`replace_rejected`).
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
            | beam.ParDo(Ingest(config, build)).with_outputs(REJECTED, main=COUNTS)
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
    folder = config.root / paths.SCRATCH
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="validate-") as work:
        counts = ingest(config, progress, work=Path(work), build=None)
        replace_rejected(Path(work), config.root)
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
