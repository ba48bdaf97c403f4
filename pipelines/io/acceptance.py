"""Acceptance: reject the rows of a log's partition that come too late or too far ahead.

The promise: the decision (`features.contract.accept`) depends on the log alone, not on the batches
in which the log is read. Acceptance runs after transform and validation, so rejected and dropped
rows move no watermark. It runs before `pipelines.io.request_ids`, so a request with a repeated id
moves it. Training, replay and verification all read the accepted rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, accept, format_duration
from tidemill.features.definitions import EventStream, Request
from tidemill.features.kernel import hashing
from tidemill.features.rows.rejected import Reason

Refusals = dict[int, tuple[Reason, str]]
"""Row index to the reason why the row is refused, and a sentence about it."""


def judge_arrivals(
    definition: EventStream | Request,
    rows: pa.RecordBatch,
    received: str,
    highest_us: int,
    now_us: int | None = None,
) -> tuple[Refusals, int]:
    """Judge the next valid rows of a partition, in order of arrival.

    Args:
        definition: Bounds how late and how far ahead a row may come.
        rows: The declared columns, ``(rows,)``.
        received: The column that holds the time of receipt. A row with null in this column is
            refused, because nothing tells whether its time is too far ahead.
        highest_us: The highest accepted time before these rows (`TIME_MIN` at the start).
        now_us: When a live reader received the rows, by its own clock. No row was received later,
            whatever a producer's clock has written into ``received``. None for files.

    Returns:
        The refused rows, and the highest accepted time after these rows.
    """
    arrived = rows.column(received)
    known = np.flatnonzero(hashing.validity(arrived))
    times_us = hashing.bits(rows.column(definition.time_column))[known]
    received_us = hashing.bits(arrived)[known]
    if now_us is not None:
        received_us = np.minimum(received_us, now_us)
    outcome = accept(
        times_us, received_us, highest_us, definition.tolerance_us, definition.max_ahead_us
    )
    counted = np.where(outcome.accepted, times_us, TIME_MIN)
    highest = np.maximum.accumulate(np.concatenate([[highest_us], counted]))
    refusals: Refusals = {}
    for row in np.flatnonzero(~hashing.validity(arrived)).tolist():
        detail = f"column {received!r}: found null, expected the time at which the log received it"
        refusals[row] = (Reason.NULL_TIME, detail)
    for place in np.flatnonzero(~outcome.accepted).tolist():
        if outcome.ahead[place]:
            bound = int(received_us[place]) + definition.max_ahead_us
            why = (
                f"expected at most {_shown(bound)}: {format_duration(definition.max_ahead_us)} "
                f"(max_ahead) past its receipt at {_shown(received_us[place])}"
            )
            reason = Reason.AHEAD
        else:
            bound = int(highest[place]) - definition.tolerance_us
            why = (
                f"expected at least {_shown(bound)}: {format_duration(definition.tolerance_us)} "
                "(out_of_orderness + allowed_lateness) below the highest accepted time"
            )
            reason = Reason.TOO_LATE
        so_far = f"; the highest accepted time before it is {_shown(highest[place])}"
        found = f"column {definition.time_column!r}: found {_shown(times_us[place])}"
        refusals[int(known[place])] = (reason, f"{found}, {why}{so_far}")
    return refusals, outcome.highest_us


@dataclass
class Gate:
    """Judges the rows of a source batch by batch, and remembers each partition's highest time.

    Attributes:
        definition: As for `judge_arrivals`.
        received: As for `judge_arrivals`.
        clock_us: The clock of a live reader; None for files.
    """

    definition: EventStream | Request
    received: str
    clock_us: Callable[[], int] | None = None

    def __post_init__(self) -> None:
        self._highest_us: dict[int, int] = {}

    def highest_us(self, partition: int) -> int:
        """Return the highest accepted time of a partition; `TIME_MIN` if there is none."""
        return self._highest_us.get(partition, TIME_MIN)

    def restore(self, partition: int, highest_us: int) -> None:
        """Go on with a partition whose highest accepted time is known."""
        self._highest_us[partition] = highest_us

    def refuse(self, partition: int, rows: pa.RecordBatch) -> Refusals:
        """Judge a partition's next rows; return the refused ones."""
        highest_us = self.highest_us(partition)
        now_us = None if self.clock_us is None else self.clock_us()
        refusals, self._highest_us[partition] = judge_arrivals(
            self.definition, rows, self.received, highest_us, now_us
        )
        return refusals


def _shown(time_us: int | np.int64) -> str:
    return "none" if time_us <= TIME_MIN else f"{np.datetime64(int(time_us), 'us')}Z"
