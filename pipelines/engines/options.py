"""The only module that makes PipelineOptions.

Given no arguments, Beam would parse ``sys.argv``, which is ``tidemill``'s own command line. So this
module always passes a list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidemill.pipelines.engines.choosing import EngineChoice, choose_engine, engine_options

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def stream_engine(configured: str | None, named: str | None = None) -> EngineChoice:
    """Choose the engine of a stream: ``named`` if it is given, else ``configured``.

    Raises:
        UnknownEngine: There is no such engine.
        PrismMissing: The engine is Prism, and its binary is not built.
    """
    return choose_engine(named or configured, streaming=True)


def pipeline_options(project: str, choice: EngineChoice, step: str) -> PipelineOptions:
    """Return Beam's options for ``beam.Pipeline(runner=make_runner(choice), options=...)``.

    Args:
        project: The project's name, for the job's name.
        choice: The engine.
        step: The end of the job's name: lower-case letters, digits and dashes.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    # Dataflow allows only letters, digits and dashes; the project's name may have underscores.
    name = project.replace("_", "-")
    return PipelineOptions([*engine_options(choice), f"--job_name=tidemill-{name}-{step}"])
