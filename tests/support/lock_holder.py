"""A process that holds a lock until it is told to end, or is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.markdown import ROOT

_PROGRAM = """
import os, subprocess, sys, time
from pathlib import Path
from tidemill.serving.files.locks import lock
path, child = sys.argv[1:]
with lock(Path(path), "hold it"):
    if child == "executed":
        print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
    elif child == "forked":
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
            os._exit(0)
        print(pid, flush=True)
    else:
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def lock_holder(path: Path, child: str = "none") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a process that holds a lock while the block runs.

    Args:
        path: The lock's file.
        child: ``forked`` or ``executed`` for a child that the process begins while it holds it.

    Yields:
        The process, which ends when its input is closed; and the number of the child, if there is
        one, else its own.
    """
    command = [sys.executable, "-c", _PROGRAM, str(path), child]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
            process.stdout.close()
