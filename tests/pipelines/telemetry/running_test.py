"""The stream that runs in this process, as others see it."""

from __future__ import annotations

import dataclasses
import json
import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.folders import made_root
from tests.support.live_project import CONFIGURATION, PROJECT
from tests.support.logged import logged_by
from tidemill.features.errors import BrokerUnreachable, ConfigurationError
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.config.telemetry_section import MetricsPage, TraceOptions
from tidemill.pipelines.run.summary import write_summary
from tidemill.pipelines.telemetry import metrics, tracing
from tidemill.pipelines.telemetry.json_log import JsonFormatter
from tidemill.pipelines.telemetry.running import (
    figures_place,
    predictions_so_far,
    running,
    savepoint_kept,
    seen_from_outside,
    segment_begins,
    stream_drains,
)
from tidemill.pipelines.telemetry.stage_figures import NO_FIGURES
from tidemill.pipelines.telemetry.stream_record import StreamRecord, figures_files
from tidemill.serving.generations.current import Current


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configuration:
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("project", None)
    (tmp_path / "project.py").write_text(PROJECT)
    (tmp_path / "tidemill.yaml").write_text(
        CONFIGURATION.format(
            bootstrap="127.0.0.1:1", payments="paid", checks="asked", engine="fnapi", mode="exact",
            train_until="2026-11-01T00:00:00Z", until="2026-11-02T00:00:00Z", savepoint_every="10m",
            format="json", shards=2,
        )
    )  # fmt: skip
    return dataclasses.replace(load(tmp_path / "tidemill.yaml"), metrics=MetricsPage("127.0.0.1:0"))


@pytest.fixture
def current(config: Configuration) -> Current:
    return made_root(config.root)


def page(address: str | None, name: str) -> str:
    with urllib.request.urlopen(f"http://{address}/{name}", timeout=60) as answer:
        return str(answer.read().decode())


def test_a_stream_is_seen_while_it_runs_and_after(
    config: Configuration, current: Current, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidemill")
    write_summary(config.root, "verify", {"mismatches": 1, "values": 8})
    assert (running(), figures_place(), predictions_so_far()) == (None, NO_FIGURES, 0)
    with seen_from_outside(config, current, "fnapi") as now:
        assert running() is now
        segment_begins(1, 4, "exact")
        figures_place().here().add(metrics.PREDICTIONS, 3)
        assert predictions_so_far() == 3
        savepoint_kept(4, 1_000_000)
        text = page(now.record.listen, "metrics")
        assert "tidemill_predictions_total 3.0" in text
        assert "tidemill_proof_mismatches 1.0" in text
        assert "tidemill_savepoints_total 1.0" in text
        assert 'engine="fnapi",mode="exact",project="payments"' in text
        assert json.loads(page(now.record.listen, "healthz"))["status"] == "running"
        write_summary(config.root, "verify", {"mismatches": 0, "values": 9})
        assert "tidemill_proof_mismatches 0.0" in page(now.record.listen, "metrics")
        found = StreamRecord.read(current.folder)
        assert found is not None
        assert (found.stream, found.segment, found.ended_us) == (1, 5, None)
        stream_drains(12)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            page(now.record.listen, "healthz")
    assert (running(), figures_place()) == (None, NO_FIGURES)
    found = StreamRecord.read(current.folder)
    assert found is not None
    assert found.ended_us is not None
    assert found.error is None
    (left,) = figures_files(current.folder).read(found.run)
    assert left.counters[metrics.PREDICTIONS.name, ()] == 3
    records = logged_by(running.__module__, caplog)
    lines = [json.loads(JsonFormatter().format(record)) for record in records]
    assert [line["event"] for line in lines] == ["start", "segment", "savepoint", "drain", "end"]


def test_a_stream_that_fails_leaves_its_error(config: Configuration, current: Current) -> None:
    with (
        pytest.raises(BrokerUnreachable),
        seen_from_outside(config, current, "fnapi"),
    ):
        raise BrokerUnreachable("a:1 does not answer")
    found = StreamRecord.read(current.folder)
    assert found is not None
    assert found.error == {"class": "BrokerUnreachable", "text": "a:1 does not answer"}


def test_a_port_that_is_taken_stops_the_stream_before_anything_is_removed(
    config: Configuration, current: Current
) -> None:
    with seen_from_outside(config, current, "fnapi"):
        figures_place().here().add(metrics.PREDICTIONS, 3)
    before = StreamRecord.read(current.folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        page = MetricsPage(f"127.0.0.1:{taken.getsockname()[1]}")
        with (
            pytest.raises(ConfigurationError, match=r"metrics\.listen"),
            seen_from_outside(dataclasses.replace(config, metrics=page), current, "fnapi"),
        ):
            raise AssertionError("the port is taken")
    assert StreamRecord.read(current.folder) == before
    assert len(figures_files(current.folder).read()) == 1


def test_tracing_without_its_packages_stops_the_stream_too(
    config: Configuration, current: Current, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_EXPORTER", "opentelemetry.no_such_exporter")
    traced = dataclasses.replace(config, tracing=TraceOptions("http://localhost:4318"))
    with (
        pytest.raises(ConfigurationError, match=r"tidemill\[tracing\]"),
        seen_from_outside(traced, current, "fnapi"),
    ):
        raise AssertionError("it is not installed")
    assert running() is None


def test_a_record_that_cannot_be_written_later_stops_nothing(
    config: Configuration,
    current: Current,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        from tidemill.features.errors import NoSpace

        raise NoSpace("the disk is full")

    with seen_from_outside(config, current, "fnapi"):
        monkeypatch.setattr(StreamRecord, "write", full)
        segment_begins(1, 1, "exact")
    assert "the disk is full" in caplog.text


def test_without_the_section_no_port_is_opened(config: Configuration, current: Current) -> None:
    silent = dataclasses.replace(config, metrics=None)
    with seen_from_outside(silent, current, "fnapi") as now:
        assert now.record.listen is None
