"""Streams on a real Flink cluster: equal to those of FnApiRunner, whatever is killed under them.

One cluster serves all of these tests, as `tidemill up --flink` starts it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from tests.support import fork_server
from tests.support import trained_bundle as given
from tests.support.exports import contents
from tests.support.fault_kinds import Fault
from tests.support.fault_run import FaultRun
from tests.support.flink_cluster import (
    JOB_MANAGER,
    JOB_SERVER,
    TASK_MANAGER,
    WORKER_POOL,
    TestCluster,
    workers_of,
)
from tests.support.folders import build_of
from tests.support.live_project import LiveProject, instant
from tests.support.replayed import BEGIN, REQUESTS, Replayed
from tidemill.features.contract import HOUR
from tidemill.features.errors import (
    DamagedState,
    WorkerCodeDiffers,
    WorkerLacksModule,
    WorkerNotStarted,
    WrongBeamFlag,
)
from tidemill.features.models.preprocessing import model_inputs
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.engines.flink_flags import check_flags
from tidemill.pipelines.engines.flink_jobs import ENDED, find_jobs
from tidemill.pipelines.engines.stream_job import stream_job
from tidemill.pipelines.run import paths
from tidemill.pipelines.servers.flink_cluster import Supervisor, ask_rest
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.processes import RunningProcess
from tidemill.pipelines.training.transform import analyse


@pytest.fixture
def up(cluster: TestCluster) -> TestCluster:
    """The cluster, all of whose processes run."""
    cluster.start()
    return cluster


# What `tidemill up --flink` promises.


def test_up_again_leaves_what_runs_and_starts_what_was_killed(up: TestCluster) -> None:
    before = dict(up.running)
    for name in (JOB_MANAGER, TASK_MANAGER, JOB_SERVER, WORKER_POOL):
        up.kill(name)
        up.start()
        assert up.running[name].pid != before[name].pid
        assert up.running[name].seconds is not None
        # A TaskManager goes with its JobManager.
        anew = {name, TASK_MANAGER} if name == JOB_MANAGER else {name}
        others = {key: one.pid for key, one in up.running.items() if key not in anew}
        assert others == {key: one.pid for key, one in before.items() if key not in anew}
        assert all(up.running[key].seconds is None for key in others)
        before = dict(up.running)


def test_a_supervisor_starts_again_by_itself_whatever_is_killed(up: TestCluster) -> None:
    up.supervise()
    before = {name: up.process(name) for name in up.running}
    for name in (JOB_MANAGER, TASK_MANAGER, JOB_SERVER, WORKER_POOL):
        up.kill(name)

    def are_back() -> bool:
        now, said = {name: up.process(name) for name in before}, up.log(Supervisor)
        return all(
            now[name] not in (None, before[name]) and f"{name} was started again in " in said
            for name in before
        )

    deadline = time.monotonic() + 180
    while not are_back():
        assert time.monotonic() < deadline, up.log(Supervisor)
        time.sleep(0.1)


def test_a_flag_that_nobody_knows_is_refused_with_the_nearest_one(up: TestCluster) -> None:
    server = f"{HOST}:{up.ports.job}"
    check_flags(server, ["--object_reuse", "--max_bundle_size=10", "--experiments=x"])
    with pytest.raises(WrongBeamFlag, match="knows --max_bundle_sise: did you mean 'max_bundle_s"):
        check_flags(server, ["--max_bundle_sise=10"])


# Jobs.


@beam.typehints.with_input_types(bytes)
@beam.typehints.with_output_types(bytes)
class _Fail(beam.DoFn):
    def process(self, element: bytes) -> Iterator[bytes]:
        raise DamagedState("the state is damaged: remove it")


def run_job(
    flags: Sequence[str],
    folder: Path,
    reference: str,
    definitions: str,
) -> None:
    choice = choose_engine("flink", streaming=True, flags=flags[3:])
    with stream_job(choice, "test", reference, definitions, folder) as job:
        pipeline = job.pipeline()
        _ = pipeline | beam.Impulse() | beam.ParDo(_Fail())
        job.run(pipeline, lambda: False)


def test_what_is_wrong_with_a_worker_ends_the_job_by_name(up: TestCluster, tmp_path: Path) -> None:
    (tmp_path / "flink_test_project.py").write_text(
        "class Project:\n    hash = '0123456789abcdef'\n\nproject = Project()\n"
    )
    reference = "flink_test_project:project"
    with pytest.raises(WorkerLacksModule, match="No module named 'flink_test_project'"):
        run_job(up.flags, tmp_path / "jobs", reference, "0123456789abcdef")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(WorkerCodeDiffers, match=r"definitions 0123456789abcdef, .* ffff\b"):
            run_job(up.flags, tmp_path / "jobs", reference, "ffff")
        with pytest.raises(DamagedState, match="the state is damaged: remove it"):
            run_job(up.flags, tmp_path / "jobs", reference, "0123456789abcdef")
    assert list((tmp_path / "jobs").iterdir()) == []


def test_what_is_wrong_with_a_command_that_starts_workers_ends_the_job_by_name(
    up: TestCluster, tmp_path: Path
) -> None:
    arguments = tmp_path / "jobs", "flink_test_project:project", ""
    with pytest.raises(WorkerLacksModule, match="No module named 'flink_test_project'"):
        run_job(up.process_flags, *arguments)
    config = '--environment_config={"command": "/bin/false"}'
    with pytest.raises(WorkerNotStarted, match=r"started by /bin/false: .* exit code 1;"):
        run_job([*up.process_flags, config], *arguments)
    assert list((tmp_path / "jobs").iterdir()) == []


# What is in batch.


def batch_workers(root: Path) -> list[RunningProcess]:
    """Return the workers of a root's jobs in batch."""
    found = []
    for path in root.glob("jobs/*/worker-*.json"):
        said = json.loads(path.read_text())
        process = RunningProcess(said["pid"], said["started"])
        if process.is_alive():
            found.append(process)
    return found


def until(is_so: Callable[[], Any], what: str, within_s: float = 180.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_backfill_has_the_bytes_of_one_on_fnapi_also_if_its_program_or_a_worker_is_killed(
    up: TestCluster, tmp_path: Path
) -> None:
    project = Replayed(tmp_path / "replayed")  # a backfill on FnApiRunner
    root, printed = project.folder / "flink", tmp_path / "printed"
    backfill = ["backfill", "--root", "flink"]
    process = fork_server.Started([*backfill, *up.flags], project.folder, printed)
    until(lambda: batch_workers(root), "no worker takes up work")
    process.kill()
    until(lambda: not batch_workers(root), "workers outlive the program")
    rest = f"http://{HOST}:{up.ports.rest}"
    names = [job["name"] for job in ask_rest(rest, "/jobs/overview")["jobs"]]
    (name,) = [name for name in names if "payments-ingest-" in name]

    def has_ended() -> bool:
        return all(job.state in ENDED for job in find_jobs(rest, name) or ())

    until(has_ended, "the job goes on without its program")
    # Now with workers that the TaskManager starts.
    flags = [*up.process_flags, "--parallelism=2"]
    process = fork_server.Started([*backfill, *flags], project.folder, printed)
    try:
        until(lambda: batch_workers(root), "no worker takes up work")
        batch_workers(root)[0].end(0.0)
        assert process.wait(500) == 0, printed.read_text()
    finally:
        process.kill()
    assert "the job is run again from its beginning (1 of 3)" in printed.read_text()
    builds = [contents(build_of(project.folder / name)) for name in ("run", "flink")]
    # A generation has an id of its own, which these name.
    for named in ("build.json", "states/handoff.json"):
        assert all(build.pop(named) for build in builds)
    assert len(builds[0]) > 4
    assert builds[0] == builds[1]
    assert list((root / paths.JOBS).iterdir()) == []


def test_an_analysis_has_the_graph_of_one_on_fnapi(up: TestCluster, tmp_path: Path) -> None:
    rows, inputs = given.rows(20_000), model_inputs(given.PROJECT)
    choice = choose_engine("flink", streaming=False, flags=up.flags[3:])
    module = "tests.support.trained_bundle:PROJECT"
    on_flink = BatchJobs(choice, "test", module, given.PROJECT.hash, tmp_path)
    graphs = [
        analyse(given.preprocess, inputs, rows, tmp_path / jobs.choice.name, jobs)
        for jobs in (BatchJobs.on("fnapi", "test"), on_flink)
    ]
    assert graphs[0].hash == graphs[1].hash


def test_the_error_of_a_task_ends_the_command_by_its_name(up: TestCluster, tmp_path: Path) -> None:
    choice = choose_engine("flink", streaming=False, flags=up.flags[3:])
    module = "tests.support.trained_bundle:PROJECT"
    jobs = BatchJobs(choice, "test", module, given.PROJECT.hash, tmp_path)

    def wire(pipeline: beam.Pipeline, _: object) -> None:
        _ = pipeline | beam.Impulse() | beam.ParDo(_Fail())

    with pytest.raises(DamagedState, match="the state is damaged: remove it"):
        jobs.run("fails", wire)
    assert list(jobs.attempts.iterdir()) == []


# A replay.


def test_a_replay_is_that_of_fnapi_also_in_two_parts_and_with_two_workers(
    up: TestCluster, tmp_path: Path
) -> None:
    project = Replayed(tmp_path / "replayed")
    project.run("stream", "--quiet")
    of_fnapi = project.outputs()
    assert len(of_fnapi[paths.PREDICTIONS]) == REQUESTS
    project.run("stream", "--quiet", *up.flags, "--parallelism=2")
    assert project.outputs() == of_fnapi
    project.verify()
    half = instant(BEGIN + 5 * HOUR)
    project.run("stream", "--quiet", "--until", half, *up.flags)
    project.run("stream", "--quiet", "--resume", *up.flags)
    project.verify()
    (root,) = (project.folder / "run").glob("generations/*/jobs")
    assert list(root.iterdir()) == []


# A live stream.


def test_a_live_stream_goes_from_engine_to_engine_and_is_proven_whole(
    up: TestCluster, broker: Any, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker, savepoint_every="2s", sinks=True)
    project.run("backfill")
    asked = 0
    for engine in (["--engine", "fnapi"], up.flags, ["--engine", "prism"]):
        project.produce(60, 20)
        asked += 20
        project.flags = engine
        with project.streaming(*(["--resume"] if asked > 20 else [])) as process:
            project.wait_for(asked, process)
            project.drain(process)
    assert project.verify() == 4 * asked


def test_a_live_stream_of_workers_that_the_taskmanager_starts_loses_one_and_drains(
    up: TestCluster, broker: Any, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker, savepoint_every="2s", sinks=True)
    project.run("backfill")
    project.flags, root = up.process_flags, project.folder / "run"
    with project.streaming() as process:
        project.produce(60, 20)
        project.wait_for(20, process)
        (worker,) = workers_of(root)
        worker.end(0.0)
        project.produce(60, 20)
        project.wait_for(40, process)
        project.drain(process)
    assert workers_of(root) == []
    assert [path for jobs in root.glob("generations/*/jobs") for path in jobs.iterdir()] == []
    assert "(1 of 10)" in project.log()
    assert project.verify() == 4 * 40


def test_what_is_lost_of_a_job_of_two_workers_loses_doubles_and_changes_nothing(
    up: TestCluster, tmp_path: Path
) -> None:
    """`make faults ARGS="--engine flink --parallelism 2 --each"` does more of it."""
    said: list[str] = []
    up.supervise()  # once more: it runs already
    with FaultRun(tmp_path, said.append, cluster=up, parallelism=2).running() as run:
        # All workers, and the JobManager while the next job is on its way.
        run.suffer(Fault("kill_jobmanager_while_restoring", 2.0), at_the_end=True)
        run.suffer(Fault("kill_program"), at_the_end=True)
        run.suffer(Fault("outdate_worker_without_lock"))
        verdict = run.finish()
    assert verdict.ended_by_itself == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.values == 4 * verdict.requests > 100
    print(*said, sep="\n")
    assert verdict.fenced == (True,)
    assert len(said) >= 3
