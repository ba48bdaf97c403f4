"""The original history: the raw source files, read again into memory.

Promise of `read_history`: the rows come from the source files, not from a run's output. They are
read, transformed, validated and ordered as in `pipelines.ingest.read_source`, so a row has the
partition and the position that it has in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.errors import DamagedState
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.build_topics import TOPICS, read_topics
from tidemill.pipelines.ingest.read_source import read_log
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import PARTITION, POSITION, Log, declared_columns, log_schema
from tidemill.pipelines.io.log_rows import conformed_table
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.verify.source_history import History, SourceHistory


def read_history(config: Configuration, names: Sequence[str], progress: Progress) -> History:
    """Read the original files of some sources again, and their live rows.

    The live log is all that holds the rows of topics: those of a partition of a topic are as many
    as the build took from it, if there are so many.
    """
    sources = {}
    live = _live_log(config)
    with progress.stage("read the original history", len(names), "sources") as stage:
        for name in names:
            stage.note(name)
            definition = config.project.definition(name)
            log = Log(config.current.build_folder)
            # The build has read no column of the files that its version did not declare.
            found = read_log(config, name, definition.with_columns(log.columns(name)))
            # Leave out partitions of repaired records that are not in the log yet.
            logged, topic = log.lengths(name), read_topics(log.root).get(name)
            of_files = len(logged) - (0 if topic is None else len(topic.offsets))
            parts = [
                _placed(definition, part.partition, part.rows, part.received_us)
                for part in found.parts[:of_files]
            ]
            read = 0
            for partition in range(of_files, len(logged)):
                rows = _live_rows(config, live, name, partition, of_files, log)
                rows = conformed_table(rows, definition.schema)
                parts.append(_numbered(rows.slice(0, logged[partition]), partition))
                read += len(parts[-1])
            counts = found.counts + Counts(read=read, kept=read)
            sources[name] = SourceHistory(
                definition, _concat(definition, parts), len(logged), counts
            )
            stage.advance(1)
    return History(config.project, sources)


def with_live_rows(config: Configuration, history: History) -> History:
    """Add the rows that came from topics since the build: the live log is all that holds them.

    Rows that a seal had written when it was killed are not sealed, and left out.
    """
    live = _live_log(config)
    if live is None:
        return history
    build, sources = Log(config.current.build_folder), dict(history.sources)
    for name, topic in read_topics(build.root).items():
        source, logged = sources[name], build.lengths(name)
        first = source.partitions - len(topic.offsets)
        parts = []
        for partition in range(first, source.partitions):
            rows = _live_rows(config, live, name, partition, first, build)
            rows = conformed_table(rows, source.definition.schema)
            parts.append(_numbered(rows.slice(logged[partition]), partition))
        read = sum(map(len, parts))
        rows = _concat(source.definition, [source.rows, *parts])
        order = np.lexsort((rows.column(POSITION).to_numpy(), rows.column(PARTITION).to_numpy()))
        sources[name] = replace(
            source,
            rows=rows.take(pa.array(order)).combine_chunks(),
            counts=source.counts + Counts(read=read, kept=read),
        )
    return History(history.project, sources)


def lost_live_log(config: Configuration) -> Path | None:
    """Return the folder of the live log, if it is gone and the build has rows of it."""
    build = Log(config.current.build_folder)
    taken = any(
        sum(build.lengths(name)[-len(topic.offsets) :])
        for name, topic in read_topics(build.root).items()
    )
    return config.current.folder / LIVE if taken and _live_log(config) is None else None


def _live_log(config: Configuration) -> LiveLog | None:
    """Return the live log of the generation; None if it has none.

    Raises:
        StateError: A record of it, or that of the build's topics, is gone.
    """
    live = LiveLog(config.current.folder / LIVE, config.project)
    if not (config.is_live and live.exists):
        return None
    if not read_topics(config.current.build_folder):
        raise DamagedState(
            f"{config.current.build_folder / TOPICS} is gone, and a stream has read the topics "
            "that it names: restore it, or run `tidemill backfill` again"
        )
    return live


def _live_rows(
    config: Configuration, live: LiveLog | None, name: str, partition: int, first: int, build: Log
) -> pa.Table:
    """Return the sealed rows of a partition of a topic; without a live log those of the build."""
    if live is None:
        return build.read(name, partition)
    sealed = live.sealed().positions[name][partition - first]
    return stream_log(config.current, config.project).read(name, partition).slice(0, sealed)


def _numbered(rows: pa.Table, partition: int) -> pa.Table:
    return rows.append_column(PARTITION, pa.array(np.full(len(rows), partition), pa.int64()))


def logged_history(build: Path, project: Project) -> History:
    """Return the history as the log holds it: faster to read than the raw files, but no proof."""
    log = Log(build, declared=declared_columns(project))
    sources = {}
    for name in (project.request.name, *(stream.name for stream in project.streams)):
        rows = log.read(name)
        sources[name] = SourceHistory(
            project.definition(name),
            rows,
            log.partitions(name),
            Counts(read=len(rows), kept=len(rows)),
        )
    return History(project, sources)


def _placed(
    definition: EventStream | Request, partition: int, rows: pa.Table, received_us: Int64Array
) -> pa.Table:
    """Add partition and position to the rows of a partition."""
    rows = conformed_table(rows, definition.schema)
    return pa.table(
        [
            *(rows.column(name) for name in definition.schema),
            pa.array(np.arange(len(rows)), pa.int64()),
            pa.array(received_us, pa.int64()),
            pa.array(np.full(len(rows), partition), pa.int64()),
        ],
        schema=_schema(definition),
    )


def _schema(definition: EventStream | Request) -> pa.Schema:
    return log_schema(definition).append(pa.field(PARTITION, pa.int64()))


def _concat(definition: EventStream | Request, parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables([_schema(definition).empty_table(), *parts]).combine_chunks()
