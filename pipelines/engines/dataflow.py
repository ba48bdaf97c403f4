"""Dataflow: with which of Beam's options a job is made; and its translation, which starts nothing.

The promises:

* A translation asks nobody: it needs no account and no network, and starts nothing.
* Two translations of the same job have the same steps and the same bytes (`Translation`).
* A job whose workers would not find what they read and write is not submitted
  (`refuse_local_places`): they have no folder in common with the program, and meet it in an
  exchange. How a job runs is the story of `pipelines.engines.dataflow_run`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidemill.features.errors import RootNotShared, WrongBeamFlag, nearest
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace
from tidemill.serving.files.atomic_write import atomic_write, write_text

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.portability.api import beam_runner_api_pb2

JOB: Final = "job.json"
"""The job, as Dataflow's service takes it."""
GRAPH: Final = "pipeline.pb"
"""The pipeline that the job names: a message ``org.apache.beam.model.pipeline.v1.Pipeline``."""

PAR_DO: Final = "beam:transform:pardo:v1"
_NO_LIST_OF_PACKAGES: Final = "disable_logging_submission_environment"
"""Workers have their packages from their image. Beam would list those of this environment, in a
temporary file that the pipeline names, for a comparison that only logs."""
_ONE_PROCESS: Final = "no_use_multiple_sdk_containers"
"""One Python process for each machine, and not for each core: all would want the accelerator, and
the source of a stream stays in one process."""
QUIET: Final = "apache_beam"
"""The logger of Beam, which tells at length of options and requests."""


@dataclass(frozen=True)
class Translation:
    """A job that was translated and not submitted.

    Attributes:
        job: The job, as Dataflow's service takes it; without what a submission adds: the id of the
            request, and its instant in the names of staged files.
        graph: The pipeline.
    """

    job: Mapping[str, Any]
    graph: beam_runner_api_pb2.Pipeline

    def write(self, folder: Path) -> None:
        """Write `JOB` and `GRAPH`; equal translations have equal bytes.

        Raises:
            FileError: The disk is full, ...
        """
        write_text(folder / JOB, json.dumps(self.job, indent=2, sort_keys=True) + "\n")
        with atomic_write(folder / GRAPH) as unfinished:
            unfinished.write_bytes(self.graph.SerializeToString(deterministic=True))


def refuse_local_places(root: Path, places: Sequence[str]) -> None:
    """Refuse to submit a job whose workers do not find what they need.

    Args:
        root: The root of the run, which is a folder.
        places: What workers would not find, each with what to set instead.

    Raises:
        RootNotShared: There is something.
    """
    if not places:
        return
    raise RootNotShared(
        f"workers of Dataflow do not see {root}: {'; '.join(places)}. Nothing was submitted; "
        "--translate FOLDER writes a stream's job"
    )


def dataflow_options(
    place: DataflowPlace,
    name: str,
    *,
    streaming: bool,
    operators: int,
    has_accelerator: bool,
    is_submitted: bool = False,
) -> list[str]:
    """Return the command-line arguments for `PipelineOptions`.

    Args:
        place: Where the job runs.
        name: The job's name, unless the place has one.
        streaming: Whether it is a stream.
        operators: How many workers can have work at once.
        has_accelerator: Whether a step asks for an accelerator.
        is_submitted: Whether the job is to run, and meets its program in an exchange. Its name is
            the given one then, and workers of a stream stay: one that goes away was lost.
    """
    keeps = is_submitted and streaming
    if keeps and place.most_workers not in (None, place.workers):
        raise WrongBeamFlag(
            f"--max_num_workers={place.most_workers}: a stream keeps the workers that it begins "
            "with, and goes on anew when it loses one; leave it out, and let --num_workers say how "
            "many"
        )
    is_alone = has_accelerator or keeps
    experiments = [_NO_LIST_OF_PACKAGES, *([_ONE_PROCESS] if is_alone else [])]
    most = place.workers if keeps else place.most_workers or max(operators, place.workers)
    return [
        "--runner=DataflowRunner",
        f"--project={place.project}",
        f"--region={place.region}",
        f"--temp_location={place.temp_location}",
        f"--staging_location={place.staging_location or place.temp_location}",
        f"--sdk_container_image={place.image}",
        f"--job_name={name if is_submitted else place.job_name or name}",
        "--no_save_main_session",  # else Beam pickles all of `__main__`
        f"--num_workers={place.workers}",
        f"--max_num_workers={most}",
        *(["--autoscaling_algorithm=NONE"] if is_submitted and most == place.workers else []),
        "--max_cache_memory_usage_mb=0",  # see `choosing.STATE_CACHE_MB`
        *(["--streaming", "--enable_streaming_engine"] if streaming else []),
        *(f"--experiments={experiment}" for experiment in experiments),
        *place.flags,
    ]


def translate(options: list[str], wire: Callable[[Pipeline], None]) -> Translation:
    """Translate a job as a submission would, and submit nothing.

    Args:
        options: From `dataflow_options`.
        wire: Adds the steps to an empty pipeline.

    Raises:
        WrongBeamFlag: Beam does not know a flag, or refuses it.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    check_known(options)
    given = PipelineOptions([*options, "--dry_run=True", "--no_auth"])
    with _quiet():
        try:
            pipeline = beam.Pipeline(runner=DataflowRunner(), options=given)
        except ValueError as error:
            raise WrongBeamFlag(f"Beam refuses the flags: {error}") from None
        wire(pipeline)
        result: Any = pipeline.run()
        job = result.job
        _order(job.proto_pipeline)
        return Translation(_described(job), job.proto_pipeline)


def check_known(options: list[str]) -> None:
    """Check that Beam knows each flag.

    Args:
        options: Flags, such as ``--region=europe-west4``.

    Raises:
        WrongBeamFlag: It does not know one.
    """
    from tidemill.pipelines.engines.flink_flags import flags_of_python

    known = flags_of_python()
    for option in options:
        name = option.removeprefix("--").partition("=")[0]
        if name not in known:
            raise WrongBeamFlag(f"Beam does not know --{name}: {nearest(name, known)}")


def _order(graph: beam_runner_api_pb2.Pipeline) -> None:
    """Order what Beam takes from a set, or writes as a map: it means the same in any order."""
    from apache_beam.portability.api import beam_runner_api_pb2

    requirements = sorted(graph.requirements)
    del graph.requirements[:]
    graph.requirements.extend(requirements)
    for transform in graph.components.transforms.values():
        if transform.spec.urn == PAR_DO:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            transform.spec.payload = payload.SerializeToString(deterministic=True)


def _described(job: Any) -> dict[str, Any]:
    """Complete the description of a job as its submission would."""
    from apache_beam.options.pipeline_options import GoogleCloudOptions, SetupOptions, TestOptions
    from apache_beam.runners.dataflow.internal import apiclient

    cloud = job.options.view_as(GoogleCloudOptions)
    # Beam has added the instant of the submission to both.
    cloud.temp_location = cloud.temp_location.rpartition("/")[0]
    cloud.staging_location = job.root_staging_location
    # A submission has neither of these.
    cloud.no_auth, job.options.view_as(TestOptions).dry_run = False, False
    setup = job.options.view_as(SetupOptions)
    setup.beam_plugins = sorted(setup.beam_plugins)  # a set before
    job.proto.client_request_id = ""
    job.proto.environment = apiclient.Environment(
        packages=[],
        options=job.options,
        environment_version=apiclient._FNAPI_ENVIRONMENT_MAJOR_VERSION,
        proto_pipeline_staged_url=f"{job.root_staging_location}/{GRAPH}",
        proto_pipeline=job.proto_pipeline,
    ).proto
    found: dict[str, Any] = json.loads(job.json())
    for pool in found["environment"]["workerPools"]:
        # Beam lists the environments of a set.
        pool["sdkHarnessContainerImages"].sort(key=lambda image: str(image["environmentId"]))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Beam say only what is wrong: it tells at length which options it has added."""
    log = logging.getLogger(QUIET)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
