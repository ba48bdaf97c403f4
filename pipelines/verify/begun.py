"""The streams of a root that have begun: what they have published is proven, answers or not."""

from __future__ import annotations

from pathlib import Path

from tidemill.features.errors import StateError
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.stream.output_folders import predictions_of, releases_of
from tidemill.serving.generations.current import Current, streams_of


def has_begun(stream: Path) -> bool:
    """Tell whether a stream has begun.

    It has its record; or it has outputs, and the record is gone.
    """
    try:
        has_record = StreamRun.read(stream) is not None
    except StateError:  # who proves the stream says so
        has_record = True
    return has_record or predictions_of(stream).has_any() or releases_of(stream).has_any()


def begun_streams(current: Current) -> list[Current]:
    """Return the folders of all streams that have begun, the current or newest one first."""
    return [of_it for of_it in streams_of(current.root) if has_begun(of_it.stream_folder)]
