"""Streams on a Flink cluster whose workers do not have the program's disk, through an exchange.

The workers see an empty folder where the root is (`tests.support.elsewhere`).
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyarrow import fs

from benchmarks import live_flink
from benchmarks.__main__ import write
from benchmarks.measure import QUICK
from tests.support.elsewhere import command_elsewhere, elsewhere
from tests.support.flink_cluster import TestCluster
from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.markdown import ROOT
from tests.support.quick_reports import check_quick_report
from tests.support.redis_server import RedisServer
from tests.support.replayed import REQUESTS, Replayed
from tests.support.s3_server import S3Server
from tests.support.waiting import wait_until
from tidemill.pipelines.io.exchange.objects import Objects
from tidemill.pipelines.run import paths

WRONG_KEY = {"AWS_SECRET_ACCESS_KEY": "wrong"}


def meet_at(folder: Path, url: str) -> None:
    """Let a project's stream meet its workers at a URL."""
    path = folder / "tidemill.yaml"
    assert "stream: {" in path.read_text()
    path.write_text(path.read_text().replace("stream: {", f'stream: {{exchange: "{url}", '))


def test_a_replay_is_that_of_fnapi_in_a_folder_that_is_mounted_everywhere(
    cluster: TestCluster, store: str, tmp_path: Path
) -> None:
    project = Replayed(tmp_path / "replayed", store)
    project.run("stream", "--quiet")
    of_fnapi = project.outputs()
    assert len(of_fnapi[paths.PREDICTIONS]) == REQUESTS
    meet_at(project.folder, f"file://{tmp_path / 'exchange'}")
    with elsewhere(project.folder / "run", tmp_path / "pool") as pool:
        project.run("stream", "--quiet", *cluster.flags, pool.flag, "--parallelism=2")
        assert pool.written() == []
    assert project.outputs() == of_fnapi
    project.verify()
    assert [path for path in (tmp_path / "exchange").rglob("*") if path.is_file()] == []


def test_a_quick_benchmark_measures_a_stream_on_a_cluster(
    cluster: TestCluster, redis: RedisServer, broker: TestBroker, tmp_path: Path
) -> None:
    figures = live_flink.quick_figures(tmp_path, live_flink.Servers(broker, redis, cluster))
    write("live_flink", True, QUICK, figures, tmp_path)
    check_quick_report(tmp_path, "live_flink")


def test_a_live_stream_over_s3_loses_and_doubles_nothing_whoever_is_killed(
    cluster: TestCluster, store: str, s3: S3Server, broker: TestBroker, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker, savepoint_every="2s", sinks=True)
    path = project.folder / "tidemill.yaml"
    path.write_text(path.read_text().replace("{type: sqlite, path: online.db}", store))
    meet_at(project.folder, s3.url)
    project.run("backfill")
    with elsewhere(project.folder / "run", tmp_path / "pool", s3.environment) as pool:
        project.flags = [*cluster.flags, pool.flag, "--parallelism=2"]
        with project.streaming() as process:
            project.produce(60, 20)
            project.wait_for(20, process)
            # A worker: another job goes on from the last savepoint.
            os.kill(pool.workers()[0], signal.SIGKILL)
            project.produce(60, 20)
            project.wait_for(40, process)
            # The storage, which comes back with all that it had.
            s3.kill()
            project.produce(60, 20)
            s3.start()
            project.wait_for(60, process)
        # The program, under a job that runs.
        left = s3.objects()
        assert left
        project.produce(60, 20)
        with project.streaming("--resume") as process:
            project.wait_for(80, process)
            # It is removed once it has been silent for a while.
            wait_until(lambda: not any(path.exists() for path in left))
            project.drain(process)
        assert pool.written() == []
        # The states are the program's own: it goes on without workers, too.
        project.produce(60, 20)
        project.flags = ["--engine", "fnapi"]
        with project.streaming("--resume") as process:
            project.wait_for(100, process)
            project.drain(process)
    assert project.verify() == 4 * 100
    assert s3.objects() == []


def test_workers_that_taskmanagers_start_elsewhere_stream_or_say_what_is_wrong_with_them(
    cluster: TestCluster, store: str, s3: S3Server, broker: TestBroker, tmp_path: Path
) -> None:
    project = LiveProject(tmp_path / "live", broker, savepoint_every="2s", sinks=True)
    path, root = project.folder / "tidemill.yaml", project.folder / "run"
    path.write_text(path.read_text().replace("{type: sqlite, path: online.db}", store))
    meet_at(project.folder, s3.url)
    project.run("backfill")
    project.produce(60, 20)
    other = tmp_path / "other"
    other.mkdir()
    text = (project.folder / "project.py").read_text()
    (other / "project.py").write_text(text.replace('count(over="10m")', 'count(over="20m")'))
    there = project.folder, ROOT

    def fails(said: str, environment: Mapping[str, str], first: Sequence[Path] = there) -> None:
        command = command_elsewhere(root, tmp_path / "boot", environment, first)
        project.flags = [*cluster.process_flags[:-1], *command]
        with project.streaming() as process:
            assert process.wait(180) == 1, project.log()
        assert said in " ".join(project.log().split()), project.log()

    fails("error: a worker has imported the project", s3.environment, (other, ROOT))
    fails("is refused by the storage: its credentials are wrong", {**s3.environment, **WRONG_KEY})
    command = command_elsewhere(root, tmp_path / "boot", s3.environment, there)
    project.flags = [*cluster.process_flags[:-1], *command, "--parallelism=2"]
    with project.streaming() as process:
        project.wait_for(20, process)
        # Somebody puts an older object in the place of one that was not read yet.
        os.killpg(process.pid, signal.SIGSTOP)
        storage, top = fs.FileSystem.from_uri(s3.url)
        older, newer = unread(s3)
        storage.copy_file(f"{top}/{older}", f"{top}/{newer}")
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait(180) == 1, project.log()
    said = " ".join(project.log().split())
    assert "has put there; somebody else writes to the exchange" in said
    with project.streaming("--resume") as process:
        project.produce(60, 20)
        project.wait_for(40, process)
        project.drain(process)
    assert project.verify() == 4 * 40
    assert s3.objects() == []


def unread(s3: S3Server) -> list[str]:
    """Return the last two objects of a worker, the last of which was written just now."""
    objects = Objects(s3.url)
    before = set(objects.names())
    deadline_s = time.monotonic() + 60
    while True:
        found = [name for name in objects.names() if "/up/" in name]
        for older, newer in itertools.pairwise(found):
            if newer not in before and older.rpartition("/")[0] == newer.rpartition("/")[0]:
                return [older, newer]
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
