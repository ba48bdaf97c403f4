"""The one place where PipelineOptions are made.

No other module parses a flag or builds options. Beam reads ``sys.argv``, ``tidemill``'s own command
line, when it is given no arguments: here it is always given a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.pipelines.engines.choosing import EngineChoice, choose_engine, engine_options

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def stream_engine(configured: str | None, named: str | None = None) -> EngineChoice:
    """Choose the engine of a stream: the one ``named`` by the caller goes before ``configured``.

    Raises:
        UnknownEngine: There is no such engine.
        PrismMissing: It is Prism, and Prism is not built.
    """
    return choose_engine(named or configured, streaming=True)


def pipeline_options(project: str, choice: EngineChoice, step: str) -> PipelineOptions:
    """Return Beam's options for ``beam.Pipeline(runner=make_runner(choice), options=...)``.

    Args:
        project: The project's name, for the job's name.
        choice: The engine.
        step: What the pipeline does, for the job's name: lower-case letters, digits, dashes.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    # Dataflow takes letters, digits and dashes in a job's name; a project's has underscores.
    name = project.replace("_", "-")
    return PipelineOptions([*engine_options(choice), f"--job_name=tidemill-{name}-{step}"])
