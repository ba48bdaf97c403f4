"""The live reader: topics in, polls out, each written down before anything else sees it.

The promises:

* A poll has the rows of the messages that were read since the poll before, judged like the rows of
  a file: ``read = kept + dropped + rejected``. What the log has of a poll is all that counts: a
  reader that goes on after a kill reads from the offsets that its last poll has.
* All rows of a poll were received at one instant of this reader's clock, later than those of every
  poll before it, whatever the machine's clock does. Whether a row is too far ahead, the message's
  own timestamp judges, or this clock if that is earlier: a producer's clock may be wrong.
* The watermark of a partition is its highest time so far minus the stream's out-of-orderness. A
  partition that is *quiet* has another one too: for an instant T it is quiet only if everything
  that the broker had at T has been read (the position is the last stable offset *and* the high
  watermark, which were both asked for after T); then no message that was sent before T is still
  to come, and the watermark is T minus the declared wait minus the out-of-orderness. An open
  transaction, or a fetch that merely returned nothing, proves nothing.
* A row, a message or a poll that cannot be used is rejected with its bytes; none stops a partition.
  Mended messages (`pipelines.io.live.mended`) come in polls of their own, each once.
* No watermark steps back.
* No partition, and no source, runs ahead of another that is behind with its messages
  (`pipelines.io.live.partitions`): rows wait in the topic and not in memory, however long the
  stream has stood still, and however much larger the messages of one source are.
* No position is passed over but in a poll of its own, with the record that a person has accepted it
  (`LiveReader.accept_lost`).
* Marks of savepoints are in the polls (`LiveReader.step`), so that a recovery keeps its state where
  the run before it would have.
* No partition stays unread: one that a topic has got while it is read is read from its beginning.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN
from tidemill.features.definitions import EventStream, Request
from tidemill.features.errors import BrokerUnreachable, StateMismatch
from tidemill.features.kernel import hashing
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Stage
from tidemill.pipelines.io.files.judged_rows import Counts
from tidemill.pipelines.io.live.failing_transforms import judge_what_can_be
from tidemill.pipelines.io.live.floods import Floods
from tidemill.pipelines.io.live.live_source import Ends, LiveFigures, LiveSource, Pace, Standing
from tidemill.pipelines.io.live.lost import Loss, base_of, offset_of, records_of
from tidemill.pipelines.io.live.mended import (
    ACCEPTED,
    OUTCOMES,
    MendedMessage,
    MendedMessages,
    Refusal,
    carried,
    judge_alone,
    outcome,
    row_types,
)
from tidemill.pipelines.io.live.partitions import Partitions, Place, TopicPartition
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.live.steady_clock import wall_clock_us
from tidemill.pipelines.io.log import log_schema
from tidemill.pipelines.io.messages import Messages
from tidemill.pipelines.io.payloads.decoding import Decoded
from tidemill.pipelines.io.poll import Poll, PollPart

_log = logging.getLogger(__name__)

_CHECKS_AT_MOST: Final = 20
"""Asking for the ends of the sources that hold the frontier takes one of so many parts of the time,
at most."""


class _SetAside(NamedTuple):
    """Rejected records, and what the message of each carried beside its value."""

    records: pa.RecordBatch
    carried: pa.RecordBatch


class LiveReader:
    """Reads live sources, poll by poll, from where the poll log ends.

    Args:
        sources: The live sources, by ascending name.
        order: All partitions of all sources of the project, in the order of a poll's parts: the
            source's name, the partition of its log, and the number of its rows if it is of files.
        log: The poll log.
        offsets: Source to the position of each partition of its topic at which the first poll
            begins; further ones that the log does not know begin there, too.
        pace: How often what is done.
        after_us: The first poll is received after this instant.
        clock_us: The machine's clock, in microseconds since 1970.
        seconds: A clock that never steps back, in seconds.
        mended: Where mended messages come from; None for none.
        say: Is told of a flood of rejected rows, and of new partitions.
        max_rejected: Returns which share of a source's rows may be rejected now; None for the one
            that the source has.
    """

    def __init__(
        self,
        sources: Sequence[LiveSource],
        order: Sequence[tuple[str, int, int | None]],
        log: PollLog,
        offsets: Mapping[str, Sequence[int]],
        pace: Pace | None = None,
        *,
        after_us: int = 0,
        clock_us: Callable[[], int] = wall_clock_us,
        seconds: Callable[[], float] = time.monotonic,
        mended: MendedMessages | None = None,
        say: Callable[[str], None] = _log.warning,
        max_rejected: Callable[[str], float] | None = None,
    ) -> None:
        self._sources = {source.definition.name: source for source in sources}
        self._order, self._log = tuple(order), log
        self._pace, self._clock_us, self._seconds = pace or Pace(), clock_us, seconds
        self._partitions = Partitions(self._sources, offsets, self._pace)
        self._at, self._of_log = self._partitions.of_topic, self._partitions.of_log
        self.number, self.received_us, self.epoch = 0, after_us, 0
        self._marked = 0
        self.figures = LiveFigures(
            counts={name: Counts() for name in self._sources},
            late_after_quiet=dict.fromkeys(self._sources, 0),
            caught_up=dict.fromkeys(self._sources, 0),
            mended=dict.fromkeys(self._sources, 0),
            rejected_again=dict.fromkeys(self._sources, 0),
        )
        self._mended, self._floods, self._say = mended, Floods(say), say
        self._newest_us = {
            source.definition.name: TIME_MIN for source in sources if source.clock == "messages"
        }
        self._max_rejected = max_rejected or (lambda name: self._sources[name].max_rejected)
        self._beat_s = self._checked_s = self._counted_s = self._mended_s = -math.inf
        self._held_s = -math.inf
        self._unsaid = False
        if (last := log.last()) is not None:
            self._go_on(last)

    @staticmethod
    def offsets_after(
        log: PollLog, begin: Mapping[str, Sequence[int]]
    ) -> Mapping[str, Sequence[int]]:
        """Return the offsets at which a reader goes on: after the last poll, or to begin with."""
        last = log.last()
        return begin if last is None else last.offsets

    def _go_on(self, last: LoggedPoll) -> None:
        """Go on after the last logged poll."""
        poll = Poll.decode(bytes(last.poll))
        self.number, self.received_us = last.number, max(self.received_us, poll.sent_us)
        self.epoch = poll.next_epoch
        self._marked = last.number if poll.is_marked else 0
        self._newest_us |= last.newest_us
        self._partitions.restore(last, poll)

    def positions(self, source: str) -> tuple[int, ...]:
        """Return the position of each partition of a source's log after what is written down."""
        at = {n: length for name, n, length in self._order if name == source and length is not None}
        at |= {n: log.position for (name, n), log in self._of_log.items() if name == source}
        return tuple(at.get(n, 0) for n in range(max(at, default=-1) + 1))

    @property
    def goes_on_from_mark(self) -> bool:
        """Whether no poll was written down since the last mark, nor before the first."""
        return self.number == self._marked

    def step(self, *, is_marked: bool = False) -> LoggedPoll | None:
        """Read what has come, and write it down as the next poll.

        Args:
            is_marked: Whether the mark of a savepoint comes right after this poll, which is written
                down in any case then.

        Returns:
            The poll; None if nothing has come and no watermark has risen.

        Raises:
            BrokerError: A topic cannot be read.
            StateMismatch: A topic has fewer partitions.
            DamagedState: A reader's offset stepped back.
            FileError: The poll cannot be written down.
        """
        now_s = self._seconds()
        if now_s - self._counted_s >= self._pace.partitions_s:
            self._counted_s = now_s
            with suppress(BrokerUnreachable):  # `TopicReader.poll` says so after its patience
                self.find_partitions()
        if self._mended is not None and now_s - self._mended_s >= self._pace.mended_s:
            if found := self._mended.take(self._pace.poll_messages):
                return self._take_mended(found, is_marked=is_marked)
            self._mended_s = now_s
        rows: dict[Place, list[pa.RecordBatch]] = {}
        refused: list[_SetAside] = []
        partitions = self._partitions
        until_us = partitions.behind_us()
        ahead = partitions.ahead(until_us)
        for name, source in self._sources.items():
            source.reader.leave_out([n for of_source, n in ahead if of_source == name])
            if not partitions.is_near(name, until_us):
                continue
            lowest_us: dict[int, int] = {}
            for messages in source.reader.poll(0.0, self._pace.poll_messages):
                refused += self._take(source, messages, rows, lowest_us, now_s)
            partitions.check_positions(name, source.reader.positions())
            for number, time_us in lowest_us.items():
                self._at[name, number].lowest_us = time_us
        moved = partitions.have_moved
        if now_s - self._checked_s >= self._pace.check_s:
            self._checked_s = self._held_s = now_s
            partitions.ends_before = dict(self.figures.ends)
            self._check(self._sources)
        elif now_s >= self._held_s and (holding := partitions.holding()):
            self._check(holding)
            took_s = self._seconds() - now_s
            self._held_s = now_s + max(self._pace.hold_s or 0.0, _CHECKS_AT_MOST * took_s)
        self._unsaid |= self._partitions.raise_watermarks()
        is_due = self._unsaid and now_s - self._beat_s >= self._pace.beat_s
        if not (moved or is_due or is_marked):
            time.sleep(self._pace.rest_s)
            return None
        self._beat_s, self._unsaid = now_s, False
        return self._write_down(rows, refused, is_marked=is_marked)

    def standings(self) -> list[Standing]:
        """Return where each partition of the topics is."""
        return [
            Standing(
                name,
                partition,
                self._sources[name].log_partition(partition),
                offset_of(at.offset),
                self._of_log[self._partitions.log_of((name, partition))].position,
                at.watermark_us,
                at.quiet_us != TIME_MIN and at.watermark_us == at.quiet_us,
                self._end(name, partition, base_of(at.offset)),
            )
            for (name, partition), at in self._at.items()
        ]

    def _end(self, name: str, partition: int, base: int) -> Ends | None:
        """Return where a partition ended at the last check, as broker's offsets."""
        found = self.figures.ends.get((name, partition))
        return None if found is None else Ends(*(position - base for position in found))

    def accept_lost(self, losses: Sequence[Loss], accepted_by: str) -> LoggedPoll:
        """Write down what topics have lost and a person has accepted, as a poll without rows.

        Args:
            losses: What was lost; the readers of the topics were made with the positions behind.
            accepted_by: Who has accepted it.

        Returns:
            The poll, which is on the disk.

        Raises:
            StateMismatch: The losses do not lead from the positions of the log to those of the
                readers.
            FileError: The poll cannot be written down.
        """
        at = {place: found.offset for place, found in self._at.items()}
        for loss in losses:
            place = loss.source, loss.partition
            if loss.start != at[place] or loss.stop <= loss.start:
                raise StateMismatch(
                    f"{loss.describe()}: the log is at position {at[place]}, not at {loss.start}"
                )
            at[place] = loss.stop
        for name, source in self._sources.items():
            for partition, position in source.reader.positions().items():
                if position != at[name, partition]:
                    raise StateMismatch(
                        f"the reader of {name!r} begins at position {position} of partition "
                        f"{partition}, and what was accepted leads to {at[name, partition]}"
                    )
        return self._write_down({}, [], is_marked=False, losses=losses, accepted_by=accepted_by)

    def find_partitions(self) -> None:
        """Read the partitions that topics have got since, from their beginning.

        Raises:
            StateMismatch: A topic has fewer partitions.
            PositionOutOfRange: A new partition has lost messages that nobody has read.
            BrokerUnreachable: A broker does not answer now.
        """
        for name, source in self._sources.items():
            found, known = source.reader.partitions(), self._partitions.count(name)
            if found < known:
                raise StateMismatch(
                    f"the topic of {name!r} has {found} partitions now, and the stream reads "
                    f"{known}: restore the topic, or begin a new root"
                )
            if found > known:
                source.reader.add(dict.fromkeys(range(known, found), 0))
                for _ in range(known, found):
                    self._partitions.add(name, 0)
                self._say(
                    f"the topic of {name!r} has {found} partitions now, {known} before: the new "
                    "ones are read from their beginning"
                )

    def _take(
        self,
        source: LiveSource,
        messages: Messages,
        rows: dict[Place, list[pa.RecordBatch]],
        lowest_us: dict[int, int],
        now_s: float,
    ) -> list[_SetAside]:
        """Decode and judge messages; return the rejected records.

        Args:
            source: Their source.
            messages: Messages of a partition.
            rows: Takes the accepted rows, by partition of the log.
            lowest_us: Takes their lowest time, by partition of the topic.
            now_s: The time.
        """
        name = source.definition.name
        at = self._at[name, messages.partition]
        refused: list[_SetAside] = []
        for decoded in source.decoder.decode(messages, at.row):
            at.row += len(decoded)
            accepted: list[pa.RecordBatch] = []
            found = self._judge(source, messages, decoded, accepted)
            if accepted:
                place = self._partitions.log_of((name, messages.partition))
                rows.setdefault(place, []).extend(accepted)
                column = source.definition.time_column
                found_us = min(int(hashing.bits(one.column(column)).min()) for one in accepted)
                before_us = lowest_us.get(messages.partition, TIME_MAX)
                lowest_us[messages.partition] = min(before_us, found_us)
            records = rejected.concat(one.records for one in found) if found else None
            self._floods.note(name, self._max_rejected(name), len(decoded), records, now_s)
            refused += found
        if name in self._newest_us:
            # A producer whose clock is wrong does not move that of the others.
            good = np.ones(len(messages), np.bool_)
            for one in refused:
                wrong = hashing.bits(one.records.column("position"))
                good &= ~np.isin(messages.offsets, wrong)
            newest = int(messages.timestamps_us[good].max(initial=TIME_MIN))
            self._newest_us[name] = max(self._newest_us[name], newest)
        return refused

    def _judge(
        self,
        source: LiveSource,
        messages: Messages,
        decoded: Decoded,
        accepted: list[pa.RecordBatch],
    ) -> list[_SetAside]:
        name = source.definition.name
        partition = source.judged(messages.partition)
        unread = _placed(decoded.raw.rejected, partition)
        raw = replace(decoded.raw, partition=partition, rejected=unread)
        refused = []
        for judged in judge_what_can_be(source.judge, source.definition, raw):
            self.figures.counts[name] += judged.counts
            if judged.batch.num_rows:
                accepted.append(judged.batch)
                self._count_late(source, messages.partition, judged.batch)
            if judged.rejected.num_rows:
                numbers = hashing.bits(judged.rejected.column("position")) - decoded.first_position
                place = judged.rejected.schema.get_field_index("position")
                offsets = decoded.offsets[numbers]
                records = judged.rejected.set_column(
                    place, "position", pa.array(offsets, pa.int64())
                )
                stages = records.column("stage").to_pylist()
                types = row_types(decoded.raw.batch.schema, stages)
                refused.append(_SetAside(records, carried(messages, offsets, types)))
        return refused

    def _count_late(self, source: LiveSource, partition: int, batch: pa.RecordBatch) -> None:
        at = self._at[source.definition.name, partition]
        if at.quiet_us == TIME_MIN or at.watermark_us != at.quiet_us:
            return
        times = hashing.bits(batch.column(source.definition.time_column))
        self.figures.late_after_quiet[source.definition.name] += int(
            (times < at.watermark_us).sum()
        )

    def _check(self, names: Iterable[str]) -> None:
        for name in names:
            self.figures.away.add(name)
            with suppress(BrokerUnreachable):  # then nothing is known
                self._check_quiet(self._sources[name])
                self.figures.away.discard(name)

    def _check_quiet(self, source: LiveSource) -> None:
        """Note which partitions of a source have been read to their end as of now."""
        name = source.definition.name
        asked_us = self._clock_us()
        ends, positions = source.reader.ends(), source.reader.positions()
        self.figures.ends |= {(name, partition): end for partition, end in ends.items()}
        quiet = [n for n, end in ends.items() if positions[n] == end.stable == end.high]
        self.figures.caught_up[name] = len(quiet)
        if source.clock == "messages":
            asked_us = min(asked_us, max(self._newest_us.values()))
        if asked_us == TIME_MIN:
            return
        wait_us = self._pace.quiet_us + source.definition.out_of_orderness_us
        for partition in quiet:
            at = self._at[name, partition]
            at.quiet_us = max(at.quiet_us, asked_us - wait_us)

    def _take_mended(self, messages: Sequence[MendedMessage], *, is_marked: bool) -> LoggedPoll:
        """Judge mended messages, and write them down as a poll of their own."""
        rows: dict[Place, list[pa.RecordBatch]] = {}
        outcomes = []
        for message in messages:
            source, place = self._sources[message.stream], (message.stream, message.place.partition)
            at, log = self._at[place], self._partitions.log_of(place)
            judged, of_log = source.judged(place[1]), log[1]
            assert source.rows is not None
            waiting = rows.setdefault(log, [])
            position = self._of_log[log].position + sum(batch.num_rows for batch in waiting)
            found = judge_alone(message, source.decoder, source.rows, source.judge.alone(), judged)
            if not isinstance(found, Refusal):
                known = [why for batch in found for why in source.judge.known(batch).values()]
                found = Refusal(str(Stage.ACCEPT), *known[0]) if known else found
            if isinstance(found, Refusal):
                self.figures.rejected_again[message.stream] += 1
                outcomes.append(outcome(message, of_log, position, 0, found))
                continue
            count = 0
            for batch in found:
                source.judge.take(judged, np.arange(at.row, at.row + batch.num_rows), batch)
                at.row += batch.num_rows
                count += batch.num_rows
                waiting.append(batch)
            self.figures.mended[message.stream] += 1
            outcomes.append(outcome(message, of_log, position, count, ACCEPTED))
        self._partitions.raise_watermarks()
        given = {place: batches for place, batches in rows.items() if batches}
        beside = pa.RecordBatch.from_pylist(outcomes, schema=OUTCOMES)
        return self._write_down(given, [], beside, is_marked=is_marked)

    def _write_down(
        self,
        rows: Mapping[Place, list[pa.RecordBatch]],
        refused: Sequence[_SetAside],
        mended: pa.RecordBatch | None = None,
        *,
        is_marked: bool,
        losses: Sequence[Loss] = (),
        accepted_by: str = "",
    ) -> LoggedPoll:
        number, self.received_us = self.number + 1, max(self._clock_us(), self.received_us + 1)
        parts = []
        for name, partition, length in self._order:
            if length is not None:
                parts.append(PollPart(name, partition, length, length, TIME_MAX, None))
                continue
            source = self._sources[name]
            place = name, partition
            at, batch = self._of_log[place], None
            start = at.position
            if place in rows:
                batch = self._logged(source.definition, rows[place], start)
                at.position += batch.num_rows
            parts.append(PollPart(name, partition, start, at.position, at.watermark_us, batch))
        for name, source in self._sources.items():
            for partition, offset in source.reader.positions().items():
                self._at[name, partition].offset = offset
        poll = Poll(number, self.received_us, tuple(parts), epoch=self.epoch, is_marked=is_marked)
        entry = LoggedPoll(
            number,
            {name: tuple(at.offset for _, at in self._of(name)) for name in self._sources},
            {
                name: tuple(self._partitions.highest_us(place) for place, _ in self._of(name))
                for name in self._sources
            },
            poll.encode(),
            rejected.concat(one.records for one in refused) if refused else None,
            self._newest_us,
            pa.concat_batches([one.carried for one in refused]) if refused else None,
            mended,
            records_of(losses, self.received_us, accepted_by) if losses else None,
            {name: one.topic_id for name, one in self._sources.items() if one.topic_id},
        )
        self._log.append(entry)
        self.number, self.epoch = number, poll.next_epoch
        if is_marked:
            self._marked = number
        return entry

    def _of(self, name: str) -> list[tuple[Place, TopicPartition]]:
        """Return the partitions of a source's topic, ascending."""
        return [(place, at) for place, at in self._at.items() if place[0] == name]

    def _logged(
        self, definition: EventStream | Request, batches: list[pa.RecordBatch], start: int
    ) -> pa.RecordBatch:
        """Return rows as a log has them."""
        rows = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
        positions = np.arange(start, start + rows.num_rows)
        received = np.full(rows.num_rows, self.received_us)
        columns = [rows.column(name) for name in definition.schema]
        return pa.RecordBatch.from_arrays(
            [*columns, pa.array(positions, pa.int64()), pa.array(received, pa.int64())],
            schema=log_schema(definition),
        )


def _placed(records: pa.RecordBatch, partition: int) -> pa.RecordBatch:
    """Return rejected records with the partition of the log."""
    place = records.schema.get_field_index("partition")
    numbers = pa.array(np.full(records.num_rows, partition), pa.int64())
    return records.set_column(place, "partition", numbers)
