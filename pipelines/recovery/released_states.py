"""States brought forward to the last releases of a stream, by repeating its releases.

A stream's state lies in the engine. What it has released can be made again from the states that it
began with, the log, and the release log, which states positions and frontier of each release. The
rows are those that the stream published, byte for byte, also after late events: the publication of
a late event is valid from the frontier at which it was applied. So releases are repeated as the
release log states them; where no event was late, many at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import FeatureView, Project
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.log import POSITION, Log, one_batch
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.recovery.later_states import publishing_options
from tidemill.pipelines.recovery.release_log import read_releases
from tidemill.pipelines.stream.featurize_options import make_operator, operator_key
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.sequence import SequencedBatch, event_rows
from tidemill.pipelines.stream.state_files import read_handoff

STEP_ROWS: Final = 262_144
"""About how many rows of the log are applied in one step."""


def releases_by_shard(stream: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the entries of a stream's release log, by view and shard, sorted by number."""
    out: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in read_releases(stream):
        out[entry["view"], entry["shard"]].append(entry)
    return out


def released_operators(
    config: Configuration,
    folder: Path,
    releases: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    views: Collection[str],
) -> Iterator[ShardOperator]:
    """Make the operators of views, one at a time, as of the last of their releases."""
    project, log = config.project, Log(config.current.build_folder)
    options = publishing_options(config)
    for index, view in enumerate(project.views):
        for shard in range(config.shards if view.name in views else 0):
            key = operator_key(project, index, shard, config.shards)
            operator = make_operator(project, key, options)
            read_handoff(folder, operator)
            _bring_forward(project, view, log, operator, releases.get((view.name, shard), ()))
            yield operator


def _bring_forward(
    project: Project,
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    releases: Iterable[Mapping[str, Any]],
) -> None:
    """Repeat the releases after an operator's state.

    Args:
        project: The project.
        view: The operator's view.
        log: The log with the events.
        operator: The operator; after the call its state is that of the last release.
        releases: The releases from the release log, sorted by number.

    Raises:
        StateMismatch: A release is missing.
    """
    ahead = [entry for entry in releases if entry["number"] > operator.number]
    numbers = [entry["number"] for entry in ahead]
    if numbers != list(range(operator.number + 1, operator.number + 1 + len(ahead))):
        raise StateMismatch(
            f"{operator.key}: the release log has releases {numbers[:3]}... after "
            f"{operator.number}, with gaps, so it is unknown what was published: run "
            "`tidemill stream` again"
        )
    if not ahead:
        return
    positions = np.array([entry["positions"] for entry in ahead], np.int64)
    frontiers = np.array([entry["frontier_us"] for entry in ahead], np.int64)
    for end in _step_ends(view, log, operator, positions, frontiers):
        batches = list(_batches(project, view, log, operator, positions[end].tolist()))
        operator.catch_up(batches, int(frontiers[end]))
    operator.number = numbers[-1]
    operator.mark = bytes.fromhex(ahead[-1]["mark"])


def _step_ends(
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    positions: Int64Array,
    frontiers: Int64Array,
) -> list[int]:
    """Return the last release of each step: the releases of a step can be applied at once.

    An event's change point is the later of the instant after the event and the frontier before its
    release. Releases applied at once all have the frontier before the first of them. So a release
    that applies a late event must be the first of its step.
    """
    first_of_step = np.zeros(len(frontiers) + 1, np.bool_)
    first_of_step[-1] = True
    before = np.concatenate([[operator.state.frontier_us], frontiers])
    for partition in range(operator.inputs.event_partitions):
        start, stop = operator.expected[partition], int(positions[-1, partition])
        rows = log.read(view.stream.name, partition, [view.stream.event_time, view.key])
        event_times, keys = one_batch(rows.slice(start, stop - start)).columns
        times = hashing.bits(event_times)
        applied = np.searchsorted(positions[:, partition], np.arange(start, stop), "right")
        late = (times + 1 < before[applied]) & _of_shard(operator, keys)
        first_of_step[applied[late]] = True
    taken = positions[:, : operator.inputs.event_partitions].sum(axis=1).tolist()
    since = sum(operator.expected[: operator.inputs.event_partitions])
    for release in range(1, len(frontiers)):
        if taken[release] - since > STEP_ROWS:
            first_of_step[release] = True
        if first_of_step[release]:
            since = taken[release - 1]
    return [int(at) - 1 for at in np.flatnonzero(first_of_step) if at > 0]


def _of_shard(operator: ShardOperator, keys: pa.Array) -> BoolArray:
    shards = hashing.shard_of(hashing.key_bytes(keys), operator.key.shards)
    found: BoolArray = shards == operator.key.shard
    return found


def _batches(
    project: Project,
    view: FeatureView,
    log: Log,
    operator: ShardOperator,
    until: Sequence[int],
) -> Iterator[SequencedBatch]:
    """Read an operator's events up to some positions; requests without rows."""
    events = operator.inputs.event_partitions
    for index, stop in enumerate(until):
        is_request = index >= events
        partition = index - events if is_request else index
        start = operator.expected[index]
        rows = None
        if not is_request and stop > start:
            logged = one_batch(log.read(view.stream.name, partition).slice(start, stop - start))
            mine = logged.filter(pa.array(_of_shard(operator, logged.column(view.key))))
            rows = _event_rows(
                project,
                view,
                operator,
                PollPart(view.stream.name, partition, start, stop, TIME_MIN, mine),
            )
        # The release log has no watermarks. The old watermark is low enough that the operator
        # forgets no row too early.
        watermark = operator.watermarks[index]
        yield SequencedBatch(0, is_request, partition, start, stop, watermark, 0, rows)


def _event_rows(
    project: Project, view: FeatureView, operator: ShardOperator, part: PollPart
) -> pa.RecordBatch | None:
    """Validate rows of the log as the stream does, and prepare them for the operator."""
    (judged,) = validated_poll(project, Poll(0, 0, (part,)))[0].parts
    if judged.rows is None:
        return None
    positions = hashing.bits(judged.rows.column(POSITION))
    declared = judged.rows.select(list(view.stream.schema))
    return event_rows(operator.plan, view, declared, positions)
