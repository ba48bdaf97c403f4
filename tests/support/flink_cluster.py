"""A Flink cluster for tests, as `tidemill up --flink` starts it, on ports of its own."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

from tidemill.features.errors import ForeignServer
from tidemill.pipelines.servers.flink_cluster import SERVERS, ClusterServer
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.local_servers import LocalServer, LocalServers
from tidemill.pipelines.servers.ports import require_free
from tidemill.pipelines.servers.processes import RunningProcess

JOB_MANAGER, TASK_MANAGER, JOB_SERVER, WORKER_POOL = (kind.name for kind in SERVERS)


class TestCluster:
    """A cluster, running or not.

    Args:
        folder: Where its settings and logs are.
        supervised: Whether what ends of it is started again by itself, as with `tidemill up`.
    """

    __test__ = False

    def __init__(self, folder: Path, *, supervised: bool = False) -> None:
        self.folder = folder
        self._supervised = supervised
        self.servers = LocalServers(folder)
        self.ports = _free_ports()
        self.running: dict[str, LocalServer] = {}

    @property
    def flags(self) -> list[str]:
        """The arguments with which a stream runs there."""
        ports = self.ports
        return [
            "--engine",
            "flink",
            "--",
            f"--flink_master={HOST}:{ports.rest}",
            f"--job_endpoint={HOST}:{ports.job}",
            f"--environment_config={HOST}:{ports.workers}",
        ]

    @property
    def process_flags(self) -> list[str]:
        """The arguments with which the TaskManager starts the workers."""
        return [*self.flags[:-1], "--environment_type=PROCESS"]

    def start(self) -> None:
        """Start what does not run."""
        for server in self.servers.start_flink(self.ports):
            self.running[server.name] = server
        if self._supervised:
            self.supervise()

    def supervise(self) -> None:
        """Let what ends of it be started again by itself, from now on."""
        self._supervised = True
        self.servers.supervise_flink(self.ports)

    def process(self, name: str) -> RunningProcess | None:
        """Return a process that runs now, whoever started it; None if it does not run."""
        found = self.servers.recorded().get(name)
        return found.process if found is not None and found.process.is_alive() else None

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL."""
        self.running[name].process.end(0.0)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal."""
        assert self.running[name].process.send(number)

    def log(self, kind: type[ClusterServer]) -> str:
        """Return the log of a process."""
        return kind(self.folder / "flink", self.ports).log.read_text(errors="replace")

    def close(self) -> None:
        """End everything."""
        self.servers.remove()


def workers_of(root: Path) -> list[RunningProcess]:
    """Return the Python workers of a root's jobs."""
    found = []
    for path in root.glob("generations/*/jobs/*/worker-*.json"):
        said = json.loads(path.read_text())
        process = RunningProcess(said["pid"], said["started"])
        if process.is_alive():
            found.append(process)
    return found


def _free_ports() -> FlinkPorts:
    chance = random.Random()
    while True:
        first = chance.randrange(20_000, 30_000)
        ports = FlinkPorts(first, first + 3, first + 5)
        try:
            for port in range(first, first + 6):
                require_free(HOST, port, "a test")
        except ForeignServer:
            continue
        return ports
