"""The log as JSON: one object a line, whoever logs, with the id of the run."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tidemill.features.errors import BrokerUnreachable
from tidemill.features.rows import rejected
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.commands.session import Session
from tidemill.pipelines.telemetry import metrics
from tidemill.pipelines.telemetry.events import RareWarning, log_event
from tidemill.pipelines.telemetry.figures import Figures
from tidemill.pipelines.telemetry.json_log import JsonFormatter
from tidemill.pipelines.telemetry.log_progress import LogProgress
from tidemill.pipelines.telemetry.rejected_figures import report_rejected
from tidemill.pipelines.telemetry.run_id import RUN_ID
from tidemill.pipelines.telemetry.stage_figures import StageFigures


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_records_of_all_libraries_have_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session()
    with session.listening():
        session.diagnostics.choose("json")
        logging.getLogger("apache_beam.runners").warning("a bundle of %d\nlines", 2)
        logging.getLogger("kafka.conn").error("connection lost")
        logging.getLogger("kafka.conn").info("of no importance")
        logging.getLogger("my_project").warning("mine")
        log_event(logging.getLogger("tidemill.x"), "savepoint", "kept", segment=3)
        warnings.warn("old-fashioned", DeprecationWarning, stacklevel=1)
    found = lines(capsys.readouterr().err)
    assert [(one["logger"], one["level"]) for one in found] == [
        ("apache_beam.runners", "WARNING"),
        ("kafka.conn", "ERROR"),
        ("my_project", "WARNING"),
        ("tidemill.x", "INFO"),
        ("py.warnings", "WARNING"),
    ]
    assert {one["run"] for one in found} == {RUN_ID}
    assert all(one["time"].endswith("Z") and len(one["time"]) == 27 for one in found)
    assert found[0]["message"] == "a bundle of 2\nlines"
    assert (found[3]["event"], found[3]["segment"]) == ("savepoint", 3)
    assert logging.getLogger("tidemill").level == logging.NOTSET


def test_an_exception_has_class_text_and_traceback() -> None:
    log = logging.getLogger("some")
    try:
        raise BrokerUnreachable("a:1 does not answer")
    except BrokerUnreachable:
        record = log.makeRecord("some", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    error = json.loads(JsonFormatter().format(record))["error"]
    assert (error["class"], error["text"]) == ("BrokerUnreachable", "a:1 does not answer")
    assert "raise BrokerUnreachable" in error["traceback"]


@pytest.mark.parametrize("arguments", [("no format here",), ("%d", "text")])
def test_a_record_whose_arguments_do_not_fit_is_a_line(arguments: tuple[Any, ...]) -> None:
    record = logging.makeLogRecord({"msg": arguments[0], "args": (*arguments[1:], 1)})
    assert arguments[0] in json.loads(JsonFormatter().format(record))["message"]


def test_fields_never_replace_what_every_line_has() -> None:
    record = logging.makeLogRecord(
        {"msg": "m", "tidemill_event": "e", "tidemill_fields": {"run": "other", "path": Path("p")}}
    )
    found = json.loads(JsonFormatter().format(record))
    assert (found["run"], found["path"]) == (RUN_ID, "p")


def test_progress_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tidemill")
    with LogProgress(clock=iter([0.0, 2.5]).__next__).stage("read", 10, "rows") as stage:
        stage.advance(4)
        stage.note("a.csv")
    with pytest.raises(ValueError, match="no"), LogProgress().stage("read"):
        raise ValueError("no")
    started, done, _, failed = (json.loads(JsonFormatter().format(r)) for r in caplog.records)
    assert (started["event"], started["total"]) == ("stage_started", 10)
    assert (done["event"], done["count"], done["seconds"]) == ("stage_done", 4, 2.5)
    assert failed["event"] == "stage_failed"


def test_a_command_that_fails_logs_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["stream", "--config", str(tmp_path / "none.yaml"), "--log-format", "json"])
    assert left.value.code == 1
    (line,) = lines(capsys.readouterr().err)
    assert (line["level"], line["event"]) == ("ERROR", "error")
    assert line["error"]["class"] == "ConfigurationError"
    assert "none.yaml" in line["message"]
    assert "traceback" not in line["error"]


def test_a_log_format_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--log-format", "xml", "status"])
    assert left.value.code == 2
    assert "'text', 'json'" in capsys.readouterr().err


def records(reasons: list[str]) -> pa.RecordBatch:
    rows = range(len(reasons))
    return pa.RecordBatch.from_pylist(
        [
            {
                "stage": "read",
                "reason": reason,
                "detail": f"it is {reason}",
                "stream": "payments",
                "partition": 0,
                "position": row,
                "origin": f"payments/0@{row}",
                "payload": b"{",
            }
            for row, reason in zip(rows, reasons, strict=True)
        ],
        rejected.SCHEMA,
    )


def test_a_flood_of_rejected_records_is_one_line_at_once_and_then_rare(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    warning = RareWarning(lambda: now)
    figures = StageFigures(Figures("r"))
    report_rejected(figures, records(["broken_json"] * 3 + ["no_value"]), warning)
    for now in (1.0, 5.0, 9.9):  # noqa: B007 - the warning's clock
        report_rejected(figures, records(["broken_json"] * 1_000), warning)
    assert len(caplog.records) == 1
    now = 10.0
    report_rejected(figures, records(["no_value"]), warning)
    first, second = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (first["level"], first["event"], first["count"]) == ("WARNING", "rejected", 4)
    assert first["reasons"] == {"broken_json": 3, "no_value": 1}
    assert first["example"]["origin"] == "payments/0@0"
    assert second["count"] == 3_001
    place = metrics.ROWS_REJECTED.name, ("payments", "read", "broken_json")
    assert figures.figures.snapshot().counters[place] == 3_003


def test_no_rejected_records_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    report_rejected(StageFigures(Figures("r")), records([]))
    assert caplog.records == []
