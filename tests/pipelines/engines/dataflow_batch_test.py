"""Backfills and analyses submitted to Dataflow: to a stand-in for its service that runs them.

Its workers are processes that see an empty folder where the root is, and meet the program in an
exchange.
"""

from __future__ import annotations

from pathlib import Path

from tests.pipelines.engines.batch_exchange_test import (
    WITHIN_S,
    build,
    graphs,
    rejected,
    run,
    shop,
)
from tests.support import fork_server
from tests.support import trained_bundle as given
from tests.support.dataflow_service import DataflowService
from tests.support.elsewhere import elsewhere
from tests.support.s3_server import S3Server
from tests.support.waiting import wait_until
from tidemill.pipelines.engines.batch_jobs import BatchJobs
from tidemill.pipelines.engines.choosing import choose_engine
from tidemill.pipelines.run import paths


def backfill(service: DataflowService) -> list[str]:
    return ["backfill", "--root", "there", *service.flags]


def test_a_backfill_has_the_bytes_of_one_on_fnapi_also_if_its_program_is_killed_or_a_job_lost(
    service: DataflowService, s3: S3Server, tmp_path: Path
) -> None:
    project, printed = shop(tmp_path, s3.url), tmp_path / "printed"
    run(project, "backfill")
    there = project / "there"
    with elsewhere(there, tmp_path / "pool", s3.environment) as pool:
        service.workers, service.image = f"127.0.0.1:{pool.port}", project
        process = fork_server.Started(backfill(service), project, printed)
        wait_until(service.running)
        process.kill()
        (abandoned,) = service.jobs.values()
        assert abandoned.state == "JOB_STATE_RUNNING"
        remains = s3.objects()
        process = fork_server.Started(backfill(service), project, printed)
        try:
            wait_until(lambda: service.running() not in ([], [abandoned]))
            assert abandoned.state == "JOB_STATE_CANCELLED"
            (job,) = service.running()
            service.lose(job)
            assert process.wait(WITHIN_S) == 0, printed.read_text()
        finally:
            process.kill()
        assert pool.written() == []
    assert "any more; the job is run again from its beginning (1 of 3)" in printed.read_text()
    assert build(there) == build(project / "run")
    assert rejected(there) == rejected(project / "run")
    states = {one.made["name"].split("-")[-3]: one.state for one in service.jobs.values()}
    stages = "ingest", "split", "label", "answer", "join", "state"
    assert states == dict.fromkeys(stages, "JOB_STATE_DONE")
    assert not [path for path in remains if path.exists()]
    assert s3.objects() == []
    assert list((there / paths.JOBS).iterdir()) == []


def test_an_analysis_has_the_graph_of_one_on_fnapi(
    service: DataflowService, s3: S3Server, tmp_path: Path
) -> None:
    root, module = tmp_path / "root", "tests.support.trained_bundle:PROJECT"
    with elsewhere(root, tmp_path / "pool", s3.environment) as pool:
        service.workers = f"127.0.0.1:{pool.port}"
        choice = choose_engine("dataflow", streaming=False, flags=service.flags[3:])
        jobs = BatchJobs(choice, "test", module, given.PROJECT.hash, root, exchange=s3.url)
        here, there = graphs(jobs, root)
        assert pool.written() == []
    assert there == here
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_DONE"
    assert job.is_batch
    assert s3.objects() == []


def test_a_worker_with_other_code_ends_the_backfill_by_name(
    service: DataflowService, tmp_path: Path
) -> None:
    project = shop(tmp_path, f"file://{tmp_path / 'exchange'}")
    image = tmp_path / "image"
    image.mkdir()
    text = (project / "project.py").read_text()
    assert 'over="28d"' in text
    (image / "project.py").write_text(text.replace('over="28d"', 'over="14d"'))
    (image / "model.py").write_text((project / "model.py").read_text())
    with elsewhere(project / "there", tmp_path / "pool") as pool:
        service.workers, service.image = f"127.0.0.1:{pool.port}", image
        done = fork_server.run_command(backfill(service), project, WITHIN_S)
    assert done.status == 1
    assert "a worker has imported the project 'project:project' with the defin" in done.printed
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_CANCELLED"
    assert not (project / "there" / "CURRENT").exists()


def test_an_exchange_that_workers_do_not_reach_is_refused_before_anything_is_done(
    service: DataflowService, tmp_path: Path
) -> None:
    project = shop(tmp_path, None)
    done = fork_server.run_command(backfill(service), project, WITHIN_S)
    assert done.status == 1
    assert "stream.exchange is not set; name a folder in object storage" in done.printed
    assert service.requests == []
