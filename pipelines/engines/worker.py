"""A Python worker of a Flink job: checks its code, then takes work as Beam's workers do.

`pipelines.engines.worker_pool` starts it, and reads one line of its output: a JSON text, which is
empty if all is well, else what is wrong.
"""

from __future__ import annotations

import argparse
import atexit
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final

_STATE_CACHE_BYTES: Final = 0

_log: Final = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Work until the job, or the pool, ends."""
    parser = argparse.ArgumentParser(prog="worker", allow_abbrev=False)
    for name in ("--id", "--control", "--params"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args(arguments)
    threading.Thread(target=_end_with_pool, daemon=True).start()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {os.getpid()} %(levelname)s %(name)s: %(message)s"
    )
    problem = _prepare(json.loads(asked.params))
    sys.stdout.write(json.dumps(problem) + "\n")
    sys.stdout.flush()
    if problem:
        return
    _work(asked.control, asked.id)


def _prepare(params: dict[str, str]) -> str:
    """Check the code, and take the attempt's lock; return what is wrong, or nothing."""
    from tidemill.features.errors import TidemillError
    from tidemill.pipelines.engines.worker_code import WorkerCode
    from tidemill.pipelines.servers.processes import running_process

    code = WorkerCode.of_params(params)
    if code is None:
        return ""
    try:
        code.check()
        me = running_process(os.getpid())
        assert me is not None
        code.take_up_work({"pid": me.pid, "started": me.started, "host": socket.gethostname()})
    except TidemillError as error:
        kind = type(error)
        # On a line of its own, as in a traceback: `pipelines.engines.failures` finds it there.
        return f"\n{kind.__module__}.{kind.__qualname__}: {error}\n"
    return ""


def _work(control: str, worker: str) -> None:
    import signal

    from apache_beam.runners.worker.sdk_worker import SdkHarness

    from tidemill.pipelines.engines.worker_metrics import report_metrics_of_steps

    signal.signal(signal.SIGTERM, _end)
    report_metrics_of_steps()
    try:
        SdkHarness(control, worker_id=worker, state_cache_size=_STATE_CACHE_BYTES).run()
    except Exception:  # noqa: BLE001 - it is said, and this process ends
        # Such as the end of a connection, after this process stood still.
        _log.exception("the engine is lost")
    # Threads of gRPC may keep an interpreter from ending, with all that a core can do.
    _end(0, None)


def _end(_: int, __: FrameType | None) -> None:
    """End at once, but for what runs at a program's end: the figures of this process are written.

    Nothing that a bundle does is finished: its job was cancelled.
    """
    atexit._run_exitfuncs()
    os._exit(0)


def _end_with_pool() -> None:
    """End this process when the pool has ended: then its end of our input is closed."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
