"""Streams submitted to Dataflow: to a stand-in for its service that runs them (no account is here).

Its workers are processes that see an empty folder where the root is, and meet the program in an
exchange.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.pipelines.engines.exchange_test import meet_at
from tests.support import fork_server
from tests.support.dataflow_service import DataflowService
from tests.support.elsewhere import Elsewhere, elsewhere
from tests.support.live_project import LiveProject
from tests.support.redis_server import RedisServer
from tests.support.replayed import REQUESTS, Replayed
from tests.support.s3_server import S3Server
from tests.support.waiting import wait_until
from tidemill.pipelines.run import paths


@contextmanager
def machines(
    service: DataflowService, folder: Path, s3: S3Server | None = None
) -> Iterator[Elsewhere]:
    """Let a service have workers with another disk, and a project's folder in their image.

    Args:
        service: The service.
        folder: The project's folder.
        s3: The storage whose credentials they have.
    """
    environment = None if s3 is None else s3.environment
    with elsewhere(folder / "run", folder.with_name("pool"), environment) as pool:
        service.workers, service.image = f"127.0.0.1:{pool.port}", service.image or folder
        yield pool


def test_a_replay_is_that_of_fnapi(service: DataflowService, store: str, tmp_path: Path) -> None:
    project = Replayed(tmp_path / "replayed", store)
    project.run("stream", "--quiet")
    of_fnapi = project.outputs()
    assert len(of_fnapi[paths.PREDICTIONS]) == REQUESTS
    meet_at(project.folder, f"file://{tmp_path / 'exchange'}")
    with machines(service, project.folder) as pool:
        project.run("stream", "--quiet", *service.flags)
        assert pool.written() == []
    assert project.outputs() == of_fnapi
    project.verify()
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_CANCELLED"
    assert job.made["name"].startswith("tidemill-payments-stream-")
    assert [path for path in (tmp_path / "exchange").rglob("*") if path.is_file()] == []


def test_a_live_stream_loses_and_doubles_nothing_whoever_is_killed(
    service: DataflowService, store: str, s3: S3Server, broker: Any, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker, savepoint_every="2s", sinks=True)
    path = project.folder / "tidemill.yaml"
    path.write_text(path.read_text().replace("{type: sqlite, path: online.db}", store))
    meet_at(project.folder, s3.url)
    project.run("backfill")
    with machines(service, project.folder, s3) as pool:
        project.flags = service.flags
        with project.streaming() as process:
            project.produce(60, 20)
            project.wait_for(20, process)
            # A worker: the service has another one begin again, which the program refuses.
            (job,) = service.running()
            os.kill(pool.workers()[0], signal.SIGKILL)
            project.produce(60, 20)
            project.wait_for(40, process)
            assert job.state == "JOB_STATE_CANCELLED"
            assert "the engine has restarted the source" in project.log()
            # The service, which knows nothing of the job any more.
            (job,) = service.running()
            service.lose(job)
            project.produce(60, 20)
            project.wait_for(60, process)
            assert f"({job.id}) any more" in project.log()
            # The service is away for a while: the stream goes on.
            service.is_away = True
            project.produce(60, 20)
            project.wait_for(80, process)
            service.is_away = False
            (job,) = service.running()
        # The program, under a job that runs.
        assert service.running() == [job]
        left = s3.objects()
        assert left
        project.produce(60, 20)
        with project.streaming("--resume") as process:
            project.wait_for(100, process)
            assert job.state == "JOB_STATE_CANCELLED"
            # It is removed once it has been silent for a while.
            wait_until(lambda: not any(path.exists() for path in left))
            project.drain(process)
        assert service.running() == []
        assert pool.written() == []
        # The states are the program's own: it goes on without workers, too.
        project.produce(60, 20)
        project.flags = ["--engine", "fnapi"]
        with project.streaming("--resume") as process:
            project.wait_for(120, process)
            project.drain(process)
    assert project.verify() == 4 * 120
    assert s3.objects() == []


def test_a_program_that_is_killed_while_its_job_is_created_leaves_none(
    service: DataflowService, store: str, s3: S3Server, broker: Any, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker)
    path = project.folder / "tidemill.yaml"
    path.write_text(path.read_text().replace("{type: sqlite, path: online.db}", store))
    meet_at(project.folder, s3.url)
    project.run("backfill")
    project.flags = service.flags
    service.answers.clear()
    with project.streaming():
        wait_until(service.running)
    service.answers.set()
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_RUNNING"
    (record,) = project.folder.rglob("job.json")
    assert json.loads(record.read_text())["id"] is None
    project.flags = ["--engine", "fnapi"]
    project.produce(6, 2)
    with project.streaming() as process:
        project.wait_for(2, process)
        assert job.state == "JOB_STATE_CANCELLED"


def test_a_worker_with_other_code_ends_the_stream_by_name(
    service: DataflowService, store: str, tmp_path: Path
) -> None:
    project = Replayed(tmp_path / "replayed", store)
    meet_at(project.folder, f"file://{tmp_path / 'exchange'}")
    image = tmp_path / "image"
    image.mkdir()
    text = (project.folder / "project.py").read_text()
    (image / "project.py").write_text(text.replace('over="1h"', 'over="2h"'))
    service.image = image
    with machines(service, project.folder):
        done = fork_server.run_command(["stream", *service.flags], project.folder, 300)
    assert done.status == 1
    assert "a worker has imported the project 'project:project' with the defin" in done.printed
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_CANCELLED"


def test_a_step_that_fails_for_ever_ends_the_stream_by_name(
    service: DataflowService, s3: S3Server, broker: Any, tmp_path: Path
) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    project = LiveProject(tmp_path / "live", broker)
    path = project.folder / "tidemill.yaml"
    store = f"{{type: redis, host: {redis.host}, port: {redis.port}, give_up_after: 2s}}"
    path.write_text(path.read_text().replace("{type: sqlite, path: online.db}", store))
    meet_at(project.folder, s3.url)
    project.run("backfill")
    project.flags = service.flags
    with machines(service, project.folder, s3), project.streaming() as process:
        project.produce(60, 20)
        project.wait_for(20, process)
        redis.kill()
        project.produce(60, 20)
        assert process.wait(timeout=120) == 1
    assert re.search(r"^error: online store .*: no connection ", project.log(), re.MULTILINE), (
        project.log()
    )
    (job,) = service.jobs.values()
    assert job.state == "JOB_STATE_CANCELLED"
