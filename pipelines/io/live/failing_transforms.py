"""Rows of a topic judged where the source's transform fails on some of them.

A transform that fails on a row of a file stops the command, and a person corrects it. A topic goes
on: the promise is that only the rows are rejected on which the transform fails alone, each with its
bytes, and that all others are judged once, in order. A judge remembers nothing of rows whose
transform failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.definitions import ARROW_TYPES, EventStream, Request
from tidemill.features.errors import InputError
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.files.judged_rows import Counts, Judge, StreamBatch
from tidemill.pipelines.io.files.readers import RawBatch


def judge_what_can_be(
    judge: Judge, definition: EventStream | Request, raw: RawBatch
) -> Iterator[StreamBatch]:
    """Judge rows; those on which the transform fails are rejected.

    Args:
        judge: Judges the rows.
        definition: Their source.
        raw: The rows.

    Yields:
        The judged rows, in order, in one or more parts.
    """
    try:
        judged = judge.judge(raw)
    except InputError as error:
        if raw.batch.num_rows > 1:
            for half in _halves(raw):
                yield from judge_what_can_be(judge, definition, half)
        else:
            yield _refused(definition, raw, str(error))
    else:
        yield judged


def _halves(raw: RawBatch) -> Iterator[RawBatch]:
    """Divide rows, and the unreadable ones between them, by position."""
    middle = raw.batch.num_rows // 2
    unread = raw.rejected.column("position").to_numpy()
    divide = int(np.searchsorted(unread, raw.positions[middle], "left"))
    yield _piece(raw, 0, middle, raw.rejected.slice(0, divide))
    yield _piece(raw, middle, raw.batch.num_rows, raw.rejected.slice(divide))


def _piece(raw: RawBatch, start: int, stop: int, unread: pa.RecordBatch) -> RawBatch:
    return replace(
        raw,
        batch=raw.batch.slice(start, stop - start),
        positions=raw.positions[start:stop],
        origins=lambda some: raw.origins(some + start),
        payloads=lambda some: raw.payloads(some + start),
        rejected=unread,
    )


def _refused(definition: EventStream | Request, raw: RawBatch, why: str) -> StreamBatch:
    """Reject the row of a batch that has one; of one that has none only what cannot be read."""
    rows = np.arange(raw.batch.num_rows)
    refused = raw.rejected
    if len(rows):
        culprit = rejected.batch(
            Stage.TRANSFORM,
            stream=definition.name,
            partition=raw.partition,
            positions=raw.positions,
            reasons=[Reason.TRANSFORM],
            details=[why],
            origins=raw.origins(rows),
            payloads=raw.payloads(rows),
        )
        refused = rejected.concat([refused, culprit])
        refused = refused.take(pc.sort_indices(refused["position"]))
    return StreamBatch(
        pa.RecordBatch.from_pylist([], _schema(definition)),
        raw.partition,
        raw.positions[:0],
        refused,
        Counts(read=refused.num_rows, rejected=refused.num_rows),
    )


def _schema(definition: EventStream | Request) -> pa.Schema:
    return pa.schema([(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()])
