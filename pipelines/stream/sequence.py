"""Sequenced batches: the stream carries its own order.

Beam guarantees no order between bundles, so every batch states the number of its poll and its
positions in its partition: ``[start, stop)``. Polls are numbered without a gap, and the batches of
successive polls join: ``stop`` of one is ``start`` of the next. A batch also carries the
partition's watermark after its rows: no rows before that time are expected from the partition.

One element of the stream goes to one (view, shard) and has one batch for each partition of the
poll, also where no rows came. Its bytes are a frame (`pipelines.io.framing`) with a header and the
Arrow rows of each batch.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.kernel import hashing
from tidemill.features.kernel.columns import keep
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.prepare import (
    KEY,
    ORDINAL,
    REQUESTS_SCHEMA,
    TIME,
    events_schema,
    prepare_events,
    prepare_requests,
    with_key,
)
from tidemill.pipelines.io.framing import Bytes, Kind, frame, unframe

GROUP: Final = "group"
"""The column of a request that identifies its poll (`answer_parts.group_of`)."""
ARRIVAL: Final = "arrival"
"""The column of when a row arrived (`arrivals`): eager mode takes rows in this order."""

_HEADER: Final = struct.Struct("<8q")
_REQUEST: Final = 1
_STOP: Final = 2
_MARKED: Final = 4
_EPOCH_BITS: Final = 8
"""The flags are the low bits of a word, whose others are the epoch."""
_REMEDY: Final = "run the stream from its last savepoint, or from its beginning"


@dataclass(frozen=True)
class SequencedBatch:
    """Rows of a partition with their positions.

    Attributes:
        poll: The number of the poll that read them.
        is_request: True for requests, False for events.
        partition: The number of the partition within its source.
        start: The first position.
        stop: The position after the last.
        watermark_us: The partition's watermark after these rows.
        sent_us: The wall clock when the rows were read, for latency only.
        rows: Prepared rows with an ``ordinal`` column that holds their positions; None if empty.
        is_last: Marks a savepoint: the run stops after this poll, and a later run continues. The
            mark has no rows.
        epoch: How many marks of savepoints the run has sent before the poll.
        is_marked: Whether such a mark comes right after the poll.
    """

    poll: int
    is_request: bool
    partition: int
    start: int
    stop: int
    watermark_us: int
    sent_us: int
    rows: pa.RecordBatch | None
    is_last: bool = False
    epoch: int = 0
    is_marked: bool = False


def sequenced_events_schema(plan: Plan) -> pa.Schema:
    """Return the schema of the event rows in a sequenced batch."""
    return _with_places(events_schema(plan))


@functools.lru_cache(maxsize=256)
def _with_places(events: pa.Schema) -> pa.Schema:
    return events.append(pa.field(ORDINAL, pa.int64())).append(pa.field(ARRIVAL, pa.int64()))


REQUEST_ROWS: Final = REQUESTS_SCHEMA.append(pa.field(GROUP, pa.int64())).append(
    pa.field(ARRIVAL, pa.int64())
)
"""The schema of the request rows in a sequenced batch."""


def arrivals(times_us: Int64Array, received_us: Int64Array) -> Int64Array:
    """Return when rows arrived: when they were received, but not before the instant after them.

    Args:
        times_us: int64, ``(rows,)``: their event times or request times.
        received_us: int64, ``(rows,)``: when the reader received them.
    """
    return np.maximum(received_us, times_us + 1)


def encode_batches(batches: Iterable[SequencedBatch]) -> bytes:
    """Encode batches in order; no batches become no bytes."""
    out: list[Bytes] = []
    for batch in batches:
        # Arrow pads a record batch to a multiple of 8 bytes, so the next header is aligned.
        rows = b"" if batch.rows is None else batch.rows.serialize()
        header = _HEADER.pack(
            batch.poll,
            _REQUEST * batch.is_request
            | _STOP * batch.is_last
            | _MARKED * batch.is_marked
            | batch.epoch << _EPOCH_BITS,
            batch.partition,
            batch.start,
            batch.stop,
            batch.watermark_us,
            batch.sent_us,
            len(rows),
        )
        out += [header, rows]
    return frame(Kind.BATCHES, "", out) if out else b""


def decode_batches(data: bytes | pa.Buffer, events: pa.Schema) -> Iterator[SequencedBatch]:
    """Decode batches; ``events`` is the schema of event rows.

    The rows refer to ``data``, without a copy.

    Raises:
        StateError: The bytes are not batches, or have a version that is not supported.
    """
    if not len(data):
        return
    content = unframe(data, Kind.BATCHES, "sequenced batches", _REMEDY).content
    at = 0
    while at < len(content):
        header = _HEADER.unpack_from(content, at)
        poll, flags, partition, start, stop, watermark, sent, size = header
        is_request, is_last = bool(flags & _REQUEST), bool(flags & _STOP)
        at += _HEADER.size
        rows = None
        if size:
            schema = REQUEST_ROWS if is_request else events
            rows = pa.ipc.read_record_batch(content.slice(at, size), schema)
        at += size
        yield SequencedBatch(
            poll,
            is_request,
            partition,
            start,
            stop,
            watermark,
            sent,
            rows,
            is_last,
            flags >> _EPOCH_BITS,
            bool(flags & _MARKED),
        )


def without_requests(batches: Iterable[SequencedBatch]) -> Iterator[SequencedBatch]:
    """Drop the rows of requests, which are answered already; keep positions and watermarks."""
    for batch in batches:
        yield replace(batch, rows=None) if batch.is_request else batch


def split_by_shard(
    rows: pa.RecordBatch, shards: int, part: Int64Array
) -> dict[int, list[pa.RecordBatch | None]]:
    """Split prepared rows by their part, and by the shard of their key.

    Args:
        rows: The rows, ``(rows,)``.
        shards: How many shards there are.
        part: int64, ``(rows,)``: the part of each row, ascending.

    Returns:
        By part, if it has rows: those of each shard, in order; None where there are none.
    """
    if rows.num_rows == 0:
        return {}
    parts = int(part[-1]) + 1
    place = part
    if shards > 1:
        place = part * shards + hashing.shard_of(rows.column(KEY), shards)
        order = np.argsort(place, kind="stable")
        rows, place = rows.take(pa.array(order)), place[order]
    ends = np.searchsorted(place, np.arange(parts * shards + 1)).tolist()
    pieces = [
        rows.slice(start, end - start) if end > start else None
        for start, end in itertools.pairwise(ends)
    ]
    return {at: pieces[at * shards : (at + 1) * shards] for at in range(parts)}


def event_rows(
    plan: Plan,
    view: FeatureView,
    batch: pa.RecordBatch,
    positions: Int64Array,
    received_us: Int64Array,
    digests: np.ndarray[tuple[int, ...], np.dtype[np.uint64]] | None = None,
) -> pa.RecordBatch:
    """Prepare validated event rows for a view, with their positions and arrivals.

    Rows without a key of the view are left out.
    """
    if (mine := with_key(view, batch)) is not None:
        batch, positions, received_us = keep(batch, mine), positions[mine], received_us[mine]
        digests = None if digests is None else digests[mine]
    prepared = prepare_events(plan, view, batch, digests)
    arrived = arrivals(hashing.bits(prepared.column(TIME)), received_us)
    return pa.RecordBatch.from_arrays(
        [*prepared.columns, pa.array(positions, pa.int64()), pa.array(arrived)],
        schema=sequenced_events_schema(plan),
    )


def request_rows(
    project: Project,
    view: FeatureView,
    batch: pa.RecordBatch,
    positions: Int64Array,
    groups: Int64Array,
    received_us: Int64Array,
) -> pa.RecordBatch:
    """Prepare validated requests for a view, with their positions, groups and arrivals."""
    prepared = prepare_requests(view, project.request, batch, positions)
    arrived = arrivals(hashing.bits(prepared.column(TIME)), received_us)
    return pa.RecordBatch.from_arrays(
        [*prepared.columns, pa.array(groups, pa.int64()), pa.array(arrived)], schema=REQUEST_ROWS
    )
