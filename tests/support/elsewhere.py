"""Workers on another machine: processes that see an empty folder where a project's root is.

A mount namespace hides the folder from a pool and from all that it starts, or from a worker that a
TaskManager starts. What the program writes there is not seen by them, and what they write there is
not seen by the program.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.markdown import ROOT
from tidemill.pipelines.servers.kafka_settings import HOST
from tidemill.pipelines.servers.python_path import import_path, python_command

_HIDE = 'mount -t tmpfs none "$1" && shift && exec "$@"'
_STARTS_S = 60.0


@dataclass(frozen=True)
class Elsewhere:
    """A pool of workers elsewhere.

    Attributes:
        port: Its port.
        log: What its workers have logged.
        process: The pool.
        hidden: The folder that it does not see.
    """

    port: int
    log: Path
    process: subprocess.Popen[bytes]
    hidden: Path

    @property
    def flag(self) -> str:
        """The argument with which a stream runs there."""
        return f"--environment_config={HOST}:{self.port}"

    def workers(self) -> list[int]:
        """Return the ids of the processes of its workers."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if b"tidemill.pipelines.engines.worker" in words and int(parent) == self.process.pid:
                found.append(int(folder.name))
        return found

    def written(self) -> list[str]:
        """Return what its processes have written where the root is."""
        top = Path(f"/proc/{self.process.pid}/root{self.hidden}")
        return sorted(str(path.relative_to(top)) for path in top.rglob("*"))


def _hiding(hidden: Path, command: Sequence[str]) -> list[str]:
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    return [*unshare, "sh", "-c", _HIDE, "sh", str(hidden), *command]


def command_elsewhere(
    hidden: Path, script: Path, environment: Mapping[str, str], first: Sequence[Path] = ()
) -> list[str]:
    """Write a program that starts workers elsewhere; return the arguments of a stream with it.

    Args:
        hidden: The folder that they do not see; it is made.
        script: The program.
        environment: Further variables of their environment.
        first: Where they look for modules first.
    """
    hidden.mkdir(parents=True, exist_ok=True)
    path = [*map(str, first), *import_path()]
    boot = python_command("tidemill.pipelines.engines.worker_boot", path)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(_hiding(hidden, boot))} "$@"\n')
    script.chmod(0o700)
    config = {"command": str(script), "env": dict(environment)}
    return ["--environment_type=PROCESS", f"--environment_config={json.dumps(config)}"]


@contextmanager
def elsewhere(
    hidden: Path, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Elsewhere]:
    """Run a pool elsewhere while the block runs.

    Args:
        hidden: The folder that it does not see; it is made.
        folder: Where its log is.
        environment: Further variables of its environment.
    """
    hidden.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
    log = folder / "workers.log"
    pool = python_command("tidemill.pipelines.engines.worker_pool")
    command = _hiding(hidden, pool)
    with (folder / "pool.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, f"--port={port}", f"--log={log}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + _STARTS_S
        while True:
            try:
                socket.create_connection((HOST, port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "pool.log").read_text()
                assert time.monotonic() < deadline_s, (folder / "pool.log").read_text()
                time.sleep(0.1)
        yield Elsewhere(port, log, process, hidden)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
