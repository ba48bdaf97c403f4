"""The exact operator of one (view, shard), as a plain object: sequenced batches in, releases out.

The promises, on any engine that delivers at least once:

* A poll is taken once all its batches and all polls before it have come; a repeated batch is
  dropped; a gap that stays open fails the job with the poll and the positions. So each row counts
  exactly once.
* The **frontier** is the lowest watermark of *all* partitions that the view reads, events and
  requests; before every partition has reported, it is minus infinity. Rows wait until their time
  is below the frontier, and then go to the kernel in the order of the contract.
* Each poll gives one **release** with the poll's number, also if nothing moves. So what a release
  holds depends on the polls alone, and not on how the engine forms its bundles; and a missing
  number is a lost release.
* Every release states the positions that it covers, so that its values can be verified later, and
  a mark (`pipelines.stream.marks`) that names it and all releases before it.

The operator uses no clock and no timer. In mode ``eager`` it passes rows to the kernel as they
come; each answer states its instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN, BoolArray
from tidemill.features.errors import (
    BatchConflict,
    PartitionGap,
    SequenceError,
    StateMismatch,
)
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import (
    Publish,
    Step,
    advance,
)
from tidemill.features.kernel.columns import keep
from tidemill.features.kernel.dedupe import FORGET_FROM, PairSet
from tidemill.features.kernel.plan import Plan
from tidemill.features.kernel.prepare import DIGEST, TIME, matrix_of
from tidemill.features.kernel.tiles.state import Counters, State
from tidemill.pipelines.stream.marks import first_mark, next_mark
from tidemill.pipelines.stream.operator_key import Inputs, Mode, OperatorKey
from tidemill.pipelines.stream.operator_state import (
    Head,
    LoggedRelease,
    decode_release,
    decode_snapshot,
    encode_snapshot,
)
from tidemill.pipelines.stream.receipt import logged_schema, place_by_receipt
from tidemill.pipelines.stream.release import Release, Taken, make_releases
from tidemill.pipelines.stream.sequence import (
    ARRIVAL,
    GROUP,
    SequencedBatch,
    sequenced_events_schema,
)
from tidemill.pipelines.stream.waiting_rows import LogChange, WaitingLog, WaitingRows

MOST_FORGETS: Final = 256
"""After an operator has forgotten events so often, its state is written whole."""


@dataclass
class OperatorCounters:
    """Counts of an operator. All but `repeats` and `early` are functions of the polls.

    Attributes:
        events: Event rows taken.
        requests: Request rows taken.
        repeats: Batches that came before.
        early: Batches that waited for an earlier poll.
        duplicates: Event rows that are an earlier event, delivered again.
        late: Event rows behind the frontier.
        late_requests: Request rows behind the frontier.
    """

    events: int = 0
    requests: int = 0
    repeats: int = 0
    early: int = 0
    duplicates: int = 0
    late: int = 0
    late_requests: int = 0

    @property
    def of_polls(self) -> dict[str, int]:
        """The counts that do not depend on how the engine delivers batches, by name."""
        return {name: count for name, count in vars(self).items() if name not in _OF_DELIVERY}


_OF_DELIVERY: Final = frozenset({"repeats", "early"})


@dataclass
class ShardOperator:
    """The operator of one (view, shard).

    Attributes:
        key: The operator's key.
        plan: The view's plan.
        inputs: The input partitions.
        mode: When rows go to the kernel.
        publish: What is published.
        gap_batches: How many polls may wait behind a missing one before the job fails.
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
        # By poll, then by partition.
        self.held: dict[int, dict[int, SequencedBatch]] = {}
        self.events, self.requests = WaitingRows(), WaitingRows()
        self.waiting_log = WaitingLog()
        self.rows_seen = PairSet()
        # When events were forgotten: the number of the release, and the time before which.
        self.forgets: list[tuple[int, int]] = []
        # Whether the state must be written whole, since what it has forgotten follows from no log.
        self.is_whole_due = False
        # The number of the release as of which the engine's state was written whole.
        self.whole_at = 0
        self.number = 0
        # The number of the last poll that moved the frontier.
        self.moved = 0
        self.mark = first_mark(self.key, self.expected, self.state.frontier_us)
        self.attempt = 0
        # Whether an answer was given as of the frontier (mode ``eager``).
        self.is_answered = False
        # The last poll before the savepoint where the run stops: known once its mark has come.
        self.savepoint: int | None = None
        # Whether the last poll that was taken has the mark of a savepoint.
        self.is_marked = False
        # How many such marks were passed since the run began.
        self.epoch = 0
        self.event_schema = sequenced_events_schema(self.plan)
        self.logged_schema = self.event_schema
        if self.mode is Mode.EAGER:
            self.logged_schema = logged_schema(self.event_schema)

    def receive(self, batches: Iterable[SequencedBatch]) -> list[Release]:
        """Take batches, in any order; give a release for each poll that is then complete.

        The rows of all those polls go to the kernel at once. Behind the mark of a savepoint no poll
        is taken until `pass_savepoint` is called.

        Args:
            batches: Batches of any of the partitions.

        Returns:
            The releases, in order.

        Raises:
            PartitionGap: A poll never came, or not all of it.
            BatchConflict: A repeated batch differs, or a poll does not begin where the one before
                it ended.
            SequenceError: A batch is of a partition that the operator does not read.
        """
        new = [place for batch in batches if (place := self._hold(batch)) is not None]
        taken: list[Taken] = []
        frontier = self.state.frontier_us
        while not self.at_savepoint and self._is_complete(self.number + 1):
            taken.append(self._take_poll(frontier))
            frontier = taken[-1].until_us
        releases = make_releases(self.key, self.state, self.publish, taken)
        if not self.at_savepoint:
            self.counters.early += sum(poll > self.number + 1 for poll, _ in new)
        self._check_gap()
        return releases

    def _is_complete(self, poll: int) -> bool:
        """Tell whether all batches of a poll have come."""
        return len(self.held.get(poll, ())) == len(self.expected)

    def _hold(self, batch: SequencedBatch) -> tuple[int, int] | None:
        """Keep a batch until its poll is taken; return its place if it is new."""
        index = self._index(batch)
        if batch.is_last:
            self.savepoint = batch.poll
            return None
        if batch.poll <= self.number:
            self.counters.repeats += 1
            return None
        of_poll = self.held.setdefault(batch.poll, {})
        other = of_poll.get(index)
        if other is None:
            of_poll[index] = batch
            return batch.poll, index
        if not _same(batch, other):
            raise BatchConflict(
                f"{self.key}: two batches claim {self._name(index)} of poll {batch.poll}: "
                f"positions {other.start} to {other.stop}, and {batch.start} to {batch.stop} with "
                "other rows or another watermark; the source does not read its log the same way "
                "twice"
            )
        self.counters.repeats += 1
        return None

    def _check_gap(self) -> None:
        if self._is_complete(self.number + 1):
            return  # it waits behind the mark of a savepoint
        behind = [poll for poll in self.held if poll > self.number + 1]
        if len(behind) <= self.gap_batches:
            return
        missing = [
            f"{self._name(index)} from position {position}"
            for index, position in enumerate(self.expected)
            if index not in self.held.get(self.number + 1, ())
        ]
        raise PartitionGap(
            f"{self.key}: poll {self.number + 1} never came for {', '.join(missing)}, and "
            f"{len(behind)} polls came behind it (gap_batches is {self.gap_batches}); the engine "
            "lost them: restart from the last checkpoint or from a handoff"
        )

    def _take_poll(self, frontier: int) -> Taken:
        """Take the next poll, all of whose batches have come.

        Args:
            frontier: The frontier before it.
        """
        batches = self.held.pop(self.number + 1)
        taken = [self._take(index, batches[index], frontier) for index in range(len(self.expected))]
        self._take_events([rows for rows in taken if rows is not None], frontier)
        self.number += 1
        self.epoch, self.is_marked = batches[0].epoch, batches[0].is_marked
        if self.mode is Mode.EAGER:
            self._forget(frontier, TIME_MAX)
            return self._taken(frontier, *self._split_eagerly(frontier))
        until = min(self.watermarks)
        if until <= frontier:
            self._forget(frontier, TIME_MIN)
            return self._taken(frontier, None, None, frontier)
        self.moved = self.number
        self._forget(frontier, until)
        return self._taken(
            frontier, self.events.release(until), self.requests.release(until), until
        )

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

    def _name(self, index: int) -> str:
        events = self.inputs.event_partitions
        if index < events:
            return f"event partition {index}"
        return f"request partition {index - events}"

    def _take(self, index: int, batch: SequencedBatch, frontier: int) -> pa.RecordBatch | None:
        """Take the next batch of a partition; return its events."""
        expected = self.expected[index]
        if batch.start != expected:
            raise BatchConflict(
                f"{self.key}: poll {batch.poll} has positions {batch.start} to {batch.stop} of "
                f"{self._name(index)}, expected were positions from {expected}; the source does "
                "not cut its log the same way twice: restart from the last checkpoint or from a "
                "handoff"
            )
        self.expected[index] = batch.stop
        self.watermarks[index] = max(self.watermarks[index], batch.watermark_us)
        rows = batch.rows
        if rows is None or rows.num_rows == 0:
            return None
        if not batch.is_request:
            return rows
        self.counters.requests += rows.num_rows
        behind = hashing.bits(rows.column(TIME)) < frontier
        self.counters.late_requests += int(np.count_nonzero(behind))
        self.requests.add(rows)
        return None

    def _take_events(self, parts: list[pa.RecordBatch], frontier: int) -> None:
        """Take the events of a poll that are new; those before the frontier are late.

        Args:
            parts: Those of each partition.
            frontier: The frontier before the poll.
        """
        if not parts:
            return
        if self.mode is Mode.EAGER:
            # Of the deliveries of an event in one poll, the one that arrived first counts.
            rows = pa.concat_batches(parts)
            order = np.argsort(hashing.bits(rows.column(ARRIVAL)), kind="stable")
            parts = [rows.take(pa.array(order))]
        new = self._remember(parts)
        self.counters.events += len(new)
        count = int(np.count_nonzero(new))
        if count < len(new):
            self.counters.duplicates += len(new) - count
            parts = [keep(pa.concat_batches(parts), new)]
        for part in parts:
            times = hashing.bits(part.column(TIME))
            self.counters.late += int(np.count_nonzero(times < frontier))
            self.events.add(part)

    def _remember(self, parts: Sequence[pa.RecordBatch]) -> BoolArray:
        """Remember events; tell which of them are new."""
        digests = [matrix_of(rows.column(DIGEST)).view(np.uint64) for rows in parts]
        times = [hashing.bits(rows.column(TIME)) for rows in parts]
        return self.rows_seen.add(np.concatenate(digests), np.concatenate(times))

    def _forget(self, frontier: int, released_us: int) -> None:
        """Forget rows whose repeats the stream would reject as too late.

        A source that was quiet may still accept one of them. Whether that counts again must follow
        from the log, so whoever makes the state again from the log of releases has to forget the
        same rows: those that this release, or one before it, has applied.

        Args:
            frontier: The frontier before the poll.
            released_us: All rows before this instant are released.
        """
        oldest = min(self.watermarks[: self.inputs.event_partitions]) - self.inputs.lateness_us
        if oldest > released_us and frontier > TIME_MIN:
            return  # a later poll does it; of what is made from history at once nothing is logged
        if self.rows_seen.forget_before(oldest):
            self.forgets.append((self.number, oldest))
            self.is_whole_due |= len(self.forgets) > MOST_FORGETS

    def written_whole(self) -> None:
        """Note that the engine's state was written whole."""
        self.whole_at, self.is_whole_due = self.number, False

    def _split_eagerly(
        self, frontier: int
    ) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None, int]:
        """Release all waiting rows; return events, requests and the frontier after them.

        The frontier is not before the least watermark, so that a quiet shard does not grow old.
        """
        events, requests = self.events.release(), self.requests.release()
        placed = place_by_receipt(events, requests, frontier, is_answered=self.is_answered)
        until = max(placed.until_us, min(self.watermarks))
        self.is_answered = placed.is_answered and until == placed.until_us
        return placed.events, placed.requests, until

    def _taken(
        self,
        since: int,
        events: pa.RecordBatch | None,
        requests: pa.RecordBatch | None,
        until: int,
    ) -> Taken:
        moves = until > since or any(
            rows is not None and rows.num_rows for rows in (events, requests)
        )
        mark_before = self.mark
        self.mark = next_mark(mark_before, self.number, self.expected, until)
        return Taken(
            number=self.number,
            mark_before=mark_before,
            mark=self.mark,
            since_us=since,
            step=Step(events, requests, until) if moves else None,
            until_us=until,
            groups=pa.array([], pa.int64()) if requests is None else requests.column(GROUP),
            positions=tuple(self.expected),
            seen=self.counters.of_polls,
            epoch=self.epoch,
        )

    @property
    def at_savepoint(self) -> bool:
        """Whether the mark of a savepoint, and all polls before it, have come."""
        return self.is_marked or self.savepoint == self.number

    def pass_savepoint(self) -> None:
        """Go on behind the mark of a savepoint, once the state is kept."""
        if self.is_marked:
            self.is_marked = False
        else:
            self.savepoint = None
        self.epoch += 1

    def begin(self) -> None:
        """Make the state the beginning of a stream: its releases and its counters begin anew."""
        self.number = self.moved = self.whole_at = 0
        self.forgets, self.is_whole_due, self.rows_seen.forget_at = [], False, FORGET_FROM
        self.counters = OperatorCounters()
        self.state.counters = Counters()
        self.mark = first_mark(self.key, self.expected, self.state.frontier_us)

    def resume(self) -> None:
        """Continue after the savepoint at which the state was written, in another run."""
        self.savepoint, self.epoch = None, 0

    def waiting_groups(self) -> tuple[int, ...]:
        """Return the groups of the requests that wait for the frontier."""
        rows = self.requests.rows
        return () if rows is None else tuple(np.unique(hashing.bits(rows.column(GROUP))).tolist())

    def everything(self) -> pa.RecordBatch:
        """Return publications of all entities as of the frontier; the state does not change.

        Neither do its counters: when a store is repaired is not a matter of the log, and the
        releases state what the log gives.
        """
        counters = replace(self.state.counters)
        found = advance(self.state, None, None, self.state.frontier_us, Publish.ALL).publications
        self.state.counters = counters
        return found

    def replay(self, release: LoggedRelease) -> int:
        """Repeat a logged release, for its effect on the state; return its number of events."""
        if release.events is not None:
            self._remember([release.events])
        advance(self.state, release.events, None, release.until_us, Publish.NOTHING)
        return 0 if release.events is None else int(release.events.num_rows)

    def head(self) -> bytes:
        """Encode the small state that changes with every poll: see `Head`."""
        return self._head().encode(self.key)

    def log_waiting(self) -> LogChange:
        """Return what the bundle writes to the log of waiting rows, before its `logged_head`."""
        return self.waiting_log.change(self.events, self.requests, self.number)

    def logged_head(self) -> bytes:
        """Encode the head; without the waiting rows if they are in their log."""
        if not self.waiting_log.is_used:
            return self.head()
        return self._head(is_logged=True).encode(self.key)

    def handed_over_head(self, since: int | None = None) -> bytes:
        """Encode the head for another run: without what an engine's deliveries have left in it.

        Args:
            since: The number of the release as of which the snapshot is that it goes with; None for
                the last one.
        """
        since = self.number if since is None else since
        head = replace(
            self._head(),
            attempt=0,
            seen=self.counters.of_polls,
            held=(),
            epoch=0,
            forgets=self._forgets_since(since),
        )
        return head.encode(self.key)

    def _forgets_since(self, number: int) -> list[tuple[int, int]]:
        return [one for one in self.forgets if one[0] > number]

    def drop_forgets(self, before: int) -> None:
        """Drop what was noted of what it forgot that no state needs any more.

        Args:
            before: The number of the release as of which the oldest snapshot is that counts.
        """
        self.forgets = self._forgets_since(min(before, self.whole_at))

    def _head(self, *, is_logged: bool = False) -> Head:
        return Head(
            expected=self.expected,
            watermarks=self.watermarks,
            held=[batch for batches in self.held.values() for batch in batches.values()],
            events=None if is_logged else self.events.rows,
            requests=None if is_logged else self.requests.rows,
            number=self.number,
            mark=self.mark,
            attempt=self.attempt,
            is_answered=self.is_answered,
            savepoint=self.savepoint,
            seen=vars(self.counters),
            kernel=vars(self.state.counters),
            epoch=self.epoch,
            moved=self.moved if is_logged else None,
            forgets=self._forgets_since(self.whole_at),
            forget_at=self.rows_seen.forget_at,
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """How many tiles it has, and how many events it remembers to recognize their repeats."""
        return self.state.n_tiles, len(self.rows_seen)

    def snapshot(self) -> bytes:
        """Encode the kernel's state and the remembered rows."""
        return encode_snapshot(self.key, self.state, self.rows_seen)

    def restore(
        self,
        head: bytes | pa.Buffer,
        snapshot: bytes | pa.Buffer | None,
        entries: Iterable[bytes],
        waiting: Callable[[], Iterable[bytes]] = tuple,
    ) -> int:
        """Decode a state.

        Args:
            head: The head.
            snapshot: The snapshot; None is the empty state.
            entries: The log since the snapshot, in any order.
            waiting: Reads the log of waiting rows, in any order; called if the head does not have
                these rows.

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
            self.state, self.rows_seen = decode_snapshot(snapshot, self.key, self.plan)
        log = [decode_release(entry, self.key, self.logged_schema) for entry in entries]
        logged, forgets = 0, list(stored.forgets)
        for release in sorted(log, key=lambda one: one.number):
            while forgets and forgets[0][0] < release.number:
                self.rows_seen.drop_before(forgets.pop(0)[1])
            logged += self.replay(release)
        for _, time_us in forgets:
            self.rows_seen.drop_before(time_us)
        self.forgets, self.is_whole_due, self.whole_at = list(stored.forgets), False, 0
        self.expected = list(stored.expected)
        self.watermarks = list(stored.watermarks)
        self.held = {}
        for batch in stored.held:
            self.held.setdefault(batch.poll, {})[self._index(batch)] = batch
        self.number = stored.number
        self.mark = stored.mark
        self.attempt = stored.attempt
        self.is_answered = stored.is_answered
        self.savepoint, self.epoch = stored.savepoint, stored.epoch
        self.counters = OperatorCounters(**stored.seen)
        # Replaying the log answers no requests, so it does not count overflows: take the counters.
        self.state.counters = Counters(**stored.kernel)
        self.waiting_log = WaitingLog()
        if stored.moved is None:
            self.moved = self.number
            self.events, self.requests = WaitingRows(stored.events), WaitingRows(stored.requests)
        else:
            self.moved = stored.moved
            self.events, self.requests = self.waiting_log.restore(
                waiting(), self.event_schema, self.moved, self.state.frontier_us
            )
        if (events := self.events.rows) is not None:
            self._remember([events])
        self.rows_seen.forget_at = stored.forget_at
        return logged


def _same(one: SequencedBatch, two: SequencedBatch) -> bool:
    """Tell whether two batches are equal, apart from when they were read."""
    place = (one.start, one.stop, one.watermark_us)
    if place != (two.start, two.stop, two.watermark_us):
        return False
    if one.rows is None or two.rows is None:
        return one.rows is two.rows
    return bool(one.rows.equals(two.rows))
