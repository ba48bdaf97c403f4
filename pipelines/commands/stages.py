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


def load(path: Path, root: Path | None, *, finishes: bool = False) -> Configuration:
    """Load a configuration, and record its root for explanations of errors.

    Args:
        path: The file.
        root: The root, in place of that of the file.
        finishes: Whether the command finishes a deletion that was killed; others refuse then.

    Raises:
        StateMismatch: A deletion of the root is half done.
    """
    from tidemill.pipelines.config.configuration import load as load_file

    configuration = load_file(path, root=root)
    if not finishes:
        _check_finished(configuration.root)
    session = click.get_current_context().find_object(Session)
    if session is not None:
        session.root = configuration.root
        session.diagnostics.configure(configuration.logging.format, configuration.logging.level)
    return configuration


def _check_finished(root: Path) -> None:
    """Check that no deletion is half done; most roots never had one, so nothing is imported."""
    if (root / "forgotten").exists():
        from tidemill.pipelines.forget.record import check_finished

        check_finished(root)


def load_for_existing_run(
    path: Path, root: Path | None, *, finishes: bool = False
) -> Configuration:
    """Load a configuration for an existing root: with the sample's splits if it holds a sample."""
    from tidemill.pipelines.run.run_record import for_existing_run

    return for_existing_run(load(path, root, finishes=finishes))


def progress(quiet: bool) -> Progress:
    """Return the progress that suits standard error."""
    from tidemill.pipelines.run.progress import make_progress

    if not quiet and _logs_json():
        from tidemill.pipelines.telemetry.log_progress import LogProgress

        return LogProgress()
    return make_progress(sys.stderr, quiet=quiet)


def _logs_json() -> bool:
    session = click.get_current_context().find_object(Session)
    return session is not None and session.diagnostics.is_json


def _show_figures(stage: str, figures: dict[str, Any]) -> None:
    """Print a stage's figures; where the log is JSON, they are an event of it."""
    if _logs_json():
        import logging

        from tidemill.pipelines.telemetry.events import log_event

        said = f"the figures of {stage}"
        log_event(logging.getLogger(__name__), "figures", said, stage=stage, figures=figures)
        return
    from tidemill.pipelines.run.tables import figure_tables, print_tables

    print_tables(figure_tables(stage, figures), sys.stdout)


def run_stage(stage: str, root: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage, write its figures to the run's summary, and print them in any case.

    Raises:
        FileError: The summary cannot be written.
        TooManyRejected: More of a source's rows are rejected than it allows; the figures that say
            so are printed before.
    """
    from tidemill.features.errors import TooManyRejected
    from tidemill.pipelines.run.summary import write_summary

    began = time.perf_counter()
    try:
        figures = {**work(), "seconds": round(time.perf_counter() - began, 3)}
    except TooManyRejected as error:
        _show_figures(stage, error.figures)
        raise
    try:
        write_summary(root, stage, figures)
    finally:
        _show_figures(stage, figures)  # also where the disk is full
    return figures


def end_with_verdict(figures: dict[str, Any]) -> None:
    """Print the result of `verify` as the last line; exit with status 1 on a mismatch."""
    # Without a stream, the values of the training table are what was proven.
    mismatches, values = figures["mismatches"], figures["values"] or figures["training_values"]
    click.echo(f"{mismatches:,} mismatches in {values:,} values")
    if mismatches != 0:
        sys.exit(1)
