"""The steps around a stage that most commands share: load, show progress, print figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidemill.pipelines.commands.session import Session

if TYPE_CHECKING:
    from tidemill.pipelines.config.configuration import Configuration
    from tidemill.pipelines.run.progress import Progress


def load(path: Path, root: Path | None) -> Configuration:
    """Load a configuration, and record its root for explanations of errors."""
    from tidemill.pipelines.config.configuration import load as load_file

    configuration = load_file(path, root=root)
    session = click.get_current_context().find_object(Session)
    if session is not None:
        session.root = configuration.root
    return configuration


def load_for_existing_run(path: Path, root: Path | None) -> Configuration:
    """Load a configuration for an existing root: with the sample's splits if it holds a sample."""
    from tidemill.pipelines.run.run_record import for_existing_run

    return for_existing_run(load(path, root))


def progress(quiet: bool) -> Progress:
    """Return the progress that suits standard error."""
    from tidemill.pipelines.run.progress import make_progress

    return make_progress(sys.stderr, quiet=quiet)


def run_stage(stage: str, root: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage, write its figures to the run's summary, and print them.

    Raises:
        TooManyRejected: More of a source's rows are rejected than it allows; the figures that say
            so are printed before.
    """
    from tidemill.features.errors import TooManyRejected
    from tidemill.pipelines.run.summary import write_summary
    from tidemill.pipelines.run.tables import figure_tables, print_tables

    began = time.perf_counter()
    try:
        figures = {**work(), "seconds": round(time.perf_counter() - began, 3)}
    except TooManyRejected as error:
        print_tables(figure_tables(stage, error.figures), sys.stdout)
        raise
    write_summary(root, stage, figures)
    print_tables(figure_tables(stage, figures), sys.stdout)
    return figures


def end_with_verdict(figures: dict[str, Any]) -> None:
    """Print the result of `verify` as the last line; exit with status 1 on a mismatch."""
    # Without a stream, the values of the training table are what was proven.
    mismatches, values = figures["mismatches"], figures["values"] or figures["training_values"]
    click.echo(f"{mismatches:,} mismatches in {values:,} values")
    if mismatches != 0:
        sys.exit(1)
