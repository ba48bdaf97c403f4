"""Calls that may fail: which of a batch's rows they fail for, and calls that must end in time."""

from __future__ import annotations

import concurrent.futures
import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.serving.models.feed import Rejection
from tidemill.serving.models.tensorflow_start import load_tensorflow

FAILED: Final = "failed"
"""The graph has failed on a row."""
TIMED_OUT: Final = "timed_out"
"""The call with a row did not end in time."""
NO_MEMORY: Final = "no_memory"
"""There is no memory for a call of so many rows."""

_SHOWN: Final = 500
_NODES: Final = re.compile(r"\{\{function_node [^}]*\}\} ?|\s*\[\[\{\{node .*|\s*\[Op:.*")
_ABOUT_THE_GRAPH: Final = (
    "Graph execution error", "Detected at node", "<stack traces unavailable>", "File ", "Node: ",
)  # fmt: skip
_log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why a call has failed.

    Attributes:
        reason: `FAILED`, `TIMED_OUT` or `NO_MEMORY`.
        message: A sentence.
    """

    reason: str
    message: str


class Calls:
    """Makes calls, in threads of their own if they must end in time.

    Args:
        timeout_s: After how many seconds a call has failed; None for never.
        tries: How often it is made.
    """

    def __init__(self, timeout_s: float | None, tries: int) -> None:
        self._timeout_s, self._tries = timeout_s, max(1, tries)

    def run(self, call: Callable[[], Any]) -> Any:
        """Make a call; return what it returns, or the `Failure` of the graph."""
        errors = load_tensorflow().errors
        try:
            return call() if self._timeout_s is None else self._in_time(call)
        except errors.ResourceExhaustedError as error:
            return Failure(NO_MEMORY, said(error))
        except errors.OpError as error:
            return Failure(FAILED, said(error))

    def _in_time(self, call: Callable[[], Any]) -> Any:
        for _ in range(self._tries):
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            thread = threading.Thread(target=_keep, args=(future, call), daemon=True, name="model")
            thread.start()
            done, _ = concurrent.futures.wait([future], self._timeout_s)
            if done:
                return future.result()
            _log.warning("a call of a model has not ended within %g s", self._timeout_s)
        return Failure(
            TIMED_OUT, f"the call did not end within {self._timeout_s:g} s, {self._tries} times"
        )


def _keep(future: concurrent.futures.Future[Any], call: Callable[[], Any]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 whoever waits for it raises it
        future.set_exception(error)


def said(error: Exception) -> str:
    """Return TensorFlow's message in a line, without the graph's nodes and stacks."""
    text = _NODES.sub("", str(getattr(error, "message", "") or error))
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_ABOUT_THE_GRAPH)]
    return next(iter(told), text.strip())[:_SHOWN].strip()


@dataclass(frozen=True)
class InPlaces:
    """Calls with some rows of a batch, each in its place; the others hold a copy of one of them.

    Attributes:
        run: Makes a call of a batch, padded to a number of rows.
        batch: The batch; it has ``num_rows`` and ``take``.
        padded: The rows of the call.
    """

    run: Callable[[Any, int], dict[str, pa.Array] | Failure]
    batch: Any
    padded: int

    def with_rows(self, rows: npt.NDArray[np.int64]) -> dict[str, pa.Array] | Failure:
        """Return the outputs of all rows of the batch, which count for ``rows`` only."""
        batch = self.batch
        if len(rows) < batch.num_rows:
            places = np.full(batch.num_rows, rows[0])
            places[rows] = rows
            batch = batch.take(pa.array(places))
        return self.run(batch, self.padded)

    def bad_rows(self, rows: npt.NDArray[np.int64], why: Failure) -> list[Rejection]:
        """Return the rows with which a call fails, by bisection.

        Args:
            rows: A call with these rows has failed.
            why: How.
        """
        if len(rows) == 1:
            return [Rejection(int(rows[0]), why.reason, why.message)]
        found: list[Rejection] = []
        for half in np.array_split(rows, 2):
            if isinstance(made := self.with_rows(half), Failure):
                found += self.bad_rows(half, made)
        return found
