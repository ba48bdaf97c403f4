"""The streams of a root that have answered a request."""

from __future__ import annotations

from pathlib import Path

from tidemill.pipelines.stream.output_folders import predictions_of
from tidemill.serving.generations.current import Current, streams_of


def has_predictions(stream: Path) -> bool:
    """Tell whether a stream has answered a request."""
    return predictions_of(stream).has_any()


def answered_streams(current: Current) -> list[Current]:
    """Return the folders of all streams that have answered, the current or newest one first."""
    return [of_it for of_it in streams_of(current.root) if has_predictions(of_it.stream_folder)]
