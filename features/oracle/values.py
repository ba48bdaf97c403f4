"""The oracle: feature values recomputed one event at a time, in plain Python.

What is promised here: for any set of accepted events, in any order and with repeats, `Oracle`
gives the value of every feature of a view for a key as of an instant, exactly as the contract of
time and the definitions say, bit for bit. It reads the definitions and shares no code with the
kernel: no numpy, no Arrow, no tiles, no state. It is slow and obvious, and tests compare the kernel
with it. For many instants of a key, `Oracle.values_at` gives the same values in one pass.

The rules:

* The window ``W`` with hop ``h`` as of ``t`` holds the events
  ``floor((t - W) / h) * h <= e < t``.
* Equal rows (every declared column) count once. The same id with anything else is another event.
* A row counts where ``where`` is true and the aggregated value is not null.
* Order is (event time, id as UTF-8 bytes, the aggregated value's 64 bits as an unsigned int). The
  value decides only between rows of the same time and id that have different payloads. The bytes
  of an int64 id are those of its decimal digits.
* Sums, means and variances are the exact rational value, rounded once; what does not fit its
  dtype is null. A standard deviation is the IEEE square root of the rounded variance.
* Distinct counts and quantiles: `features.oracle.sketches`. Expressions:
  `features.oracle.expressions`.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from tidemill.features.definitions import FLOAT64, Aggregation, FeatureView
from tidemill.features.errors import DefinitionError, InputError
from tidemill.features.oracle import sketches
from tidemill.features.oracle.expressions import Value, evaluate, read
from tidemill.features.oracle.numbers import FeatureValue as FeatureValue
from tidemill.features.oracle.numbers import in_int64, rounded
from tidemill.features.oracle.sketches import bits
from tidemill.features.oracle.sliding import SLIDING

Key = str | int


@dataclass(frozen=True)
class Explanation:
    """What a feature's value was made of.

    Attributes:
        values: Feature column name to value (more than one for last-k).
        events: (event time in microseconds, event id) of every row that counted, in order.
    """

    values: Mapping[str, FeatureValue]
    events: tuple[tuple[int, Key], ...]


@dataclass(frozen=True, eq=False)
class _Event:
    time_us: int
    id: Key
    row: Mapping[str, Value | None]
    order: tuple[int, bytes]
    # Feature name to the value that it takes of this row, cached: windows overlap.
    taken: dict[str, Value | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Window:
    """What an aggregation sees: the rows that count, in order, and the value it takes of each."""

    events: Sequence[_Event]
    values: Sequence[Any]
    as_of_us: int
    dtype: str


class Oracle:
    """Recomputes a view's features from all of its events.

    Args:
        view: The feature view.
        events: Accepted rows of its stream, in any order: column to plain value (times are int
            microseconds UTC; see `features.oracle.expressions`). Every declared column is there;
            others are ignored.

    Raises:
        InputError: A row lacks a column, has a value of another type than declared, or has no
        time or id.
    """

    def __init__(self, view: FeatureView, events: Iterable[Mapping[str, object]]) -> None:
        self.view = view
        self._rows: dict[Key, list[dict[str, Value | None]]] = {}
        self._events: dict[Key, list[_Event]] = {}
        stream = view.stream
        for number, given in enumerate(events):
            try:
                row = {column: read(given, column, stream.schema) for column in stream.schema}
            except InputError as error:
                raise InputError(f"view {view.name!r}, event {number}: {error}") from None
            for column in stream.required:
                if row[column] is None:
                    raise InputError(
                        f"view {view.name!r}, event {number}: {column!r} is null; a row without "
                        "its time or id is rejected before features are computed"
                    )
            if row[view.key] is not None:
                self._rows.setdefault(_key(row[view.key]), []).append(row)

    def values(self, key: Key | None, as_of_us: int) -> dict[str, FeatureValue]:
        """Return every feature's value for a key as of an instant.

        Args:
            key: The entity's key; an unknown or null one has no events.
            as_of_us: The instant, microseconds UTC.

        Returns:
            Feature column name to int (int64, or timestamp in microseconds UTC), float (float64),
            bool or None, in the view's order. A time since the last event is finished with the
            instant.
        """
        return {
            name: value
            for explanation in self.explain(key, as_of_us).values()
            for name, value in explanation.values.items()
        }

    def values_at(
        self, key: Key | None, instants_us: Sequence[int]
    ) -> list[dict[str, FeatureValue]]:
        """Return `values` for a key as of several instants, in one pass over its events.

        The cost is linear in the key's events and in the instants (`features.oracle.sliding`); the
        values are those of `values`.

        Args:
            key: The entity's key; an unknown or null one has no events.
            instants_us: The instants, microseconds UTC, in any order.

        Returns:
            For each instant, in the given order, what `values` returns.
        """
        ascending = sorted(range(len(instants_us)), key=instants_us.__getitem__)
        out: list[dict[str, FeatureValue]] = [{} for _ in instants_us]
        for name, aggregation in self.view.features.items():
            columns = [column.name for column in self.view.columns if column.feature == name]
            counted = self._counted(name, aggregation, [] if key is None else self._events_of(key))
            events, values = [event for event, _ in counted], [value for _, value in counted]
            times = [event.time_us for event in events]
            dtype = aggregation.result_dtype(self.view.stream.schema)
            rule = SLIDING.get(aggregation.name)
            sliding = None if rule is None else rule(aggregation, values, times, dtype)
            for place in ascending:
                as_of_us = instants_us[place]
                begin = bisect.bisect_left(times, self._tail_us(aggregation, as_of_us))
                end = bisect.bisect_left(times, as_of_us)
                if sliding is not None:
                    found = sliding.at(begin, end, as_of_us)
                else:
                    window = _Window(events[begin:end], values[begin:end], as_of_us, dtype)
                    found = value_of(aggregation, window)
                out[place].update(zip(columns, found, strict=True))
        return out

    def explain(self, key: Key | None, as_of_us: int) -> dict[str, Explanation]:
        """Return, by feature, its values and the events that they were made of.

        Args:
            key: The entity's key.
            as_of_us: The instant, microseconds UTC.

        Returns:
            Feature name to explanation; the events are those in the window that ``where`` lets
            through and whose aggregated value is not null.
        """
        out = {}
        for name, aggregation in self.view.features.items():
            window = self._window(name, aggregation, key, as_of_us)
            found = value_of(aggregation, window)
            columns = [column.name for column in self.view.columns if column.feature == name]
            out[name] = Explanation(
                values=dict(zip(columns, found, strict=True)),
                events=tuple((event.time_us, event.id) for event in window.events),
            )
        return out

    def _window(
        self, name: str, aggregation: Aggregation, key: Key | None, as_of_us: int
    ) -> _Window:
        events = [] if key is None else self._events_of(key)
        time = operator.attrgetter("time_us")
        begin = bisect.bisect_left(events, self._tail_us(aggregation, as_of_us), key=time)
        end = bisect.bisect_left(events, as_of_us, key=time)
        counted = self._counted(name, aggregation, events[begin:end])
        return _Window(
            events=[event for event, _ in counted],
            values=[value for _, value in counted],
            as_of_us=as_of_us,
            dtype=aggregation.result_dtype(self.view.stream.schema),
        )

    def _tail_us(self, aggregation: Aggregation, as_of_us: int) -> int:
        """Return the instant from which on events are in the window."""
        hop_us = self.view.hop_us
        return math.floor(Fraction(as_of_us - aggregation.window_us, hop_us)) * hop_us

    def _counted(
        self, name: str, aggregation: Aggregation, events: Sequence[_Event]
    ) -> list[tuple[_Event, Value]]:
        """Return the events that count, in order, and the value that is taken of each."""
        counted = []
        for event in events:
            if name not in event.taken:
                event.taken[name] = self._take(aggregation, event.row)
            if (value := event.taken[name]) is not None:
                counted.append((event, value))
        if aggregation.operand is not None:
            counted.sort(key=lambda pair: (pair[0].order, _tie(pair[1])))
        return counted

    def _take(self, aggregation: Aggregation, row: Mapping[str, Value | None]) -> Value | None:
        """Return what an aggregation takes of a row: True for the row itself, None for nothing."""
        schema = self.view.stream.schema
        if aggregation.where is not None and evaluate(aggregation.where, row, schema) is not True:
            return None
        if aggregation.operand is None:
            return True
        return evaluate(aggregation.operand, row, schema)

    def _events_of(self, key: Key) -> list[_Event]:
        """Return a key's events, by time and id: rows of equal identity are one event."""
        if key not in self._events:
            stream = self.view.stream
            distinct = {
                tuple(row[column] for column in stream.identity): row
                for row in self._rows.get(key, [])
            }
            events = []
            for row in distinct.values():
                time_us, id = int(row[stream.event_time] or 0), _key(row[stream.event_id])
                order = time_us, str(id).encode("utf-8")
                events.append(_Event(time_us, id, row, order))
            self._events[key] = sorted(events, key=operator.attrgetter("order"))
        return self._events[key]


def _key(value: Value | None) -> Key:
    assert isinstance(value, str | int)  # a schema's keys and ids are strings or int64
    return value


def _tie(value: Value) -> int:
    """Order payloads of one id at one time; texts need no order, since they are only counted."""
    return 0 if isinstance(value, str) else bits(value)


def value_of(aggregation: Aggregation, window: _Window) -> Sequence[FeatureValue]:
    """Return an aggregation's values over a window, as many as its width.

    Raises:
        DefinitionError: The oracle has no rule for it.
    """
    if aggregation.name not in RULES:
        raise DefinitionError(
            f"the oracle has no rule for the aggregation {aggregation.name!r}; "
            "add one to RULES in features/oracle/values.py"
        )
    return RULES[aggregation.name](aggregation, window)


def _count(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [len(window.values)]


def _sum(_: Any, window: _Window) -> Sequence[FeatureValue]:
    if window.dtype == FLOAT64:
        return [rounded(sum(map(Fraction, window.values), Fraction(0)))]
    return [in_int64(sum(window.values))]


def _mean(_: Any, window: _Window) -> Sequence[FeatureValue]:
    n = len(window.values)
    return [rounded(sum(map(Fraction, window.values)) / Fraction(n)) if n else None]


def _variance(aggregation: Any, window: _Window) -> Sequence[FeatureValue]:
    n = len(window.values)
    if n <= aggregation.ddof:
        return [None]
    exact = [Fraction(value) for value in window.values]
    mean = sum(exact) / Fraction(n)
    squares = sum(((x - mean) ** 2 for x in exact), Fraction(0))
    return [rounded(squares / (n - aggregation.ddof))]


def _std(aggregation: Any, window: _Window) -> Sequence[FeatureValue]:
    (variance,) = _variance(aggregation, window)
    return [None if variance is None else math.sqrt(variance)]


def _min(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [min(window.values, default=None)]


def _max(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [max(window.values, default=None)]


def _first(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [window.values[0] if window.values else None]


def _last(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [window.values[-1] if window.values else None]


def _last_k(aggregation: Any, window: _Window) -> Sequence[FeatureValue]:
    newest_first = list(reversed(window.values))[: aggregation.k]
    return newest_first + [None] * (aggregation.k - len(newest_first))


def _distinct_count(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [sketches.distinct_count(window.values)]


def _quantile(aggregation: Any, window: _Window) -> Sequence[FeatureValue]:
    return [sketches.quantile(window.values, aggregation.q)]


def _rate(_: Any, window: _Window) -> Sequence[FeatureValue]:
    n = len(window.values)
    return [rounded(Fraction(window.values.count(True), n)) if n else None]


def _time_since_last(_: Any, window: _Window) -> Sequence[FeatureValue]:
    return [window.as_of_us - window.events[-1].time_us if window.events else None]


RULES: Final[Mapping[str, Callable[[Any, _Window], Sequence[FeatureValue]]]] = {
    "count": _count,
    "sum": _sum,
    "mean": _mean,
    "variance": _variance,
    "std": _std,
    "min": _min,
    "max": _max,
    "first": _first,
    "last": _last,
    "last_k": _last_k,
    "distinct_count": _distinct_count,
    "quantile": _quantile,
    "rate": _rate,
    "time_since_last": _time_since_last,
}
"""The rule of each aggregation, by name."""
