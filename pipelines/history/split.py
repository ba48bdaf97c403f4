"""Splitting the log: the rows of a span, prepared for the kernel, by part of each view's shards."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Label, Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import KEY, identity_digests, prepare_requests
from tidemill.pipelines.history.history_plan import HistoryPlan, Span
from tidemill.pipelines.history.spill import SpillWriter, spill_file
from tidemill.pipelines.io.log import POSITION, RECEIVED, Log, declared_columns, log_schema
from tidemill.pipelines.stream.sequence import event_rows

NUMBER: Final = "_number"
"""The column of the request's number in the rows that ask for labels."""


def events_section(view: str) -> str:
    """Return the section of a split file with a view's events."""
    return f"events {view}"


def requests_section(view: str) -> str:
    """Return the section of a split file with a view's requests."""
    return f"requests {view}"


LABEL_EVENTS: Final = "label events"
LABEL_REQUESTS: Final = "label requests"


def asked_columns(project: Project, label: Label) -> list[str]:
    """Return the columns of a request that its label depends on."""
    request = project.request
    return list(dict.fromkeys([*label.on, request.request_time, request.request_id]))


def known_columns(label: Label) -> list[str]:
    """Return the columns of an event that a label depends on."""
    stream = label.stream
    names = [*label.on.values(), stream.event_time, stream.event_id, *label.value.columns()]
    return [name for name in stream.schema if name in names]


def asked_schema(project: Project, label: Label) -> pa.Schema:
    """Return the schema of the requests in a part of the labels."""
    schema = log_schema(project.request)
    kept = [schema.field(name) for name in asked_columns(project, label)]
    return pa.schema([*kept, pa.field(NUMBER, pa.int64())])


def known_schema(label: Label) -> pa.Schema:
    """Return the schema of the events in a part of the labels."""
    schema = log_schema(label.stream)
    return pa.schema([schema.field(name) for name in known_columns(label)])


def split_span(project: Project, plan: HistoryPlan, span: Span) -> int:
    """Write the rows of a span by part (`HistoryPlan.split_path`); return their number."""
    rows = Log(Path(plan.build), declared=declared_columns(project)).read_span(*span)
    with spill_file(plan.split_path(span)) as out:
        if span.source == project.request.name:
            _split_requests(project, plan, span, rows, out)
        else:
            _split_events(project, plan, span, rows, out)
    return int(rows.num_rows)


def _split_events(
    project: Project, plan: HistoryPlan, span: Span, rows: pa.RecordBatch, out: SpillWriter
) -> None:
    stream = project.stream(span.source)
    views = [view for view in project.views if view.stream.name == stream.name]
    positions = hashing.bits(rows.column(POSITION))
    received = hashing.bits(rows.column(RECEIVED))
    digests = identity_digests(stream, rows) if views else None
    for view in views:
        events = event_rows(make_plan(view), view, rows, positions, received, digests)
        pieces = plan.pieces(view.name)
        by = hashing.shard_of(events.column(KEY), pieces)
        _write_by(events_section(view.name), events, by, pieces, out)
    label = project.label
    if label is not None and label.stream.name == stream.name:
        known = rows.select(known_columns(label))
        by = _label_part(rows, list(label.on.values()), plan.label_parts)
        _write_by(LABEL_EVENTS, known, by, plan.label_parts, out)


def _split_requests(
    project: Project, plan: HistoryPlan, span: Span, rows: pa.RecordBatch, out: SpillWriter
) -> None:
    request = project.request
    numbers = plan.firsts[span.partition] + hashing.bits(rows.column(POSITION))
    for view in project.views:
        asked = prepare_requests(view, request, rows, numbers)
        keys, pieces = asked.column(KEY), plan.pieces(view.name)
        by = hashing.shard_of(keys, pieces)
        if keys.null_count:
            # A request without a key has the empty value in every part: deal them evenly.
            by = np.where(hashing.validity(keys), by, numbers % pieces)
        _write_by(requests_section(view.name), asked, by, pieces, out)
    if project.label is not None:
        asked = rows.select(asked_columns(project, project.label))
        asked = asked.append_column(NUMBER, pa.array(numbers))
        by = _label_part(rows, list(project.label.on), plan.label_parts)
        _write_by(LABEL_REQUESTS, asked, by, plan.label_parts, out)


def _label_part(rows: pa.RecordBatch, columns: list[str], parts: int) -> Int64Array:
    keys = pa.RecordBatch.from_arrays(
        [rows.column(name) for name in columns], names=[str(n) for n, _ in enumerate(columns)]
    )
    high = hashing.digest_rows(keys)[:, 0] >> np.uint64(32)
    return (high % np.uint64(parts)).astype(np.int64)


def _write_by(
    section: str, rows: pa.RecordBatch, by: Int64Array, pieces: int, out: SpillWriter
) -> None:
    """Write rows by their piece, in their order."""
    if pieces == 1:
        out.write_rows(section, rows)
        return
    # numpy sorts 16 bits by radix, in a tenth of the time.
    small = by.astype(np.min_scalar_type(pieces))
    order = np.argsort(small, kind="stable")
    taken = rows.take(pa.array(order))
    ends = np.searchsorted(small[order], np.arange(pieces + 1)).tolist()
    for start, stop in pairwise(ends):
        out.write_rows(section, taken.slice(start, stop - start))


def spill_bytes(project: Project, plan: HistoryPlan) -> int:
    """Return how many bytes all spill files have at most, about."""
    rows = {name: sum(lengths) for name, lengths in plan.lengths.items()}
    log = Log(Path(plan.build))
    logged = {
        name: sum(log.size(name, n) for n in range(len(lengths)))
        for name, lengths in plan.lengths.items()
    }
    asked, total = rows[plan.request], 0
    for view in project.views:
        stream = view.stream.name
        # Keys and ids are texts of the log. Beside them an event has its time, digest, cells, place
        # and arrival, and in the state four words more; a request has its time, number and answer.
        total += logged[stream] + (128 + 8 * make_plan(view).row_words) * rows[stream]
        total += logged[plan.request] + (24 + 9 * len(view.columns)) * asked
    if project.label is not None:
        total += logged[project.label.stream.name] + logged[plan.request] + 32 * asked
    return total
