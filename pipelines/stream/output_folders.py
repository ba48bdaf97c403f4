"""The folders of a stream's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tidemill.pipelines.io.outputs import OutputFolder
from tidemill.pipelines.run import paths

STAMPS: Final = ("sent_us", "created_us")
"""Columns of predictions that hold the wall clock: a repeat has other values in them."""


def predictions_of(stream: Path) -> OutputFolder:
    """Return the predictions of a stream (`pipelines.stream.infer.predictions`).

    Args:
        stream: The folder of the stream.
    """
    return OutputFolder(stream / paths.PREDICTIONS, STAMPS)


def rejected_of(stream: Path) -> OutputFolder:
    """Return the records that a stream rejected (`features.rows.rejected.SCHEMA`)."""
    return OutputFolder(stream / paths.REJECTED_BY_STREAM)


def releases_of(stream: Path) -> OutputFolder:
    """Return the evidence of a stream's releases, JSON in the column `release_line.LINE`."""
    return OutputFolder(stream / paths.RELEASES)


def publications_of(stream: Path, view: str) -> OutputFolder:
    """Return a view's publications (`pipelines.stream.publications.logged_publications`)."""
    return OutputFolder(stream / paths.PUBLICATIONS / view)


def all_outputs(stream: Path) -> list[OutputFolder]:
    """Return all folders of outputs of a stream."""
    views = sorted(path.name for path in (stream / paths.PUBLICATIONS).glob("*") if path.is_dir())
    return [
        predictions_of(stream),
        rejected_of(stream),
        releases_of(stream),
        *(publications_of(stream, view) for view in views),
    ]


def join_outputs(stream: Path, until: int) -> None:
    """Join the outputs of the segments up to one that counts; see `OutputFolder.join`."""
    for folder in all_outputs(stream):
        folder.join(until)
