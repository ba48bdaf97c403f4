"""What operators, scoring and publishing report of themselves."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from tests.support.streaming_project import (
    PARTITIONS,
    PROJECT,
    arrivals,
    elements_of,
    end_of,
    random_polls,
    random_rows,
)
from tidemill.features.contract import SECOND
from tidemill.pipelines.publish.store_figures import storing
from tidemill.pipelines.stream.featurize_options import (
    FeaturizeOptions,
    make_operator,
    operator_key,
)
from tidemill.pipelines.stream.operator_figures import (
    OperatorFigures,
    report_predictions,
    scoring,
)
from tidemill.pipelines.stream.sequence import decode_batches
from tidemill.pipelines.stream.wire_format import Published
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.facts import view_fact
from tidemill.pipelines.telemetry.figures import Figures, gauge_values
from tidemill.pipelines.telemetry.stage_figures import StageFigures


def test_an_operator_reports_what_it_took_and_where_it_is() -> None:
    rows = random_rows(1)
    arrived = arrivals(PROJECT, rows, PARTITIONS, random.Random(1))
    polls = random_polls(PROJECT, arrived, end_of(rows), 12, random.Random(1))
    key = operator_key(PROJECT, 0, 1, 2)
    operator = make_operator(PROJECT, key, FeaturizeOptions("r", 2, PARTITIONS))
    figures = Figures("r")
    report = OperatorFigures(StageFigures(figures))
    for poll in [*polls[:6], *polls[4:6]]:  # two come again
        elements = [
            data for view, shard, data in elements_of(PROJECT, 2, [poll]) if (view, shard) == (0, 1)
        ]
        with report.of(operator):
            operator.receive(
                batch for data in elements for batch in decode_batches(data, operator.event_schema)
            )
    view, partitions = PROJECT.views[0].name, len(operator.expected)
    counted = figures.snapshot().counters
    assert counted[metrics.EVENTS.name, (view,)] == operator.counters.events > 0
    assert counted[metrics.REQUESTS.name, (view,)] == operator.counters.requests
    assert counted[metrics.REPEATS.name, (view,)] == 2 * partitions
    assert figures.highest(metrics.POLLS_TAKEN) == polls[5].number
    gauges = gauge_values(figures.snapshot())
    assert gauges[metrics.FRONTIER.name, (view,)] == operator.state.frontier_us / SECOND
    assert (metrics.TILES.name, (view,)) in gauges
    fact = figures.snapshot().facts[view_fact(view, 1)].content
    assert fact["watermarks_us"] == operator.watermarks
    assert fact["frontier_us"] == min(operator.watermarks)
    waiting = operator.events.num_rows + operator.requests.num_rows
    assert fact["waiting_events"] + fact["waiting_requests"] == waiting
    assert gauges[metrics.WAITING_ROWS.name, (view,)] == waiting


def test_predictions_report_how_fresh_they_are() -> None:
    figures = Figures("r")
    stage = StageFigures(figures)
    times = pa.array(np.array([1, 2, 3]) * SECOND, pa.timestamp("us", tz="UTC"))
    made = pa.RecordBatch.from_pydict(
        {
            "request_time": times,
            "sent_us": pa.array([4 * SECOND] * 3),
            "created_us": pa.array([5 * SECOND] * 3),
        }
    )
    with scoring(stage, 3):
        pass
    report_predictions(stage, made)
    found = figures.snapshot().histograms
    assert found[metrics.TO_PREDICTION.name, ()].sum == pytest.approx(4 + 3 + 2)
    assert found[metrics.ANSWER.name, ()].sum == pytest.approx(3)
    assert sum(found[metrics.SCORING.name, ()].counts) == 1
    assert found[metrics.BATCH.name, ("score",)].sum == 3
    assert figures.total(metrics.PREDICTIONS) == 3


def published(*, is_news: bool = True, mark_before: bytes | None = b"m" * 16) -> Published:
    rows = pa.RecordBatch.from_pydict(
        {"event_timestamp": pa.array([10 * SECOND] * 2, pa.timestamp("us", tz="UTC"))}
    )
    return Published("cab", 0, 3, mark_before, b"n" * 16, 1, 0, 10 * SECOND, rows, is_news=is_news)


def test_a_write_reports_how_fresh_its_news_are() -> None:
    figures = Figures("r")
    releases = [published(), published(mark_before=None), published(is_news=False)]
    with storing(StageFigures(figures), releases):
        pass
    found = figures.snapshot().histograms
    assert sum(found[metrics.TO_STORE.name, ("cab",)].counts) == 2
    assert found[metrics.BATCH.name, ("publish",)].sum == 6
    assert sum(found[metrics.STORE_WRITE.name, ()].counts) == 1
    assert figures.total(metrics.PUBLICATIONS) == 4


def test_a_write_that_fails_reports_nothing() -> None:
    figures = Figures("r")
    with pytest.raises(ValueError, match="no"), storing(StageFigures(figures), [published()]):
        raise ValueError("no")
    assert figures.snapshot().histograms == {}
    assert figures.total(metrics.PUBLICATIONS) == 0
