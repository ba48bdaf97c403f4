"""Sequenced batches played to the operator of one view, as an engine may deliver them.

What is promised here: the operator is the one that the stream runs
(`tidemill.pipelines.stream.operator`), batches are encoded as in the stream, and a restart reads
the bytes that the stream keeps. Only the engine is missing, so a test decides what an engine does:
in which order batches arrive, which arrive twice, and when the worker dies.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, Int64Array, time_of, write_instant
from tidemill.features.definitions import ARROW_TYPES, TIMESTAMP, FeatureView, Request
from tidemill.features.errors import InputError
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import NULLS, VALUES, Publish
from tidemill.features.kernel.columns import column_arrays
from tidemill.features.kernel.plan import make_plan
from tidemill.features.kernel.prepare import (
    KEY,
    ORDINAL,
    TIME,
    matrix_of,
    nulls_of,
    prepare_requests,
)
from tidemill.pipelines.stream.answer_parts import group_of, partition_of
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Inputs, Mode, OperatorKey
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.sequence import (
    GROUP,
    REQUEST_ROWS,
    SequencedBatch,
    arrivals,
    decode_batches,
    encode_batches,
    event_rows,
    sequenced_events_schema,
)
from tidemill.testing.rows import Instant, Rows, check_rows, instants

_WHOLE: Final = 1
"""The number of shards of a player's view: its one operator gets every key."""


@dataclass(frozen=True, eq=False)
class Released:
    """What the operator released in one step of the frontier.

    Attributes:
        number: Counts the releases of the operator, from 1.
        frontier_us: The frontier, microseconds UTC.
        positions: The next position of each partition, events' and then requests'.
        answers: ``partition`` and ``position`` of the request, ``request_id`` (null where the
            player did not make the request), ``as_of``, and every feature column; in the order of
            the requests.
        publications: The entity's join key, ``event_timestamp``, ``valid_until`` (null: no end),
            ``revision``, and every feature column; anchored ones are anchors. Those of an entity
            are in the order of time; the order of entities is not promised.
        events: How many events it applied.
    """

    number: int
    frontier_us: int
    positions: tuple[int, ...]
    answers: pa.Table
    publications: pa.Table
    events: int

    def lines(self) -> list[str]:
        """Return lines for a golden transcript: the frontier, then each answer and publication.

        Returns:
            A line for each; publications by entity and time.
        """
        out = [f"frontier {_shown(self.frontier_us)}"]
        for row in self.answers.to_pylist():
            del row["partition"], row["position"]
            id, as_of = row.pop("request_id"), row.pop("as_of")
            out.append(f"answer {id} as of {_shown(as_of)}: {_values(row)}")
        published = []
        for row in self.publications.to_pylist():
            key, *_ = row.values()
            del row[self.publications.column_names[0]]
            begin, end = row.pop("event_timestamp"), row.pop("valid_until")
            until = "for ever" if end is None else f"until {_shown(end)}"
            text = f"{key!r} from {_shown(begin)} {until}, revision {row.pop('revision')}"
            published.append(((key, begin), f"publication {text}: {_values(row)}"))
        return out + [text for _, text in sorted(published, key=lambda pair: pair[0])]


def _shown(time: Any) -> str:
    return write_instant(time if isinstance(time, int) else time_of(time))


def _values(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={_shown(value) if isinstance(value, datetime.datetime) else repr(value)}"
        for name, value in row.items()
    )


@dataclass(frozen=True)
class Checkpoint:
    """The state of an operator, as the stream keeps it.

    Attributes:
        head: What changes with every batch: positions, watermarks, waiting rows.
        snapshot: The kernel's state and the remembered rows; None before the first one.
        entries: The releases since the snapshot.
    """

    head: bytes
    snapshot: bytes | None
    entries: tuple[bytes, ...]


def shard_operator(
    view: FeatureView,
    *,
    event_partitions: int = 1,
    request_partitions: int = 1,
    **options: Any,
) -> ShardOperator:
    """Make the empty operator of a view in one shard.

    Args:
        view: The view.
        event_partitions: Partitions of its stream.
        request_partitions: Partitions of the requests.
        **options: Further attributes of `tidemill.pipelines.stream.operator.ShardOperator`.
    """
    stream = view.stream
    return ShardOperator(
        key=OperatorKey(view.name, view.hash, 0, _WHOLE),
        plan=make_plan(view),
        inputs=Inputs(
            event_partitions,
            request_partitions,
            lateness_us=stream.tolerance_us - stream.out_of_orderness_us,
        ),
        **options,
    )


def event_batch(
    view: FeatureView,
    rows: Rows = (),
    *,
    watermark: Instant,
    start: int,
    stop: int | None = None,
    partition: int = 0,
    poll: int = 1,
    received: Sequence[Instant] | None = None,
) -> SequencedBatch:
    """Make a batch of events, encoded and decoded as in the stream.

    Args:
        view: The view.
        rows: Rows of its stream; the last has position ``stop - 1``.
        watermark: The partition's watermark after them: nothing before it is expected any more.
        start: The first position.
        stop: The position after the last; ``start`` plus the number of rows by default. More than
            that leaves holes, as rejected rows do.
        partition: The partition.
        poll: The number of the poll, from 1. A poll has one batch of each partition.
        received: When each row was received; at its own time by default. Only eager mode asks.

    Raises:
        InputError: A row is rejected, or there are more rows than positions.
    """
    checked = check_rows(view.stream, rows)
    checked.refuse_rejected()
    stop = _stop(start, stop, checked.rows.num_rows)
    positions = np.arange(stop - checked.rows.num_rows, stop)
    plan = make_plan(view)
    prepared = None
    if len(positions):
        arrived = _received(checked.rows.column(view.stream.event_time), received)
        prepared = event_rows(plan, view, checked.rows, positions, arrived)
    watermark_us = int(instants(watermark)[0])
    batch = SequencedBatch(poll, False, partition, start, stop, watermark_us, 0, prepared)
    (travelled,) = decode_batches(encode_batches([batch]), sequenced_events_schema(plan))
    return travelled


def request_batch(
    view: FeatureView,
    request: Request,
    rows: Rows = (),
    *,
    watermark: Instant,
    start: int,
    stop: int | None = None,
    partition: int = 0,
    poll: int = 1,
    received: Sequence[Instant] | None = None,
) -> SequencedBatch:
    """Make a batch of requests for a view; the arguments are those of `event_batch`.

    Raises:
        InputError: A row is rejected, or there are more rows than positions.
    """
    checked = check_rows(request, rows)
    checked.refuse_rejected()
    stop = _stop(start, stop, checked.rows.num_rows)
    positions = np.arange(stop - checked.rows.num_rows, stop)
    prepared = None
    if len(positions):
        asked = prepare_requests(view, request, checked.rows, positions)
        groups = pa.array(np.full(len(positions), group_of(partition, start)), pa.int64())
        times = asked.column(TIME)
        arrived = pa.array(arrivals(hashing.bits(times), _received(times, received)))
        prepared = pa.RecordBatch.from_arrays(
            [*asked.columns, groups, arrived], schema=REQUEST_ROWS
        )
    watermark_us = int(instants(watermark)[0])
    batch = SequencedBatch(poll, True, partition, start, stop, watermark_us, 0, prepared)
    events = sequenced_events_schema(make_plan(view))
    (travelled,) = decode_batches(encode_batches([batch]), events)
    return travelled


def _received(times: pa.Array, received: Sequence[Instant] | None) -> Int64Array:
    return hashing.bits(times) if received is None else instants(received)


def _stop(start: int, stop: int | None, rows: int) -> int:
    if stop is None:
        return start + rows
    if stop < start + rows:
        raise InputError(f"{rows} rows do not fit the positions {start} to {stop}")
    return stop


def released(
    view: FeatureView, release: Release, request_ids: Mapping[tuple[int, int], str] | None = None
) -> Released:
    """Name the columns of a release.

    Args:
        view: The view.
        release: What `ShardOperator.receive` gave.
        request_ids: (partition, position) of requests to their ids.
    """
    answers, published = release.answers, release.publications
    positions = hashing.bits(answers.column(ORDINAL)).tolist()
    partitions = [partition_of(group) for group in hashing.bits(answers.column(GROUP)).tolist()]
    places = zip(partitions, positions, strict=True)
    ids = [(request_ids or {}).get(place) for place in places]
    until_us = hashing.bits(published.column("valid_until"))
    for_ever = until_us == TIME_MAX
    kind = ARROW_TYPES[TIMESTAMP]
    return Released(
        number=release.number,
        frontier_us=release.frontier_us,
        positions=release.positions,
        answers=pa.table(
            {
                "partition": pa.array(partitions, pa.int64()),
                "position": pa.array(positions, pa.int64()),
                "request_id": pa.array(ids, pa.string()),
                "as_of": answers.column("as_of").cast(kind),
                **_features(view, answers),
            }
        ),
        publications=pa.table(
            {
                view.entity.join_key: published.column(KEY).cast(ARROW_TYPES[view.entity.dtype]),
                "event_timestamp": published.column("event_timestamp").cast(kind),
                "valid_until": pa.array(np.where(for_ever, 0, until_us), mask=for_ever).cast(kind),
                "revision": published.column("revision"),
                **_features(view, published),
            }
        ),
        events=release.events,
    )


def _features(view: FeatureView, rows: pa.RecordBatch) -> dict[str, pa.Array]:
    return column_arrays(view.columns, matrix_of(rows.column(VALUES)), nulls_of(rows.column(NULLS)))


@dataclass
class ShardPlayer:
    """Makes batches of a view's events and requests, and plays them to its operator.

    A poll has one batch of each partition: the first batch of every partition belongs to the first
    poll, and so on. A new batch takes the next positions of its partition. Give batches to
    `receive`, in any order and as often as you like: the operator releases a poll once all batches
    of it and of the polls before it have come.

    Attributes:
        view: The view.
        request: The project's request; None where nothing is asked.
        event_partitions: Partitions of the view's stream.
        request_partitions: Partitions of the requests.
        mode: ``exact`` or ``eager``.
        every_change: Publish every change point, as for the offline log; else the newest of each
            entity, as for the online store.
        gap_batches: How many polls may wait behind a missing one before it fails.
        operator: The operator as it is now, with its counters.
    """

    view: FeatureView
    request: Request | None = None
    event_partitions: int = 1
    request_partitions: int = 1
    mode: Mode | str = Mode.EXACT
    every_change: bool = False
    gap_batches: int = 1_000
    operator: ShardOperator = field(init=False)

    def __post_init__(self) -> None:
        self.operator = self._empty()
        self._next: dict[tuple[bool, int], tuple[int, int]] = {}
        self._ids: dict[tuple[int, int], str] = {}
        self._snapshot: bytes | None = None
        self._entries: list[bytes] = []

    def _empty(self) -> ShardOperator:
        return shard_operator(
            self.view,
            event_partitions=self.event_partitions,
            request_partitions=self.request_partitions,
            mode=Mode(self.mode),
            publish=Publish.EVERY if self.every_change else Publish.NEWEST,
            gap_batches=self.gap_batches,
        )

    def events(self, rows: Rows = (), *, watermark: Instant, partition: int = 0) -> SequencedBatch:
        """Make the next batch of a partition of events; see `event_batch`."""
        poll, start = self._next.get((False, partition), (1, 0))
        batch = event_batch(
            self.view, rows, watermark=watermark, start=start, partition=partition, poll=poll
        )
        self._next[False, partition] = poll + 1, batch.stop
        return batch

    def requests(
        self, rows: Rows = (), *, watermark: Instant, partition: int = 0
    ) -> SequencedBatch:
        """Make the next batch of a partition of requests; see `event_batch`.

        Raises:
            InputError: The player has no request, or a row is rejected.
        """
        if self.request is None:
            raise InputError(
                f"the player of view {self.view.name!r} has no request: give it request="
            )
        checked = check_rows(self.request, rows)
        checked.refuse_rejected()
        asked = checked.rows
        poll, start = self._next.get((True, partition), (1, 0))
        batch = request_batch(
            self.view,
            self.request,
            asked,
            watermark=watermark,
            start=start,
            partition=partition,
            poll=poll,
        )
        self._next[True, partition] = poll + 1, batch.stop
        for place, id in enumerate(asked.column(self.request.request_id).to_pylist()):
            self._ids[partition, start + place] = str(id)
        return batch

    def receive(self, *batches: SequencedBatch) -> list[Released]:
        """Give batches to the operator at once, as one bundle.

        Returns:
            A release for each poll that they complete, in order; it is empty where nothing moved.

        Raises:
            PartitionGap: A poll never came, or not all of it.
            BatchConflict: Two batches of one partition and poll differ.
            SequenceError: A batch is of a partition that the operator does not depend on.
        """
        releases = self.operator.receive(batches)
        self._entries += [release.entry for release in releases if release.entry is not None]
        return [released(self.view, release, self._ids) for release in releases]

    def checkpoint(self, *, snapshot: bool = True) -> Checkpoint:
        """Return the operator's state, as the stream keeps it after a bundle.

        Args:
            snapshot: Write a snapshot; else only the head, and the releases since the last
                snapshot, as the stream does most of the time.
        """
        if snapshot:
            self._snapshot, self._entries = self.operator.snapshot(), []
        return Checkpoint(self.operator.head(), self._snapshot, tuple(self._entries))

    def restart(self, checkpoint: Checkpoint | None = None) -> None:
        """Continue with a new operator that is restored from a checkpoint.

        Args:
            checkpoint: The checkpoint; the current state by default. Deliver again what was
                received after an older one.
        """
        if checkpoint is None:
            checkpoint = self.checkpoint(snapshot=False)
        self.operator = self._empty()
        self.operator.restore(checkpoint.head, checkpoint.snapshot, checkpoint.entries)
        self._snapshot, self._entries = checkpoint.snapshot, list(checkpoint.entries)
