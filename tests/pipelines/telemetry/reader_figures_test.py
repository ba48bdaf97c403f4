"""What a live reader reports: rows, places, a broker that is away, partitions that fall silent."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.logged import logged_by
from tidemill.features.contract import SECOND, TIME_MIN
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.live.live_source import Ends, LiveFigures, Standing
from tidemill.pipelines.io.live.lost import AcceptedLoss, Loss, Why
from tidemill.pipelines.telemetry import metrics, reader_figures
from tidemill.pipelines.telemetry.facts import source_fact
from tidemill.pipelines.telemetry.figures import Figures, gauge_values
from tidemill.pipelines.telemetry.json_log import JsonFormatter
from tidemill.pipelines.telemetry.reader_figures import SILENT_S, ReaderFigures


class Reader:
    """Stands where a test says, as a `LiveReader` tells it."""

    def __init__(self) -> None:
        self.figures = LiveFigures(counts={"paid": Counts()}, late_after_quiet={"paid": 0})
        self.offset, self.end, self.watermark_us = 10, Ends(10, 10), 5 * SECOND

    def standings(self) -> list[Standing]:
        return [Standing("paid", 0, 2, self.offset, 7, self.watermark_us, False, self.end)]

    def read(self, rows: int, kept: int) -> None:
        self.offset += rows
        self.end = Ends(self.offset, self.offset)
        more = Counts(read=rows, kept=kept, rejected=rows - kept)
        self.figures.counts["paid"] = self.figures.counts["paid"] + more


class Rig:
    def __init__(self) -> None:
        self.now, self.reader, self.figures = 0.0, Reader(), Figures("r")
        reader = cast(Any, self.reader)
        self.report = ReaderFigures(self.figures, reader, {"paid": "topic"}, lambda: self.now)

    def step(self, seconds: float, poll: object = None) -> None:
        self.now += seconds
        self.report.stepped(cast(Any, poll), ahead=3)

    def counted(self, metric: metrics.Metric) -> float:
        return self.figures.total(metric)

    def gauge(self, metric: metrics.Metric, *labels: str) -> float | None:
        return gauge_values(self.figures.snapshot()).get((metric.name, labels))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    records = logged_by(reader_figures.__name__, caplog)
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    return [(line["level"], line["event"]) for line in lines]


def test_rows_are_counted_once(rig: Rig) -> None:
    rig.reader.read(5, 4)
    rig.step(1.0, SimpleNamespace())
    rig.step(1.0)
    rig.reader.read(2, 2)
    rig.step(1.0, SimpleNamespace())
    assert rig.counted(metrics.ROWS_READ) == 7
    assert rig.counted(metrics.ROWS_ACCEPTED) == 6
    assert rig.counted(metrics.POLLS) == 2
    assert rig.gauge(metrics.POLLS_AHEAD) == 3


def test_what_topics_have_lost_is_counted_from_the_beginning_of_the_log() -> None:
    figures, reader = Figures("r"), cast(Any, Reader())
    known = Loss("paid", "topic", 0, Why.DELETED, 5, 9)
    unknown = Loss("paid", "topic", 1, Why.RECREATED, 5, 10**15)
    losses = [AcceptedLoss(1, one, 0, "me", "") for one in (known, unknown)]
    ReaderFigures(figures, reader, {"paid": "topic"}, losses=losses)
    assert (figures.total(metrics.LOSSES), figures.total(metrics.LOST_MESSAGES)) == (2, 4)


def test_steps_are_cheap_between_reports(rig: Rig) -> None:
    rig.reader.read(5, 5)
    rig.step(0.1)
    assert rig.counted(metrics.ROWS_READ) == 0
    rig.step(0.5)
    assert rig.counted(metrics.ROWS_READ) == 5


def test_where_a_partition_is(rig: Rig) -> None:
    rig.reader.end = Ends(12, 15)
    rig.step(1.0)
    assert rig.gauge(metrics.OFFSET, "paid", "0") == 10
    assert rig.gauge(metrics.LAG, "paid", "0") == 5
    assert rig.gauge(metrics.WATERMARK, "paid", "0") == 5
    assert rig.gauge(metrics.LAST_MESSAGE, "paid", "0") is None
    rig.reader.read(1, 1)
    rig.step(1.0)
    assert rig.gauge(metrics.LAST_MESSAGE, "paid", "0") is not None
    fact = rig.figures.snapshot().facts[source_fact("paid", 0)].content
    assert (fact["log_partition"], fact["offset"], fact["topic"]) == (2, 11, "topic")


def test_before_the_broker_has_said_anything_no_lag_is_known(rig: Rig) -> None:
    rig = Rig()
    rig.reader.end = cast(Any, None)
    rig.reader.watermark_us = TIME_MIN
    rig.figures = Figures("r")
    rig.report = ReaderFigures(rig.figures, cast(Any, rig.reader), {"paid": "topic"})
    assert rig.gauge(metrics.LAG, "paid", "0") is None
    assert rig.gauge(metrics.WATERMARK, "paid", "0") is None


def test_a_broker_that_goes_and_comes_is_logged_once_each(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.step(1.0)
    assert rig.gauge(metrics.REACHABLE, "paid") == 1
    rig.reader.figures.away.add("paid")
    rig.step(1.0)
    rig.step(1.0)
    assert rig.gauge(metrics.REACHABLE, "paid") == 0
    rig.reader.figures.away.clear()
    rig.step(1.0)
    rig.step(1.0)
    assert events(caplog) == [("WARNING", "broker_away"), ("WARNING", "broker_back")]


def test_a_partition_that_falls_silent_is_logged_once_and_when_it_is_back(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidemill")
    rig.step(SILENT_S - 1)
    assert events(caplog) == []
    rig.step(1.0)
    rig.step(1.0)
    assert events(caplog) == [("INFO", "partition_silent")]
    rig.reader.read(1, 1)
    rig.step(1.0)
    assert events(caplog)[1:] == [("INFO", "partition_back")]


def test_a_partition_that_is_not_read_to_its_end_is_not_silent(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidemill")
    rig.reader.end = Ends(10, 11)  # an open transaction
    rig.step(10 * SILENT_S)
    assert events(caplog) == []
