"""The exact operator of one (view, shard), as a plain object: sequenced batches in, releases out.

The promises, on any engine that delivers at least once:

* A batch that comes early waits; rows before the expected position are dropped as repeats; a gap
  that stays open fails the job with the partition and the positions. So each row counts exactly
  once.
* The **frontier** is the lowest watermark of *all* partitions that the view reads, events and
  requests; before every partition has reported, it is minus infinity. Rows wait until their time
  is below the frontier, and then go to the kernel in the order of the contract.
* Every release states the positions that it covers, so that its values can be verified later.

The operator uses no clock and no timer. In mode ``eager`` it passes rows to the kernel as they
come; each answer states its instant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MIN
from tidemill.features.errors import (
    BatchConflict,
    PartitionGap,
    SequenceError,
    StateMismatch,
)
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import Publish, advance
from tidemill.features.kernel.columns import concat, keep
from tidemill.features.kernel.dedupe import PairSet
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.prepare import DIGEST, ID, ORDINAL, TIME, matrix_of
from tidemill.features.kernel.tiles.state import Counters, State
from tidemill.pipelines.stream.operator_key import Inputs, Mode, OperatorKey
from tidemill.pipelines.stream.operator_state import (
    Head,
    decode_release,
    decode_snapshot,
    encode_release,
    encode_snapshot,
)
from tidemill.pipelines.stream.sequence import (
    GROUP,
    REQUEST_ROWS,
    SequencedBatch,
    sequenced_events_schema,
)


@dataclass
class OperatorCounters:
    """Counts of an operator.

    Attributes:
        events: Event rows taken.
        requests: Request rows taken.
        repeats: Batches that came before, completely or in part.
        early: Batches that waited for an earlier one.
        duplicates: Event rows equal to an earlier one.
        conflicts: Event rows with an earlier row's id and other values.
        late: Event rows behind the frontier.
        late_requests: Request rows behind the frontier.
    """

    events: int = 0
    requests: int = 0
    repeats: int = 0
    early: int = 0
    duplicates: int = 0
    conflicts: int = 0
    late: int = 0
    late_requests: int = 0


@dataclass(frozen=True)
class Release:
    """The result of one step of the frontier.

    Attributes:
        number: The number of the release of the operator, from 1.
        since_us: The frontier of the release before: the publications are the changes after it.
            None if they are the whole shard, at the first release of an operator that started
            empty.
        frontier_us: The frontier.
        positions: The next position of each partition, first of events and then of requests.
        answers: Kernel answers with a ``group`` column, in the order of the requests.
        publications: Kernel publications.
        events: The number of applied events.
    """

    number: int
    since_us: int | None
    frontier_us: int
    positions: tuple[int, ...]
    answers: pa.RecordBatch
    publications: pa.RecordBatch
    events: int


@dataclass
class ShardOperator:
    """The operator of one (view, shard).

    Attributes:
        key: The operator's key.
        plan: The view's plan.
        inputs: The input partitions.
        mode: When rows go to the kernel.
        publish: What is published.
        gap_batches: How many batches may come behind a gap before the job fails.
    """

    key: OperatorKey
    plan: Plan
    inputs: Inputs
    mode: Mode = Mode.EXACT
    publish: Publish = Publish.NEWEST
    gap_batches: int = 1_000
    counters: OperatorCounters = field(default_factory=OperatorCounters)

    def __post_init__(self) -> None:
        partitions = self.inputs.event_partitions + self.inputs.request_partitions
        self.state = State(self.plan)
        self.expected = [0] * partitions
        self.watermarks = [TIME_MIN] * partitions
        self.held: list[dict[tuple[int, int], SequencedBatch]] = [{} for _ in range(partitions)]
        # Batches that came behind a gap since it opened. Fewer are held: the empty batches of an
        # idle partition all have one position.
        self.stalled = [0] * partitions
        self.events: list[pa.RecordBatch] = []
        self.requests: list[pa.RecordBatch] = []
        self.rows_seen = PairSet()
        self.ids_seen = PairSet()
        self.number = 0
        self.newest_us = TIME_MIN
        # The position of the savepoint, by partition: known once the savepoint's mark has come.
        self.savepoint_positions: dict[int, int] = {}
        self.event_schema = sequenced_events_schema(self.plan)

    def receive(self, batches: Iterable[SequencedBatch]) -> tuple[Release | None, bytes | None]:
        """Take batches, in any order, and release rows if the frontier advances.

        Args:
            batches: Batches of any of the partitions.

        Returns:
            The release and its entry for the log (`replay`); None and None if there is no release.

        Raises:
            PartitionGap: Rows between two positions never came.
            BatchConflict: Two batches have the same positions and different rows.
            SequenceError: A batch is of a partition that the operator does not read.
        """
        for batch in batches:
            index = self._index(batch)
            if batch.is_last:
                self.savepoint_positions[index] = batch.stop
            self._sequence(index, batch)
        self._forget()
        if self.mode is Mode.EAGER:
            return self._release_eagerly()
        frontier = min(self.watermarks)
        if frontier <= self.state.frontier_us:
            return None, None
        events, self.events = self._split(self.events, frontier)
        requests, self.requests = self._split(self.requests, frontier)
        return self._release(events, requests, frontier)

    def _index(self, batch: SequencedBatch) -> int:
        inputs = self.inputs
        what, partitions = (
            ("request", inputs.request_partitions)
            if batch.is_request
            else ("event", inputs.event_partitions)
        )
        if not 0 <= batch.partition < partitions:
            raise SequenceError(
                f"{self.key}: a batch of {what} partition {batch.partition} came, but there are "
                f"{partitions} {what} partitions; start from a handoff that knows all of them"
            )
        return batch.partition + (inputs.event_partitions if batch.is_request else 0)

    def _sequence(self, index: int, batch: SequencedBatch) -> None:
        expected = self.expected[index]
        if batch.start > expected:
            self._hold(index, batch)
            return
        self._take(index, batch)
        held = self.held[index]
        while held:
            reachable = [span for span in held if span[0] <= self.expected[index]]
            if not reachable:
                return
            self._take(index, held.pop(min(reachable)))

    def _hold(self, index: int, batch: SequencedBatch) -> None:
        held = self.held[index]
        span = (batch.start, batch.stop)
        other = held.get(span)
        if other is None:
            held[span] = batch
            self.counters.early += 1
        else:
            rows = batch.rows
            if rows is not None and other.rows is not None and not rows.equals(other.rows):
                raise BatchConflict(
                    f"{self.key}: two batches claim positions {span} of {self._name(index)} with "
                    "different rows; the source does not read its log the same way twice"
                )
            self.counters.repeats += 1
            # Keep the rows if the repeat is empty, and the later watermark.
            held[span] = dataclasses.replace(
                other,
                rows=rows if other.rows is None else other.rows,
                watermark_us=max(batch.watermark_us, other.watermark_us),
            )
        self.stalled[index] += 1
        if self.stalled[index] > self.gap_batches:
            nearest = min(held)
            raise PartitionGap(
                f"{self.key}: positions {self.expected[index]} to {nearest[0]} of "
                f"{self._name(index)} never came, and {self.stalled[index]} batches came behind "
                f"them (gap_batches is {self.gap_batches}); the engine lost them: restart from the "
                "last checkpoint or from a handoff"
            )

    def _name(self, index: int) -> str:
        events = self.inputs.event_partitions
        if index < events:
            return f"event partition {index}"
        return f"request partition {index - events}"

    def _take(self, index: int, batch: SequencedBatch) -> None:
        """Take a batch that starts at or before the expected position."""
        expected = self.expected[index]
        if batch.stop < expected or (batch.start < expected and batch.stop == expected):
            self.counters.repeats += 1
            return
        rows = batch.rows
        if rows is not None and batch.start < expected:
            self.counters.repeats += 1
            rows = keep(rows, hashing.bits(rows.column(ORDINAL)) >= expected)
        if batch.stop > expected:
            self.stalled[index] = 0
        self.expected[index] = batch.stop
        self.watermarks[index] = max(self.watermarks[index], batch.watermark_us)
        if rows is None or rows.num_rows == 0:
            return
        if batch.is_request:
            self.counters.requests += rows.num_rows
            behind = hashing.bits(rows.column(TIME)) < self.state.frontier_us
            self.counters.late_requests += int(behind.sum())
            self.requests.append(rows)
        else:
            self.counters.events += rows.num_rows
            rows = self._new_rows(rows)
            behind = hashing.bits(rows.column(TIME)) < self.state.frontier_us
            self.counters.late += int(behind.sum())
            self.events.append(rows)

    def _new_rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Drop rows equal to earlier ones; count rows that have an earlier id and other values."""
        new, same_id = self._remember(rows)
        self.counters.duplicates += int((~new).sum())
        self.counters.conflicts += int((new & same_id).sum())
        return keep(rows, new)

    def _remember(self, rows: pa.RecordBatch) -> tuple[Any, Any]:
        times = hashing.bits(rows.column(TIME))
        new = self.rows_seen.add(matrix_of(rows.column(DIGEST)).view(np.uint64), times)
        ids = rows.column(ID)
        pairs = np.stack([hashing.hash_column(ids), hashing.hash_column(ids, seed=1)], axis=1)
        return new, ~self.ids_seen.add(pairs, times)

    def _forget(self) -> None:
        """Forget rows whose repeats the stream would reject as too late."""
        oldest = min(self.watermarks[: self.inputs.event_partitions]) - self.inputs.lateness_us
        self.rows_seen.forget_before(oldest)
        self.ids_seen.forget_before(oldest)

    def _split(
        self, waiting: list[pa.RecordBatch], frontier: int
    ) -> tuple[pa.RecordBatch | None, list[pa.RecordBatch]]:
        rows = concat(waiting)
        if rows is None:
            return None, []
        ready = hashing.bits(rows.column(TIME)) < frontier
        if ready.all():
            return rows, []
        return keep(rows, ready), [keep(rows, ~ready)]

    def _release_eagerly(self) -> tuple[Release | None, bytes | None]:
        events, requests = concat(self.events), concat(self.requests)
        self.events, self.requests = [], []
        if events is None and requests is None:
            return None, None
        least = self.state.frontier_us
        if events is not None and events.num_rows:
            self.newest_us = max(self.newest_us, int(hashing.bits(events.column(TIME)).max()) + 1)
            # The store detects a lost release by the frontiers (`Release.since_us`), so a release
            # that publishes must advance the frontier.
            least += 1
        until = max(self.newest_us, least)
        if requests is not None:
            as_of = np.maximum(hashing.bits(requests.column(TIME)), until)
            until = max(until, int(as_of.max()))
            place = requests.schema.get_field_index(TIME)
            requests = requests.set_column(place, REQUEST_ROWS.field(TIME), pa.array(as_of))
        return self._release(events, requests, until)

    def _release(
        self, events: pa.RecordBatch | None, requests: pa.RecordBatch | None, until: int
    ) -> tuple[Release, bytes]:
        before = self.state.frontier_us
        since = None if before <= TIME_MIN else before
        advanced = advance(self.state, events, requests, until, self.publish)
        self.number += 1
        answers = advanced.answers
        groups = pa.array([], pa.int64()) if requests is None else requests.column(GROUP)
        answers = pa.RecordBatch.from_arrays(
            [*answers.columns, groups], names=[*answers.schema.names, GROUP]
        )
        release = Release(
            number=self.number,
            since_us=since,
            frontier_us=until,
            positions=tuple(self.expected),
            answers=answers,
            publications=advanced.publications,
            events=0 if events is None else events.num_rows,
        )
        return release, encode_release(self.key, until, events)

    @property
    def at_savepoint(self) -> bool:
        """Whether every partition's mark of a savepoint, and all rows before it, have come."""
        return len(self.savepoint_positions) == len(self.expected) and all(
            self.expected[index] == position for index, position in self.savepoint_positions.items()
        )

    def resume(self) -> None:
        """Continue after the savepoint at which the state was written."""
        self.savepoint_positions = {}

    def waiting_groups(self) -> tuple[int, ...]:
        """Return the groups of the requests that wait for the frontier."""
        rows = concat(self.requests)
        return () if rows is None else tuple(np.unique(hashing.bits(rows.column(GROUP))).tolist())

    def catch_up(self, batches: Iterable[SequencedBatch], until_us: int) -> None:
        """Repeat releases of the release log, for their effect on the state.

        Args:
            batches: The batches from the operator's positions to those of the last release;
                requests without rows.
            until_us: The frontier of the last release. Watermarks are not used.
        """
        for batch in batches:
            self._sequence(self._index(batch), batch)
        self._forget()
        events, self.events = self._split(self.events, until_us)
        advance(self.state, events, None, until_us, Publish.NOTHING)

    def everything(self) -> pa.RecordBatch:
        """Return publications of all entities as of the frontier; the state does not change."""
        return advance(self.state, None, None, self.state.frontier_us, Publish.ALL).publications

    def replay(self, entry: bytes) -> int:
        """Repeat a logged release, for its effect on the state; return its number of events."""
        until, events = decode_release(entry, self.key, self.event_schema)
        if events is not None:
            self._remember(events)
        advance(self.state, events, None, until, Publish.NOTHING)
        return 0 if events is None else int(events.num_rows)

    def head(self) -> bytes:
        """Encode the small state that changes with every batch: see `Head`."""
        head = Head(
            expected=self.expected,
            watermarks=self.watermarks,
            stalled=self.stalled,
            held=[held.values() for held in self.held],
            events=concat(self.events),
            requests=concat(self.requests),
            number=self.number,
            newest_us=self.newest_us,
            stops_at=self.savepoint_positions,
            seen=vars(self.counters),
            kernel=vars(self.state.counters),
        )
        return head.encode(self.key)

    def snapshot(self) -> bytes:
        """Encode the kernel's state and the remembered rows."""
        return encode_snapshot(self.key, self.state, self.rows_seen, self.ids_seen)

    def restore(
        self,
        head: bytes | pa.Buffer,
        snapshot: bytes | pa.Buffer | None,
        entries: Iterable[bytes],
    ) -> int:
        """Decode a head, a snapshot (None: the empty state) and the log since the snapshot.

        Returns:
            The number of events in the log.

        Raises:
            StateMismatch: The state belongs to another key.
            StateVersionError: The version of the state is not supported.
            DamagedState: The bytes are damaged.
        """
        stored = Head.decode(head, self.key, self.event_schema)
        if len(stored.expected) != len(self.expected):
            raise StateMismatch(
                f"{self.key}: the state knows {len(stored.expected)} partitions of events and "
                f"requests, here are {len(self.expected)}; start it from a handoff"
            )
        if snapshot is not None:
            self.state, self.rows_seen, self.ids_seen = decode_snapshot(
                snapshot, self.key, self.plan
            )
        logged = sum(self.replay(entry) for entry in entries)
        self.expected = list(stored.expected)
        self.watermarks = list(stored.watermarks)
        self.stalled = list(stored.stalled)
        self.held = [
            {(batch.start, batch.stop): batch for batch in batches} for batches in stored.held
        ]
        self.number = stored.number
        self.newest_us = stored.newest_us
        self.savepoint_positions = dict(stored.stops_at)
        self.counters = OperatorCounters(**stored.seen)
        # Replaying the log answers no requests, so it does not count overflows: take the counters.
        self.state.counters = Counters(**stored.kernel)
        if stored.events is not None:
            self._remember(stored.events)
            self.events = [stored.events]
        self.requests = [] if stored.requests is None else [stored.requests]
        return logged
