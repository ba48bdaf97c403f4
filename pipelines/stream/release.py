"""Releases: what the polls that an operator has taken together give, each on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.kernel.advance import Publish, Step, advance_steps, nothing_advanced
from tidemill.features.kernel.columns import concat
from tidemill.features.kernel.steps import is_in_time
from tidemill.features.kernel.tiles.state import State
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.operator_state import LoggedRelease, encode_release
from tidemill.pipelines.stream.sequence import GROUP


@dataclass(frozen=True)
class Taken:
    """A poll that was taken, before the kernel has seen it.

    Attributes:
        number: Its number.
        mark_before: The mark of the release before it.
        mark: The mark of its release.
        since_us: The frontier before it.
        step: The rows that its frontier releases; None if nothing moves.
        until_us: The frontier after it.
        groups: The group of each released request.
        positions: The next position of each partition, first of events and then of requests.
        seen: The operator's counters after it (`OperatorCounters.of_polls`).
        epoch: How many marks of savepoints the run has sent before it.
    """

    number: int
    mark_before: bytes
    mark: bytes
    since_us: int
    step: Step | None
    until_us: int
    groups: pa.Array
    positions: tuple[int, ...]
    seen: Mapping[str, int]
    epoch: int = 0

    @property
    def events(self) -> int:
        """The number of events that its frontier releases."""
        rows = None if self.step is None else self.step.events
        return 0 if rows is None else int(rows.num_rows)


@dataclass(frozen=True)
class Release:
    """The result of one poll.

    Attributes:
        number: The number of the release: that of its poll.
        mark_before: The mark of the release before it.
        mark: Its own mark (`pipelines.stream.marks`).
        since_us: The frontier of the release before: the publications are the changes after it.
            None if they are the whole shard, at the first release of an operator that started
            empty.
        frontier_us: The frontier.
        positions: The next position of each partition, first of events and then of requests.
        answers: Kernel answers with a ``group`` column, in the order of the requests.
        publications: Kernel publications.
        events: The number of applied events.
        seen: The operator's counters after it (`OperatorCounters.of_polls`).
        kernel: The kernel's counters after it, by name.
        entry: The entry for the log since the last snapshot (`ShardOperator.replay`), of this
            release and of those before it without one; None if it goes with a later release, or if
            the kernel's state did not change.
        epoch: How many marks of savepoints the run has sent before its poll.
    """

    number: int
    mark_before: bytes
    mark: bytes
    since_us: int | None
    frontier_us: int
    positions: tuple[int, ...]
    answers: pa.RecordBatch
    publications: pa.RecordBatch
    events: int
    seen: Mapping[str, int]
    kernel: Mapping[str, int]
    entry: bytes | None
    epoch: int = 0


def make_releases(
    key: OperatorKey, state: State, publish: Publish, taken: Sequence[Taken]
) -> list[Release]:
    """Pass the rows of polls to the kernel at once, and make the release of each.

    Args:
        key: The operator's key.
        state: The kernel's state; changed in place.
        publish: What is published.
        taken: The polls, in order.
    """
    steps = [one.step for one in taken if one.step is not None]
    # What a poll gives that moves nothing; made only if there is one.
    nothing = nothing_advanced(state) if len(steps) < len(taken) else None
    counters = replace(state.counters)
    results = iter(advance_steps(state, steps, publish))
    releases = []
    for one in taken:
        if one.step is not None:
            advanced = next(results)
            counters = advanced.counters
        else:
            assert nothing is not None
            advanced = nothing
        answers = advanced.answers
        releases.append(
            Release(
                number=one.number,
                mark_before=one.mark_before,
                mark=one.mark,
                since_us=None if one.since_us <= TIME_MIN else one.since_us,
                frontier_us=one.until_us,
                positions=one.positions,
                answers=pa.RecordBatch.from_arrays(
                    [*answers.columns, one.groups], names=[*answers.schema.names, GROUP]
                ),
                publications=advanced.publications,
                events=one.events,
                seen=one.seen,
                kernel=dict(vars(counters)),
                entry=None,
                epoch=one.epoch,
            )
        )
    return _with_entries(key, taken, releases)


def _with_entries(
    key: OperatorKey, taken: Sequence[Taken], releases: Sequence[Release]
) -> list[Release]:
    """Add the entries for the log to releases.

    An entry is repeated in one step. A late event counts from the frontier before its step, so its
    release begins another entry.
    """
    out = list(releases)
    steps: list[Step] = []

    def close(last: int) -> None:
        if steps:
            events = concat([step.events for step in steps if step.events is not None])
            entry = LoggedRelease(taken[last].number, steps[-1].until_us, events)
            out[last] = replace(out[last], entry=encode_release(key, entry))
            steps.clear()

    for place, one in enumerate(taken):
        if one.step is not None:
            if not is_in_time(one.step.events, one.since_us):
                close(place - 1)
            steps.append(one.step)
    close(len(taken) - 1)
    return out
