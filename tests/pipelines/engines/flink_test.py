"""Flink without a cluster: what is refused, and what the text of a failed job says."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.markdown import ROOT
from tidemill.features.errors import (
    ClusterUnreachable,
    DamagedState,
    EngineLost,
    WrongBeamFlag,
)
from tidemill.pipelines.engines import flink_jobs, flink_run, left_jobs
from tidemill.pipelines.engines.choosing import Engine, EngineChoice, choose_engine
from tidemill.pipelines.engines.failures import original
from tidemill.pipelines.engines.flink import (
    FlinkPlace,
    check_cluster,
    flink_options,
    read_flags,
)
from tidemill.pipelines.engines.flink_result import job_server_answers
from tidemill.pipelines.engines.flink_run import FlinkRun, boot_error, last_cause, worker_error
from tidemill.pipelines.engines.flink_workers import WorkerCommand
from tidemill.pipelines.engines.worker_boot import WORKER
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.program_code import ProgramCode
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.ports import ReservedPort
from tidemill.pipelines.servers.processes import RunningProcess, running_process
from tidemill.pipelines.stream_run.restarts import MOST, Restarts

NO_CODE = ProgramCode("", "", "")


def test_flags_name_the_cluster_and_the_rest_goes_to_beam() -> None:
    flags = ["--flink_master=http://a:1/", "--parallelism=3", "--object_reuse", "--x=1"]
    assert read_flags(flags) == FlinkPlace(
        "a:1", "127.0.0.1:8099", "127.0.0.1:50000", 3, ("--object_reuse", "--x=1")
    )
    assert read_flags([]) == FlinkPlace()


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--runner=DirectRunner", "the engine is named by --engine"),
        ("--checkpointing_interval=1000", "keeps its own savepoints"),
        ("--number_of_execution_retries=3", "resubmits its job"),
        ("--savepoint_path=/x", "--resume"),
        ("--shutdown_sources_after_idle_ms=1", "end the source"),
        ("--environment_type=LOOPBACK", "come from a pool"),
        ("--parallelism=0", "give 1 or more"),
        ("--parallelism=two", "invalid int value"),
        ("parallelism=2", "no flag of Beam"),
        ("--environment_type=PROCESS --environment_config=/opt/worker", "with PROCESS write"),
        (
            '--environment_type=PROCESS --environment_config={"comand":"x"}',
            "did you mean 'command'",
        ),
        ('--environment_type=PROCESS --environment_config={"command":""}', "the command is ''"),
        ('--environment_type=PROCESS --environment_config={"env":{"A":1}}', "an object of texts"),
    ],
)
def test_a_flag_that_would_break_a_promise_is_refused(flag: str, why: str) -> None:
    with pytest.raises(WrongBeamFlag, match=why):
        read_flags(flag.split())


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--runner=DirectRunner", "the engine is named by --engine"),
        ("--streaming", "no stream"),
        ("--number_of_execution_retries=3", "run again from its beginning"),
        ("--savepoint_path=/x", "no savepoint"),
    ],
)
def test_a_flag_that_would_break_a_promise_is_refused_in_batch(flag: str, why: str) -> None:
    with pytest.raises(WrongBeamFlag, match=why):
        read_flags([flag], streaming=False)


def test_workers_are_started_by_a_command(tmp_path: Path) -> None:
    """What the program of a command is told, and that there is one where none was named."""
    process = "--environment_type=PROCESS"
    config = '--environment_config={"command": "/opt/worker", "env": {"HOME": "/x"}}'
    named, ours = read_flags([process, config]), read_flags([process])
    assert named.command == WorkerCommand("/opt/worker", (("HOME", "/x"),))
    assert ours.command == WorkerCommand()
    attempt = Attempt.below(tmp_path)
    code = WorkerCode(ProgramCode("shop:project", "0123", "4567"), attempt, ends=True)

    def started(place: FlinkPlace) -> dict[str, Any]:
        options = dict(option.split("=", 1) for option in flink_options(place, code))
        assert options["--environment_type"] == "PROCESS"
        found: dict[str, Any] = json.loads(options["--environment_config"])
        assert WorkerCode.of_params(json.loads(found["env"].pop(WORKER))) == code
        return found

    with attempt.submitted():
        assert started(named) == {"command": "/opt/worker", "env": {"HOME": "/x"}}
        found = started(ours)
        assert found["env"] == {}
        # Without the variable it says that nobody but Tidemill is to start it.
        done = subprocess.run(
            [found["command"], "--id=1-1", "--provision_endpoint=x", "--semi_persist_dir=x"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert done.returncode == 2
        assert f"{WORKER} is not set" in done.stderr


def test_other_engines_take_no_flags() -> None:
    with pytest.raises(WrongBeamFlag, match="only the engines 'flink' and 'dataflow' take flags"):
        choose_engine("fnapi", streaming=True, flags=["--parallelism=2"])
    found = choose_engine("flink", streaming=True, flags=["--parallelism=2"])
    assert found.has_workers
    assert found.flink == FlinkPlace(parallelism=2)
    with pytest.raises(ValueError, match="give the cluster"):
        EngineChoice(Engine.FLINK, "", True)


def test_a_cluster_that_is_not_there_is_named() -> None:
    with ReservedPort(HOST) as nobody:
        place = FlinkPlace(rest=f"{HOST}:{nobody.port}")
        with pytest.raises(ClusterUnreachable, match=f"no JobManager .*{nobody.port}.*up --flink"):
            check_cluster(place)


OF_WORKER = """java.lang.Exception: something
\tat org.apache.flink.A(A.java:1)
Caused by: java.lang.RuntimeException: Error received from SDK harness for instruction 4: \
Traceback (most recent call last):
  File "worker.py", line 1, in process_bundle
    raise DamagedState("x")
tidemill.features.errors.DamagedState: a state is damaged: remove it [while running 'Featurize/Op']

\tat org.apache.beam.B(B.java:2)
"""
OF_POOL = """org.apache.beam.UncheckedExecutionException: java.lang.RuntimeException:
tidemill.features.errors.WorkerLacksModule: a worker cannot import the project 'shop:project'

\tat org.apache.beam.C(C.java:3)
Caused by: java.lang.RuntimeException:
tidemill.features.errors.WorkerLacksModule: a worker cannot import the project 'shop:project'

\tat org.apache.beam.D(D.java:4)
"""


def test_the_error_of_a_worker_is_found_in_the_text_of_java() -> None:
    said = worker_error(OF_WORKER)
    assert said is not None
    found = original(RuntimeError(said))
    assert isinstance(found, DamagedState)
    assert str(found) == "a state is damaged: remove it"
    said = worker_error(OF_POOL)
    assert said is not None
    found = original(RuntimeError(said))
    assert type(found).__name__ == "WorkerLacksModule"
    assert str(found) == "a worker cannot import the project 'shop:project'"


@contextmanager
def working(attempt: Attempt) -> Iterator[RunningProcess]:
    """Start a worker that has taken up work, and does nothing."""
    code = (
        "import json, socket, sys\n"
        "from pathlib import Path\n"
        "from tidemill.pipelines.io.attempts import Attempt\n"
        "Attempt(Path(sys.argv[1])).take_up_work(json.loads(sys.stdin.readline()))\n"
        "print('works', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(attempt.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        me = running_process(worker.pid)
        assert me is not None
        said = {"pid": me.pid, "started": me.started, "host": socket.gethostname()}
        worker.stdin.write(json.dumps(said) + "\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "works\n"
        yield me


def test_workers_that_a_killed_program_has_left_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flink_jobs, "EXIT_S", 0.1)
    attempt = Attempt.below(tmp_path)
    with attempt.submitted(), working(attempt) as worker:
        flink_jobs.end_jobs(tmp_path)
        assert not worker.is_alive()
    assert list(tmp_path.iterdir()) == []


def test_workers_of_programs_that_run_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flink_jobs, "EXIT_S", 0.1)
    mine, abandoned = Attempt.below(tmp_path), Attempt.below(tmp_path)
    with abandoned.submitted():
        pass
    with mine.submitted(), working(mine) as worker, working(abandoned) as left:
        left_jobs.end_abandoned(tmp_path)
        assert worker.is_alive()
        assert not left.is_alive()
        assert list(tmp_path.iterdir()) == [mine.folder]
        flink_jobs.end_jobs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_job_server_that_is_not_there_is_lost_and_one_that_says_no_is_not() -> None:
    with (
        ReservedPort(HOST) as nobody,
        grpc.insecure_channel(f"{HOST}:{nobody.port}") as channel,
    ):
        with pytest.raises(EngineLost, match="takes no connection"), job_server_answers():
            grpc.channel_ready_future(channel).result(timeout=0.05)
        with pytest.raises(EngineLost, match="job server was lost"), job_server_answers():
            channel.unary_unary("/any/Call")(b"", timeout=5)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    try:
        with grpc.insecure_channel(f"{HOST}:{port}") as channel:
            call = channel.unary_unary("/any/Call")
            with pytest.raises(grpc.RpcError), job_server_answers():
                call(b"", timeout=5)  # it does not know this call
    finally:
        server.stop(0)


LOST = """org.apache.flink.runtime.JobException: Recovery is suppressed by NoRestartBackoffTime
\tat org.apache.flink.runtime.X(X.java:1)
Caused by: org.apache.flink.runtime.jobmaster.JobMasterException: TaskManager with id tm is no \
longer reachable.
\tat org.apache.flink.runtime.Y(Y.java:2)
"""


def test_a_lost_process_is_no_error_of_a_worker_and_is_named() -> None:
    assert worker_error(LOST) is None
    assert last_cause(LOST).endswith(
        "JobMasterException: TaskManager with id tm is no longer reachable."
    )
    assert last_cause("java.lang.Exception: gone\n\tat x") == "java.lang.Exception: gone"
    assert last_cause("") == "no reason is known"


class _JobManager(BaseHTTPRequestHandler):
    """Says of every job that it runs, unless something else is to be said."""

    state = "RUNNING"
    reason = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        job = {"jid": "1", "name": "the-job", "state": self.state}
        found = {"root-exception": self.reason} if "exceptions" in self.path else {"jobs": [job]}
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.fixture
def job_manager() -> Iterator[str]:
    server = ThreadingHTTPServer((HOST, 0), _JobManager)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"{HOST}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_job_whose_worker_has_ended_is_lost_though_flink_calls_it_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_manager: str
) -> None:
    monkeypatch.setattr(flink_run, "_FAILS_S", 0.5)
    attempt = Attempt.below(tmp_path)

    def wait(looks: int) -> None:
        counted = itertools.count()
        job = FlinkRun(FlinkPlace(job_manager), WorkerCode(NO_CODE, attempt), "the-job")
        job.wait(None, lambda: next(counted) >= looks)

    def add(name: str, process: RunningProcess) -> None:
        said = {"pid": process.pid, "started": process.started, "host": socket.gethostname()}
        (attempt.folder / f"worker-{name}.json").write_text(json.dumps(said))

    me = running_process(os.getpid())
    assert me is not None
    with attempt.submitted():
        wait(40)
        add("ended", RunningProcess(me.pid, "long ago"))
        with pytest.raises(EngineLost, match=f"worker .* has ended .process {me.pid}.*RUNNING"):
            wait(10**6)
        add("in-its-place", me)
        wait(40)


def test_a_worker_that_has_left_is_not_lost_and_one_that_refuses_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_manager: str
) -> None:
    monkeypatch.setattr(flink_run, "_FAILS_S", 0.0)
    attempt = Attempt.below(tmp_path)
    counted = itertools.count()
    job = FlinkRun(FlinkPlace(job_manager), WorkerCode(NO_CODE, attempt), "the-job")
    me = running_process(os.getpid())
    assert me is not None
    with attempt.submitted():
        said = {"pid": me.pid, "started": "long ago", "host": socket.gethostname()}
        (attempt.folder / "worker-ended.json").write_text(json.dumps(said))
        attempt.leave_work()
        job.wait(None, lambda: next(counted) >= 40)
        attempt.report("\ntidemill.features.errors.WorkerLacksModule: no module\n")
        attempt.report("another one says the same later")
        with pytest.raises(RuntimeError, match="WorkerLacksModule: no module"):
            job.wait(None, lambda: False)


NO_ROOM = """java.lang.Exception: something
\tat org.apache.flink.A(A.java:1)
Caused by: java.io.IOException: Insufficient number of network buffers: required 512, but only 490 \
available.
\tat org.apache.flink.B(B.java:1)
"""


def test_a_job_in_batch_ends_by_itself_and_one_that_finds_no_memory_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_manager: str
) -> None:
    attempt = Attempt.below(tmp_path)
    job = FlinkRun(FlinkPlace(job_manager), WorkerCode(NO_CODE, attempt), "the-job")
    with attempt.submitted():
        monkeypatch.setattr(_JobManager, "state", "FINISHED")
        job.wait_for_end(None, lambda: None)
        monkeypatch.setattr(_JobManager, "state", "FAILED")
        monkeypatch.setattr(_JobManager, "reason", NO_ROOM)
        with pytest.raises(ClusterUnreachable, match=r"lack memory .*required 512.*parallelism"):
            job.wait_for_end(None, lambda: None)
        monkeypatch.setattr(_JobManager, "reason", LOST)
        with pytest.raises(EngineLost, match="no longer reachable"):
            job.wait_for_end(None, lambda: None)


NOT_RUN = """java.lang.RuntimeException
Caused by: java.io.IOException: Cannot run program "/no/such": error=2, No such file or directory
\tat java.base/java.lang.ProcessBuilder.start(ProcessBuilder.java:1143)
"""
ENDED = "Caused by: java.lang.IllegalStateException: Process died with exit code {}\n\tat x"


def test_a_command_that_fails_is_told_from_a_worker_that_is_killed() -> None:
    said = 'Cannot run program "/no/such": error=2, No such file or directory'
    assert boot_error(NOT_RUN) == said
    assert boot_error(ENDED.format(1)) == "Process died with exit code 1"
    assert boot_error(ENDED.format(137)) is None
    assert boot_error(LOST) is None


def test_a_worker_that_comes_too_late_does_not_bring_its_attempt_back(tmp_path: Path) -> None:
    attempt = Attempt.below(tmp_path)
    with attempt.submitted():
        flink_jobs.end_jobs(tmp_path)
        with pytest.raises(EngineLost, match="is over"):
            attempt.take_up_work({"pid": 1, "started": "", "host": ""})
    assert list(tmp_path.iterdir()) == []


def test_jobs_may_be_lost_again_and_again_as_long_as_savepoints_count() -> None:
    said: list[str] = []
    restarts = Restarts(said.append)
    for segment in range(3):
        restarts.begin(segment)
        for _ in range(MOST):
            restarts.note(EngineLost("gone"))
    assert restarts.count == len(said) == 3 * MOST
    with pytest.raises(EngineLost, match="11 jobs were lost before another savepoint"):
        restarts.note(EngineLost("gone"))
