"""The one place where a configuration becomes Beam's PipelineOptions.

No other module parses a flag or builds options. Beam itself would read ``sys.argv`` when it is
given none, and so take ``tidemill``'s own command line for its own: here it is always given a
list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.choosing import (
    EngineChoice,
    choose_engine,
    engine_options,
)

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def batch_engine() -> EngineChoice:
    """Choose the engine of a bounded run.

    Returns:
        The choice, with the sentence to print.
    """
    return choose_engine(None, streaming=False)


def stream_engine(configuration: Configuration, engine: str | None = None) -> EngineChoice:
    """Choose the engine of a stream.

    Args:
        configuration: Its ``stream.engine`` is the request, unless
        engine: names another (the command line's).

    Returns:
        The choice, with the sentence to print.

    Raises:
        UnknownEngine: There is no such engine.
        PrismMissing: It is Prism, and Prism is not built.
    """
    return choose_engine(engine or configuration.stream.engine, streaming=True)


def pipeline_arguments(
    configuration: Configuration, choice: EngineChoice, step: str = "pipeline"
) -> list[str]:
    """Return the arguments that PipelineOptions are parsed from.

    Args:
        configuration: Names the job.
        choice: The engine.
        step: What the pipeline does, for the job's name: lower-case letters, digits, dashes.
    """
    # Dataflow takes letters, digits and dashes in a job's name; a project's has underscores.
    name = configuration.project.name.replace("_", "-")
    return [*engine_options(choice), f"--job_name=tidemill-{name}-{step}"]


def pipeline_options(
    configuration: Configuration, choice: EngineChoice, step: str = "pipeline"
) -> PipelineOptions:
    """Return Beam's options for ``beam.Pipeline(runner=make_runner(choice), options=...)``.

    Args:
        configuration: As for `pipeline_arguments`.
        choice: As for `pipeline_arguments`.
        step: As for `pipeline_arguments`.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(pipeline_arguments(configuration, choice, step))
