"""Choosing the engine that runs a pipeline, and checking afterwards that it did.

The promise: the engine that runs is the engine that was named. Beam 2.77's ``DirectRunner`` breaks
it: it tries Prism (and may download it), then FnApiRunner, then the bundle-based runner, and logs
its choice at INFO only. So this module never uses it. A program calls `choose_engine`, prints the
reason, builds its pipeline with `make_runner` and `engine_options`, and runs it with `run`, which
compares the engine that ran with the one chosen.

Results do not depend on the engine: correctness uses no timer and no watermark of a runner. The
engines differ in this:

===========  =====================  ================================  ==========================
engine       unbounded sources      event-time timers, windows        needs
===========  =====================  ================================  ==========================
``fnapi``    run; ``run`` returns   at the end of the bundle only     nothing
             when the source ends
``prism``    run                    as the watermark moves            a binary: ``make prism``
``flink``    run, and stay          as the watermark moves            a cluster:
                                                                      ``tidemill up --flink``
``dataflow`` run, and stay          as the watermark moves            Google Cloud, an exchange
``bundle``   refused                TestStream only                   nothing
===========  =====================  ================================  ==========================

Streams run through `pipelines.engines.stream_job`, and what is in batch through
`pipelines.engines.batch_jobs`; both also know Flink and Dataflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.features.errors import (
    PrismMissing,
    UnknownEngine,
    WrongBeamFlag,
    WrongEngine,
    nearest,
)
from tidemill.pipelines.engines import dataflow_flags
from tidemill.pipelines.engines.dataflow_flags import DataflowPlace
from tidemill.pipelines.engines.failures import original
from tidemill.pipelines.engines.flink import FlinkPlace, read_flags
from tidemill.pipelines.engines.prism_options import JOB_SERVER_TIMEOUT_S, NO_SDF_SPLIT

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult, PipelineRunner

PRISM_VARIABLE = "TIDEMILL_PRISM"
PRISM_PATH = Path(".tidemill") / "bin" / "prism"
_REPOSITORY = Path(__file__).resolve().parents[2]


# Beam's workers measure the size of every value in their state cache: `objsize` walks the globals
# of all loaded modules, which takes tens of milliseconds when TensorFlow is loaded. Our stages keep
# decoded state themselves (`pipelines.stream.token_cache`), so they do not need Beam's cache.
STATE_CACHE_MB = 0


class Engine(Enum):
    """The engines that run a pipeline. The value is what a user types."""

    FNAPI = "fnapi"
    PRISM = "prism"
    FLINK = "flink"
    DATAFLOW = "dataflow"
    BUNDLE_BASED = "bundle"


# After a run only the module of the result's class tells which engine ran.
_RESULT_MODULES = {
    "apache_beam.runners.portability.fn_api_runner.fn_runner": Engine.FNAPI,
    "tidemill.pipelines.engines.prism": Engine.PRISM,
    "tidemill.pipelines.engines.flink_result": Engine.FLINK,
    "apache_beam.runners.dataflow.dataflow_runner": Engine.DATAFLOW,
    "apache_beam.runners.direct.direct_runner": Engine.BUNDLE_BASED,
}


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason for it.

    Attributes:
        engine: The engine.
        why: A sentence for the user: which engine, and why this one.
        streaming: Whether the pipeline runs as a stream.
        prism: The Prism binary; set exactly when the engine is Prism.
        flink: The cluster; set exactly when the engine is Flink.
        dataflow: Where the job runs; set exactly when the engine is Dataflow.
    """

    engine: Engine
    why: str
    streaming: bool
    prism: Path | None = None
    flink: FlinkPlace | None = None
    dataflow: DataflowPlace | None = None

    def __post_init__(self) -> None:
        """Refuse a Prism without a binary, or a binary without Prism; likewise the others."""
        if (self.engine is Engine.DATAFLOW) != (self.dataflow is not None):
            raise ValueError(
                f"engine {self.engine.value!r} with dataflow={self.dataflow!r}: give the place "
                "with the engine 'dataflow', and with no other"
            )
        if (self.engine is Engine.FLINK) != (self.flink is not None):
            raise ValueError(
                f"engine {self.engine.value!r} with flink={self.flink!r}: give the cluster with "
                "the engine 'flink', and with no other"
            )
        if (self.engine is Engine.PRISM) != (self.prism is not None):
            raise ValueError(
                f"engine {self.engine.value!r} with prism={self.prism!r}: give the path of the "
                "binary with the engine 'prism', and with no other"
            )

    @property
    def name(self) -> str:
        """The engine as a user types it, such as ``fnapi``."""
        return self.engine.value

    @property
    def has_workers(self) -> bool:
        """Whether the stages run in processes of their own, which outlive this one."""
        return self.engine in (Engine.FLINK, Engine.DATAFLOW)


def find_prism() -> Path:
    """Find the Prism binary in ``$TIDEMILL_PRISM``, the working directory or the repository.

    Nothing is downloaded.

    Returns:
        The absolute path of an executable file.

    Raises:
        PrismMissing: There is no binary, or ``$TIDEMILL_PRISM`` does not name an executable file.
    """
    named = os.environ.get(PRISM_VARIABLE)
    if named:
        path = Path(named).absolute()
        if not _is_program(path):
            raise PrismMissing(
                f"{PRISM_VARIABLE}={named!r} is not an executable file: point it to a Prism "
                "binary, or unset it and build one with `make prism`"
            )
        return path
    places = list(dict.fromkeys((Path.cwd() / PRISM_PATH, _REPOSITORY / PRISM_PATH)))
    for path in places:
        if _is_program(path):
            return path
    raise PrismMissing(
        f"no Prism binary at {' or '.join(map(str, places))}: build it with `make prism`, "
        f"or set {PRISM_VARIABLE} to the path of one"
    )


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def choose_engine(
    requested: str | None, streaming: bool, flags: Sequence[str] = ()
) -> EngineChoice:
    """Choose the engine for a run.

    By default a batch run gets FnApiRunner, and a stream gets Prism if its binary is built, else
    FnApiRunner. Both give exact results; only Prism moves watermarks during the run.

    Args:
        requested: ``fnapi``, ``prism``, ``flink``, ``dataflow``, ``bundle``, or None for the
            default.
        streaming: Whether the pipeline runs as a stream.
        flags: Flags of Beam, for an engine that takes some.

    Returns:
        The choice, with the sentence to print.

    Raises:
        UnknownEngine: ``requested`` names no engine.
        PrismMissing: Prism was requested and its binary is not built.
        WrongBeamFlag: The engine does not take a flag.
    """
    if flags and requested not in (Engine.FLINK.value, Engine.DATAFLOW.value):
        raise WrongBeamFlag(
            "only the engines 'flink' and 'dataflow' take flags of Beam, and here are "
            f"{' '.join(flags)!r}: leave them out, or add --engine flink"
        )
    if requested is None:
        return _default_engine(streaming)
    names = [engine.value for engine in Engine]
    if requested not in names:
        raise UnknownEngine(
            f"unknown engine {requested!r}, known are {', '.join(names)}: "
            f"{nearest(requested, names)}"
        )
    engine = Engine(requested)
    if engine is Engine.FLINK:
        place = read_flags(flags, streaming=streaming)
        why = f"Flink, as requested ({place.url}, parallelism {place.parallelism})"
        return EngineChoice(engine, why, streaming, flink=place)
    if engine is Engine.DATAFLOW:
        found = dataflow_flags.read_flags(flags)
        why = f"Dataflow, as requested (project {found.project}, {found.region})"
        return EngineChoice(engine, why, streaming, dataflow=found)
    prism = find_prism() if engine is Engine.PRISM else None
    reasons = {
        Engine.FNAPI: "FnApiRunner, as requested",
        Engine.PRISM: f"Prism, as requested ({prism})",
        Engine.BUNDLE_BASED: "BundleBasedDirectRunner, as requested: for TestStream; it refuses "
        "unbounded sources",
    }
    return EngineChoice(engine, reasons[engine], streaming, prism)


def _default_engine(streaming: bool) -> EngineChoice:
    if not streaming:
        return EngineChoice(
            Engine.FNAPI, "FnApiRunner, because the input is bounded: nothing else is needed", False
        )
    try:
        prism = find_prism()
    except PrismMissing:
        return EngineChoice(
            Engine.FNAPI,
            "FnApiRunner, because Prism is not built here: the results are the same, "
            "only timers and windows behind it wait for the end (`make prism` builds it)",
            True,
        )
    return EngineChoice(
        Engine.PRISM,
        f"Prism, because the input is unbounded and Prism moves watermarks while it runs ({prism})",
        True,
        prism,
    )


def make_runner(choice: EngineChoice) -> PipelineRunner:
    """Make the Beam runner of a choice.

    Args:
        choice: From `choose_engine`; not Flink, whose runner is `flink_run.flink_runner`, and not
            Dataflow.

    Returns:
        A runner for ``beam.Pipeline(runner=...)``. A Prism runner starts a process for each run
        and stops it when the run ends.
    """
    from tidemill.pipelines.engines.worker_metrics import report_metrics_of_steps

    report_metrics_of_steps()
    if choice.engine is Engine.FNAPI:
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers

        worker_handlers.STATE_CACHE_SIZE_MB = STATE_CACHE_MB  # there is no option for it
        return FnApiRunner()
    if choice.engine is Engine.BUNDLE_BASED:
        from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner

        return BundleBasedDirectRunner()
    from apache_beam.runners.worker import sdk_worker

    from tidemill.pipelines.engines.prism import OwnedPrismRunner

    # Beam's worker both logs and prints the traceback of a step that failed. Keep only the log.
    vars(sdk_worker)["print"] = _say_nothing
    assert choice.prism is not None  # EngineChoice has checked it
    return OwnedPrismRunner(choice.prism)


def _say_nothing(*_: object, **__: object) -> None:
    """Replace ``print`` in Beam's worker."""


def engine_options(choice: EngineChoice) -> list[str]:
    """Return the command-line arguments for `PipelineOptions` that an engine needs.

    Args:
        choice: From `choose_engine`.

    Returns:
        The arguments, to be put before the program's own.
    """
    options = ["--streaming"] if choice.streaming else []
    if choice.engine is Engine.PRISM:
        options += [
            f"--prism_location={choice.prism}",
            "--environment_type=LOOPBACK",
            f"--experiments={NO_SDF_SPLIT}",
            f"--job_server_timeout={JOB_SERVER_TIMEOUT_S}",
            f"--max_cache_memory_usage_mb={STATE_CACHE_MB}",
        ]
    return options


def engine_of(result: PipelineResult) -> str:
    """Tell which engine a pipeline ran on.

    Args:
        result: The result of ``Pipeline.run``.

    Returns:
        ``fnapi``, ``prism``, ``flink``, ``dataflow`` or ``bundle``; for any other engine the
        module and name of the result's class.
    """
    kind = type(result)
    engine = _RESULT_MODULES.get(kind.__module__)
    return engine.value if engine else f"{kind.__module__}.{kind.__qualname__}"


def run(pipeline: Pipeline, choice: EngineChoice) -> PipelineResult:
    """Run a pipeline to its end, and check that the chosen engine ran it.

    Args:
        pipeline: Built with ``make_runner(choice)`` and ``engine_options(choice)``.
        choice: From `choose_engine`.

    Returns:
        The result of the finished pipeline; its metrics can be read.

    Raises:
        WrongEngine: The pipeline ran on another engine.
        TidemillError: A step raised this error, or an operating system error that has a class in
            the tree.
        RuntimeError: A step failed for another reason; the message holds its error.
    """
    with named_errors():
        result = pipeline.run()
        result.wait_until_finish()
    check_engine(result, choice)
    return result


@contextmanager
def named_errors() -> Iterator[None]:
    """Raise the errors of steps, which an engine raises as its own, by name.

    Raises:
        TidemillError: A step raised this error, or an operating system error that has a class in
            the tree.
        RuntimeError: A step failed for another reason; the message holds its error.
    """
    try:
        yield
    except Exception as error:
        known = original(error)
        if known is None or known is error:
            raise
        raise known from error


def check_engine(result: PipelineResult, choice: EngineChoice) -> None:
    """Check that a pipeline ran on the chosen engine.

    Raises:
        WrongEngine: It ran on another one.
    """
    ran_on = engine_of(result)
    if ran_on != choice.name:
        raise WrongEngine(
            f"the pipeline ran on {ran_on!r}, chosen was {choice.name!r}: build it with "
            "beam.Pipeline(runner=make_runner(choice), options=...)"
        )
