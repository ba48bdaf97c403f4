"""The figures of one process: counters, gauges, histograms and facts.

The promises: a call costs some microseconds, whatever the number of rows (a histogram takes an
array at once); no figure is wrong because two threads report at once; a process that reports
nothing costs nothing.
"""

from __future__ import annotations

import bisect
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tidemill.pipelines.telemetry.metrics import METRICS, Metric

Labels = tuple[str, ...]
BY_NAME: Final = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True)
class Gauge:
    """A part of a gauge.

    Attributes:
        value: Its value.
        at_s: When it was set, in seconds since 1970.
    """

    value: float
    at_s: float


@dataclass(frozen=True)
class Histogram:
    """Values by size.

    Attributes:
        counts: How many values are in each bucket, and above the last bound.
        sum: The sum of all values.
    """

    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True)
class Fact:
    """Something that a process knows, such as the watermarks of a shard.

    Attributes:
        content: JSON values by name.
        at_s: When it was noted, in seconds since 1970.
    """

    content: Mapping[str, Any]
    at_s: float


@dataclass(frozen=True)
class Snapshot:
    """The figures of a process at one instant.

    Attributes:
        run: The run that they are of.
        pid: The number of the process.
        host: Its machine.
        at_s: The instant, in seconds since 1970.
        counters: By metric and labels.
        gauges: By metric, labels and part.
        histograms: By metric and labels.
        facts: By name.
    """

    run: str
    pid: int
    host: str
    at_s: float
    counters: Mapping[tuple[str, Labels], float] = field(default_factory=dict)
    gauges: Mapping[tuple[str, Labels, str], Gauge] = field(default_factory=dict)
    histograms: Mapping[tuple[str, Labels], Histogram] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)


class Figures:
    """Counts what a process does; thread-safe.

    Args:
        run: The run that is counted.
        clock_s: The machine's clock, in seconds since 1970.
    """

    def __init__(self, run: str = "", clock_s: Callable[[], float] = time.time) -> None:
        self.run = run
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._gauges: dict[tuple[str, Labels, str], Gauge] = {}
        self._histograms: dict[tuple[str, Labels], tuple[npt.NDArray[np.int64], float]] = {}
        self._facts: dict[str, Fact] = {}
        self._highest: dict[str, float] = {}

    def add(self, metric: Metric, count: float, *labels: str) -> None:
        """Add to a counter; a counter that was never added to is not shown.

        Args:
            metric: The counter.
            count: How much; 0 shows the counter.
            labels: A value for each of its labels.
        """
        place = metric.name, labels
        with self._lock:
            self._counters[place] = self._counters.get(place, 0) + count

    def set(self, metric: Metric, value: float, *labels: str, part: str = "") -> None:
        """Set a part of a gauge.

        Args:
            metric: The gauge.
            value: Its value.
            labels: A value for each of its labels.
            part: Which part of the gauge, such as a shard.
        """
        gauge = Gauge(float(value), self._clock_s())
        with self._lock:
            self._gauges[metric.name, labels, part] = gauge
            self._highest[metric.name] = max(self._highest.get(metric.name, gauge.value), value)

    def observe(self, metric: Metric, values: float | npt.ArrayLike, *labels: str) -> None:
        """Count values in a histogram.

        Args:
            metric: The histogram.
            values: ``(rows,)``: the values, or one.
            labels: A value for each of its labels.
        """
        if isinstance(values, (int, float)):
            self._observe_one(metric, float(values), labels)
            return
        found = np.atleast_1d(np.asarray(values, np.float64))
        if not len(found):
            return
        # A value that equals a bound is in the bound's bucket.
        places = np.searchsorted(np.asarray(metric.buckets), found, "left")
        counts = np.bincount(places, minlength=len(metric.buckets) + 1)
        total, place = float(found.sum()), (metric.name, labels)
        with self._lock:
            before, sum_before = self._histograms.get(place, (np.zeros_like(counts), 0.0))
            self._histograms[place] = before + counts, sum_before + total

    def _observe_one(self, metric: Metric, value: float, labels: Labels) -> None:
        """Count a value as `observe` does, without its calls of numpy."""
        place, bucket = (metric.name, labels), bisect.bisect_left(metric.buckets, value)
        with self._lock:
            found = self._histograms.get(place)
            counts = np.zeros(len(metric.buckets) + 1, np.int64) if found is None else found[0]
            counts[bucket] += 1
            self._histograms[place] = counts, value + (0.0 if found is None else found[1])

    def note(self, name: str, content: Mapping[str, Any]) -> None:
        """Note a fact, in place of the one before.

        Args:
            name: Its name.
            content: JSON values by name.
        """
        fact = Fact(dict(content), self._clock_s())
        with self._lock:
            self._facts[name] = fact

    def total(self, metric: Metric) -> float:
        """Return what this process has added to a counter, over all labels."""
        with self._lock:
            return sum(count for (name, _), count in self._counters.items() if name == metric.name)

    def highest(self, metric: Metric) -> float | None:
        """Return the highest value that a gauge has ever had here; None if it was never set."""
        with self._lock:
            return self._highest.get(metric.name)

    def snapshot(self) -> Snapshot:
        """Return the figures of this instant."""
        with self._lock:
            return Snapshot(
                self.run,
                os.getpid(),
                socket.gethostname(),
                self._clock_s(),
                dict(self._counters),
                dict(self._gauges),
                {
                    place: Histogram(tuple(counts.tolist()), total)
                    for place, (counts, total) in self._histograms.items()
                },
                dict(self._facts),
            )


def joined(snapshots: list[Snapshot]) -> Snapshot:
    """Add up the figures of processes.

    Counters and histograms are summed. Of a part of a gauge, or a fact, that several processes
    have, the newest counts: the work went over from one process to the other.

    Args:
        snapshots: The figures; at least one.
    """
    counters: dict[tuple[str, Labels], float] = {}
    gauges: dict[tuple[str, Labels, str], Gauge] = {}
    histograms: dict[tuple[str, Labels], Histogram] = {}
    facts: dict[str, Fact] = {}
    for one in snapshots:
        for place, count in one.counters.items():
            counters[place] = counters.get(place, 0) + count
        for where, gauge in one.gauges.items():
            if where not in gauges or gauges[where].at_s <= gauge.at_s:
                gauges[where] = gauge
        for place, histogram in one.histograms.items():
            before = histograms.get(place)
            histograms[place] = histogram if before is None else _added(before, histogram)
        for name, fact in one.facts.items():
            if name not in facts or facts[name].at_s <= fact.at_s:
                facts[name] = fact
    newest = max(snapshots, key=lambda one: one.at_s)
    return Snapshot(
        newest.run, newest.pid, newest.host, newest.at_s, counters, gauges, histograms, facts
    )


def _added(one: Histogram, two: Histogram) -> Histogram:
    counts = tuple(a + b for a, b in zip(one.counts, two.counts, strict=True))
    return Histogram(counts, one.sum + two.sum)


def gauge_values(snapshot: Snapshot) -> dict[tuple[str, Labels], float]:
    """Return the value of each gauge, made of its parts."""
    parts: dict[tuple[str, Labels], list[float]] = {}
    for (name, labels, _), gauge in snapshot.gauges.items():
        parts.setdefault((name, labels), []).append(gauge.value)
    how = {"max": max, "min": min, "sum": sum}
    return {
        place: how[BY_NAME[place[0]].combine](values)  # type: ignore[operator]
        for place, values in parts.items()
    }


def over_all_labels(figures: Snapshot, metric: Metric) -> Histogram | None:
    """Return a histogram over all its labels; None if nothing was observed."""
    found = [one for (name, _), one in figures.histograms.items() if name == metric.name]
    if not found:
        return None
    counts = tuple(map(sum, zip(*(one.counts for one in found), strict=True)))
    return Histogram(counts, sum(one.sum for one in found))


def quantile(metric: Metric, histogram: Histogram, q: float) -> float | None:
    """Estimate a quantile of a histogram's values, as Prometheus's ``histogram_quantile`` does.

    Args:
        metric: The histogram's metric.
        histogram: Its values.
        q: Between 0 and 1.

    Returns:
        The quantile; the last bound if it is above that; None if there are no values.
    """
    total = sum(histogram.counts)
    if not total:
        return None
    rank, below = q * total, 0
    for bucket, count in enumerate(histogram.counts[:-1]):
        if count and below + count >= rank:
            low = metric.buckets[bucket - 1] if bucket else 0.0
            high = metric.buckets[bucket]
            return low + (high - low) * (rank - below) / count
        below += count
    return metric.buckets[-1]
