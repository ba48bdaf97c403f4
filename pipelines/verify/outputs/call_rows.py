"""Which row of a call of the bundle each prediction was, and calls that have them there again.

The last bits of a score may depend on the row's place in its call. Predictions of earlier versions
do not say it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import Int64Array
from tidemill.serving.models.buckets import MAX_ROWS, padded_rows

UNKNOWN_ROW: Final = -1
"""In place of the row, of a prediction whose file does not say it."""
_NAME: Final = "call_row"


def with_call_rows(table: pa.Table) -> pa.Table:
    """Return the predictions of a file with a column ``call_row``.

    It is `UNKNOWN_ROW` where the file has none. Where a file says this itself, it is null.
    """
    place = table.schema.get_field_index(_NAME)
    if place < 0:
        before = table.schema.get_field_index("padded_rows") + 1
        unknown = pa.repeat(pa.scalar(UNKNOWN_ROW, pa.int64()), len(table))
        return table.add_column(before, _NAME, unknown)
    said = table.column(place)
    if said.type != pa.int64():
        return table  # the comparison of scores refuses it
    is_forged = pc.equal(said, UNKNOWN_ROW)
    return table.set_column(place, _NAME, pc.if_else(is_forged, pa.scalar(None, said.type), said))


def rows_of_calls(rows: pa.Array, shape: int) -> Iterator[Int64Array]:
    """Yield calls: for each row of one, which of the predictions is scored there, or -1.

    A prediction that does not say which row it was, or says what cannot be, takes any that is free.

    Args:
        rows: The row of its call that each prediction was, int64 ``(predictions,)``.
        shape: The rows of a call.

    >>> [call.tolist() for call in rows_of_calls(pa.array([1, 1, None, 7]), 4)]
    [[2, 0, 3, -1], [-1, 1, -1, -1]]
    """
    wanted = rows.fill_null(UNKNOWN_ROW).to_numpy(zero_copy_only=False)
    is_known = (wanted >= 0) & (wanted < shape)
    known, others = np.flatnonzero(is_known), np.flatnonzero(~is_known)
    order = known[np.argsort(wanted[known], kind="stable")]
    in_order = wanted[order]
    # The first prediction of each row is of the first call, the second of the second.
    number = np.arange(len(order)) - np.searchsorted(in_order, in_order)
    call = 0
    while call <= number.max(initial=-1) or len(others):
        mine = number == call
        placed = np.full(shape, -1, np.int64)
        placed[in_order[mine]] = order[mine]
        free = np.flatnonzero(placed < 0)
        placed[free[: len(others)]] = others[: len(free)]
        others = others[len(free) :]
        yield placed
        call += 1


def calls_with_others(
    rows: pa.Array, padded: pa.Array, own: pa.Array
) -> list[tuple[int, Int64Array]] | None:
    """Return the calls of a batch of which some rows are gone, as what is left says it.

    Args:
        rows: The row of its call that each prediction was, in the order of the batch.
        padded: The padded rows of its call.
        own: The row that each would be if the batch had nothing else.

    Returns:
        For each call its padded rows, and the rows that are left of it; None if what is said
        cannot be of such a batch.

    >>> calls_with_others(pa.array([0, 2, 9]), pa.array([16, 16, 16]), pa.array([0, 1, 2]))
    [(16, array([0, 2, 9]))]
    >>> calls_with_others(pa.array([0, 0]), pa.array([8, 8]), pa.array([0, 1])) is None
    True
    """
    if rows.null_count or padded.null_count:
        return None
    said, shapes, alone = (one.to_numpy() for one in (rows, padded, own))
    # A long batch is cut into calls; the next begins where rows begin anew.
    starts = np.flatnonzero(np.diff(said, prepend=MAX_ROWS) <= 0)
    before = np.flatnonzero(np.diff(alone, prepend=MAX_ROWS) <= 0)
    call = np.searchsorted(starts, np.arange(len(said)), "right") - 1
    place = said + call * MAX_ROWS
    least = alone + (np.searchsorted(before, np.arange(len(said)), "right") - 1) * MAX_ROWS
    if len(said) == 0 or (said < 0).any() or (np.diff(place - least, prepend=0) < 0).any():
        return None
    calls = []
    for number, start in enumerate(starts.tolist()):
        mine = slice(start, starts[number + 1] if number + 1 < len(starts) else len(said))
        shape = int(shapes[start])
        is_last = number + 1 == len(starts)
        wanted = {padded_rows(n) for n in range(1, MAX_ROWS + 1)} if is_last else {MAX_ROWS}
        if shape not in wanted or (shapes[mine] != shape).any() or said[mine][-1] >= shape:
            return None
        calls.append((shape, said[mine]))
    return calls
