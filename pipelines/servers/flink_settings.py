"""The settings of a Flink session cluster on this machine, as text for its ``config.yaml``.

They are made for one machine: little memory, one TaskManager, everything on 127.0.0.1. A stream
keeps its own savepoints, so the cluster restarts no job and keeps no checkpoints by itself.

The names of settings are those of
https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/deployment/config/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.servers.kafka_settings import HOST

SLOTS: Final = 4
"""How many subtasks of each stage the TaskManager runs: the most parallelism of a job."""

_MEMORY_MB: Final = {
    "taskmanager.memory.framework.heap.size": 128,
    "taskmanager.memory.framework.off-heap.size": 128,
    "taskmanager.memory.task.heap.size": 512,
    "taskmanager.memory.task.off-heap.size": 0,
    "taskmanager.memory.managed.size": 64,
    "taskmanager.memory.network.min": 64,
    "taskmanager.memory.network.max": 64,
    "taskmanager.memory.jvm-metaspace.size": 256,
    "taskmanager.memory.jvm-overhead.min": 64,
    "taskmanager.memory.jvm-overhead.max": 64,
}
HEAP_MB: Final = {
    "jobmanager": 384,
    "taskmanager": _MEMORY_MB["taskmanager.memory.framework.heap.size"]
    + _MEMORY_MB["taskmanager.memory.task.heap.size"],
    "job server": 384,
}
"""The heap of each Java process, in MiB."""

_OPENED: Final = (
    "java.lang java.lang.reflect java.net java.io java.nio java.text java.time java.util "
    "java.util.concurrent java.util.concurrent.atomic java.util.concurrent.locks sun.net.util "
    "sun.nio.ch"
)
"""The packages of Java that Flink's serializers look into."""


@dataclass(frozen=True)
class FlinkPorts:
    """The ports of a cluster, on 127.0.0.1.

    Attributes:
        rest: Of the JobManager's REST interface; with the one after it the TaskManager speaks.
        job: Where the job server takes jobs; the one after it is where workers get artifacts.
        workers: Where the worker pool is asked for workers.
    """

    rest: int = 8081
    job: int = 8099
    workers: int = 50000

    @property
    def jobmanager(self) -> int:
        """The port of the JobManager."""
        return self.rest + 1

    @property
    def artifacts(self) -> int:
        """The port of the job server for artifacts."""
        return self.job + 1


def flink_settings(folder: Path, ports: FlinkPorts) -> str:
    """Return the content of a ``config.yaml`` for JobManager, TaskManager and job server.

    Args:
        folder: For what they write.
        ports: Their ports.
    """
    settings: dict[str, str | int] = {
        "jobmanager.rpc.address": HOST,
        "jobmanager.rpc.port": ports.jobmanager,
        "jobmanager.bind-host": HOST,
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": ports.rest,
        "rest.bind-port": ports.rest,
        "web.submit.enable": "false",
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        # Another one each time: a JobManager may not reach a new one where one was that is gone.
        "taskmanager.rpc.port": 0,
        "taskmanager.cpu.cores": 1,
        "taskmanager.numberOfTaskSlots": SLOTS,
        "taskmanager.registration.timeout": "30 d",
        **{name: f"{size}m" for name, size in _MEMORY_MB.items()},
        # A lost process is noticed after ten seconds, and a paused one of less is not.
        "heartbeat.interval": 2_000,
        "heartbeat.timeout": 10_000,
        # A job in batch has many exchanges, of little data: each would reserve 16 MiB.
        "taskmanager.network.sort-shuffle.min-buffers": 16,
        # A batch of a few rows goes on at once, instead of after 100 ms.
        "execution.buffer-timeout.interval": "1 ms",
        "restart-strategy.type": "none",
        # Both have the classes of a job already: they are not loaded anew for each one.
        "classloader.resolve-order": "parent-first",
        "io.tmp.dirs": f'"{folder / "tmp"}"',
    }
    return "".join(f"{name}: {value}\n" for name, value in settings.items())


def java_options(heap_mb: int) -> list[str]:
    """Return the options of a Java process.

    Args:
        heap_mb: Its heap.
    """
    return [
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED.split()),
    ]
