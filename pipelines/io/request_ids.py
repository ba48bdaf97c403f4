"""Request ids: of the accepted requests with one id, the first in reading order counts.

The promise: the decision depends on the source alone, not on the batches in which it is read. It is
made over the rows that are acceptable otherwise, in reading order: the files in order, then the
position. A repeated request came all the same, so its time moves its partition's highest time.

Two ids are equal if their 128-bit digests are (`features.kernel.hashing.digest_rows`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.definitions import Request
from tidemill.features.definitions.requests import REJECT
from tidemill.features.errors import shown
from tidemill.features.kernel import hashing
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.acceptance import Refusals

UInt64Array = npt.NDArray[np.uint64]

_POSITION_BITS: Final = 40
_MERGED_ROWS: Final = 1 << 22
"""Runs are merged up to so many rows, which bounds the memory that merging needs for a moment."""


class _Run(NamedTuple):
    """Distinct digests, by their first half, and the place of each."""

    high: UInt64Array
    low: UInt64Array
    places: Int64Array


class FirstPlaces:
    """The first place of each digest, at 24 bytes a digest."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @property
    def nbytes(self) -> int:
        """The bytes that the digests and their places take."""
        return sum(array.nbytes for run in self._runs for array in run)

    def add(self, digests: UInt64Array, places: Int64Array) -> Int64Array:
        """Add digests.

        Args:
            digests: uint64, ``(rows, 2)``.
            places: int64, ``(rows,)``: their places, 0 or above, in order.

        Returns:
            int64, ``(rows,)``: the place of the first row with the digest, also of earlier calls;
            the row's own place if its digest is new.
        """
        order = np.argsort(digests[:, 0])
        high = digests[order, 0]
        if (high[1:] == high[:-1]).any():
            # Equal digests in the order of their places.
            order = np.lexsort((digests[:, 1], digests[:, 0]))
            high = digests[order, 0]
        low, at = digests[order, 1], places[order]
        heads = np.ones(len(order), np.bool_)
        heads[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        high, low, first = high[heads], low[heads], at[heads]
        known = self._find(high, low)
        new = known < 0
        if new.any():
            self._insert(_Run(high[new], low[new], first[new]))
        out = np.empty(len(order), np.int64)
        out[order] = np.where(new, first, known)[np.cumsum(heads) - 1]
        return out

    def find(self, digests: UInt64Array) -> Int64Array:
        """Return the places of digests (uint64, ``(rows, 2)``), -1 for new ones."""
        order = np.argsort(digests[:, 0])
        found = np.empty(len(order), np.int64)
        found[order] = self._find(digests[order, 0], digests[order, 1])
        return found

    def _find(self, high: UInt64Array, low: UInt64Array) -> Int64Array:
        """Return the places of sorted digests, -1 for new ones."""
        known = np.full(len(high), -1)
        for run in self._runs:
            rows = np.flatnonzero(known < 0)
            at = np.searchsorted(run.high, high[rows])
            while len(rows):
                there = at < len(run.high)
                rows, at = rows[there], at[there]
                there = run.high[at] == high[rows]
                rows, at = rows[there], at[there]
                same = run.low[at] == low[rows]
                known[rows[same]] = run.places[at[same]]
                rows, at = rows[~same], at[~same] + 1
        return known

    def _insert(self, run: _Run) -> None:
        """Add a run; merge it with those before it that are not much longer."""
        while self._runs and len(self._runs[-1].high) < 2 * len(run.high) <= _MERGED_ROWS:
            before = self._runs.pop()
            order = np.argsort(np.concatenate([before.high, run.high]), kind="stable")
            run = _Run(*(np.concatenate(pair)[order] for pair in zip(before, run, strict=True)))
        self._runs.append(run)


class RequestIds:
    """The ids of a source's requests, each with the place of the first request that has it.

    Args:
        request: The request's definition.
        where: Names a place for a person, from a partition and a position.
    """

    def __init__(self, request: Request, where: Callable[[int, int], str]) -> None:
        self._request, self._where = request, where
        self._first = FirstPlaces()

    @property
    def rejects(self) -> bool:
        """Whether a request with a repeated id is rejected; else it is answered, and counted."""
        return self._request.repeated == REJECT

    def repeated(self, partition: int, positions: Int64Array, rows: pa.RecordBatch) -> Refusals:
        """Add the next acceptable rows of a partition, in reading order.

        Args:
            partition: The partition.
            positions: int64, ``(rows,)``: their places in it, ascending.
            rows: The declared columns, ``(rows,)``.

        Returns:
            The rows whose id an earlier row has, and a sentence about each.
        """
        places = (partition << _POSITION_BITS) + positions
        first = self._first.add(self._digests(rows), places)
        return self._refusals(rows, first, first != places)

    def known(self, rows: pa.RecordBatch) -> Refusals:
        """Return the rows whose id an earlier row has, as `repeated`, and add none of them."""
        first = self._first.find(self._digests(rows))
        return self._refusals(rows, first, first >= 0)

    def _digests(self, rows: pa.RecordBatch) -> UInt64Array:
        ids = rows.column(self._request.request_id)
        return hashing.digest_rows(pa.RecordBatch.from_arrays([ids], names=["id"]))

    def _refusals(
        self, rows: pa.RecordBatch, first: Int64Array, repeated: npt.NDArray[np.bool_]
    ) -> Refusals:
        ids = rows.column(self._request.request_id)
        refusals: Refusals = {}
        for row in np.flatnonzero(repeated).tolist():
            before, position = divmod(int(first[row]), 1 << _POSITION_BITS)
            detail = (
                f"column {self._request.request_id!r}: found {shown(ids[row].as_py())}, which "
                f"{self._where(before, position)} has, expected an id of its own"
            )
            refusals[row] = (Reason.REPEATED_REQUEST_ID, detail)
        return refusals
