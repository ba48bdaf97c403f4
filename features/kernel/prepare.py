"""Preparing rows for the kernel: expressions are evaluated here, once per batch.

A prepared event batch has the columns ``key time id digest cells``, whatever the number of
features, because the cost of an Arrow batch grows with its columns. The cells of a row are the
64-bit patterns of the values that the view's partials take, followed by the bits of their masks.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import EventStream, Expression, FeatureView, Mask, Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.base_columns import base_columns
from tidemill.features.kernel.hashing import UInt8Array
from tidemill.features.kernel.plan import MASKS_PER_WORD, Plan

KEY: Final = "key"
TIME: Final = "time"
ID: Final = "id"
DIGEST: Final = "digest"
CELLS: Final = "cells"
ORDINAL: Final = "ordinal"
COUNTS_FROM: Final = "counts_from"
"""An optional column of events: the instant from which each counts (`steps.Step`)."""

REQUESTS_SCHEMA: Final = pa.schema(
    [pa.field(KEY, pa.string()), pa.field(TIME, pa.int64()), pa.field(ORDINAL, pa.int64())]
)
"""Prepared requests: the entity's key (null: no entity), the request time, and the caller's number
for the request, which the answer repeats."""


def events_schema(plan: Plan) -> pa.Schema:
    """Return the schema of a view's prepared events."""
    return _events_schema(plan.row_words)


@functools.lru_cache(maxsize=256)
def _events_schema(row_words: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field(KEY, pa.string()),
            pa.field(TIME, pa.int64()),
            pa.field(ID, pa.string()),
            pa.field(DIGEST, pa.binary(16)),
            pa.field(CELLS, pa.binary(8 * row_words)),
        ]
    )


def fixed_binary(matrix: npt.NDArray[Any]) -> pa.Array:
    """Return an Arrow column of the rows of a matrix, without copying a contiguous one."""
    rows = np.ascontiguousarray(matrix)
    kind = pa.binary(rows.itemsize * rows.shape[1])
    return pa.Array.from_buffers(kind, rows.shape[0], [None, pa.py_buffer(rows)])


def _matrix(array: pa.Array, dtype: type[Any]) -> npt.NDArray[Any]:
    row_bytes = array.type.byte_width
    data = array.buffers()[1]
    if data is None:
        data = b""
    flat = np.frombuffer(data, np.uint8, len(array) * row_bytes, array.offset * row_bytes)
    return flat.view(dtype).reshape(len(array), row_bytes // np.dtype(dtype).itemsize)


def matrix_of(array: pa.Array) -> Int64Array:
    """Return a fixed-size binary column as an int64 matrix ``(rows, words)``, without copying."""
    return _matrix(array, np.int64)


def nulls_of(array: pa.Array) -> UInt8Array:
    """Return a column of null flags as a uint8 matrix ``(rows, columns)``, without copying."""
    return _matrix(array, np.uint8)


# Expressions are frozen, and known by their identity.
@functools.lru_cache(maxsize=4_096)
def _canonical(expression: Expression) -> str:
    return repr(expression.spec())


class _Evaluator:
    """Evaluates expressions over one batch, each distinct expression once."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._known: dict[str, pa.Array] = {}

    def __call__(self, expression: Expression) -> pa.Array:
        key = _canonical(expression)
        if key not in self._known:
            self._known[key] = expression.evaluate(self._batch)
        return self._known[key]

    def mask(self, mask: Mask) -> BoolArray | None:
        """Return the rows that a mask selects; None for all."""
        taken: BoolArray | None = None
        if mask.where is not None:
            where = self(mask.where)
            if where.null_count:
                where = where.fill_null(False)
            taken = where.to_numpy(zero_copy_only=False)
        if mask.not_null is not None:
            array = self(mask.not_null)
            if array.null_count:
                valid = hashing.validity(array)
                taken = valid if taken is None else taken & valid
        return taken


def make_cells(plan: Plan, batch: pa.RecordBatch) -> Int64Array:
    """Evaluate the cells of validated rows.

    Args:
        plan: The view's plan.
        batch: Validated rows of the view's stream, ``(rows,)``.

    Returns:
        int64, ``(rows, plan.row_words)``.
    """
    evaluate = _Evaluator(batch)
    cells = np.empty((batch.num_rows, plan.row_words), np.int64)
    for index, cell in enumerate(plan.cells):
        array = evaluate(cell.expression)
        if cell.hashed:
            cells[:, index] = hashing.hash_column(array).view(np.int64)
        else:
            cells[:, index] = hashing.bits(array)
    cells[:, len(plan.cells) :] = 0
    for index, mask in enumerate(plan.masks):
        word = len(plan.cells) + index // MASKS_PER_WORD
        bit = np.int64(np.uint64(1) << np.uint64(index % MASKS_PER_WORD))
        taken = evaluate.mask(mask)
        cells[:, word] |= bit if taken is None else np.where(taken, bit, 0)
    return cells


def with_key(view: FeatureView, batch: pa.RecordBatch) -> BoolArray | None:
    """Return which rows of a stream are events of a view: those that have a key; None for all."""
    keys = batch.column(view.key)
    return hashing.validity(keys) if keys.null_count else None


def identity_digests(
    definition: EventStream | Request, rows: pa.RecordBatch
) -> npt.NDArray[np.uint64]:
    """Return a digest of each row over the columns that make it what it is.

    Two deliveries of one event have equal digests: they differ in columns of transport only. A row
    without a value in a column that the source has got later has the digest that it had before
    (`base_columns`).

    Args:
        definition: Says which columns these are.
        rows: The declared columns, ``(rows,)``; others are ignored.

    Returns:
        uint64, ``(rows, 2)``.
    """
    schema, origin, identity = definition.schema, definition.origin, definition.identity
    if origin.base == schema:
        return hashing.digest_rows(rows.select(list(identity)))
    parts = base_columns(schema, origin, rows, identity)
    digests = hashing.digest_rows(pa.RecordBatch.from_pydict(parts.columns))
    for name, kind, values in parts.added:
        hashing.digest_more(digests, f"{name}\0{kind}", values)
    return digests


def prepare_events(
    plan: Plan,
    view: FeatureView,
    batch: pa.RecordBatch,
    digests: npt.NDArray[np.uint64] | None = None,
) -> pa.RecordBatch:
    """Turn validated rows of a stream into a view's prepared events.

    Args:
        plan: The view's plan.
        view: The view.
        batch: Validated rows, ``(rows,)``: no null in the key, time and id columns. An event
            without a key is no event of the view: see `with_key`.
        digests: uint64, ``(rows, 2)``: the rows' digests (`identity_digests`), if the caller has
            them already.

    Returns:
        A batch of `events_schema`, ``(rows,)``, in the same order.

    Raises:
        InputError: A key, time or id is null.
    """
    stream = view.stream
    for column in (view.key, stream.event_time, stream.event_id):
        if batch.column(column).null_count:
            raise InputError(
                f"view {view.name!r}: column {column!r} of stream {stream.name!r} has nulls; "
                "validate rows, and leave out those without a key, before preparing them"
            )
    if digests is None:
        digests = identity_digests(stream, batch)
    return pa.RecordBatch.from_arrays(
        [
            hashing.key_bytes(batch.column(view.key)),
            batch.column(stream.event_time).cast(pa.int64()),
            hashing.key_bytes(batch.column(stream.event_id)),
            fixed_binary(digests),
            fixed_binary(make_cells(plan, batch)),
        ],
        schema=events_schema(plan),
    )


def prepare_requests(
    view: FeatureView, request: Request, batch: pa.RecordBatch, ordinals: Int64Array
) -> pa.RecordBatch:
    """Turn validated requests into a view's prepared requests.

    Args:
        view: The view.
        request: The request's definition.
        batch: Validated requests, ``(rows,)``.
        ordinals: int64, ``(rows,)``: the caller's number for each request.

    Returns:
        A batch of `REQUESTS_SCHEMA`, ``(rows,)``, in the same order.
    """
    return pa.RecordBatch.from_arrays(
        [
            hashing.key_bytes(batch.column(request.key_column(view.entity))),
            batch.column(request.request_time).cast(pa.int64()),
            pa.array(ordinals, pa.int64()),
        ],
        schema=REQUESTS_SCHEMA,
    )
