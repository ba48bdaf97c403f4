"""Flink: where its jobs run, and with which flags of Beam; their workers are other processes.

The promises, which `pipelines.engines.flink_run` keeps:

* A job that loses a process fails, and is never restarted by Flink: the states of its stages would
  come from a checkpoint or from nowhere, while stores, files and topics have what came after it. So
  restarts and checkpoints of Flink are off, and a stream that loses its job resubmits it with the
  states of its own savepoint (`pipelines.stream_run.stream`).
* The job of a stream never ends by itself: its source stays, since Flink forgets the states of a
  source that has ended. The program that submitted it looks at what is written, and cancels it when
  all is. A job in batch ends by itself, and is run again from its beginning if it is lost.
* When a job was ended (`pipelines.engines.flink_jobs`), no worker of it is left.
* A job whose worker has ended is lost, though Flink may not know: Beam's runner does not notice the
  end of a worker in all states of a bundle, and such a job would run for ever and do nothing.
* What a worker says is wrong with the program ends the run, as the worker's own error.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.features.errors import ClusterUnreachable, WrongBeamFlag
from tidemill.pipelines.engines.flink_workers import (
    COMMAND,
    POOL,
    WorkerCommand,
    read_command,
    worker_options,
)
from tidemill.pipelines.engines.user_flags import check_form, flag_parser, parse_flags
from tidemill.pipelines.engines.worker_code import WorkerCode
from tidemill.pipelines.servers.flink_cluster import ask_rest
from tidemill.pipelines.servers.flink_settings import FlinkPorts
from tidemill.pipelines.servers.kafka_settings import HOST

_PORTS: Final = FlinkPorts()
_BUNDLE_MS: Final = 5
_ENVIRONMENT_MS: Final = 10_000
"""So long a job in batch keeps a worker that has no task, such as until its next step begins."""
_ANSWER_S: Final = 5.0
_ASK_S: Final = 0.5
_UP: Final = "start a cluster with `tidemill up --flink`, or name another one"

_REFUSED: Final = {
    "runner": "the engine is named by --engine",
    "streaming": "a stream is one",
    "job_name": "it tells the jobs of one stream apart",
    "checkpointing_interval": "a stream keeps its own savepoints, and Flink no checkpoints",
    "number_of_execution_retries": "a stream resubmits its job with the states of its savepoint",
    "savepoint_path": "a stream resumes from its own savepoint, with --resume",
    "shutdown_sources_after_idle_ms": "it would end the source, and with it the states",
    "flink_submit_uber_jar": "jobs are submitted through the job server",
}
_REFUSED_IN_BATCH: Final = {
    "runner": _REFUSED["runner"],
    "streaming": "what is in batch is no stream",
    "job_name": "it tells the jobs of one command apart",
    "number_of_execution_retries": "a job that was lost is run again from its beginning",
    "savepoint_path": "a job in batch has no savepoint",
    "flink_submit_uber_jar": _REFUSED["flink_submit_uber_jar"],
}


@dataclass(frozen=True)
class FlinkPlace:
    """Where and how jobs run.

    Attributes:
        rest: ``HOST:PORT`` of the JobManager's REST interface.
        job_server: ``HOST:PORT`` of Beam's job server.
        workers: ``HOST:PORT`` of the worker pool; unused with a command.
        parallelism: How many subtasks, and workers, a job has.
        flags: Beam's flags that the user has given and that nothing here reads.
        command: The command with which TaskManagers start workers; None for the pool.
    """

    rest: str = f"{HOST}:{_PORTS.rest}"
    job_server: str = f"{HOST}:{_PORTS.job}"
    workers: str = f"{HOST}:{_PORTS.workers}"
    parallelism: int = 1
    flags: tuple[str, ...] = ()
    command: WorkerCommand | None = None

    @property
    def url(self) -> str:
        """The address of the REST interface."""
        return f"http://{self.rest}"


def read_flags(flags: Sequence[str], *, streaming: bool = True) -> FlinkPlace:
    """Read the Beam flags of a user.

    Args:
        flags: As on the command line, such as ``--parallelism=2``.
        streaming: Whether the job is that of a stream.

    Raises:
        WrongBeamFlag: One would break what is promised, or is no flag.
    """
    default = FlinkPlace()
    parser = flag_parser()
    parser.add_argument("--flink_master", default=default.rest)
    parser.add_argument("--job_endpoint", default=default.job_server)
    parser.add_argument("--environment_type", default=POOL)
    parser.add_argument("--environment_config")
    parser.add_argument("--parallelism", type=int, default=default.parallelism)
    refused = _REFUSED if streaming else _REFUSED_IN_BATCH
    given, others = parse_flags(parser, flags, refused, "Tidemill sets {} itself")
    workers, command = given.environment_config or default.workers, None
    if given.environment_type == COMMAND:
        workers, command = default.workers, read_command(given.environment_config)
    elif given.environment_type != POOL:
        raise WrongBeamFlag(
            f"--environment_type={given.environment_type}: workers come from a pool that "
            f"`tidemill up --flink` starts ({POOL}), or TaskManagers start them by a command "
            f"({COMMAND}), since these workers can be waited for; write one of the two"
        )
    if given.parallelism < 1:
        raise WrongBeamFlag(f"--parallelism={given.parallelism}: give 1 or more")
    check_form(others)
    rest = given.flink_master.removeprefix("http://").rstrip("/")
    return FlinkPlace(rest, given.job_endpoint, workers, given.parallelism, tuple(others), command)


def flink_options(place: FlinkPlace, code: WorkerCode) -> list[str]:
    """Return the command-line arguments for `PipelineOptions`.

    Args:
        place: Where the job runs.
        code: What its workers must have imported. Its attempt has begun.
    """
    times = f"--max_bundle_time_mills={_BUNDLE_MS}"
    if code.ends:
        times = f"--environment_cache_millis={_ENVIRONMENT_MS}"
    return [
        f"--job_endpoint={place.job_server}",
        f"--flink_master={place.rest}",
        *worker_options(place.workers, place.command, code),
        f"--parallelism={place.parallelism}",
        f"--sdk_worker_parallelism={place.parallelism}",
        times,
        "--number_of_execution_retries=0",
        *place.flags,
    ]


def check_cluster(place: FlinkPlace, patience_s: float = 0.0) -> None:
    """Check that all processes of a cluster answer, and that it has room for a job.

    Args:
        place: Where the job is to run.
        patience_s: How long to wait for them.

    Raises:
        ClusterUnreachable: One does not answer, or there is no room.
    """
    deadline_s = time.monotonic() + patience_s
    while (problem := _problem(place)) is not None:
        if time.monotonic() >= deadline_s:
            raise ClusterUnreachable(problem)
        time.sleep(_ASK_S)


def _problem(place: FlinkPlace) -> str | None:
    overview = ask_rest(place.url, "/overview")
    if overview is None:
        return (
            f"no JobManager of Flink answers at {place.url}: {_UP} with "
            "`-- --flink_master=HOST:PORT`"
        )
    if overview["slots-available"] < place.parallelism:
        return (
            f"the Flink cluster at {place.url} has {overview['slots-available']} of "
            f"{overview['slots-total']} slots free in {overview['taskmanagers']} TaskManagers, and "
            f"the job needs {place.parallelism}: start a TaskManager (`tidemill up --flink`), end "
            "other jobs, or lower --parallelism"
        )
    servers = [("job server of Beam", place.job_server, "job_endpoint")]
    if place.command is None:
        servers.append(("worker pool", place.workers, "environment_config"))
    for what, address, flag in servers:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        except (OSError, ValueError) as error:
            return f"no {what} answers at {address} ({error}): {_UP} with `-- --{flag}=HOST:PORT`"
    return None
