"""Prism as a child process: started for a run, stopped with it, its log in a file.

The promise: however a run ends, no Prism process is left.

Beam's own ``PrismRunner`` does not promise that. It keeps one shared Prism until the interpreter
exits; SIGTERM, SIGKILL and ``os._exit`` leave it running; it may download a binary; and it copies
Prism's log into the program's. So `OwnedPrismRunner` submits jobs as Beam does (``PortableRunner``)
but replaces the job server. The subclass also gives the result a class of its own, by which
`choosing.engine_of` tells Prism from other portable engines.

- The operating system chooses the port (``--job_port=0``), and we read it from Prism's first log
  line, so no other program can take it in between.
- Prism runs in its own session, so Ctrl-C reaches only our process, which stops Prism in order.
- A small shell process, the *guard*, reads from a pipe that we hold open and never write to. When
  our process dies of any signal, the pipe closes and the guard terminates Prism.
- The log file is deleted after a run that succeeded and kept after one that failed; the error names
  it.
- A failed job reports the error of its bundle. Prism 2.77 sometimes reports only "nothing in
  progress ..." instead; then we take the bundle's error from Prism's log.

Prism 2.77 listens on all interfaces without a password: on a shared network keep its port behind a
firewall.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import grpc
from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    PortableOptions,
)
from apache_beam.portability.api import beam_job_api_pb2_grpc, beam_runner_api_pb2
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.runners.runner import PipelineState

from tidemill.features.errors import PrismFailed
from tidemill.pipelines.engines.prism_options import JOB_SERVER_TIMEOUT_S, NO_SDF_SPLIT
from tidemill.pipelines.engines.taken_result import TakenResult

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2_000
_BEAM_LOG = logging.getLogger("apache_beam.runners.portability.prism_runner")


class PrismServer(JobServer):
    """One Prism process, its log file and its guard.

    Args:
        binary: The Prism binary.
    """

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._lock = threading.Lock()
        self._prism: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self.log: Path | None = None

    @property
    def pid(self) -> int | None:
        """The process id of Prism while it runs, else None."""
        return self._prism.pid if self._prism else None

    def start(self) -> beam_job_api_pb2_grpc.JobServiceStub:
        """Start Prism and wait until it accepts jobs.

        Returns:
            The stub to submit jobs to.

        Raises:
            PrismFailed: Prism ended at once, or did not accept jobs within a minute.
        """
        with self._lock:
            if self._prism is not None:
                raise PrismFailed(f"this Prism runs already, as process {self._prism.pid}")
            handle, log = tempfile.mkstemp(prefix="tidemill-prism-", suffix=".log")
            self.log = Path(log)
            arguments = (
                "--job_port=0",
                "--serve_http=false",
                "--log_kind=json",
                "--log_level=info",
            )
            try:
                self._prism = subprocess.Popen(
                    [self._binary, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=handle,
                    stderr=handle,
                    start_new_session=True,
                )
            except OSError as error:
                self.log.unlink()
                raise PrismFailed(f"{self._binary} cannot be run: {error}") from error
            finally:
                os.close(handle)
            self._guard = _start_guard(self._prism.pid)
            atexit.register(self.stop)
        try:
            endpoint = self._await_endpoint()
        except BaseException:
            self.stop()
            raise
        # A pipeline holds its pickled functions, and may be larger than gRPC's default of 4 MB.
        unlimited = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self._channel = grpc.insecure_channel(endpoint, options=unlimited)
        return beam_job_api_pb2_grpc.JobServiceStub(self._channel)

    def stop(self) -> None:
        """Stop Prism, if it runs."""
        with self._lock:
            prism, self._prism = self._prism, None
            guard, self._guard = self._guard, None
            channel, self._channel = self._channel, None
        atexit.unregister(self.stop)
        if channel is not None:
            channel.close()
        # Stop the guard first: it must not kill another process that gets Prism's id later.
        if guard is not None:
            guard.kill()
            guard.communicate()
        if prism is not None:
            prism.terminate()
            try:
                prism.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                prism.kill()
                prism.wait()

    def delete_log(self) -> None:
        """Delete the log of a run that succeeded."""
        if self.log is not None:
            self.log.unlink(missing_ok=True)

    def _await_endpoint(self) -> str:
        assert self._prism is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            # Prism writes this line once it listens.
            endpoint = _logged(self.log, '"Serving JobManagement"', "endpoint")
            if endpoint is not None:
                return endpoint
            status = self._prism.poll()
            if status is not None:
                raise PrismFailed(
                    f"Prism ended while starting, status {status}; {self.last_words()}"
                )
            time.sleep(0.02)
        raise PrismFailed(
            f"Prism did not serve within {_START_TIMEOUT_S:.0f} s; {self.last_words()}"
        )

    def failed_bundle(self) -> str | None:
        """Return the error of the first bundle that failed, from the log; None if none failed."""
        return _logged(self.log, '"msg":"Bundle Failed."', "error")

    def last_words(self) -> str:
        """Return where the log is and how it ends, for an error message."""
        if self.log is None or not self.log.exists():
            return "it has left no log"
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            tail = log.read().decode("utf-8", errors="replace").strip()
        return f"its log {self.log} ends with:\n{tail or '(nothing)'}"


def _start_guard(pid: int) -> subprocess.Popen[bytes]:
    """Start the process that terminates Prism when our process dies and its pipe closes."""
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r nothing; kill -TERM "$1"', "tidemill-guard", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _logged(log: Path | None, text: str, key: str) -> str | None:
    """Return the value of a key in the first whole line of Prism's log that holds a text."""
    if log is None or not log.exists():
        return None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.endswith("\n") and text in line:
            return str(json.loads(line)[key])
    return None


class PrismResult(TakenResult):
    """A run on Prism. After the run Prism is stopped, and the metrics can still be read."""

    def __init__(self, submitted: PipelineResult, server: PrismServer) -> None:
        super().__init__(submitted)
        self._server = server

    @property
    def prism_pid(self) -> int | None:
        """The process id of Prism while the run lasts, else None."""
        return self._server.pid

    @property
    def log(self) -> Path | None:
        """Prism's log file: deleted after a run that succeeded, else kept."""
        return self._server.log

    @property
    def state(self) -> str:
        """The state of the job: Prism's answer while it runs, afterwards the last one."""
        if self._server.pid is None:
            return str(self._state)
        return str(super().state)

    def metrics(self) -> object:
        """Return the metrics: the current ones while the job runs, afterwards the last ones."""
        if self._server.pid is not None:
            self._metrics = None  # Beam would return its first answer again
        return super().metrics()

    def wait_until_finish(self, duration: int | None = None) -> str:
        """Wait for the end of the job, then stop Prism.

        Args:
            duration: Wait at most this many milliseconds; the job continues after them.

        Returns:
            The state of the job.

        Raises:
            PrismFailed: Prism ended before the job did.
            RuntimeError: The job failed; the message holds the error of the failed step.
        """
        try:
            state = super().wait_until_finish(duration)
            if not PipelineState.is_terminal(state):
                return str(state)
            self.metrics()
        except grpc.RpcError as error:
            self._server.stop()
            raise PrismFailed(
                f"Prism was lost during the job; {self._server.last_words()}"
            ) from error
        except BaseException as error:
            self._server.stop()
            where = f"Prism's log is {self._server.log}"
            failure = self._server.failed_bundle()
            if isinstance(error, RuntimeError) and failure and failure not in str(error):
                why = RuntimeError(failure)
                why.add_note(where)
                raise why from error
            error.add_note(where)
            raise
        self._server.stop()
        self._server.delete_log()
        return str(state)

    def cancel(self) -> None:
        """Cancel the job and stop Prism."""
        try:
            super().cancel()
        finally:
            self._server.stop()


@functools.cache
def _log_lost_connections() -> None:
    """Log, instead of printing, that a thread lost its connection to Prism.

    Beam's worker threads raise a gRPC error when Prism is stopped. Python would print these
    tracebacks beside the error of the run.
    """
    otherwise = threading.excepthook

    def report(died: threading.ExceptHookArgs) -> None:
        if issubclass(died.exc_type, grpc.RpcError):
            _BEAM_LOG.info("a thread lost its connection to Prism", exc_info=died.exc_value)
        else:
            otherwise(died)

    threading.excepthook = report


class OwnedPrismRunner(PrismRunner):
    """Runs each pipeline on a Prism process of its own.

    Args:
        binary: The Prism binary.
    """

    def __init__(self, binary: Path) -> None:
        super().__init__()
        self._binary = binary
        self._server: PrismServer | None = None
        _log_lost_connections()

    def default_job_server(self, options: PipelineOptions) -> JobServer:
        """Return the process of the current run, instead of Beam's shared one."""
        if self._server is None:
            raise RuntimeError("no run is being submitted: call run_portable_pipeline")
        return self._server

    def run_portable_pipeline(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PrismResult:
        """Start Prism and submit a job to it.

        Args:
            pipeline: The translated pipeline.
            options: Its options. The options of `prism_options` are set here, whether or not the
                caller has set them.

        Returns:
            The running job.

        Raises:
            PrismFailed: Prism did not start.
        """
        options.view_as(DebugOptions).add_experiment(NO_SDF_SPLIT)
        portable = options.view_as(PortableOptions)
        portable.job_endpoint = None
        portable.job_server_timeout = JOB_SERVER_TIMEOUT_S
        server = PrismServer(self._binary)
        self._server = server
        try:
            return PrismResult(super().run_portable_pipeline(pipeline, options), server)
        except BaseException:
            server.stop()
            raise
        finally:
            self._server = None
