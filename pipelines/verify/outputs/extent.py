"""How far a stream has come, by what it has recorded: what must be there, and what may be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.errors import StateError
from tidemill.pipelines.recovery.handoff import StreamRun, last_states
from tidemill.pipelines.recovery.savepoints import Savepoint, last_segment
from tidemill.serving.generations.current import Current


class Extent(NamedTuple):
    """How far a stream has come.

    Attributes:
        complete: The outputs of polls up to this number must be there.
        last: Those of later polls up to this number may be there: the stream runs, or was killed.
    """

    complete: int
    last: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Answerable:
    """The requests that a stream has taken.

    Attributes:
        answered: The places (`pipelines.stream.answer_parts.group_of`) of the requests that must
            have a prediction.
        possible: Those places, and those of the requests that may have one: the stream has answered
            them, if it has come so far.
        refused: The places of the requests that must be rejected instead.
    """

    answered: Int64Array
    possible: Int64Array
    refused: Int64Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Outputs(Answerable):
    """What the polls of a stream give, as far as it has come.

    Attributes:
        extent: How far that is.
        frontiers: By view: the least frontier of its shards after the last complete poll; None if
            there was none.
        releases: By view, shard and number: frontier and positions of every release that the polls
            give.
        predictions: The predictions that were compared.
        figures: The number of outputs compared, by name.
    """

    extent: Extent
    frontiers: Mapping[str, int]
    releases: Mapping[tuple[str, int, int], tuple[int, tuple[int, ...]]]
    predictions: pa.Table
    figures: Mapping[str, int]


def find_extent(
    current: Current,
    run: StreamRun,
    released: Iterable[tuple[str, int, int]],
    named: Iterable[int],
    parts: int,
    last_poll: int,
) -> Extent:
    """Find how far a stream has come.

    Its outputs are complete up to its last savepoint, and at its end.

    Args:
        current: The folders of the stream.
        run: Its record.
        released: View, shard and number of each recorded release.
        named: The numbers of releases that its other outputs name.
        parts: The number of (view, shard).
        last_poll: The number of the poll at the stream's end.
    """
    numbers = [number for *_, number in released if 0 < number <= last_poll]
    later = [number for number in named if 0 < number <= last_poll]
    at_end = sum(number == last_poll for number in numbers)
    # All its last releases are there: it has ended, or was killed in its very last moment.
    if run.ended or at_end >= parts:
        return Extent(last_poll, last_poll)
    complete = complete_polls(current, run)
    return Extent(complete, max([complete, *numbers, *later]))


def complete_polls(current: Current, run: StreamRun) -> int:
    """Return the number of the last poll whose outputs must be there: of the last savepoint.

    Args:
        current: The folders of the stream.
        run: Its record.
    """
    try:
        # It says so too where the states themselves are lost.
        written = Savepoint.read(current.stream_folder)
        complete = 0 if written is None else written.polls
    except StateError:  # `prove_stream` counts it
        complete = 0
    try:
        _, handoff = last_states(current)
        if handoff.kind == "stop" and handoff.began == run.began:
            complete = max(complete, handoff.polls)
    except StateError:  # the build is gone, or `prove_stream` counts it
        pass
    return complete


def complete_segment(stream: Path, run: StreamRun) -> int:
    """Return the last segment of a stream that has ended; 0 if none has.

    Args:
        stream: The stream's folder.
        run: Its record.
    """
    if run.ended:
        return last_segment(stream)
    savepoint = Savepoint.read(stream)
    return 0 if savepoint is None else savepoint.segment
