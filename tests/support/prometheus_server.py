"""The machine's Prometheus and promtool, from Debian's package ``prometheus``.

`.ci/run` installs them. Where they are missing nothing can be checked with them, which only CI
takes for a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidemill.pipelines.servers.processes import await_answer

_START_S = 120.0


def program(name: str) -> Path | None:
    """Return the path of ``prometheus`` or ``promtool``; None if the machine has none."""
    found = shutil.which(name)
    assert found or os.environ.get("CI") != "true", (
        f"{name} is missing, and CI needs it: apt-get install prometheus"
    )
    return None if found is None else Path(found)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def asked(port: int, page: str) -> Any:
    """Return what Prometheus answers at a page of its API."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{page}", timeout=10) as answer:
        return json.load(answer)["data"]


@contextmanager
def prometheus(server: Path, folder: Path, configuration: str) -> Iterator[int]:
    """Run Prometheus while the block runs; yield its port.

    Args:
        server: The program.
        folder: Where its data are.
        configuration: Its configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(configuration)
    port = free_port()
    log = folder / "prometheus.log"

    def answers() -> bool:
        try:
            asked(port, "status/runtimeinfo")
        except OSError:
            return False
        return True

    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                server,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--storage.tsdb.retention.size=32MB",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        where = f"on port {port}"
        await_answer("Prometheus", where, log, _START_S, lambda: process.poll() is None, answers)
        yield port
    finally:
        process.kill()
        process.wait()
