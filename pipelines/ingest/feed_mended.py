"""Read mended records: validate them, store the valid ones, update the rejected records."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.definitions import Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.mended_lines import MendedLine
from tidemill.pipelines.ingest.rejected_records import Record, as_text, update_rejected
from tidemill.pipelines.ingest.repaired_records import (
    Mended,
    fresh_rows,
    judge_mended,
    read_mended,
    record_id,
    restated,
    write_mended,
)
from tidemill.pipelines.ingest.source_files import SourceFiles, log_end
from tidemill.pipelines.io.log import POSITION, Log, declared_columns, one_batch
from tidemill.pipelines.io.request_ids import RequestIds
from tidemill.pipelines.run.progress import Progress


def feed(
    config: Configuration,
    progress: Progress,
    found: Mapping[str, Record],
    lines: Sequence[MendedLine],
) -> dict[str, Any]:
    """Read the lines of a mended file in; see `pipelines.ingest.replay_rejected`."""
    before = {
        name: {one.record: one for replay in read_mended(config.root, name) for one in replay}
        for name in {line.stream for line in lines}
    }
    for line in lines:
        if line.record not in found:
            _check_mended_before(line, before[line.stream])
    figures: dict[str, Any] = {}
    with progress.stage("replay rejected", total=len(lines), unit="records") as stage:
        for name in sorted(before):
            given = [line for line in lines if line.stream == name]
            figures[name] = _feed_source(config, name, given, found)
            stage.advance(len(given))
    if any(figure["accepted"] or figure["dropped"] for figure in figures.values()):
        progress.say("Now run tidemill backfill, which computes the features again.")
    return figures


def _logged_ids(log: Log, request: Request, partitions: int) -> RequestIds:
    """Return the ids of the requests in a log; later partitions are of mended records."""

    def where(partition: int, position: int) -> str:
        if partition >= partitions:
            return "another mended record"
        return f"the request at {partition}:{position} in the log"

    ids = RequestIds(request, where)
    for partition in range(partitions):
        rows = one_batch(log.read(request.name, partition, [request.request_id, POSITION]))
        ids.repeated(partition, hashing.bits(rows.column(POSITION)), rows)
    return ids


def _check_mended_before(line: MendedLine, before: Mapping[str, Mended]) -> None:
    if line.record not in before:
        raise InputError(
            f"{line.origin}: record {line.record} of {line.stream!r} is not rejected; its source "
            "may have been read again since the export, or it is a record of another root. Export "
            "again: tidemill replay-rejected"
        )
    if line.given(None).payload != before[line.record].payload:
        raise InputError(
            f"{line.origin}: record {line.record} of {line.stream!r} was mended before, in "
            f"{before[line.record].origin}, as {as_text(before[line.record].payload)!r}, and is "
            "part of the log now; take the line out of the file"
        )


def _feed_source(
    config: Configuration, name: str, given: list[MendedLine], found: Mapping[str, Record]
) -> dict[str, Any]:
    source, definition = config.sources[name], config.project.definition(name)
    lines = [line for line in given if line.record in found]
    records = [found[line.record] for line in lines]
    files = SourceFiles(source, list(definition.schema))
    log = Log(config.current.build_folder, declared=declared_columns(config.project))
    end = functools.cache(functools.partial(log_end, log, definition))
    is_log = source.received is not None
    mended = [
        Mended(
            line.record,
            line.origin,
            line.given(record["payload"]).payload,
            files.format(record["partition"]),
            files.columns(record["partition"]),
            *(end(record["partition"]) if is_log else (TIME_MIN, TIME_MIN)),
            record["partition"],
            record["position"],
        )
        for line, record in zip(lines, records, strict=True)
    ]
    partitions = log.partitions(name) if log.path(name, 0).exists() else 0
    ids = _logged_ids(log, definition, partitions) if isinstance(definition, Request) else None
    outcome = judge_mended(definition, source, mended, ids, partitions)
    rows = outcome.rows
    there: list[pa.RecordBatch] = []
    if partitions:
        there = log.read(name, columns=rows.schema.names).to_batches()
    fresh = len(fresh_rows(definition, rows, there))
    good = [one for index, one in enumerate(mended) if index not in outcome.refused]
    if good:
        write_mended(config.root, name, good)
    still = {record_id(record): record for record in restated(records, mended, outcome.refused)}
    update_rejected(config.root, {one.record for one in good}, still)
    return {
        "given": len(given),
        "accepted": fresh,
        "dropped": len(good) - rows.num_rows,
        "already_there": rows.num_rows - fresh,
        "mended_before": len(given) - len(lines),
        "still_rejected": len(still),
        "reasons": dict(Counter(record["reason"] for record in still.values())),
        "left": sum(record["stream"] == name for record in found.values()) - len(good),
    }
