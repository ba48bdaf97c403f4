"""Streams on a real Flink cluster: equal to those of FnApiRunner, whatever is killed under them.

One cluster serves all of these tests, as `tidemill up --flink` starts it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from tests.support.fault_kinds import Fault
from tests.support.fault_run import FaultRun
from tests.support.flink_cluster import (
    JOB_MANAGER,
    JOB_SERVER,
    TASK_MANAGER,
    WORKER_POOL,
    TestCluster,
)
from tests.support.live_project import LiveProject, instant
from tests.support.replayed import BEGIN, REQUESTS, Replayed
from tidemill.features.contract import HOUR
from tidemill.features.errors import (
    DamagedState,
    WorkerCodeDiffers,
    WorkerLacksModule,
    WrongBeamFlag,
)
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.engines.flink_flags import check_flags
from tidemill.pipelines.engines.stream_job import stream_job
from tidemill.pipelines.run import paths
from tidemill.pipelines.servers.flink_cluster import Supervisor
from tidemill.pipelines.servers.kafka_settings import HOST


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestCluster]:
    started = TestCluster(tmp_path_factory.mktemp("flink"))
    try:
        started.start()
        yield started
    finally:
        started.close()


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
    cluster: TestCluster,
    folder: Path,
    reference: str,
    definitions: str,
    is_whole: Callable[[], bool] = lambda: False,
) -> None:
    choice = choose_engine("flink", streaming=True, flags=cluster.flags[3:])
    with stream_job(choice, "test", reference, definitions, folder) as job:
        pipeline = job.pipeline()
        _ = pipeline | beam.Impulse() | beam.ParDo(_Fail())
        job.run(pipeline, is_whole)


def test_what_is_wrong_with_a_worker_ends_the_job_by_name(up: TestCluster, tmp_path: Path) -> None:
    (tmp_path / "flink_test_project.py").write_text(
        "class Project:\n    hash = '0123456789abcdef'\n\nproject = Project()\n"
    )
    reference = "flink_test_project:project"
    with pytest.raises(WorkerLacksModule, match="No module named 'flink_test_project'"):
        run_job(up, tmp_path / "jobs", reference, "0123456789abcdef")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(WorkerCodeDiffers, match=r"definitions 0123456789abcdef, .* ffff\b"):
            run_job(up, tmp_path / "jobs", reference, "ffff")
        with pytest.raises(DamagedState, match="the state is damaged: remove it"):
            run_job(up, tmp_path / "jobs", reference, "0123456789abcdef")
    assert list((tmp_path / "jobs").iterdir()) == []


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
