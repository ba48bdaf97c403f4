"""Beam's flags for a job on Dataflow: which a user must give, may give, and must not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidemill.features.errors import WrongBeamFlag
from tidemill.pipelines.engines.user_flags import check_form, flag_parser, parse_flags

_REQUIRED: Final[Mapping[str, str]] = {
    "project": "the Google Cloud project",
    "region": "such as europe-west4",
    "temp_location": "such as gs://BUCKET/temp",
    "sdk_container_image": "with Tidemill and your project (`tidemill init --dataflow`)",
}
_REFUSED: Final[Mapping[str, str]] = {
    "runner": "the engine is named by --engine",
    "streaming": "a stream is one, and what is in batch is none",
    "save_main_session": "workers import the project, and nothing of the program's own memory",
    "no_save_main_session": "as --save_main_session",
    "pickle_library": "the names and payloads of steps are those of Beam's own choice",
    "setup_file": "workers have their packages from their image",
    "requirements_file": "workers have their packages from their image",
    "extra_package": "workers have their packages from their image",
    "sdk_location": "workers have their packages from their image",
    "worker_harness_container_image": "--sdk_container_image names the image",
    "resource_hint": "it would ask the same of all workers; `stream: {inference: ...}` names what "
    "the step that scores requests needs",
    "resource_hints": "as --resource_hint",
    "disable_streaming_engine": "states are kept in Streaming Engine",
    "environment_type": "workers run in --sdk_container_image",
    "environment_config": "workers run in --sdk_container_image",
    "autoscaling_algorithm": "a stream keeps the workers that it begins with; --num_workers "
    "says how many",
    "update": "a stream goes on in a job of its own, with --resume; --translate FOLDER --replaces "
    "FOLDER says which steps map",
    "transform_name_mapping": "a stream is not updated; --replaces FOLDER writes it",
    "template_location": "the program of a stream submits its job itself, and runs as long as it",
    "dry_run": "--translate FOLDER writes the job without running it",
    "dataflow_job_file": "--translate FOLDER writes the job",
}
_BUCKET: Final = re.compile(r"gs://[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9](/.*)?")
_FORMS: Final = {
    "project": (re.compile(r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]"), "some-project"),
    "temp_location": (_BUCKET, "gs://BUCKET/temp"),
    "staging_location": (_BUCKET, "gs://BUCKET/staging"),
    "job_name": (re.compile(r"[a-z]([-a-z0-9]{0,1022}[a-z0-9])?"), "tidemill-shop-stream"),
}
_ACCESS: Final = ("dataflow_endpoint", "no_auth", "impersonate_service_account")
"""Those that say how Google is reached, and as whom; none of them holds a secret."""
_HERE: Final = re.compile(r"(https?://)?(localhost|127(\.\d+){3}|\[?::1\]?)(:\d+)?/*")
_USER: Final = re.compile(r"(https?://)?[^/]*@")
_AT_LEAST_ONCE: Final = "streaming_mode_at_least_once"


@dataclass(frozen=True)
class DataflowPlace:
    """Where and how a job runs.

    Attributes:
        project: The Google Cloud project.
        region: Its region.
        temp_location: Where Dataflow keeps its own files.
        staging_location: Where it finds the pipeline; None for the same.
        image: The image of the workers.
        job_name: The job's name; None is that of project and stage, which an update needs.
        workers: How many workers a job begins with.
        most_workers: How many it may have; None is as many as there are operators.
        flags: Beam's flags that the user has given and that nothing here reads.
        access: Those of them that say how Google is reached, and as whom.
    """

    project: str
    region: str
    temp_location: str
    staging_location: str | None
    image: str
    job_name: str | None = None
    workers: int = 1
    most_workers: int | None = None
    flags: tuple[str, ...] = ()
    access: tuple[str, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether the service is one of this machine, such as for a test."""
        return any(
            _HERE.fullmatch(flag.partition("=")[2])
            for flag in self.access
            if flag.startswith("--dataflow_endpoint=")
        )


def read_flags(flags: Sequence[str]) -> DataflowPlace:
    """Read the Beam flags of a user.

    Args:
        flags: As on the command line, such as ``--region=europe-west4``.

    Raises:
        WrongBeamFlag: One is missing, would break what a stream promises, or is no flag.
    """
    parser = flag_parser()
    for name in _REQUIRED:
        parser.add_argument(f"--{name}")
    parser.add_argument("--job_name")
    parser.add_argument("--staging_location")
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--max_num_workers", type=int)
    parser.add_argument("--dataflow_service_options", "--dataflow_service_option", action="append")
    given, others = parse_flags(parser, flags, _REFUSED, "{} is not for a user to give")
    missing = [name for name in _REQUIRED if not getattr(given, name)]
    if missing:
        said = ", ".join(f"--{name} ({_REQUIRED[name]})" for name in missing)
        raise WrongBeamFlag(f"Dataflow needs further flags after --: {said}")
    services = given.dataflow_service_options or []
    if any(_AT_LEAST_ONCE in service for service in services):
        raise WrongBeamFlag(
            f"--dataflow_service_options={_AT_LEAST_ONCE}: a stage would take elements again whose "
            "states it has kept; leave it out, for exactly-once"
        )
    most = given.num_workers if given.max_num_workers is None else given.max_num_workers
    if not 1 <= given.num_workers <= most:
        raise WrongBeamFlag(
            f"--num_workers={given.num_workers} and --max_num_workers={given.max_num_workers}: "
            "give 1 or more, and at most as many as the second"
        )
    # Beam would ask Google for another bucket, and wait for it.
    for name, (form, example) in _FORMS.items():
        found = getattr(given, name)
        if found and not form.fullmatch(found):
            raise WrongBeamFlag(f"--{name}={found}: expected one such as {example}")
    check_form(others)
    access = tuple(flag for flag in others if flag.removeprefix("--").partition("=")[0] in _ACCESS)
    if any(_USER.match(flag.partition("=")[2]) for flag in access if "endpoint" in flag):
        raise WrongBeamFlag("--dataflow_endpoint has a user or password: leave it out")
    return DataflowPlace(
        given.project,
        given.region,
        given.temp_location,
        given.staging_location,
        given.sdk_container_image,
        given.job_name,
        given.num_workers,
        given.max_num_workers,
        (*others, *(f"--dataflow_service_options={service}" for service in services)),
        access,
    )
