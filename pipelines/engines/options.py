"""The only module that makes PipelineOptions.

Given no arguments, Beam would parse ``sys.argv``, which is ``tidemill``'s own command line. So this
module always passes a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tidemill.pipelines.engines.choosing import EngineChoice, choose_engine, engine_options

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


def stream_engine(
    configured: str | None, named: str | None = None, flags: Sequence[str] = ()
) -> EngineChoice:
    """Choose the engine of a stream: ``named`` if it is given, else ``configured``.

    Args:
        configured: The engine of the configuration.
        named: The engine of the command line.
        flags: Flags of Beam.

    Raises:
        UnknownEngine: There is no such engine.
        PrismMissing: The engine is Prism, and its binary is not built.
        WrongBeamFlag: The engine does not take a flag.
    """
    return choose_engine(named or configured, streaming=True, flags=flags)


def pipeline_options(
    project: str, choice: EngineChoice, step: str, further: Sequence[str] = ()
) -> PipelineOptions:
    """Return Beam's options for ``beam.Pipeline(runner=make_runner(choice), options=...)``.

    Args:
        project: The project's name, for the job's name.
        choice: The engine.
        step: The end of the job's name: lower-case letters, digits and dashes.
        further: Arguments that only this job has.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    name = f"--job_name={job_name(project, step)}"
    return PipelineOptions([*engine_options(choice), *further, name])


def job_name(project: str, step: str) -> str:
    """Return the name of a job."""
    # Dataflow allows only letters, digits and dashes; the project's name may have underscores.
    return f"tidemill-{project.replace('_', '-')}-{step}"
