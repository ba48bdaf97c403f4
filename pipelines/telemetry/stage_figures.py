"""Figures from inside a pipeline: what a stage reports, in whatever process it runs.

A stage carries a `FiguresPlace`, which can be pickled. In the process that started the stream it
leads to that process's figures; in another one it begins figures of that process, which are written
beside those of the others, by the process itself or, through an exchange, by the program. Counters
and histograms are also reported as Beam's metrics, in the namespace `NAMESPACE`, so that they show
in the pages of engines that have some.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.runners.runner import PipelineResult

from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.figures_files import EVERY_S, FiguresFiles
from tidemill.pipelines.telemetry.metrics import POLLS_TAKEN, Metric
from tidemill.pipelines.telemetry.taken_files import taken_written

NAMESPACE: Final = "tidemill"
"""The namespace of Beam's metrics."""

_lock: Final = threading.Lock()
_here: Final[dict[FiguresPlace, StageFigures]] = {}
_writing: Final = ExitStack()
atexit.register(_writing.close)


@dataclass(frozen=True)
class FiguresPlace:
    """Where the figures of a run are; can be pickled.

    Attributes:
        run: The run's id; empty if nobody asks for figures.
        folder: The folder of the figures' files; None if there is none.
        exchange: Where workers meet the program, if they do not share its disk.
    """

    run: str = ""
    folder: Path | None = None
    exchange: ExchangePlace | None = None

    def here(self) -> StageFigures:
        """Return the figures of this process."""
        with _lock:
            if self not in _here:
                figures = Figures(self.run)
                _here[self] = StageFigures(figures)
                if self.folder is not None and self.exchange is not None:
                    end = self.exchange.here()
                    end.report(lambda: int(figures.highest(POLLS_TAKEN) or 0))
                    write = partial(end.write, within_s=EVERY_S)
                    _writing.enter_context(FiguresFiles(self.folder).written(figures, write))
                # Without either Beam's metrics remain.
                elif self.folder is not None and self.folder.is_dir():
                    _writing.enter_context(FiguresFiles(self.folder).written(figures))
                    _writing.enter_context(taken_written(figures, self.folder))
            return _here[self]

    @contextmanager
    def leads_to(self, figures: Figures) -> Iterator[None]:
        """Let the place lead to these figures in this process while the block runs."""
        with _lock:
            _here[self] = StageFigures(figures)
        try:
            yield
        finally:
            with _lock:
                _here.pop(self, None)


NO_FIGURES: Final = FiguresPlace()
"""The place of a pipeline whose figures nobody reads."""


class StageFigures:
    """The figures of this process, reported to Beam as well; see `figures.Figures`.

    Args:
        figures: The figures of this process.
    """

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self._counters: dict[tuple[str, tuple[str, ...]], Any] = {}

    def add(self, metric: Metric, count: int, *labels: str) -> None:
        """Add to a counter."""
        self.figures.add(metric, count, *labels)
        if count:
            self._report(metric.name, metric.labels, labels, count)

    def set(self, metric: Metric, value: float, *labels: str, part: str = "") -> None:
        """Set a part of a gauge; Beam is not told."""
        self.figures.set(metric, value, *labels, part=part)

    def observe(self, metric: Metric, values: float | npt.ArrayLike, *labels: str) -> None:
        """Count values in a histogram; Beam is told their number, and their sum in thousandths."""
        if isinstance(values, (int, float)):
            count, total = 1, float(values)
            self.figures.observe(metric, values, *labels)
        else:
            found = np.atleast_1d(np.asarray(values, np.float64))
            count, total = len(found), float(found.sum())
            self.figures.observe(metric, found, *labels)
        if count:
            self._report(f"{metric.name}_count", metric.labels, labels, count)
            thousandths = round(total * 1_000)
            self._report(f"{metric.name}_sum_thousandths", metric.labels, labels, thousandths)

    def note(self, name: str, content: Mapping[str, Any]) -> None:
        """Note a fact; Beam is not told."""
        self.figures.note(name, content)

    def _report(
        self, name: str, names: tuple[str, ...], values: tuple[str, ...], count: int
    ) -> None:
        place = name, values
        if place not in self._counters:
            shown = ",".join(f"{label}={value}" for label, value in zip(names, values, strict=True))
            shown = f"{name}{{{shown}}}" if shown else name
            self._counters[place] = Metrics.counter(NAMESPACE, shown)
        self._counters[place].inc(count)


def counted_by_beam(result: PipelineResult, metric: Metric) -> int:
    """Return what all workers of a pipeline have added to a counter, over all labels.

    Args:
        result: The result of the pipeline; it has ended.
        metric: The counter.
    """
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))["counters"]
    return sum(
        int(one.result or 0)
        for one in found
        if one.key.metric.name.partition("{")[0] == metric.name
    )
