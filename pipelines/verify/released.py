"""The streams of a root that are proven: what they have released is, whether it answers or not."""

from __future__ import annotations

from pathlib import Path

from tidemill.pipelines.stream.output_folders import predictions_of, releases_of
from tidemill.serving.generations.current import Current, streams_of


def has_released(stream: Path) -> bool:
    """Tell whether a stream has outputs of a release."""
    return predictions_of(stream).has_any() or releases_of(stream).has_any()


def released_streams(current: Current) -> list[Current]:
    """Return the folders of all streams that have released, the current or newest one first."""
    return [of_it for of_it in streams_of(current.root) if has_released(of_it.stream_folder)]
