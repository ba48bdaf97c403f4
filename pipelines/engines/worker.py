"""A Python worker of a Flink job: checks its code, then takes work as Beam's workers do.

`pipelines.engines.worker_pool` starts it, and reads one line of its output: a JSON text, which is
empty if all is well, else what is wrong. Where a TaskManager starts workers itself,
`pipelines.engines.worker_boot` does the same.

A job that ends by itself has no source that would stop when the program that submitted it ends. So
each worker of such a job looks whether the program runs; if not, it cancels the job, and ends. One
on another disk cannot look: its tasks do (`pipelines.io.exchange.task_place`).
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
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from tidemill.pipelines.engines.worker_code import WorkerCode

if TYPE_CHECKING:
    from tidemill.features.errors import TidemillError

_STATE_CACHE_BYTES: Final = 0
_LOOK_S: Final = 1.0
_LAST_WORD_S: Final = 5.0

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
    code = WorkerCode.of_params(json.loads(asked.params))
    error = None if code is None else take_up(code)
    sys.stdout.write(json.dumps("" if error is None else named(error)) + "\n")
    sys.stdout.flush()
    if error is not None:
        return
    work(asked.control, asked.id, code)


def take_up(code: WorkerCode) -> TidemillError | None:
    """Check the code of this process, and hold the attempt's lock from now on.

    Returns:
        What is wrong; None if nothing is.
    """
    from tidemill.features.errors import EngineLost, TidemillError
    from tidemill.pipelines.io.attempts import ABANDONED
    from tidemill.pipelines.servers.processes import running_process

    try:
        code.check()
        me = running_process(os.getpid())
        assert me is not None
        code.take_up_work({"pid": me.pid, "started": me.started, "host": socket.gethostname()})
        if code.exchange is None and code.ends and not code.attempt.is_submitted:
            raise EngineLost(ABANDONED)
    except TidemillError as error:
        return error
    return None


def named(error: TidemillError) -> str:
    """Return the text of an error in which the program that submits the job finds it by name."""
    kind = type(error)
    # On a line of its own, as in a traceback: `pipelines.engines.failures` finds it there.
    return f"\n{kind.__module__}.{kind.__qualname__}: {error}\n"


def work(control: str, worker: str, code: WorkerCode | None) -> None:
    """Take work until the engine has none left.

    Args:
        control: ``HOST:PORT`` where the engine gives work.
        worker: The name that the engine has given this worker.
        code: What `take_up` has checked; None if nobody has asked for that.
    """
    import signal

    from apache_beam.runners.worker.sdk_worker import SdkHarness

    from tidemill.pipelines.engines.worker_metrics import report_metrics_of_steps

    ending = code if code is not None and code.ends else None

    def end(_: int, __: FrameType | None) -> None:
        """End at once, but for what runs at a program's end: the figures of this process.

        Nothing that a bundle does is finished: its job was cancelled, or is over.
        """
        if ending is not None:
            ending.attempt.leave_work()
        _end_now()

    signal.signal(signal.SIGTERM, end)
    threading.excepthook = _end_with_connection
    report_metrics_of_steps()
    if ending is not None and ending.exchange is None:
        threading.Thread(target=_end_with_program, args=(ending,), daemon=True).start()
    try:
        SdkHarness(control, worker_id=worker, state_cache_size=_STATE_CACHE_BYTES).run()
    except Exception:  # noqa: BLE001 - it is said, and this process ends
        # Such as the end of a connection, after this process stood still.
        _log.exception("the engine is lost")
        _end_now()
    # Threads of gRPC may keep an interpreter from ending, with all that a core can do.
    end(0, None)


def _end_now() -> NoReturn:
    atexit._run_exitfuncs()
    os._exit(0)


def _end_with_connection(ended: threading.ExceptHookArgs) -> None:
    """End this process when one of its connections to the engine has failed, and not the others.

    Beam's worker ends with its control connection alone. With that of state or of data lost, it
    would wait for ever for answers, and hold the attempt's lock meanwhile.
    """
    import grpc

    threading.__excepthook__(ended)
    if isinstance(ended.exc_value, grpc.RpcError):
        time.sleep(_LAST_WORD_S)  # at the end of a job, connections end one by one
        _log.error("the engine is lost: %s", ended.exc_value)
        _end_now()


def _end_with_program(code: WorkerCode) -> None:
    """End the job, and this process, when the program that submitted the job has ended."""
    from tidemill.pipelines.engines.flink_jobs import ask_to_cancel
    from tidemill.pipelines.io.attempts import ABANDONED

    while code.attempt.is_submitted:
        time.sleep(_LOOK_S)
    _log.warning(ABANDONED)
    try:
        ask_to_cancel(code.attempt)
    finally:
        os._exit(1)


def _end_with_pool() -> None:
    """End this process when the pool has ended: then its end of our input is closed."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
