"""Several callers share calls of a model: what waits at the same time goes into one call.

The first caller that finds nobody at work leads: it waits for others for a moment, takes all that
is there, makes the call, and gives each caller its rows. Who comes meanwhile waits, and one of them
leads the next call. No thread is started, so a process may fork.

What a row's outputs are depends on the other callers no more than on the shape of the call and the
row's place in it: their last bits may differ from those of a call alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from tidemill.serving.models.buckets import MAX_ROWS
from tidemill.serving.models.saved_model import Outcome, SavedModel


@dataclass(eq=False)
class _Caller:
    """Somebody who waits.

    Attributes:
        batch: The rows.
        is_due: Set once there is an outcome or an error, or it is this caller's turn to lead.
        outcome: What became of the rows.
        error: What is to be raised.
    """

    batch: pa.RecordBatch
    is_due: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None
    error: BaseException | None = None


class SharedCalls:
    """Calls a model for many threads together.

    Args:
        model: The model; it takes columns.
        max_latency_s: How long a call waits for others at most. 0 waits for none: only what came
            during the call before goes together.
        rows: A call has so many rows at most, unless one caller has more.
    """

    def __init__(self, model: SavedModel, max_latency_s: float, rows: int = MAX_ROWS) -> None:
        self.model = model
        self._max_latency_s, self._most = max_latency_s, rows
        self._waiting: deque[_Caller] = deque()
        self._rows = 0
        self._is_led = False
        self._arrived = threading.Condition()

    def call(self, batch: pa.RecordBatch) -> Outcome:
        """Call the model with a batch, perhaps together with those of other threads.

        Args:
            batch: As for `SavedModel.call`.

        Raises:
            InputError, ModelError: As for `SavedModel.call`; never for another caller's batch.
        """
        mine = _Caller(batch)
        with self._arrived:
            self._waiting.append(mine)
            self._rows += batch.num_rows
            leads, self._is_led = not self._is_led, True
            self._arrived.notify_all()
        if not leads:
            mine.is_due.wait()
        if mine.outcome is None and mine.error is None:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        assert mine.outcome is not None
        return mine.outcome

    def _lead(self, mine: _Caller) -> None:
        """Make the next call, which has this caller's rows; then let the next one lead."""
        try:
            self._call(self._gathered())
        finally:
            with self._arrived:
                if mine in self._waiting:  # it was interrupted before its rows were taken
                    self._waiting.remove(mine)
                    self._rows -= mine.batch.num_rows
                if self._waiting:
                    self._waiting[0].is_due.set()
                else:
                    self._is_led = False

    def _gathered(self) -> list[_Caller]:
        """Wait for others as long as may be; take those who go together, the first one first."""
        due = time.monotonic() + self._max_latency_s
        with self._arrived:
            while self._rows < self._most and (left := due - time.monotonic()) > 0:
                self._arrived.wait(left)
            taken = [self._waiting.popleft()]
            schema, rows = taken[0].batch.schema, taken[0].batch.num_rows
            while self._waiting:
                other = self._waiting[0].batch
                if rows + other.num_rows > self._most or other.schema != schema:
                    break
                rows += other.num_rows
                taken.append(self._waiting.popleft())
            self._rows -= rows
        return taken

    def _call(self, callers: Sequence[_Caller]) -> None:
        """Make a call for some callers; where it fails, one for each."""
        try:
            whole = pa.concat_batches([one.batch for one in callers])
            outcomes = divided(self.model.call(whole), [one.batch.num_rows for one in callers])
        except Exception as error:  # noqa: BLE001 - each caller raises its own
            if len(callers) == 1:
                callers[0].error = error
            else:
                for one in callers:
                    self._call([one])
        else:
            for one, outcome in zip(callers, outcomes, strict=True):
                one.outcome = outcome
        finally:
            for one in callers:
                if one.outcome is None and one.error is None:
                    one.error = InterruptedError("the call of a model was interrupted")
                one.is_due.set()


def divided(outcome: Outcome, parts: Sequence[int]) -> list[Outcome]:
    """Divide an outcome among the parts of its batch.

    Args:
        outcome: It.
        parts: The rows of each part.
    """
    found, start = [], 0
    for rows in parts:
        stop = start + rows
        found.append(
            Outcome(
                outcome.outputs.slice(start, rows),
                tuple(
                    one._replace(row=one.row - start)
                    for one in outcome.rejected
                    if start <= one.row < stop
                ),
                outcome.padded_rows[start:stop],
                outcome.call_rows[start:stop],
            )
        )
        start = stop
    return found
