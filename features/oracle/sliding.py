"""Values of one key at many instants, by windows that slide: every row comes and goes once.

`features.oracle.values.RULES` says what a value is, from all rows of its window. These rules give
the same values, bit for bit, when rows come at one end of the window and go at the other. So the
values of a key at ``r`` instants cost its rows and ``r``, and not ``r`` times its window.

Sums are exact ints: all floats of a key are multiples of one power of two. The least value is kept
in a queue of those that no later one undercuts (the monotonic queue of sliding window minima).
Distinct values and buckets are counted. An aggregation without a rule here is computed from its
whole window.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from tidemill.features.definitions import FLOAT64
from tidemill.features.oracle import sketches
from tidemill.features.oracle.numbers import FeatureValue, in_int64, rounded


class Sliding:
    """An aggregation's value over a window that slides over a key's rows.

    Args:
        aggregation: The aggregation.
        values: What it takes of each row of the key that counts, in order.
        times: The time of each of these rows, microseconds.
        dtype: The dtype of its result.
    """

    def __init__(
        self, aggregation: Any, values: Sequence[Any], times: Sequence[int], dtype: str
    ) -> None:
        self.aggregation = aggregation
        self.values = values
        self.times = times
        self.dtype = dtype
        self.begin = self.end = 0
        self.prepare()

    def prepare(self) -> None:
        """Make what the empty window needs."""

    def at(self, begin: int, end: int, as_of_us: int) -> Sequence[FeatureValue]:
        """Return the values, as many as the aggregation's width, over some rows.

        Args:
            begin: The first row of the window, not before that of the last call.
            end: The row after its last one, not before that of the last call.
            as_of_us: The instant.
        """
        for row in range(self.end, end):
            self.come(row)
        for row in range(self.begin, begin):
            self.go(row)
        self.begin, self.end = begin, end
        return self.found(as_of_us)

    def come(self, row: int) -> None:
        """Take the row after the last one."""

    def go(self, row: int) -> None:
        """Drop the first row."""

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        """Return the values over the present window."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The number of rows in the window."""
        return self.end - self.begin


class _Count(Sliding):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [self.size]


class _Total(Sliding):
    """The exact total, as a multiple of ``1 / scale``."""

    def prepare(self) -> None:
        exact = [value.as_integer_ratio() for value in self.values]
        # Denominators of floats are powers of two, so the greatest is a multiple of all.
        self.scale = max((denominator for _, denominator in exact), default=1)
        self.exact = [numerator * (self.scale // denominator) for numerator, denominator in exact]
        self.total = 0

    def come(self, row: int) -> None:
        self.total += self.exact[row]

    def go(self, row: int) -> None:
        self.total -= self.exact[row]


class _Sum(_Total):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        if self.dtype == FLOAT64:
            return [rounded(Fraction(self.total, self.scale))]
        return [in_int64(self.total)]


class _Mean(_Total):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [rounded(Fraction(self.total, self.scale * self.size)) if self.size else None]


class _Variance(_Total):
    def prepare(self) -> None:
        super().prepare()
        self.squares = 0

    def come(self, row: int) -> None:
        super().come(row)
        self.squares += self.exact[row] ** 2

    def go(self, row: int) -> None:
        super().go(row)
        self.squares -= self.exact[row] ** 2

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        n, ddof = self.size, self.aggregation.ddof
        if n <= ddof:
            return [None]
        # The sum of squared deviations is the sum of squares less the square of the sum over n.
        deviations = n * self.squares - self.total**2
        return [rounded(Fraction(deviations, n * (n - ddof) * self.scale**2))]


class _Std(_Variance):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        (variance,) = super().found(as_of_us)
        return [None if variance is None else math.sqrt(variance)]


class _Least(Sliding):
    """The least value; of equal ones the first."""

    worse: Any = operator.gt

    def prepare(self) -> None:
        self.rows: deque[int] = deque()

    def come(self, row: int) -> None:
        values = self.values
        while self.rows and self.worse(values[self.rows[-1]], values[row]):
            self.rows.pop()
        self.rows.append(row)

    def go(self, row: int) -> None:
        if self.rows and self.rows[0] == row:
            self.rows.popleft()

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [self.values[self.rows[0]] if self.rows else None]


class _Greatest(_Least):
    """The greatest value; of equal ones the first."""

    worse = operator.lt


class _First(Sliding):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [self.values[self.begin] if self.size else None]


class _Last(Sliding):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [self.values[self.end - 1] if self.size else None]


class _LastK(Sliding):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        k = self.aggregation.k
        newest_first = self.values[max(self.begin, self.end - k) : self.end][::-1]
        return [*newest_first, *[None] * (k - len(newest_first))]


class _DistinctCount(Sliding):
    """Counts each value, and for each register how often each rank occurs."""

    def prepare(self) -> None:
        self.counts: Counter[Any] = Counter()
        self.places: dict[Any, tuple[int, int]] = {}
        self.ranks: list[dict[int, int]] = [{} for _ in range(2**sketches.REGISTER_BITS)]
        self.registers = [0] * 2**sketches.REGISTER_BITS
        self.histogram = [2**sketches.REGISTER_BITS] + [0] * sketches.MAX_RANK

    def come(self, row: int) -> None:
        value = self.values[row]
        self.counts[value] += 1
        if self.counts[value] == 1:
            if value not in self.places:
                self.places[value] = sketches.register_and_rank(value)
            register, rank = self.places[value]
            ranks = self.ranks[register]
            ranks[rank] = ranks.get(rank, 0) + 1
            if rank > self.registers[register]:
                self._set(register, rank)

    def go(self, row: int) -> None:
        value = self.values[row]
        self.counts[value] -= 1
        if not self.counts[value]:
            del self.counts[value]
            register, rank = self.places[value]
            ranks = self.ranks[register]
            ranks[rank] -= 1
            if not ranks[rank]:
                del ranks[rank]
                if rank == self.registers[register]:
                    self._set(register, max(ranks, default=0))

    def _set(self, register: int, rank: int) -> None:
        self.histogram[self.registers[register]] -= 1
        self.histogram[rank] += 1
        self.registers[register] = rank

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        if len(self.counts) <= sketches.EXACT_DISTINCT_VALUES:
            return [len(self.counts)]
        return [round(sketches.estimate_of_histogram(self.histogram))]


class _Quantile(Sliding):
    """Counts the values of each bucket; buckets ascend as values do."""

    def prepare(self) -> None:
        self.buckets = [sketches.bucket(float(value)) for value in self.values]
        self.counts: Counter[int] = Counter()
        self.ascending: list[int] = []

    def come(self, row: int) -> None:
        bucket = self.buckets[row]
        if bucket not in self.counts:
            bisect.insort(self.ascending, bucket)
        self.counts[bucket] += 1

    def go(self, row: int) -> None:
        bucket = self.buckets[row]
        self.counts[bucket] -= 1
        if not self.counts[bucket]:
            del self.counts[bucket]
            del self.ascending[bisect.bisect_left(self.ascending, bucket)]

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        if not self.size:
            return [None]
        rank = math.floor(self.aggregation.q * (self.size - 1))
        for bucket in self.ascending:
            rank -= self.counts[bucket]
            if rank < 0:
                return [sketches.representative(bucket)]
        raise AssertionError("the counts of the buckets are those of the rows")


class _Rate(Sliding):
    def prepare(self) -> None:
        self.true = 0

    def come(self, row: int) -> None:
        self.true += self.values[row] is True

    def go(self, row: int) -> None:
        self.true -= self.values[row] is True

    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [rounded(Fraction(self.true, self.size)) if self.size else None]


class _TimeSinceLast(Sliding):
    def found(self, as_of_us: int) -> Sequence[FeatureValue]:
        return [as_of_us - self.times[self.end - 1] if self.size else None]


SLIDING: Final[Mapping[str, type[Sliding]]] = {
    "count": _Count,
    "sum": _Sum,
    "mean": _Mean,
    "variance": _Variance,
    "std": _Std,
    "min": _Least,
    "max": _Greatest,
    "first": _First,
    "last": _Last,
    "last_k": _LastK,
    "distinct_count": _DistinctCount,
    "quantile": _Quantile,
    "rate": _Rate,
    "time_since_last": _TimeSinceLast,
}
"""The rule of each aggregation that has one, by name."""
