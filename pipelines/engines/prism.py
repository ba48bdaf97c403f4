"""Prism as a process of ours: started for a run, stopped with it, its log in a file.

The promise: when a run ends, however it ends, no Prism is left behind.

Beam's own ``PrismRunner`` is not enough for that. It keeps one Prism per process as a shared
singleton until the interpreter exits; a SIGTERM, a kill or ``os._exit`` leave it running; it may
download a binary; and it feeds Prism's log into the program's. So `OwnedPrismRunner` keeps what
Beam does to submit a job to Prism (that is all in ``PortableRunner``) and replaces the job server.
Starting the binary apart and pointing ``PortableRunner`` to it with ``--job_endpoint`` would do as
well, but then nobody ties the process to the run, and the result's class would be the one that
Flink has too; the subclass gives it a name of its own.

- The port is chosen by the kernel (``--job_port=0``) and read from Prism's first log line; there is
  no moment at which another program could take it.
- Prism runs in a session of its own: Ctrl-C reaches our process, which ends the run in order.
- A small shell process, the *guard*, waits at a pipe that we hold open and never write to. When our
  process is gone, by whatever signal, the pipe closes and the guard terminates Prism.
- The log file is deleted after a run that succeeded and kept after one that failed, and the error
  says where it is.
- A job that failed says why. When a bundle fails, Prism 2.77 may find itself without work before it
  has passed the bundle's error on, and then reports only that ("nothing in progress ..."); the
  error itself always stands in its log first, and is taken from there.

Prism 2.77 listens on all interfaces and asks for no password; on a shared network keep its port
behind a firewall.
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
        """The process id of Prism while it is ours to stop, else None."""
        return self._prism.pid if self._prism else None

    def start(self) -> beam_job_api_pb2_grpc.JobServiceStub:
        """Start Prism and wait until it serves.

        Returns:
            The stub to submit jobs to.

        Raises:
            PrismFailed: It ended at once, or did not serve within a minute.
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
        # A pipeline with its functions pickled into it may well pass gRPC's 4 MB.
        unlimited = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self._channel = grpc.insecure_channel(endpoint, options=unlimited)
        return beam_job_api_pb2_grpc.JobServiceStub(self._channel)

    def stop(self) -> None:
        """Stop Prism. Does nothing where it has been stopped already."""
        with self._lock:
            prism, self._prism = self._prism, None
            guard, self._guard = self._guard, None
            channel, self._channel = self._channel, None
        atexit.unregister(self.stop)
        if channel is not None:
            channel.close()
        # The guard goes first: once Prism is reaped its number may be another process's.
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
        """Delete the log of a run that went well."""
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
        """Find in the log what the first bundle that failed said; None when none did."""
        return _logged(self.log, '"msg":"Bundle Failed."', "error")

    def last_words(self) -> str:
        """Say where the log is and how it ends, for an error message."""
        if self.log is None or not self.log.exists():
            return "it has left no log"
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            tail = log.read().decode("utf-8", errors="replace").strip()
        return f"its log {self.log} ends with:\n{tail or '(nothing)'}"


def _start_guard(pid: int) -> subprocess.Popen[bytes]:
    """Start the process that terminates Prism when ours is gone: its end of the pipe closes."""
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


class PrismResult(PipelineResult):
    """A run on Prism. When it has ended its process is gone and its metrics are kept."""

    def __init__(self, submitted: PipelineResult, server: PrismServer) -> None:
        super().__init__(
            submitted._job_service,
            submitted._job_id,
            submitted._message_stream,
            submitted._state_stream,
            submitted._cleanup_callbacks,
        )
        submitted._cleanup_callbacks = ()
        self._server = server

    @property
    def prism_pid(self) -> int | None:
        """The process id of Prism while the run lasts, else None."""
        return self._server.pid

    @property
    def log(self) -> Path | None:
        """Prism's log file: deleted when the run went well, kept when it did not."""
        return self._server.log

    @property
    def state(self) -> str:
        """The state of the job: asked of Prism while it lives, remembered afterwards."""
        if self._server.pid is None:
            return str(self._state)
        return str(super().state)

    def metrics(self) -> object:
        """Give the metrics: the current ones while the job runs, afterwards the last ones."""
        if self._server.pid is not None:
            self._metrics = None  # Beam keeps the first answer for ever
        return super().metrics()

    def wait_until_finish(self, duration: int | None = None) -> str:
        """Wait for the end of the job, and end Prism with it.

        Args:
            duration: At most this many milliseconds; the job goes on after them.

        Returns:
            The state of the job.

        Raises:
            PrismFailed: Prism's process ended before the job did.
            RuntimeError: The job failed; the message holds the error of the step that did.
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
        """Cancel the job and end Prism."""
        try:
            super().cancel()
        finally:
            self._server.stop()


@functools.cache
def _log_lost_connections() -> None:
    """Have Python log, and not print, that a thread has lost its connection to Prism.

    Beam's worker threads read from Prism until it has gone, and die of that: their tracebacks would
    stand beside the error of the run.
    """
    otherwise = threading.excepthook

    def report(died: threading.ExceptHookArgs) -> None:
        if issubclass(died.exc_type, grpc.RpcError):
            _BEAM_LOG.info("A thread has lost its connection to Prism", exc_info=died.exc_value)
        else:
            otherwise(died)

    threading.excepthook = report


class OwnedPrismRunner(PrismRunner):
    """Runs pipelines on Prism processes of its own, one for each run.

    Args:
        binary: The Prism binary.
    """

    def __init__(self, binary: Path) -> None:
        super().__init__()
        self._binary = binary
        self._server: PrismServer | None = None
        _log_lost_connections()

    def default_job_server(self, options: PipelineOptions) -> JobServer:
        """Give Beam the process of the run at hand instead of its shared one."""
        if self._server is None:
            raise RuntimeError("no run is being submitted: call run_portable_pipeline")
        return self._server

    def run_portable_pipeline(
        self, pipeline: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> PrismResult:
        """Start Prism and submit a job to it.

        Args:
            pipeline: The translated pipeline.
            options: Its options. What keeps Prism from losing rows and from ending a stream is set
                here, whether or not the caller has.

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
