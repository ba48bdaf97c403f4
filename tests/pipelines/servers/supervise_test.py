"""What ends of a Flink cluster is started again by itself, and never in a hot loop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.flink_cluster import JOB_MANAGER, JOB_SERVER, TASK_MANAGER, TestCluster
from tests.support.waiting import wait_until
from tidemill.features.errors import ServerNotStarted
from tidemill.pipelines.commands.up import beam_flags
from tidemill.pipelines.engines.flink import FlinkPlace, read_flags
from tidemill.pipelines.servers import supervise
from tidemill.pipelines.servers.flink_cluster import SERVERS, ClusterServer, JobManager, Supervisor
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.local_servers import LocalServer, LocalServers
from tidemill.pipelines.servers.supervise import LONGEST_S, STEADY_S, Delays, Watch


def test_a_process_that_ran_steadily_is_started_again_at_once_and_another_waits_longer() -> None:
    delays = Delays()
    now_s, waits = 1_000.0, []
    for ran_s in (STEADY_S, 5.0, 5.0, 5.0, 200.0, 0.0):
        delays.note_begin("one", now_s)
        now_s += ran_s
        delays.note_end("one", now_s)
        waits.append(delays.due_s("one") - (now_s - ran_s))
        now_s = max(now_s, delays.due_s("one"))
    assert waits == [0.0, 1.0, 2.0, 4.0, 0.0, 1.0]
    for _ in range(20):
        delays.note_begin("one", now_s)
        delays.note_end("one", now_s)
        now_s = delays.due_s("one")
    assert delays.due_s("one") - now_s == 0.0
    delays.note_begin("one", now_s)
    assert delays.due_s("one") == now_s + LONGEST_S
    assert delays.due_s("other") < 0


class _Scripted(LocalServers):
    """Servers that are told which of them run, and that note which are started."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.running = {kind.name for kind in SERVERS}
        self.started: list[str] = []
        self.fails = False

    def runs(self, name: str) -> bool:
        return name in self.running

    def start_of_flink(self, kind: type[ClusterServer], ports: FlinkPorts) -> LocalServer:
        self.started.append(kind.name)
        if self.fails:
            raise ServerNotStarted("no")
        self.running.add(kind.name)
        return LocalServer(kind.name, ports.rest, 1, "now", 0.1)


def test_a_watch_starts_what_has_ended_and_tries_again_only_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(supervise.time, "monotonic", lambda: now_s)
    caplog.set_level(logging.WARNING)
    servers = _Scripted(tmp_path / "servers")
    watch = Watch(servers, FlinkPorts())
    watch.look()
    assert servers.started == []
    servers.running -= {JOB_MANAGER, TASK_MANAGER}
    watch.look()
    assert servers.started == [JOB_MANAGER, TASK_MANAGER]
    assert f"{JOB_MANAGER} has ended; it is started again in 0 s" in caplog.text
    assert f"{TASK_MANAGER} was started again in 0.1 s, as process 1" in caplog.text
    servers.fails = True
    servers.running -= {JOB_MANAGER, TASK_MANAGER, JOB_SERVER}
    tried: list[int] = []
    for _ in range(40):
        now_s += 0.25
        before = len(servers.started)
        watch.look()
        tried.append(len(servers.started) - before)
    # The JobManager after 1, 2 and 4 seconds, the job server, which ran until now, also at once;
    # without a JobManager no TaskManager is tried.
    assert sum(tried) == 3 + 4
    assert TASK_MANAGER not in servers.started[2:]
    assert "could not be started: no" in caplog.text


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TestCluster]:
    made = TestCluster(tmp_path / "servers")
    yield made
    made.close()


def test_down_ends_the_supervisor_first_and_nothing_comes_back(cluster: TestCluster) -> None:
    servers = cluster.servers
    supervisor = servers.supervise_flink(cluster.ports)
    assert servers.supervise_flink(cluster.ports).pid == supervisor.pid
    # None of the cluster's processes runs, so it starts them.
    wait_until(lambda: cluster.process(JOB_MANAGER) is not None)
    job_manager = cluster.process(JOB_MANAGER)
    assert job_manager is not None
    stopped = servers.stop()
    assert (stopped[0][0].name, stopped[0][1]) == (Supervisor.name, True)
    assert not job_manager.is_alive()
    assert not supervisor.process.is_alive()
    assert servers.recorded() == {}
    log = JobManager(cluster.folder / "flink", cluster.ports).log
    assert log.exists()


def test_the_flags_that_up_shows_lead_to_its_cluster() -> None:
    ports = FlinkPorts(1_081, 1_099, 1_500)
    assert read_flags(beam_flags(ports)) == FlinkPlace(
        "127.0.0.1:1081", "127.0.0.1:1099", "127.0.0.1:1500"
    )
