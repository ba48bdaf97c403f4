"""Local times that occurred twice, at the end of daylight saving time: which instant they mean.

The promise: nothing is guessed. A source rejects such a time (the default), or declares a rule:

* `FIRST`, `LAST`: the first or the last of its two instants.
* `INFER`: the later instant that is not past the row's time of receipt; the first if both are past
  it. That is exact for rows that travel less than the repeated span (an hour nearly everywhere) and
  whose clock is not ahead of the receiver's.

A time of receipt may be such a local time itself. `INFER` then goes by the order of arrival: the
receipts of a partition never decrease, so a receipt whose first instant is before an earlier row's
receipt is the last one. Where the order leaves both instants possible, or neither, the receipt is
not known, and the row is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array

FIRST: Final = "first"
LAST: Final = "last"
INFER: Final = "infer"
RULES: Final = (FIRST, LAST, INFER)
"""The rules by which a source may read a local time that occurred twice."""


@dataclass(frozen=True, eq=False)
class Repeated:
    """The rows of a column whose local time occurred twice.

    Attributes:
        rows: int64, ``(repeated,)``: their indices, ascending.
        first_us: int64, ``(repeated,)``: the first instant, UTC microseconds.
        last_us: int64, ``(repeated,)``: the last instant, UTC microseconds.
    """

    rows: Int64Array
    first_us: Int64Array
    last_us: Int64Array


@dataclass
class Receipts:
    """The time-of-receipt column of a source, by which `INFER` decides.

    Attributes:
        column: The declared column's name.
        lowest_us: No further row of the partition was received before this instant: it is the
            highest of the rows' earliest possible receipts. `TIME_MIN` at the beginning of a
            partition; None if the rows have no order of arrival.
    """

    column: str
    lowest_us: int | None = TIME_MIN

    def resolve(
        self, repeated: Repeated, times_us: Int64Array, valid: BoolArray
    ) -> tuple[Int64Array, BoolArray]:
        """Resolve repeated times of receipt by the order of arrival.

        Args:
            repeated: The rows to resolve.
            times_us: int64, ``(rows,)``: the partition's next times of receipt, in order of
                arrival; anything in the repeated rows.
            valid: bool, ``(rows,)``: where there is a time of receipt.

        Returns:
            int64 and bool, ``(repeated,)``: the instants, and which of them are certain.
        """
        if self.lowest_us is None:
            return repeated.first_us, np.zeros(len(repeated.rows), np.bool_)
        known = np.where(valid, times_us, TIME_MIN)
        is_last = np.zeros(len(repeated.rows), np.bool_)
        while True:
            # The earliest instants that are possible so far, and the highest of them before a row.
            known[repeated.rows] = np.where(is_last, repeated.last_us, repeated.first_us)
            highest = np.maximum.accumulate(np.concatenate([[self.lowest_us], known]))
            before = highest[repeated.rows]
            if (is_last == (repeated.first_us < before)).all():
                break
            is_last = repeated.first_us < before
        self.lowest_us = int(highest[-1])
        return repeated.last_us, is_last & (repeated.last_us >= before)


def resolve(
    repeated: Repeated, rule: str | None, received_us: Int64Array, received: BoolArray
) -> tuple[Int64Array, BoolArray]:
    """Resolve repeated times that are not times of receipt.

    Args:
        repeated: The rows to resolve.
        rule: One of `RULES`; None resolves nothing.
        received_us: int64, ``(rows,)``: the times of receipt, UTC microseconds; `INFER` reads them.
        received: bool, ``(rows,)``: where the time of receipt is known.

    Returns:
        int64 and bool, ``(repeated,)``: the instants, and which of them were resolved.
    """
    if rule != INFER:
        chosen = repeated.last_us if rule == LAST else repeated.first_us
        return chosen, np.full(len(repeated.rows), rule is not None)
    past = repeated.last_us > received_us[repeated.rows]
    return np.where(past, repeated.first_us, repeated.last_us), received[repeated.rows]
