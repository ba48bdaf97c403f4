"""Acceptance: reject the rows of a log's partition that come too late or too far ahead.

The promise: the decision (`features.contract.accept`) depends on the log alone, not on the batches
in which the log is read. Acceptance runs after transform and validation, so rejected and dropped
rows move no watermark. It runs before `pipelines.io.request_ids`, so a request with a repeated id
moves it. Training, replay and verification all read the accepted rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

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
    comparable_us: int = TIME_MIN,
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
        comparable_us: The earliest time of a request whose id can be compared (`Gate`); one before
            it is too late.

    Returns:
        The refused rows, and the highest accepted time after these rows.
    """
    arrived = rows.column(received)
    given_us = hashing.bits(rows.column(definition.time_column))
    has_receipt = hashing.validity(arrived)
    known = np.flatnonzero(has_receipt & (given_us >= comparable_us))
    times_us = given_us[known]
    received_us = hashing.bits(arrived)[known]
    if now_us is not None:
        received_us = np.minimum(received_us, now_us)
    outcome = accept(
        times_us, received_us, highest_us, definition.tolerance_us, definition.max_ahead_us
    )
    counted = np.where(outcome.accepted, times_us, TIME_MIN)
    highest = np.maximum.accumulate(np.concatenate([[highest_us], counted]))
    refusals: Refusals = {}
    for row in np.flatnonzero(has_receipt & (given_us < comparable_us)).tolist():
        detail = (
            f"column {definition.time_column!r}: found {_shown(given_us[row])}, expected at least "
            f"{_shown(comparable_us)}: ids are compared with those of requests until "
            "repeated_within below the newest accepted one of the other partitions"
        )
        refusals[row] = (Reason.TOO_LATE, detail)
    for row in np.flatnonzero(~has_receipt).tolist():
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

    A live reader keeps the ids of requests that declare ``repeated_within`` for twice that. A
    request that is so far below another partition's highest time that not all ids near to it are
    kept is too late.

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
        self._within_us: int | None = None
        if self.clock_us is not None and isinstance(self.definition, Request):
            self._within_us = self.definition.repeated_within_us

    def highest_us(self, partition: int) -> int:
        """Return the highest accepted time of a partition; `TIME_MIN` if there is none."""
        return self._highest_us.get(partition, TIME_MIN)

    @property
    def forgotten_us(self) -> int:
        """Ids of requests before this time are compared with no row that will be accepted."""
        return self._below_us(2, self._highest_us.values())

    def _comparable_us(self, partition: int) -> int:
        """Return the earliest time of a partition's requests whose ids can be compared."""
        of_others = (time_us for number, time_us in self._highest_us.items() if number != partition)
        return self._below_us(1, of_others)

    def _below_us(self, times: int, highest_us: Iterable[int]) -> int:
        """Return a time that is ``repeated_within`` so often below the highest of some times.

        `TIME_MIN` where every id is kept.
        """
        if self._within_us is None:
            return TIME_MIN
        return max(TIME_MIN, max(highest_us, default=TIME_MIN) - times * self._within_us)

    def copy(self) -> Gate:
        """Return a gate that knows the same, and learns on its own."""
        other = replace(self)
        other._highest_us = dict(self._highest_us)
        return other

    def restore(self, partition: int, highest_us: int) -> None:
        """Go on with a partition whose highest accepted time is known."""
        self._highest_us[partition] = highest_us

    def refuse(self, partition: int, rows: pa.RecordBatch) -> Refusals:
        """Judge a partition's next rows; return the refused ones."""
        highest_us = self.highest_us(partition)
        now_us = None if self.clock_us is None else self.clock_us()
        refusals, self._highest_us[partition] = judge_arrivals(
            self.definition,
            rows,
            self.received,
            highest_us,
            now_us,
            comparable_us=self._comparable_us(partition),
        )
        return refusals


def _shown(time_us: int | np.int64) -> str:
    return "none" if time_us <= TIME_MIN else f"{np.datetime64(int(time_us), 'us')}Z"
