"""A stream repeated in this process: what its polls give, without Beam or files.

The outputs of a stream are a function of its log: of where it began, of its polls, and of nothing
else (`pipelines.io.replay`, `pipelines.stream.operator`). So whoever needs them again takes the
polls again: a proof compares what they give with the files, and a republication publishes the
states after them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from tidemill.features.kernel.plan import make_plan
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.validate import validated_poll
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.poll import Poll
from tidemill.pipelines.io.replay import ReplayLog
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import source_partitions, stream_log
from tidemill.pipelines.recovery.stream_polls import stream_polls
from tidemill.pipelines.stream.answer_parts import AnswerPart, Part, Unanswered
from tidemill.pipelines.stream.featurize_options import FeaturizeOptions, make_operator
from tidemill.pipelines.stream.joiners import Joiners
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import Mode, OperatorKey
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.sequence import SequencedBatch, decode_batches, without_requests
from tidemill.pipelines.stream.shard import request_parts, shard_poll
from tidemill.pipelines.stream.state_files import start_from

TOGETHER_ROWS = 65_536
"""About how many rows of the log are passed to the operators at once."""


@dataclass(frozen=True)
class Repeated:
    """What some successive polls give.

    Attributes:
        last_poll: The number of the last of them.
        releases: Every release, with its operator, which has taken all of the polls.
        answered: Answered requests (`pipelines.stream.answer_join.answered_schema`).
        rejected: Rows that are not valid, as rejected records.
        unanswered: Requests that are given up.
        rows: The number of their rows.
    """

    last_poll: int
    releases: list[tuple[ShardOperator, Release]] = field(default_factory=list)
    answered: list[pa.RecordBatch] = field(default_factory=list)
    rejected: list[pa.RecordBatch] = field(default_factory=list)
    unanswered: list[Unanswered] = field(default_factory=list)
    rows: int = 0


class Repeat:
    """The operators and the joiners of a stream, which take its polls again.

    Args:
        config: The configuration, with the folders of the stream; its definitions have made it.
        run: The record of the stream.
        states: The state of each operator (`pipelines.stream.state_files.handed_over`), by view and
            shard; of other views and shards nothing is repeated.
        as_of_us: The states contain all rows received before this instant.
        last_poll: The number of the last poll that they contain.
        publishes: Whether the operators publish and answer; else only their states are wanted.

    Attributes:
        operators: The operators, by view and shard.
        joiners: The stage that joins their answers, in as many shards as the stream has.
        rows: How many rows the polls have.

    Raises:
        StateVersionError: Another version took the rows of the stream in another order.
    """

    def __init__(
        self,
        config: Configuration,
        run: StreamRun,
        states: Mapping[tuple[str, int], bytes],
        *,
        as_of_us: int,
        last_poll: int = 0,
        publishes: bool = True,
    ) -> None:
        run.check_order()
        self._project, current, self._shards = config.project, config.current, config.shards
        options = FeaturizeOptions(
            run="repeat",
            shards=config.shards,
            partitions=source_partitions(stream_log(current, config.project), config.project),
            mode=Mode(run.mode),
            publish=publishes,
            changes=run.offline is not None,
            answer_within_us=config.stream.answer_within_us,
        )
        # What an event counts from depends on the requests in eager mode only.
        self._asks = publishes or options.mode is Mode.EAGER
        self._answers = publishes
        self.operators: dict[tuple[str, int], ShardOperator] = {}
        for (view, shard), state in states.items():
            key = OperatorKey(view, config.project.view(view).hash, shard, config.shards)
            operator = make_operator(config.project, key.text, options)
            start_from(operator, state)
            self.operators[view, shard] = operator
        self.joiners = Joiners.empty(
            config.project,
            config.shards,
            options.answer_within_us,
            run.joiners,
            apart=run.apart,
        )
        self._replay = stream_polls(config, run, as_of_us=as_of_us, last_poll=last_poll)
        self.rows = self._replay.rows

    @property
    def last_poll(self) -> int:
        """The number of the poll at the stream's end, which has no rows; a live one has no end."""
        return self._replay.last_poll_number + isinstance(self._replay, ReplayLog)

    @property
    def polls_before(self) -> int:
        """The number in the live log of the poll before the first one; 0 for replayed files."""
        replay = self._replay
        return 0 if isinstance(replay, ReplayLog) else replay.before - replay.start.number

    def polls(self, until: int, stops: Collection[int] = ()) -> Iterator[Repeated]:
        """Take polls.

        Args:
            until: The number of the last poll to take; that of the stream at most.
            stops: Numbers of polls at which the operators are to be seen: polls after one of them
                are not taken together with it.

        Yields:
            What some polls give, all of them in turn. The operators are as of their last one.
        """
        until = min(until, self.last_poll)
        plans = {view.name: make_plan(view) for view in self._project.views}
        wanted = {view for view, _ in self.operators}
        batches: dict[tuple[str, int], list[SequencedBatch]] = {at: [] for at in self.operators}
        parts: list[Part] = []
        rejected: list[pa.RecordBatch] = []
        rows = 0
        for poll in self._read(until):
            poll_rows = sum(part.stop - part.start for part in poll.parts)
            valid, refused = validated_poll(self._project, poll)
            rejected += refused
            if self._answers and isinstance(self._replay, LivePolls):
                rejected += self._replay.rejected(poll.number)
            if self._answers:
                parts += request_parts(self._project, valid)
            for index, shard, data in shard_poll(self._project, plans, self._shards, valid, wanted):
                place = self._project.views[index].name, shard
                if place in self.operators:
                    of_poll = decode_batches(data, self.operators[place].event_schema)
                    batches[place] += of_poll if self._asks else without_requests(of_poll)
            rows += poll_rows
            if rows >= TOGETHER_ROWS or poll.number in stops or poll.number >= until:
                yield self._take(poll.number, batches, parts, rejected, rows)
                batches = {at: [] for at in self.operators}
                parts, rejected, rows = [], [], 0

    def _read(self, until: int) -> Iterator[Poll]:
        at = self._replay.start
        while at.number < until:
            found = self._replay.next_poll(at, self._end_us(), 0)
            if found is None:
                if isinstance(self._replay, ReplayLog):
                    yield self._replay.final_poll(at, 0)
                return
            poll, at = found
            yield poll

    def _end_us(self) -> int:
        return self._replay.due_us(0.0)

    def _take(
        self,
        last_poll: int,
        batches: Mapping[tuple[str, int], list[SequencedBatch]],
        parts: list[Part],
        rejected: list[pa.RecordBatch],
        rows: int,
    ) -> Repeated:
        out = Repeated(last_poll, rejected=rejected, rows=rows)
        for place, operator in self.operators.items():
            for release in operator.receive(batches[place]):
                out.releases.append((operator, release))
                parts.append(
                    AnswerPart(*place, release.number, release.frontier_us, release.answers)
                )
        if self._answers:
            answered, unanswered = self.joiners.receive(parts)
            out.answered.extend(answered)
            out.unanswered.extend(unanswered)
        return out
