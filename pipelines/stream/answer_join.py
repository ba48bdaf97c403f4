"""Joining the parts of an answer: a request asks several views, and each answers in its own shard.

A *joiner* takes the requests of some partitions (`pipelines.stream.joiner_key`), and of every
release the answers to these.

The promises: a request is answered once, when every view has answered it, in whatever order the
parts come and however often the engine repeats requests and releases. A missing part is never
filled in. If a view's frontier passes a request by more than ``answer_within`` without an answer,
the request becomes a rejected record that names the view. A frontier counts only when all releases
before it have come, because a missing release may hold the answer.

A request waits for no other one: those of a poll may be of instants far from each other. Requests
of a group are answered in one batch if the same release was the last that each of them needed,
whatever the engine's bundles are, because what is scored together may depend on it.

This is a plain object; `pipelines.stream.featurize` wires it into a stateful stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import Project
from tidemill.features.errors import BatchConflict
from tidemill.features.kernel import hashing
from tidemill.features.kernel.advance import NULLS, VALUES
from tidemill.features.kernel.columns import keep
from tidemill.features.kernel.prepare import (
    ORDINAL,
    fixed_binary,
    matrix_of,
    nulls_of,
)
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, SENT, forgotten_rows
from tidemill.pipelines.stream.answer_parts import (
    AnswerPart,
    Part,
    RequestPart,
    SavepointPart,
    Unanswered,
    partition_of,
)
from tidemill.pipelines.stream.joiner_key import ONLY_JOINER, JoinerKey
from tidemill.pipelines.stream.joiner_state import (
    JoinerState,
    Pending,
    decode_joiner,
    encode_joiner,
)
from tidemill.pipelines.stream.sequence import GROUP

AS_OF: Final = "_as_of"
RELEASE: Final = "_release"
SHARD: Final = "_shard"
_REMEMBERED: Final = 4_096
"""How many closed groups are remembered, to recognize repeats."""


def answered_schema(project: Project) -> list[str]:
    """Return the column names of an answered batch, in order."""
    return [
        *project.request.schema,
        POSITION,
        RECEIVED,
        SENT,
        PARTITION,
        AS_OF,
        RELEASE,
        SHARD,
        VALUES,
        NULLS,
    ]


class _Words(NamedTuple):
    """The columns of answers, ``(rows,)``.

    Attributes:
        ordinals: int64: the positions of their requests.
        values: int64 patterns, ``(rows, columns)``.
        nulls: uint8, ``(rows, columns)``: 1 = null.
        as_of: int64: their instants.
    """

    ordinals: Int64Array
    values: Int64Array
    nulls: npt.NDArray[np.uint8]
    as_of: Int64Array

    @staticmethod
    def of(answers: pa.RecordBatch) -> _Words:
        return _Words(
            hashing.bits(answers.column(ORDINAL)),
            matrix_of(answers.column(VALUES)),
            nulls_of(answers.column(NULLS)),
            hashing.bits(answers.column("as_of")),
        )

    def only(self, mask: BoolArray) -> _Words:
        return _Words(self.ordinals[mask], self.values[mask], self.nulls[mask], self.as_of[mask])


@dataclass
class AnswerJoiner:
    """Joins the parts of answers of some partitions' requests.

    Attributes:
        project: The project.
        shards: The number of shards of each view.
        answer_within_us: How far a frontier may pass an unanswered request.
        gap_releases: How many later releases may wait for a missing one before it counts as lost.
        key: Which joiner it is.
        apart: Whether a request is answered when it can be. If not, the requests of a group are
            answered together, when the last of them can be, as earlier versions did.
        pending: Requests that wait for answers, by group.
        early: Answers that came before their requests, by group.
        closed: The newest closed groups: True if answered, False if given up.
        waiting: By (view's name, shard): the frontiers of early releases, by release number.
        savepoints: By (view's name, shard): its part about the next savepoint.
        epoch: How many savepoints were passed since the run began.
        given_up: Groups of which some requests were given up, while others wait.
        later: Parts from behind the mark of the next savepoint, in the order in which they came.
    """

    project: Project
    shards: int
    answer_within_us: int
    gap_releases: int = 1_000
    key: JoinerKey = ONLY_JOINER
    apart: bool = True
    pending: dict[int, Pending] = field(default_factory=dict)
    early: dict[int, list[AnswerPart]] = field(default_factory=dict)
    closed: dict[int, bool] = field(default_factory=dict)
    waiting: dict[tuple[str, int], dict[int, int]] = field(default_factory=dict)
    savepoints: dict[tuple[str, int], SavepointPart] = field(default_factory=dict)
    epoch: int = 0
    given_up: frozenset[int] = frozenset()
    later: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._places = {view.name: place for place, view in enumerate(self.project.views)}
        widths = [len(view.columns) for view in self.project.views]
        self._offsets = np.concatenate([[0], np.cumsum(widths)]).tolist()
        self.frontiers = np.full((len(widths), self.shards), TIME_MIN, np.int64)
        self.numbers = np.zeros((len(widths), self.shards), np.int64)
        self._earliest: dict[int, int] = {}
        self._complete: dict[int, None] = {}

    def state(self) -> bytes:
        """Encode the state."""
        state = JoinerState(*(getattr(self, name) for name in JoinerState._fields))
        return encode_joiner(state, self.project, self.key)

    def restore(self, state: bytes | pa.Buffer) -> None:
        """Decode a `state`.

        Raises:
            StateMismatch: It is of other views, another number of shards, or another joiner.
            StateVersionError: Its version is not supported.
            DamagedState: The bytes are damaged.
        """
        found = decode_joiner(state, self.project, self.shards, self.key)
        vars(self).update(found._asdict())
        self._complete = dict.fromkeys(self.pending)

    def resume(self) -> None:
        """Continue after the savepoint at which the state was written, in another run."""
        self.savepoints, self.epoch = {}, 0

    def pass_savepoint(self) -> list[Part]:
        """Go on behind a savepoint, once the state is kept.

        Returns:
            The parts that came from behind its mark; `receive` takes them now.
        """
        self.savepoints = {}
        self.epoch += 1
        later, self.later = self.later, []
        return later

    @property
    def at_savepoint(self) -> bool:
        """Whether all answers and requests from before the savepoint have come.

        Every request goes to one shard of each view. So each request is either among those that
        some shard has taken and not answered, or its answers have come. What other joiners wait
        for does not matter.
        """
        return (
            len(self.savepoints) == self.numbers.size
            and all(
                self.numbers[self._places[view], shard] == part.number
                for (view, shard), part in self.savepoints.items()
            )
            and not self.early
            and all(
                group in self.pending or group in self.closed
                for part in self.savepoints.values()
                for group in part.groups
            )
        )

    @property
    def requests_pending(self) -> int:
        """The number of requests that wait for an answer; those that were forgotten get none."""
        ids = (pending.rows.column(self._id) for pending in self.pending.values())
        return sum(len(found) - found.null_count for found in ids)

    def receive(self, parts: Iterable[Part]) -> tuple[list[pa.RecordBatch], list[Unanswered]]:
        """Take parts, in any order. Those from behind the mark of a savepoint wait.

        Returns:
            Answered batches (`answered_schema`): values and nulls over all views' columns, and one
            ``_as_of``, ``_release`` and ``_shard`` word for each view; and the given-up requests.

        Raises:
            BatchConflict: A view answered a request twice, or a repeated request differs.
        """
        touched: dict[int, None] = {}
        for part in parts:
            if part.epoch > self.epoch:
                self.later.append(part)
            elif isinstance(part, RequestPart):
                if self._is_repeat(part):
                    continue
                self._open(part)
                for waiting in self.early.pop(part.group, []):
                    assert waiting.answers is not None  # only parts with answers are kept
                    self._fill(part.group, waiting, _Words.of(waiting.answers))
                touched[part.group] = None
            elif isinstance(part, SavepointPart):
                self.savepoints[part.view, part.shard] = part
            elif self._reach(part) and part.answers is not None:
                touched |= dict.fromkeys(self._take(part, part.answers))
        unanswered = self._give_up(touched) if self.pending else []
        reached = int(self.numbers.min())
        answered = [
            batch
            for group in touched | self._complete
            for batch in self._answer(group, reached)
            if batch.num_rows
        ]
        return answered, unanswered

    def _take(self, part: AnswerPart, answers: pa.RecordBatch) -> Iterator[int]:
        """Take the answers of a part; yield the groups of requests that are pending."""
        groups = hashing.bits(answers.column(GROUP))
        words = _Words.of(answers)
        for group in np.unique(groups).tolist():
            mine = groups == group
            if group in self.pending:
                self._fill(group, part, words if mine.all() else words.only(mine))
                yield group
            elif group not in self.closed:
                early = replace(part, answers=keep(answers, mine))
                self.early.setdefault(group, []).append(early)
            elif self.closed[group]:
                raise self._answered_twice(group, part)

    def _is_repeat(self, part: RequestPart) -> bool:
        """Tell whether these requests came before."""
        if part.group in self.closed:
            return True
        if part.group not in self.pending:
            return False
        # Ignore `_sent`: a retry changes it. All other columns must match.
        names = [name for name in part.rows.schema.names if name != SENT]
        waiting = self.pending[part.group].rows
        again = part.rows
        if again.num_rows > waiting.num_rows:  # the others were answered
            again = keep(again, np.isin(_positions(again), _positions(waiting)))
        if not again.select(names).equals(waiting.select(names)):
            raise BatchConflict(
                f"the requests of group {part.group} (partition {partition_of(part.group)}) came "
                "twice with different rows; the source does not read its log the same way twice"
            )
        return True

    def _reach(self, part: AnswerPart) -> bool:
        """Advance a shard's frontier over the releases that have come without a gap.

        Returns:
            Whether the part is new, and not a release that came before or counted as lost.
        """
        if not part.number:
            return True  # of a batch run
        at = (self._places[part.view], part.shard)
        if part.number <= self.numbers[at]:
            return False
        waiting = self.waiting.setdefault((part.view, part.shard), {})
        if part.number in waiting:
            return False
        waiting[part.number] = part.frontier_us
        if len(waiting) > self.gap_releases:
            # The missing releases are lost; the requests that they answered will be given up.
            self.numbers[at] = min(waiting) - 1
        while int(self.numbers[at]) + 1 in waiting:
            self.numbers[at] += 1
            self.frontiers[at] = max(self.frontiers[at], waiting.pop(int(self.numbers[at])))
        return True

    def _open(self, part: RequestPart) -> None:
        rows, views = part.rows.num_rows, len(self.project.views)
        self.pending[part.group] = Pending(
            rows=part.rows,
            values=np.zeros((rows, self._offsets[-1]), np.int64),
            nulls=np.zeros((rows, self._offsets[-1]), np.uint8),
            as_of=np.zeros((rows, views), np.int64),
            release=np.zeros((rows, views), np.int64),
            shard=np.full((rows, views), -1, np.int64),
            missing=[rows] * views,
        )

    def _fill(self, group: int, part: AnswerPart, words: _Words) -> None:
        """Take the answers of a part to a group of requests that is pending."""
        pending = self.pending[group]
        positions, view = _positions(pending.rows), self._places[part.view]
        place = np.searchsorted(positions, words.ordinals)
        is_gone = positions[np.minimum(place, len(positions) - 1)] != words.ordinals
        if is_gone.any() and group in self.given_up:
            words, place = words.only(~is_gone), place[~is_gone]
        elif is_gone.any() or (pending.shard[place, view] != -1).any():
            raise self._answered_twice(group, part)
        low, high = self._offsets[view], self._offsets[view + 1]
        pending.values[place, low:high] = words.values
        pending.nulls[place, low:high] = words.nulls
        pending.as_of[place, view] = words.as_of
        pending.release[place, view] = part.number
        pending.shard[place, view] = part.shard
        pending.missing[view] -= len(place)

    def _answered_twice(self, group: int, part: AnswerPart) -> BatchConflict:
        return BatchConflict(
            f"view {part.view!r} answered a request of group {group} "
            f"twice (release {part.number} of shard {part.shard}, and another one); the operator's "
            "state does not fit its log: restart from the last checkpoint or from a handoff"
        )

    def _answer(self, group: int, reached: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of the requests of a group that can be answered, and close it after all.

        Args:
            group: The group.
            reached: Of all shards, all releases up to this number have come.
        """
        pending = self.pending.get(group)
        if pending is None or max(pending.missing) == pending.rows.num_rows:
            self._complete.pop(group, None)
            return
        # The last release that each request needed. No other request can need it, once all shards
        # are there, or once the group has no other request.
        last = pending.release.max(axis=1) if self.apart else np.zeros(pending.rows.num_rows)
        can = np.ones(len(last), np.bool_)
        if any(pending.missing):
            is_complete = (pending.shard != -1).all(axis=1)
            can = is_complete & (last <= reached) & (last > 0)  # those of a batch run have none
            if is_complete[~can].any():
                self._complete[group] = None
            else:
                self._complete.pop(group, None)
        if can.all():
            del self.pending[group]
            self._close(group)
        elif can.any():
            self._keep(group, pending, ~can)
        for number in np.unique(last[can]).tolist():
            yield self._answered(pending.only(can & (last == number)), group)

    def _keep(self, group: int, pending: Pending, mask: BoolArray) -> None:
        """Keep some requests of a group, of which there is at least one."""
        self.pending[group] = pending.only(mask)
        self._earliest.pop(group, None)

    def _close(self, group: int) -> None:
        """Remember that no request of a group waits any more."""
        self.closed[group] = group not in self.given_up
        self.given_up -= {group}
        self._complete.pop(group, None)
        self._earliest.pop(group, None)
        if len(self.closed) > _REMEMBERED:
            del self.closed[next(iter(self.closed))]

    @property
    def _id(self) -> str:
        return self.project.request.request_id

    def _without_forgotten(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Leave out requests that were forgotten: they are taken along, and nobody gets them."""
        if not rows.column(self._id).null_count:
            return rows
        return rows.filter(pa.array(~forgotten_rows(self.project.request, rows)))

    def _answered(self, pending: Pending, group: int) -> pa.RecordBatch:
        rows = pending.rows
        found = pa.RecordBatch.from_arrays(
            [
                *rows.columns,
                pa.array(np.full(rows.num_rows, partition_of(group)), pa.int64()),
                fixed_binary(pending.as_of),
                fixed_binary(pending.release),
                fixed_binary(pending.shard),
                fixed_binary(pending.values),
                fixed_binary(pending.nulls),
            ],
            names=answered_schema(self.project),
        )
        return self._without_forgotten(found)

    def _give_up(self, touched: dict[int, None]) -> list[Unanswered]:
        """Give up requests that some view's frontier has passed without an answer.

        Args:
            touched: Takes the groups of which other requests may be complete now.
        """
        out: list[Unanswered] = []
        slowest = self.frontiers.min(axis=1)
        fastest = int(slowest.max())
        for group, pending in list(self.pending.items()):
            until_us = self._earliest_us(group, pending) + self.answer_within_us
            if not any(pending.missing) or fastest <= until_us:
                continue
            times = hashing.bits(pending.rows.column(self.project.request.request_time))
            until = times[:, None] + self.answer_within_us
            is_silent = (pending.shard == -1) & (slowest > until)
            is_lost = is_silent.any(axis=1)
            if is_lost.any():
                out += self._unanswered(group, pending, is_lost, is_silent.any(axis=0))
                touched[group] = None
        return out

    def _unanswered(
        self, group: int, pending: Pending, is_lost: BoolArray, is_silent: BoolArray
    ) -> list[Unanswered]:
        """Give up requests of a group.

        Args:
            group: The group.
            pending: Its requests.
            is_lost: ``(rows,)``: which are given up.
            is_silent: ``(views,)``: the views that did not answer.
        """
        self.given_up |= {group}
        if is_lost.all():
            del self.pending[group]
            self._close(group)
        else:
            self._keep(group, pending, ~is_lost)
        rows = self._without_forgotten(keep(pending.rows, is_lost))
        if not rows.num_rows:
            return []
        names = tuple(
            view.name
            for view, silent in zip(self.project.views, is_silent.tolist(), strict=True)
            if silent
        )
        return [Unanswered(rows, partition_of(group), names, self.epoch)]

    def _earliest_us(self, group: int, pending: Pending) -> int:
        """Return the earliest time of a group's requests; computed once for each group."""
        if group not in self._earliest:
            times = hashing.bits(pending.rows.column(self.project.request.request_time))
            self._earliest[group] = int(times.min())
        return self._earliest[group]

    def drain(self) -> list[Unanswered]:
        """Give up all pending requests; name the views that did not answer."""
        out: list[Unanswered] = []
        for group, pending in list(self.pending.items()):
            every = np.ones(pending.rows.num_rows, np.bool_)
            out += self._unanswered(group, pending, every, np.array(pending.missing) > 0)
        return out


def _positions(rows: pa.RecordBatch) -> Int64Array:
    return hashing.bits(rows.column(POSITION))
