"""Watches over the processes of a Flink cluster, and starts again which of them has ended.

`tidemill up --flink` starts it and `tidemill down` ends it, before all others. Promises:

* What ends is started again by itself, as `LocalServers` would: under its lock, recorded before it
  runs. A TaskManager goes with its JobManager.
* **No hot loop.** A process that ran for `STEADY_S` is started again at once. One that did not, or
  could not be started, waits: one second, then twice as long each time, up to `LONGEST_S`.
* Its log says what ended, what it did and how long that took.

A process that is only paused is left alone: who sends SIGSTOP may send SIGCONT.

``python -m tidemill.pipelines.servers.supervise --folder=DIR --rest=PORT --job=PORT
--workers=PORT``
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tidemill.features.errors import TidemillError
from tidemill.pipelines.servers.flink_cluster import (
    SERVERS,
    SUPERVISES,
    ClusterServer,
    JobManager,
    TaskManager,
)
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.local_servers import LocalServers

STEADY_S: Final = 30.0
"""A process that ran for so long is started again without waiting."""
LONGEST_S: Final = 60.0
"""The longest wait before a process is started again."""
_FIRST_S: Final = 1.0
_LOOK_S: Final = 0.25

_log: Final = logging.getLogger(__name__)


class Delays:
    """When each process may be started again.

    Times are in seconds of any clock that does not go back.
    """

    def __init__(self) -> None:
        self._waits_s: dict[str, float] = {}
        self._began_s: dict[str, float] = {}

    def due_s(self, name: str) -> float:
        """Return the time before which a process is not to be started again."""
        return self._began_s.get(name, float("-inf")) + self._waits_s.get(name, 0.0)

    def note_end(self, name: str, now_s: float) -> None:
        """Note that a process was seen to have ended, or could not be started."""
        ran_s = now_s - self._began_s.get(name, float("-inf"))
        before_s = self._waits_s.get(name, 0.0)
        is_steady = ran_s >= STEADY_S + before_s
        self._waits_s[name] = 0.0 if is_steady else min(max(2 * before_s, _FIRST_S), LONGEST_S)

    def note_begin(self, name: str, now_s: float) -> None:
        """Note that a process was started, or that it was tried."""
        self._began_s[name] = now_s


class Watch:
    """Looks which processes run, and starts the others.

    Args:
        servers: The servers of a folder.
        ports: The ports of its Flink cluster.
    """

    def __init__(self, servers: LocalServers, ports: FlinkPorts) -> None:
        self._servers, self._ports = servers, ports
        self._delays = Delays()
        self._ended: set[str] = set()

    def look(self) -> None:
        """Look once; start what has ended and is due.

        Raises:
            DamagedState: The record of the servers is damaged.
        """
        for kind in SERVERS:
            if self._servers.runs(kind.name):
                self._ended.discard(kind.name)
                continue
            now_s = time.monotonic()
            if kind.name not in self._ended:
                self._ended.add(kind.name)
                self._delays.note_end(kind.name, now_s)
                wait_s = max(self._delays.due_s(kind.name) - now_s, 0.0)
                _log.warning("%s has ended; it is started again in %.0f s", kind.name, wait_s)
            if now_s >= self._delays.due_s(kind.name):
                self._start(kind)

    def _start(self, kind: type[ClusterServer]) -> None:
        if kind is TaskManager and not self._servers.runs(JobManager.name):
            return  # it cannot be known to a JobManager that is not there
        if kind is JobManager:
            self._ended.add(TaskManager.name)  # it goes with the JobManager, and has not failed
        self._delays.note_begin(kind.name, time.monotonic())
        try:
            started = self._servers.start_of_flink(kind, self._ports)
        except TidemillError as error:
            self._delays.note_end(kind.name, time.monotonic())
            _log.error("%s could not be started: %s", kind.name, error)
            return
        self._delays.note_begin(kind.name, time.monotonic())
        self._ended.discard(kind.name)
        if started.seconds is not None:
            _log.warning(
                "%s was started again in %.1f s, as process %d",
                kind.name, started.seconds, started.pid,
            )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Watch until SIGTERM."""
    parser = argparse.ArgumentParser(prog="supervise", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True)
    for name in ("--rest", "--job", "--workers"):
        parser.add_argument(name, type=int, required=True)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    watch = Watch(LocalServers(asked.folder), FlinkPorts(asked.rest, asked.job, asked.workers))
    _log.info("%s at port %d", SUPERVISES, asked.rest)
    while True:
        try:
            watch.look()
        except TidemillError as error:
            _log.error("%s", error)
            time.sleep(LONGEST_S)
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(sys.argv[1:])
