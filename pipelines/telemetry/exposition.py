"""Figures in the text formats of Prometheus and OpenMetrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.figures import Labels, Snapshot, gauge_values, joined
from tidemill.pipelines.telemetry.figures_files import GONE_S
from tidemill.pipelines.telemetry.metrics import METRICS, Metric

Values = Mapping[tuple[str, Labels], float]

_BEHIND: Final = (
    (metrics.FRONTIER, metrics.FRONTIER_LAG),
    (metrics.WATERMARK, metrics.WATERMARK_LAG),
)
"""Instants, and how far the least of them is behind the clock by their first label."""


class FiguresCollector(Collector):
    """Collects the figures of all processes of a run when Prometheus asks.

    Args:
        read: Returns the figures of each process.
        more: Returns gauges that no process of the run reports, by name and labels.
        clock_s: The machine's clock, in seconds since 1970.
    """

    def __init__(
        self,
        read: Callable[[], list[Snapshot]],
        more: Callable[[], Values],
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._more, self._clock_s = read, more, clock_s

    def collect(self) -> Iterator[Family]:
        """Yield all metrics that have a value."""
        now_s, snapshots = self._clock_s(), self._read()
        counted = joined(snapshots) if snapshots else None
        gauges = {**current_gauges(snapshots, now_s), **self._more()}
        for metric in METRICS:
            if metric.kind == "gauge":
                yield from _gauges(metric, gauges)
            elif counted is not None and metric.kind == "counter":
                yield from _counters(metric, counted)
            elif counted is not None:
                yield from _histograms(metric, counted)


def current_gauges(snapshots: Iterable[Snapshot], now_s: float) -> dict[tuple[str, Labels], float]:
    """Return the gauges of the processes that still report, and how far behind the clock they are.

    Args:
        snapshots: The figures of each process.
        now_s: The clock, in seconds since 1970.
    """
    alive = [one for one in snapshots if now_s - one.at_s < GONE_S]
    found = gauge_values(joined(alive)) if alive else {}
    for instant, lag in _BEHIND:
        least: dict[str, float] = {}
        for (name, labels), value in found.items():
            if name == instant.name:
                least[labels[0]] = min(least.get(labels[0], value), value)
        found |= {(lag.name, (label,)): max(now_s - value, 0) for label, value in least.items()}
    found[metrics.PROCESSES.name, ()] = len(alive)
    return found


def _gauges(metric: Metric, values: Values) -> Iterator[Family]:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for (name, labels), value in sorted(values.items()):
        if name == metric.name:
            family.add_metric(labels, value)
    if family.samples:
        yield family


def _counters(metric: Metric, counted: Snapshot) -> Iterator[Family]:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for (name, labels), count in sorted(counted.counters.items()):
        if name == metric.name:
            family.add_metric(labels, count)
    if family.samples:
        yield family


def _histograms(metric: Metric, counted: Snapshot) -> Iterator[Family]:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
    for (name, labels), found in sorted(counted.histograms.items(), key=lambda one: one[0]):
        if name == metric.name:
            buckets, below = [], 0
            for bound, count in zip(bounds, found.counts, strict=True):
                below += count
                buckets.append((bound, float(below)))
            family.add_metric(labels, buckets, found.sum)
    if family.samples:
        yield family


def exposed(collector: Collector, accepts: str) -> tuple[bytes, str]:
    """Return the figures as text, and the type of the text.

    Args:
        collector: Collects the figures.
        accepts: The types that the reader accepts (the header ``Accept``).
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    encode, kind = choose_encoder(accepts)
    return encode(registry), kind
