"""What an operator reports of itself, and what the steps after it report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import pyarrow as pa

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN
from tidemill.features.kernel import hashing
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.facts import view_fact
from tidemill.pipelines.telemetry.stage_figures import StageFigures
from tidemill.pipelines.telemetry.tracing import span

_SIZES_EVERY_S: Final = 1.0
"""How often the sizes of a state are counted, at most: that takes longer the larger it is."""

_COUNTED: Final = (
    ("events", metrics.EVENTS),
    ("requests", metrics.REQUESTS),
    ("late", metrics.LATE),
    ("late_requests", metrics.LATE_REQUESTS),
    ("duplicates", metrics.DUPLICATES),
    ("repeats", metrics.REPEATS),
    ("early", metrics.EARLY),
)


class OperatorFigures:
    """Reports what the operators of a stage do.

    Args:
        figures: The figures of this process.
    """

    def __init__(self, figures: StageFigures) -> None:
        self._figures = figures
        self._sized_s: dict[str, float] = {}

    @contextmanager
    def of(self, operator: ShardOperator) -> Iterator[None]:
        """Report what an operator does in the block."""
        before, view = replace(operator.counters), operator.key.view
        with span("operate", view=view, shard=operator.key.shard):
            yield
        for name, metric in _COUNTED:
            count = getattr(operator.counters, name) - getattr(before, name)
            self._figures.add(metric, count, view)
        rows = operator.counters.events + operator.counters.requests
        taken = rows - before.events - before.requests
        if taken:
            self._figures.observe(metrics.BATCH, taken, "operate")
        self._report(operator)

    def _report(self, operator: ShardOperator) -> None:
        key, frontier_us = operator.key, operator.state.frontier_us
        view, shard = key.view, str(key.shard)
        events, requests = operator.events.num_rows, operator.requests.num_rows
        self._figures.set(metrics.POLLS_TAKEN, operator.number, part=key.text)
        self._figures.set(metrics.WAITING_ROWS, events + requests, view, part=shard)
        if TIME_MIN < frontier_us < TIME_MAX:
            self._figures.set(metrics.FRONTIER, frontier_us / SECOND, view, part=shard)
        self._figures.note(
            view_fact(view, key.shard),
            {
                "frontier_us": frontier_us,
                "number": operator.number,
                "watermarks_us": list(operator.watermarks),
                "event_partitions": operator.inputs.event_partitions,
                "waiting_events": events,
                "waiting_requests": requests,
            },
        )
        now = time.monotonic()
        if now - self._sized_s.get(key.text, float("-inf")) < _SIZES_EVERY_S:
            return
        self._sized_s[key.text] = now
        state = operator.state
        self._figures.set(metrics.TILES, state.n_tiles, view, part=shard)
        self._figures.set(metrics.ENTITIES, state.n_entities, view, part=shard)
        self._figures.set(metrics.STATE_BYTES, state.nbytes, view, part=shard)


@contextmanager
def scoring(figures: StageFigures, requests: int) -> Iterator[None]:
    """Report how long the block takes to score requests."""
    began = time.perf_counter()
    with span("score", requests=requests):
        yield
    figures.observe(metrics.SCORING, time.perf_counter() - began)
    figures.observe(metrics.BATCH, requests, "score")


def report_predictions(figures: StageFigures, made: pa.RecordBatch) -> None:
    """Report predictions, and how fresh they are.

    Args:
        figures: The figures of this process.
        made: The predictions (`pipelines.stream.infer.predictions`).
    """
    figures.add(metrics.PREDICTIONS, made.num_rows)
    created = hashing.bits(made.column("created_us"))
    asked = hashing.bits(made.column("request_time"))
    figures.observe(metrics.TO_PREDICTION, (created - asked) / SECOND)
    sent = hashing.bits(made.column("sent_us"))
    figures.observe(metrics.ANSWER, (created - sent) / SECOND)
