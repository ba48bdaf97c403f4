"""The streams of a root that have answered a request."""

from __future__ import annotations

from pathlib import Path

from tidemill.features.errors import StateError
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.release_log import read_release_lines
from tidemill.pipelines.recovery.savepoints import Savepoint
from tidemill.pipelines.stream.output_folders import predictions_of, releases_of
from tidemill.serving.generations.current import Current, streams_of


def has_answered(stream: Path) -> bool:
    """Tell whether a stream has answered a request.

    It has predictions; or what it has released says that it had, and none is left.
    """
    return predictions_of(stream).has_any() or (_counts(stream) and _released_answers(stream))


def _counts(stream: Path) -> bool:
    """Tell whether outputs of a stream count: those of one that was killed early may be missing."""
    try:
        run = StreamRun.read(stream)
        return run is not None and (run.ended or Savepoint.read(stream) is not None)
    except StateError:  # who proves the stream says so
        return True


def _released_answers(stream: Path) -> bool:
    return releases_of(stream).has_any() and any(
        read_release_lines(stream, lambda entry: bool(entry["answers"]))
    )


def answered_streams(current: Current) -> list[Current]:
    """Return the folders of all streams that have answered, the current or newest one first."""
    return [of_it for of_it in streams_of(current.root) if has_answered(of_it.stream_folder)]
