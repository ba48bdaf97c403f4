"""Which engine runs a pipeline, said aloud and checked afterwards.

The promise: the engine that ran is the engine that was named. Beam 2.77's ``DirectRunner`` is a
switch that tries Prism (downloading it if need be), then FnApiRunner, then the bundle-based
runner, and leaves one INFO line behind; nothing here uses it. A program asks `choose_engine`,
prints the sentence it gets, builds its pipeline with `make_runner` and `engine_options`, and runs
it with `run`, which compares the engine that ran with the one chosen.

The results do not depend on the engine: no runner timer and no runner watermark is used for
correctness. What differs is what else one gets:

===========  =====================  ================================  ==========================
engine       unbounded sources      event-time timers, windows        needs
===========  =====================  ================================  ==========================
``fnapi``    run; ``run`` returns   at the end of the bundle only     nothing
             when the source ends
``prism``    run                    as the watermark moves            a binary: ``make prism``
``bundle``   refused                TestStream only                   nothing
===========  =====================  ================================  ==========================
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from tidemill.features.errors import PrismMissing, UnknownEngine, WrongEngine, nearest
from tidemill.pipelines.engines.failures import original
from tidemill.pipelines.engines.prism_options import JOB_SERVER_TIMEOUT_S, NO_SDF_SPLIT

if TYPE_CHECKING:
    from apache_beam import Pipeline
    from apache_beam.runners.runner import PipelineResult, PipelineRunner

PRISM_VARIABLE = "TIDEMILL_PRISM"
PRISM_PATH = Path(".tidemill") / "bin" / "prism"
_REPOSITORY = Path(__file__).resolve().parents[2]


# Beam's workers cache state, and weigh every value that they put there: `objsize` walks the globals
# of all loaded modules for each, tens of milliseconds beside TensorFlow. Our stages keep what they
# decoded from state themselves and read it back only when they have lost it.
STATE_CACHE_MB = 0


class Engine(Enum):
    """The engines a pipeline runs on locally. The value is what a user types."""

    FNAPI = "fnapi"
    PRISM = "prism"
    BUNDLE_BASED = "bundle"


# The module of the result's class is what tells engines apart once a pipeline has run.
_RESULT_MODULES = {
    "apache_beam.runners.portability.fn_api_runner.fn_runner": Engine.FNAPI,
    "tidemill.pipelines.engines.prism": Engine.PRISM,
    "apache_beam.runners.direct.direct_runner": Engine.BUNDLE_BASED,
}


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason for it.

    Attributes:
        engine: What will run the pipeline.
        why: A sentence for a person: which engine, and why this one.
        streaming: Whether the pipeline is to run as a stream.
        prism: The Prism binary; set exactly when the engine is Prism.
    """

    engine: Engine
    why: str
    streaming: bool
    prism: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a Prism without a binary, or a binary without Prism."""
        if (self.engine is Engine.PRISM) != (self.prism is not None):
            raise ValueError(
                f"engine {self.engine.value!r} with prism={self.prism!r}: the path of the binary "
                "goes with the engine 'prism' and with no other"
            )

    @property
    def name(self) -> str:
        """The engine as a user types it: ``fnapi``, ``prism`` or ``bundle``."""
        return self.engine.value


def find_prism() -> Path:
    """Find the Prism binary: ``$TIDEMILL_PRISM``, the working directory, the repository.

    Nothing is ever downloaded.

    Returns:
        The absolute path of an executable file.

    Raises:
        PrismMissing: There is none, or ``$TIDEMILL_PRISM`` names something that cannot be run.
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


def choose_engine(requested: str | None, streaming: bool) -> EngineChoice:
    """Choose the engine for a run.

    Without a request a batch run gets FnApiRunner, and a stream gets Prism where its binary has
    been built and FnApiRunner where not: both are exact, only Prism also moves watermarks.

    Args:
        requested: ``fnapi``, ``prism``, ``bundle``, or None to leave it to this function.
        streaming: Whether the pipeline is to run as a stream.

    Returns:
        The choice, with the sentence to print.

    Raises:
        UnknownEngine: ``requested`` names no engine.
        PrismMissing: Prism was requested and is not there.
    """
    if requested is None:
        return _default_engine(streaming)
    names = [engine.value for engine in Engine]
    if requested not in names:
        raise UnknownEngine(
            f"unknown engine {requested!r}, known are {', '.join(names)}: "
            f"{nearest(requested, names)}"
        )
    engine = Engine(requested)
    prism = find_prism() if engine is Engine.PRISM else None
    why = {
        Engine.FNAPI: "FnApiRunner, as requested",
        Engine.PRISM: f"Prism, as requested ({prism})",
        Engine.BUNDLE_BASED: "BundleBasedDirectRunner, as requested: for TestStream; it refuses "
        "unbounded sources",
    }
    return EngineChoice(engine, why[engine], streaming, prism)


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
    """Make the Beam runner of a choice, each named explicitly.

    Args:
        choice: From `choose_engine`.

    Returns:
        A runner for ``beam.Pipeline(runner=...)``. A Prism runner starts its process when a
        pipeline is run and stops it when that run ends.
    """
    if choice.engine is Engine.FNAPI:
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner, worker_handlers

        worker_handlers.STATE_CACHE_SIZE_MB = STATE_CACHE_MB  # there is no option for it
        return FnApiRunner()
    if choice.engine is Engine.BUNDLE_BASED:
        from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner

        return BundleBasedDirectRunner()
    from apache_beam.runners.worker import sdk_worker

    from tidemill.pipelines.engines.prism import OwnedPrismRunner

    # Beam's worker logs the traceback of a step that failed, and prints it besides: once will do.
    vars(sdk_worker)["print"] = _say_nothing
    assert choice.prism is not None  # EngineChoice has checked it
    return OwnedPrismRunner(choice.prism)


def _say_nothing(*_: object, **__: object) -> None:
    """Stand in for ``print`` where the same text is logged too."""


def engine_options(choice: EngineChoice) -> list[str]:
    """Give the arguments for `PipelineOptions` that belong to an engine.

    Args:
        choice: From `choose_engine`.

    Returns:
        Arguments as on a command line, to be put before the program's own.
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
    """Tell which engine a pipeline ran on, from what it returned.

    Args:
        result: What ``Pipeline.run`` returned.

    Returns:
        ``fnapi``, ``prism`` or ``bundle``; for an engine that is none of these, the module and name
        of the result's class.
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
        The result of a pipeline that is done, its metrics readable.

    Raises:
        WrongEngine: The pipeline ran on another engine.
        TidemillError: A step raised it, or met what the operating system refused.
        RuntimeError: A step failed for another reason; the message holds its error.
    """
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        known = original(error)
        if known is None or known is error:
            raise
        raise known from error
    ran_on = engine_of(result)
    if ran_on != choice.name:
        raise WrongEngine(
            f"the pipeline ran on {ran_on!r}, chosen was {choice.name!r}: build it with "
            "beam.Pipeline(runner=make_runner(choice), options=...)"
        )
    return result
