"""Request ids: of the accepted requests with one id, the first in reading order counts.

The promises:

* The decision depends on the source alone, not on the batches in which it is read. It is made over
  the rows that are acceptable otherwise, in reading order: the files in order, then the position. A
  repeated request came all the same, so its time moves its partition's highest time.
* Where the request declares ``repeated_within``, an id is compared with those of requests that are
  less than so far away in time, and are not repeated themselves. Ids before a time can then be
  forgotten: what is kept is bounded by time, not by the age of the stream.

Two ids are equal if their 128-bit digests are (`features.kernel.hashing.digest_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array, format_duration
from tidemill.features.definitions import Request
from tidemill.features.definitions.requests import REJECT
from tidemill.features.errors import shown
from tidemill.features.kernel import hashing
from tidemill.features.rows.rejected import Reason
from tidemill.pipelines.io.acceptance import Refusals
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import PollPart

BoolArray = npt.NDArray[np.bool_]
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


class RecentPlaces:
    """The places of digests by their times: one digest has several, which are far apart in time.

    Times are divided into spans as long as the least distance. So a digest has one place in a span,
    and whatever is near to a time lies in its span or in one beside. A digest takes 40 to 44 bytes.

    Args:
        apart_us: Two places of one digest are at least so far apart in time.
    """

    def __init__(self, apart_us: int) -> None:
        self._apart_us = apart_us
        self._spans: dict[int, _Span] = {}

    @property
    def nbytes(self) -> int:
        """The bytes that the digests, their places and their times take."""
        return sum(span.nbytes for span in self._spans.values())

    def forget_before(self, time_us: int) -> None:
        """Forget spans that lie wholly before a time."""
        for number in [n for n in self._spans if (n + 1) * self._apart_us <= time_us]:
            del self._spans[number]

    def add(self, digests: UInt64Array, places: Int64Array, times_us: Int64Array) -> Int64Array:
        """Add digests that are not near to one before them; see `FirstPlaces.add`.

        Args:
            digests: As for `FirstPlaces.add`.
            places: As for `FirstPlaces.add`.
            times_us: int64, ``(rows,)``: their times.

        Returns:
            int64, ``(rows,)``: the place of a row before, of this or an earlier call, with the
            digest, a time that is near, and no such row before it; else the row's own place.
        """
        out = np.array(places)
        left = np.arange(len(places))
        # Digests do not concern each other, so the first rows of all that are left go together.
        while len(left):
            known = self.find(digests[left], times_us[left])
            out[left] = np.where(known >= 0, known, out[left])
            left = left[known < 0]
            heads = _first_of_each(digests[left])
            first = left[heads]
            spans = times_us[first] // self._apart_us
            for number in np.unique(spans).tolist():
                rows = first[spans == number]
                span = self._spans.setdefault(number, _Span())
                span.add(digests[rows], places[rows], times_us[rows])
            left = np.delete(left, heads)
        return out

    def find(self, digests: UInt64Array, times_us: Int64Array) -> Int64Array:
        """Return the place of a row with the digest that is near in time, -1 where there is none.

        Args:
            digests: uint64, ``(rows, 2)``.
            times_us: int64, ``(rows,)``.
        """
        found = np.full(len(times_us), -1)
        spans = times_us // self._apart_us
        for of_rows in np.unique(spans).tolist():
            rows = np.flatnonzero(spans == of_rows)
            for number in (of_rows - 1, of_rows, of_rows + 1):
                if number in self._spans:
                    places, at_us = self._spans[number].find(digests[rows])
                    near = (places >= 0) & (np.abs(at_us - times_us[rows]) < self._apart_us)
                    found[rows[near]] = places[near]
        return found


class _Span:
    """The places and times of the digests of one span of time."""

    def __init__(self) -> None:
        self._numbers, self._count = FirstPlaces(), 0
        self._rows = np.empty((0, 2), np.int64)

    @property
    def nbytes(self) -> int:
        return self._numbers.nbytes + self._rows.nbytes

    def add(self, digests: UInt64Array, places: Int64Array, times_us: Int64Array) -> None:
        """Add digests that are new."""
        end = self._count + len(places)
        if end > len(self._rows):
            grown = np.empty((max(end, len(self._rows) * 5 // 4), 2), np.int64)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        self._rows[self._count : end] = np.stack([places, times_us], 1)
        self._numbers.add(digests, np.arange(self._count, end))
        self._count = end

    def find(self, digests: UInt64Array) -> tuple[Int64Array, Int64Array]:
        """Return the places of digests, -1 for new ones, and their times."""
        numbers = self._numbers.find(digests)
        found = self._rows[np.maximum(numbers, 0)]
        return np.where(numbers < 0, -1, found[:, 0]), found[:, 1]


def _first_of_each(digests: UInt64Array) -> Int64Array:
    """Return the row of each distinct digest in which it comes first, ascending."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    sorted_ = digests[order]
    heads = np.ones(len(order), np.bool_)
    heads[1:] = (sorted_[1:] != sorted_[:-1]).any(axis=1)
    return np.sort(order[heads])


class RequestIds:
    """The ids of a source's requests, each with the place of the first request that has it.

    Args:
        request: The request's definition.
        where: Names a place for a person, from a partition and a position.
    """

    def __init__(self, request: Request, where: Callable[[int, int], str]) -> None:
        self._request, self._where = request, where
        within_us = request.repeated_within_us
        self._first = FirstPlaces()
        self._recent = None if within_us is None else RecentPlaces(within_us)

    @property
    def rejects(self) -> bool:
        """Whether a request with a repeated id is rejected; else it is answered, and counted."""
        return self._request.repeated == REJECT

    @property
    def nbytes(self) -> int:
        """The bytes that the ids take."""
        return self._first.nbytes if self._recent is None else self._recent.nbytes

    def forget_before(self, time_us: int) -> None:
        """Forget the ids of requests before a time, if the request says how long they count.

        No row that is added or looked up later may be nearer to that time than
        ``repeated_within``, or lie before it.
        """
        if self._recent is not None:
            self._recent.forget_before(time_us)

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
        digests = self._digests(rows)
        if self._recent is None:
            first = self._first.add(digests, places)
        else:
            first = self._recent.add(digests, places, self._times_us(rows))
        return self._refusals(rows, first, first != places)

    def known(self, rows: pa.RecordBatch) -> Refusals:
        """Return the rows whose id an earlier row has, as `repeated`, and add none of them."""
        digests = self._digests(rows)
        if self._recent is None:
            first = self._first.find(digests)
        else:
            first = self._recent.find(digests, self._times_us(rows))
        return self._refusals(rows, first, first >= 0)

    def _digests(self, rows: pa.RecordBatch) -> UInt64Array:
        ids = rows.column(self._request.request_id)
        return hashing.digest_rows(pa.RecordBatch.from_arrays([ids], names=["id"]))

    def _times_us(self, rows: pa.RecordBatch) -> Int64Array:
        return hashing.bits(rows.column(self._request.request_time))

    def _refusals(
        self, rows: pa.RecordBatch, first: Int64Array, repeated: npt.NDArray[np.bool_]
    ) -> Refusals:
        ids = rows.column(self._request.request_id)
        within_us = self._request.repeated_within_us
        own = "" if within_us is None else f" within {format_duration(within_us)}"
        refusals: Refusals = {}
        for row in np.flatnonzero(repeated).tolist():
            before, position = divmod(int(first[row]), 1 << _POSITION_BITS)
            detail = (
                f"column {self._request.request_id!r}: found {shown(ids[row].as_py())}, which "
                f"{self._where(before, position)} has, expected an id of its own{own}"
            )
            refusals[row] = (Reason.REPEATED_REQUEST_ID, detail)
        return refusals


def ids_so_far(request: Request, log: Log, first: int, unsealed: Iterable[PollPart]) -> RequestIds:
    """Return the ids of the requests so far with which those of a topic are compared.

    Args:
        request: The requests.
        log: The log of the stream.
        first: The first partition of the log that is of the topic.
        unsealed: Rows that are written down, and are not in the log.
    """

    def where(partition: int, _: int) -> str:
        # A position of this run counts rejected rows too, so it is not that of the log.
        return f"an earlier request of partition {partition} of the log"

    def batches() -> Iterator[tuple[int, int, pa.RecordBatch]]:
        partitions = range(log.partitions(request.name))
        # Those of the topic come first: they say which ids of older files still count.
        for partition in (*partitions[first:], *partitions[:first]):
            begin = 0
            for batch in log.batches(request.name, partition):
                yield partition, begin, batch
                begin += batch.num_rows
            for part in fresh:
                if part.partition == partition:
                    yield partition, part.start, part.rows

    fresh = [part for part in unsealed if part.source == request.name and part.rows is not None]
    within_us, ids = request.repeated_within_us, RequestIds(request, where)
    newest_us = since_us = TIME_MIN
    for partition, begin, batch in batches():
        times_us = hashing.bits(batch.column(request.request_time))
        if within_us is not None and partition >= first:
            newest_us = max(newest_us, int(times_us.max(initial=TIME_MIN)))
            since_us = max(TIME_MIN, newest_us - 2 * within_us)
            ids.forget_before(since_us)
        # Of two rows of the log with one id the first was accepted as such, or both count.
        recent = np.flatnonzero(times_us >= since_us)
        ids.repeated(partition, begin + recent, batch.take(pa.array(recent)))
    return ids


def count_repeated(request: Request, answered: pa.Table) -> int:
    """Count the requests whose id an earlier one has, by the order of their times.

    Args:
        request: Their definition.
        answered: Their ``request_id`` and ``request_time``, ``(rows,)``.
    """
    ordered = answered.sort_by("request_time").combine_chunks()
    names = [request.request_id, request.request_time]
    columns = [ordered[name] for name in ("request_id", "request_time")]
    ids, begin = RequestIds(request, lambda *_: ""), 0
    repeated = 0
    for batch in pa.table(columns, names=names).to_batches():
        repeated += len(ids.repeated(0, np.arange(begin, begin + batch.num_rows), batch))
        begin += batch.num_rows
    return repeated
