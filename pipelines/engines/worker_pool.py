"""The pool that starts Python workers for a Flink cluster, each a process of its own.

Beam's own pool starts workers that import what the pool imports; nobody hears of one that lacks a
module, and it leaves workers behind when it is killed. This pool promises:

* A worker imports from where the program imports that submitted the job, and has imported the
  project before it takes any work (`pipelines.engines.worker`). One that cannot makes the job fail,
  with the worker's own error.
* No worker outlives the pool, however that ends.

``python -m tidemill.pipelines.engines.worker_pool --port=PORT --log=FILE``
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from tidemill.pipelines.engines.worker_code import IMPORTS
from tidemill.pipelines.servers.python_path import import_path, python_command

_WORKER: Final = "tidemill.pipelines.engines.worker"
_HOST: Final = "127.0.0.1"
_THREADS: Final = 32
_STOP_S: Final = 10.0

_log: Final = logging.getLogger(__name__)


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts and stops workers, as Beam's runner asks for them.

    Args:
        log: Where the workers' messages are appended.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def StartWorker(  # noqa: N802 - Beam's name
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        """Start a worker; answer when it has imported the project."""
        try:
            problem = self._start(
                request.worker_id, request.control_endpoint.url, dict(request.params)
            )
        except (OSError, ValueError) as error:
            problem = f"the worker cannot be started: {error}"
        if problem:
            _log.error("worker %s: %s", request.worker_id, problem)
        return beam_fn_api_pb2.StartWorkerResponse(error=problem)

    def _start(self, worker: str, control: str, params: Mapping[str, str]) -> str:
        """Start a worker; return what is wrong with it, or nothing."""
        path = json.loads(params[IMPORTS]) if IMPORTS in params else import_path()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*python_command(_WORKER, path), f"--id={worker}", f"--control={control}",
                 f"--params={json.dumps(dict(params))}"],
                stdin=subprocess.PIPE,  # its end tells the worker that this pool has ended
                stdout=subprocess.PIPE,
                stderr=log,
            )  # fmt: skip
        with self._lock:
            self._workers[worker] = process
        assert process.stdout is not None
        said = process.stdout.readline()
        process.stdout.close()
        if not said:
            process.wait()
            return f"the worker has ended with status {process.returncode}; see {self._log}"
        answer: str = json.loads(said)
        _log.info("worker %s is process %d", worker, process.pid)
        return answer

    def StopWorker(  # noqa: N802 - Beam's name
        self, request: beam_fn_api_pb2.StopWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StopWorkerResponse:
        """Stop a worker."""
        with self._lock:
            process = self._workers.pop(request.worker_id, None)
        if process is not None:
            _end(process)
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Stop all workers."""
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        for process in workers:
            process.kill()
        for process in workers:
            process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(pool: WorkerPool, port: int) -> tuple[grpc.Server, int]:
    """Let a pool answer on a port of this machine; 0 for a free one.

    Returns:
        The server, and its port.
    """
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    bound = server.add_insecure_port(f"{_HOST}:{port}")
    server.start()
    return server, bound


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="worker_pool", allow_abbrev=False)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    pool = WorkerPool(asked.log)
    server, port = serve(pool, asked.port)
    _log.info("workers are started on port %d", port)
    ended.wait()
    server.stop(0)
    pool.close()


if __name__ == "__main__":
    main(sys.argv[1:])
