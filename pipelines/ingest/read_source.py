"""Reading sources: their files, once for all sources that name them, and their mended records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import EventStream, Request
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.accepted_rows import AcceptedRows, Arrived
from tidemill.pipelines.ingest.build_topics import read_topics
from tidemill.pipelines.ingest.live_rows import LiveRows
from tidemill.pipelines.ingest.repaired_records import Mending
from tidemill.pipelines.io.event_counts import EventCounter, EventCounts
from tidemill.pipelines.io.files.input_files import format_of
from tidemill.pipelines.io.files.judged_rows import Counts, Judge, request_ids
from tidemill.pipelines.io.files.readers import RawBatch, Reader, read_for
from tidemill.pipelines.io.log import Log, log_schema, one_batch
from tidemill.pipelines.io.log_pieces import PartitionWriter
from tidemill.pipelines.run.scratch import scratch_folder

_COUNTED: Final = "counted"


@dataclass
class ReadSource:
    """A source that is read, in bounded memory: its files by `read_together`, its mended records.

    Attributes:
        config: The configuration.
        name: The stream's or the request's name.
        work: A folder for the rows of a large source.
        files: The source's files, as it found them.
        as_declared: The source as it was declared when its log was made; None for the project's.
        counts: How many rows of the files were kept, dropped and rejected.
        mended: How many rejected records are replaced by mended ones; known when all is read.
        repeated: How many accepted rows are requests whose id an earlier request has; None of a
            source whose rows cannot be that. Known when all is read.
    """

    config: Configuration
    name: str
    work: Path
    files: Sequence[Path]
    as_declared: EventStream | Request | None = None
    counts: Counts = field(default_factory=Counts)
    mended: int = 0
    repeated: int | None = None

    def __post_init__(self) -> None:
        source = self.config.sources[self.name]
        definition = self.as_declared or self.config.project.definition(self.name)
        self._source, self._definition = source, definition
        self._accepted = AcceptedRows(definition, source, self.work, self.config.read_until_us)
        self._mending = Mending(self.config.root, self.name)
        self._mended_parts: list[tuple[pa.RecordBatch, Int64Array]] = []
        self._partitions = 1
        self._ids = None
        if isinstance(definition, Request):
            self._ids = request_ids(definition, self.files)
        self._judge = Judge(
            definition,
            self.files,
            zone=source.zone,
            ambiguous=source.ambiguous,
            transform=source.transform,
            received=source.received,
            replaced=self._mending.replaces,
            ids=self._ids,
        )

    @property
    def reader(self) -> Reader:
        """What is read of the files."""
        return self._judge.reader

    def take(self, raw: RawBatch) -> pa.RecordBatch:
        """Take the next rows of the files; return the rejected records, ``(rows,)``."""
        batch = self._judge.judge(raw)
        self.counts += batch.counts
        self._partitions = max(self._partitions, batch.partition + 1)
        self._accepted.add(batch)
        return self._mending.take(batch.rejected)

    def settle(self) -> pa.RecordBatch:
        """Read the mended records, after the files; return the rejected ones, ``(rows,)``."""
        ids = self._ids
        settled = self._mending.settle(
            self._definition, self._source, self._accepted.all_rows, self._partitions, ids
        )
        self.mended = settled.mended
        if ids is not None and not ids.rejects:
            self.repeated = self.counts.repeated + settled.repeated
        until_us = self.config.read_until_us
        for rows, received in settled.parts:
            stop = len(rows)
            if until_us is not None:
                stop = int(np.searchsorted(received, until_us, "left"))
            self._mended_parts.append((one_batch(rows.slice(0, stop)), received[:stop]))
        return settled.rejected

    @property
    def lengths(self) -> list[int]:
        """The number of rows of each partition of the log; mended records are the last ones."""
        return [*self._accepted.lengths, *(rows.num_rows for rows, _ in self._mended_parts)]

    def arrived(self) -> Iterator[Arrived]:
        """Yield the rows of each partition in order of arrival, after all is read."""
        yield from self._accepted.arrived()
        first = len(self._accepted.lengths)
        for partition, (rows, received) in enumerate(self._mended_parts, start=first):
            yield partition, rows, received

    def write_log(self, build: Path | None, live: LiveRows | None = None) -> EventCounts | None:
        """Write the log, after all is read; rows of a topic follow those of the files.

        Args:
            build: The folder of the build; None only counts.
            live: The rows that streams have read of topics; None for none.

        Returns:
            The counts of a stream's events; None for the request.
        """
        definition, counter = self._definition, None
        if isinstance(definition, EventStream):
            views = self.config.project.views_of(definition.name)
            counter = EventCounter(definition, views, self.work / _COUNTED)
        with ExitStack() as files:
            writers: list[PartitionWriter] = []
            if build is not None:
                topic = read_topics(build).get(self.name)
                # Partitions of a topic are there from now on, also if nothing is read of them yet.
                found = [] if live is None else live.lengths(self.name)
                of_topic = [0] * (0 if topic is None else len(topic.offsets))
                of_topic[: len(found)] = found
                writers = [
                    files.enter_context(Log(build).writing(definition, partition, rows))
                    for partition, rows in enumerate([*self.lengths, *of_topic])
                ]
            for partition, rows, received in self._with_live(live):
                if writers:
                    writers[partition].write(rows, received)
                if counter is not None:
                    counter.take(rows, received)
        if counter is None:
            return None
        return counter.counts(
            lambda: ((rows, received, None) for _, rows, received in self._with_live(live))
        )

    def _with_live(self, live: LiveRows | None) -> Iterator[Arrived]:
        """Yield the rows of each partition, those of files and of the topic."""
        yield from self.arrived()
        if live is None:
            return
        first = len(self.lengths)
        for partition in range(len(live.lengths(self.name))):
            for rows, received in live.batches(self.name, partition):
                yield first + partition, rows.select(list(self._definition.schema)), received


def read_together(sources: Sequence[ReadSource]) -> Iterator[tuple[ReadSource, pa.RecordBatch]]:
    """Read the same files once for several sources, and the mended records of each.

    Args:
        sources: Sources whose files are read alike (`alike`), at least one.

    Yields:
        Rejected records, and the source that they are of.
    """
    first = sources[0].config.sources[sources[0].name]
    readers = [source.reader for source in sources]
    for raws in read_for(readers, sources[0].files, format=first.format, nulls=first.nulls):
        for source, raw in zip(sources, raws, strict=True):
            if (left := source.take(raw)).num_rows:
                yield source, left
    for source in sources:
        if (left := source.settle()).num_rows:
            yield source, left


def alike(config: Configuration) -> list[list[str]]:
    """Group the sources by the files that they name, in the same order and format, and by nulls."""
    groups: dict[object, list[str]] = {}
    for name, source in sorted(config.sources.items()):
        files = source.find_files()
        formats = [source.format or format_of(path) for path in files]
        groups.setdefault((*files, *formats, source.nulls), []).append(name)
    return list(groups.values())


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


def read_log(
    config: Configuration, name: str, definition: EventStream | Request | None = None
) -> SourceRead:
    """Read a source's files, and its mended records, into memory, as its log has them.

    Args:
        config: The configuration.
        name: The stream's or the request's name.
        definition: The source as it was declared when its log was made; None for the project's.
    """
    with scratch_folder(config.root, "read") as work:
        return _read_log(config, name, work, definition or config.project.definition(name))


def _read_log(
    config: Configuration, name: str, work: Path, definition: EventStream | Request
) -> SourceRead:
    read = ReadSource(config, name, work, config.sources[name].find_files(), definition)
    for _ in read_together([read]):
        pass
    schema = log_schema(definition)
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
