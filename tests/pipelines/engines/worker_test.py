"""Workers of Flink end when their engine is lost."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

_WORKER: Final = """
import threading, time

import grpc

from tidemill.pipelines.engines import worker

worker._LAST_WORD_S = 0.1
threading.excepthook = worker._end_with_connection

def read() -> None:
    raise {error}

thread = threading.Thread(target=read, name="read_state")
thread.start()
time.sleep({alive_s})
print("works on")
"""


@pytest.mark.parametrize(
    ("error", "alive_s", "works_on"),
    [("grpc.RpcError('ping timeout')", 60, False), ("ValueError('a fault of ours')", 0.5, True)],
)
def test_a_worker_ends_with_any_of_its_connections(
    error: str, alive_s: float, works_on: bool
) -> None:
    code = _WORKER.format(error=error, alive_s=alive_s)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert (done.stdout == "works on\n") == works_on
    assert ("the engine is lost" in done.stderr) != works_on
    assert "Traceback" in done.stderr  # whatever it was
