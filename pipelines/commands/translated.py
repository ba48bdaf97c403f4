"""What `--translate` prints: the steps of a job, and what would become of those of another one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.pipelines.engines.choosing import EngineChoice

MAPPING: Final = "transform_name_mapping.json"
"""The file with the steps that were renamed, for ``--transform_name_mapping``."""


def show_stream(
    config: Configuration,
    engine: str | None,
    flags: Sequence[str],
    mode: str | None,
    folder: Path,
    replaced: Path | None,
    *,
    resume: bool,
) -> None:
    """Translate the job of a stream, write it, and print its steps.

    Args:
        config: The configuration.
        engine: The engine of the command line.
        flags: Flags of Beam.
        mode: The mode of the command line.
        folder: Where the job is written.
        replaced: The folder of the job that it is to replace; None for none.
        resume: Whether it is the job of a stream that resumes.
    """
    from tidemill.pipelines.engines.options import stream_engine
    from tidemill.pipelines.stream_run.replacement import compare
    from tidemill.pipelines.stream_run.translation import StreamJobSteps, translate_stream

    choice = stream_engine(config.stream.engine, engine, flags)
    check_translates(choice)
    before = None if replaced is None else StreamJobSteps.read(replaced)
    translation, steps = translate_stream(config, choice, mode, resume=resume)
    translation.write(folder)
    steps.write(folder)
    shown = [{"step": one.name, "does": one.does, "hints": _text(one.hints)} for one in steps.steps]
    _print(f"the steps of {translation.job['name']}", shown)
    click.echo(f"{folder} has the job; nothing was submitted")
    if before is None:
        return
    found = compare(before, steps)
    _print("what becomes of the steps of the running job", found.steps)
    _print("what becomes of the states of its views", found.views)
    from tidemill.serving.files.atomic_write import write_text

    write_text(folder / MAPPING, json.dumps(dict(found.update.mapping), indent=2) + "\n")
    for obstacle in found.obstacles:
        click.echo(f"- {obstacle}")
    click.echo(
        "the new job cannot replace the running one: begin a stream of the new version"
        if found.obstacles
        else f"the new job can replace the running one, with {folder / MAPPING}"
    )


def check_translates(choice: EngineChoice) -> None:
    """Check that an engine is one whose jobs are translated.

    Raises:
        UsageError: It runs jobs here.
    """
    if choice.dataflow is None:
        raise click.UsageError(
            f"--translate writes jobs for Dataflow, and the engine is {choice.name!r}: add "
            "--engine dataflow, or leave out --translate"
        )


def _text(hints: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in hints.items())


def _print(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from tidemill.pipelines.run.tables import Table, print_tables

    if rows:
        columns = list(rows[0])
        texts = [[str(row[column]) for column in columns] for row in rows]
        print_tables([Table(title, columns, texts)], sys.stdout)
