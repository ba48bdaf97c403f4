"""Prism's process runs during a run and is stopped after it, however the run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import psutil
import pytest
from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, PortableOptions
from apache_beam.runners.portability.portable_runner import PipelineResult

from tidemill.features.errors import PrismFailed
from tidemill.pipelines.engines.choosing import find_prism
from tidemill.pipelines.engines.prism import OwnedPrismRunner, PrismResult, PrismServer

# A thread that loses its connection to Prism is logged, and not reported as an error.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

ENDLESS = Path(__file__).parents[2] / "support" / "endless_stream.py"


@pytest.fixture(autouse=True)
def logs_go_with_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def is_running(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def count(row: int) -> int:
    Metrics.counter("tidemill", "rows").inc()
    return row


def divide(row: int) -> float:
    return 1 / row


def wait_a_minute(row: int) -> int:
    time.sleep(60)
    return row


def pipeline_of(step: Callable[[int], object], rows: list[int], *options: str) -> beam.Pipeline:
    pipeline = beam.Pipeline(
        runner=OwnedPrismRunner(find_prism()), options=PipelineOptions(list(options))
    )
    pipeline | beam.Create(rows) | "Step" >> beam.Map(step)
    return pipeline


def submit(step: Callable[[int], object], rows: list[int]) -> PrismResult:
    return pipeline_of(step, rows).run()


class TestServer:
    def test_it_serves_and_stops_with_its_guard(self) -> None:
        server = PrismServer(find_prism())
        server.start()
        pid = server.pid
        assert pid is not None
        assert is_running(pid)
        guards = [p for p in psutil.Process().children() if str(pid) in p.cmdline()]
        assert len(guards) == 1
        server.stop()
        assert not is_running(pid)
        assert not is_running(guards[0].pid)
        assert server.pid is None
        server.stop()

    def test_two_at_once_do_not_meet(self) -> None:
        servers = [PrismServer(find_prism()) for _ in range(2)]
        for server in servers:
            server.start()
        assert len({server.pid for server in servers}) == 2
        for server in servers:
            server.stop()

    def test_a_program_that_ends_at_once_is_reported_with_what_it_said(
        self, tmp_path: Path
    ) -> None:
        broken = tmp_path / "prism"
        broken.write_text("#!/bin/sh\necho no light today\nexit 3\n")
        broken.chmod(0o755)
        server = PrismServer(broken)
        with pytest.raises(PrismFailed, match=r"(?s)status 3.*no light today"):
            server.start()
        assert server.pid is None

    def test_a_file_that_is_no_program_is_reported(self, tmp_path: Path) -> None:
        text = tmp_path / "prism"
        text.write_bytes(b"\x00\x01")
        text.chmod(0o755)
        with pytest.raises(PrismFailed, match="cannot be run"):
            PrismServer(text).start()


class TestRun:
    def test_prism_is_gone_after_a_run_and_so_is_its_log(self) -> None:
        result = submit(count, [1, 2, 3])
        pid, log = result.prism_pid, result.log
        assert is_running(pid)
        assert result.wait_until_finish() == "DONE"
        assert not is_running(pid)
        assert not log.exists()

    def test_metrics_and_state_outlive_prism(self) -> None:
        result = submit(count, [1, 2, 3])
        result.wait_until_finish()
        (rows,) = result.metrics().query(MetricsFilter().with_name("rows"))["counters"]
        assert rows.result == 3
        assert result.state == "DONE"

    def test_prism_is_gone_after_a_failure_and_its_log_is_named(self) -> None:
        result = submit(divide, [1, 0])
        pid, log = result.prism_pid, result.log
        with pytest.raises(RuntimeError, match="division by zero") as caught:
            result.wait_until_finish()
        assert not is_running(pid)
        assert str(log) in "".join(caught.value.__notes__)
        assert "division by zero" in log.read_text()
        assert result.state == "FAILED"

    def test_the_error_is_raised_also_if_prism_reports_only_that_it_has_no_work(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prism may report that it has no work before it reports the bundle's error."""
        told = PipelineResult.wait_until_finish

        def stuck(result: PipelineResult, duration: int | None = None) -> str:
            with pytest.raises(RuntimeError, match="division by zero"):
                told(result, duration)
            raise RuntimeError("job-001 failed: nothing in progress and no refreshes")

        monkeypatch.setattr(PipelineResult, "wait_until_finish", stuck)
        result = submit(divide, [1, 0])
        with pytest.raises(RuntimeError, match="division by zero") as caught:
            result.wait_until_finish()
        assert str(result.log) in "".join(caught.value.__notes__)
        assert "nothing in progress" in str(caught.value.__cause__)

    def test_a_cancelled_run_leaves_nothing(self) -> None:
        result = submit(wait_a_minute, [1])
        pid = result.prism_pid
        assert result.wait_until_finish(duration=100) != "DONE"
        assert is_running(pid)
        result.cancel()
        assert not is_running(pid)

    def test_a_prism_that_is_killed_is_an_error_that_names_its_log(self) -> None:
        result = submit(wait_a_minute, [1])
        pid, log = result.prism_pid, result.log
        threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(PrismFailed, match=str(log)):
            result.wait_until_finish()

    def test_a_pipeline_that_cannot_be_submitted_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[int | None] = []

        def refuse(runner: OwnedPrismRunner, *_: object) -> None:
            started.append(runner._server.pid if runner._server else None)
            raise OSError("no way through")

        monkeypatch.setattr(OwnedPrismRunner, "create_job_service_handle", refuse)
        with pytest.raises(OSError, match="no way through"):
            submit(count, [1])
        (pid,) = started
        assert pid is not None
        assert not is_running(pid)

    def test_options_that_keep_rows_are_set_even_if_the_caller_does_not(self) -> None:
        pipeline = pipeline_of(count, [1], "--experiments=another", "--job_server_timeout=5")
        pipeline.run().wait_until_finish()
        options = pipeline.options
        experiments = options.view_as(DebugOptions).experiments
        assert {"another", "prism_disable_sdf_split"} <= set(experiments)
        assert options.view_as(PortableOptions).job_server_timeout > 365 * 24 * 3600


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGINT", "SIGKILL", "os._exit", "sys.exit"])
def test_prism_ends_with_the_program_however_that_ends(ending: str, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, str(ENDLESS), ending, str(tmp_path / "it runs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdin is not None
        assert program.stdout is not None
        prism = psutil.Process(int(program.stdout.readline()))
        assert is_running(prism.pid)
        if ending.startswith("SIG"):
            program.send_signal(getattr(signal, ending))
        else:
            print(file=program.stdin, flush=True)
        program.wait(60)
        gone = wait_for(lambda: not is_running(prism.pid))
        if not gone:
            prism.kill()
        assert gone, f"Prism outlived {ending}"
    finally:
        program.kill()
        program.communicate()
