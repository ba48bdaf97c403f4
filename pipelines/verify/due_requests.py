"""The requests of a live stream, and which polls make them due, as the live log says it.

A poll makes a request *due* when it lets the last view answer it. In exact mode a view answers a
request with the first poll, from the one that brought it on, that moves the view's frontier past
it: so also a request that came late waits until the frontier moves. A stream that was begun by a
version that answered the requests of a poll together waits for the last of them. In eager mode a
poll makes its own requests due.

The promises: nothing but the log is asked, neither an operator nor a release. Polls that are
written down count from then on, whether a savepoint has sealed them or not. Each poll is read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.features.contract import TIME_MAX, TIME_MIN, BoolArray, Int64Array
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import DamagedState, FileError
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_cuts import Cuts, SentPoll, cuts_table, some_cuts
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.log import POSITION, forgotten_rows
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.log_parts import frontier_of, stream_log, watermarks_at
from tidemill.pipelines.stream.answer_parts import groups_of
from tidemill.pipelines.verify.instants import instant_text

_POLLS_AT_ONCE: Final = 4_096
"""So many polls that are not sealed are held in memory at once, with their rows."""
_SEALED_AT_ONCE: Final = 65_536
"""So many that are sealed, with their requests."""


class Asked(NamedTuple):
    """Requests that no answer was seen for, ``(rows,)``.

    Attributes:
        ids: Their ids, as texts.
        partition: int64: the partition of the log.
        position: int64: the position in it.
        poll: int64: the number, in the live log, of the poll that brought each.
        until_us: int64: what frontiers must pass: its time, or the latest of the requests that are
            answered together with it.
        due: int64, ``(rows, views)``: the number, in the live log, of the poll with which each view
            answers it; 0 if no poll does so yet.
        due_us: int64: when the last of these polls was received; 0 while there is none.
    """

    ids: pa.Array
    partition: Int64Array
    position: Int64Array
    poll: Int64Array
    until_us: Int64Array
    due: Int64Array
    due_us: Int64Array

    @property
    def places(self) -> Int64Array:
        """The place of each in the log (`pipelines.stream.answer_parts.groups_of`)."""
        return groups_of(self.partition, self.position)

    @property
    def is_due(self) -> BoolArray:
        """Which of them are due: bool, ``(rows,)``."""
        found: BoolArray = np.all(self.due > 0, axis=1)
        return found

    def only(self, rows: BoolArray) -> Asked:
        """Return some of them."""
        return Asked(self.ids.filter(pa.array(rows)), *(column[rows] for column in self[1:]))

    def with_more(self, more: Asked) -> Asked:
        """Return these and others."""
        columns = (np.concatenate(both) for both in zip(self[1:], more[1:], strict=True))
        return Asked(pa.concat_arrays([self.ids, more.ids]), *columns)


class _Polls(NamedTuple):
    """Successive polls.

    Attributes:
        cuts: Their cuts.
        rows: Partition of the log to the requests that they brought.
    """

    cuts: Cuts
    rows: Mapping[int, pa.RecordBatch]


class DueRequests:
    """Reads the polls of a live stream, and keeps the requests that no answer was seen for.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.

    Attributes:
        asked: The requests that no answer was seen for.
        before: The number in the live log of the poll before the stream's first one.
        came_due: How many requests have become due.
        last: The number in the live log of the last poll that was read.
        last_us: When it was received.
        of_run_us: When the first poll of the run that is asked about was received; None until one
            of its polls was read.

    Raises:
        StateError: A record or a poll of the live log is damaged.
        DamagedFile: A file of the live log is damaged.
    """

    def __init__(self, config: Configuration, run: StreamRun) -> None:
        self._config, self._run, self._project = config, run, config.project
        self._request = config.project.request
        self._log = stream_log(config.current, config.project)
        self._live = LiveLog(config.current.folder / LIVE, config.project)
        self._topics = self._live.topics()
        begun = watermarks_at(self._log, self._project, run.as_of_us)
        self._marks = {name: np.array(found, np.int64) for name, found in begun.items()}
        self._frontiers = {
            view.name: frontier_of(self._project, view, begun) for view in self._project.views
        }
        self._ends = list(run.positions[self._request.name])
        self.asked, self.came_due = self._nothing(), 0
        self.last, self.last_us = self._first(), run.as_of_us
        self.before = self.last
        self.of_run_us: int | None = None
        self._began_us = 0

    def _first(self) -> int:
        """Return the number of the last poll that was received before the stream began."""
        cuts = self._live.cuts_before(self._run.as_of_us)
        return 0 if cuts is None else int(cuts.number[-1])

    def _nothing(self) -> Asked:
        views, none = len(self._project.views), np.zeros(0, np.int64)
        empty = np.zeros((0, views), np.int64)
        return Asked(pa.array([], pa.string()), none, none, none, none, empty, none)

    def read_on(self, began_us: int = 0, known_until: int = 0) -> None:
        """Read the polls that were written down since they were read last.

        Args:
            began_us: When the run that is asked about began: `of_run_us` is for it.
            known_until: Requests that polls up to this number make due are not kept.

        Raises:
            StateError: A poll is damaged, or missing.
            DamagedFile: A file of the live log is damaged.
        """
        if began_us != self._began_us:
            self._began_us, self.of_run_us = began_us, None
        while True:
            sealed = self._live.sealed().number
            try:
                for polls in self._more(sealed):
                    self._take(polls)
                    self.drop(self.is_due_by(known_until))
                return
            except (DamagedState, FileError):
                # A savepoint may have sealed, and removed, what was to be read.
                if self._live.sealed().number == sealed:
                    raise

    def _more(self, sealed: int) -> Iterator[_Polls]:
        for after in range(self.last, sealed, _SEALED_AT_ONCE):
            cuts = self._live.cuts_between(after, min(after + _SEALED_AT_ONCE, sealed))
            yield _Polls(cuts, self._sealed_rows(cuts))
        logged = self._live.polls.read(after=self.last)
        while found := list(itertools.islice(logged, _POLLS_AT_ONCE)):
            sent = [SentPoll(poll, poll.sent()) for poll in found]
            rows: dict[int, list[pa.RecordBatch]] = {}
            for part in itertools.chain.from_iterable(one.sent.parts for one in sent):
                if part.source == self._request.name and part.rows is not None:
                    rows.setdefault(part.partition, []).append(self._needed(part.rows))
            cuts = some_cuts([cuts_table(sent, self._topics)], self._topics)
            yield _Polls(cuts, {number: pa.concat_batches(some) for number, some in rows.items()})

    def _needed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        names = (self._request.request_id, self._request.request_time, POSITION)
        return pa.RecordBatch.from_arrays([rows.column(name) for name in names], names=list(names))

    def _sealed_rows(self, cuts: Cuts) -> dict[int, pa.RecordBatch]:
        name = self._request.name
        found: dict[int, pa.RecordBatch] = {}
        if (topic := self._topics.get(name)) is None:
            return found
        for column, stop in enumerate(cuts.positions[name][-1].tolist()):
            partition = topic.first + column
            if stop > (start := self._ends[partition]):
                rows = self._log.read_span(name, partition, start, stop)
                found[partition] = self._needed(rows)
        return found

    def _take(self, polls: _Polls) -> None:
        cuts = polls.cuts
        came = self._came(polls)
        rows = self.asked.with_more(came) if len(came.poll) else self.asked
        due = self._due(rows, cuts)
        place = np.searchsorted(cuts.number, due.max(axis=1, initial=0))
        is_new = np.all(due > 0, axis=1) & ~rows.is_due
        self.came_due += int(is_new.sum())
        at_us = cuts.received_us[np.minimum(place, len(cuts.number) - 1)]
        self.asked = rows._replace(due=due, due_us=np.where(is_new, at_us, rows.due_us))
        self.last, self.last_us = int(cuts.number[-1]), int(cuts.received_us[-1])
        if self.of_run_us is None and self.last_us >= self._began_us:
            first = np.searchsorted(cuts.received_us, self._began_us)
            self.of_run_us = int(cuts.received_us[first])

    def _came(self, polls: _Polls) -> Asked:
        """Return the requests that polls have brought."""
        found, cuts, name = self._nothing(), polls.cuts, self._request.name
        for partition, rows in polls.rows.items():
            ends = cuts.positions[name][:, partition - self._topics[name].first]
            position = hashing.bits(rows.column(POSITION))
            place = np.searchsorted(ends, position, "right")
            times = hashing.bits(rows.column(self._request.request_time))
            if not self._run.apart:
                times = _latest(times, place)
            of_partition = Asked(
                rows.column(self._request.request_id).cast(pa.string()),
                np.full(len(place), partition, np.int64),
                position,
                cuts.number[place],
                times,
                np.zeros((len(place), len(self._project.views)), np.int64),
                np.zeros(len(place), np.int64),
            )
            # A forgotten request keeps its time, for which the others of its poll may wait, too.
            found = found.with_more(of_partition.only(~forgotten_rows(self._request, rows)))
        if (topic := self._topics.get(name)) is not None:
            self._ends[topic.first :] = cuts.positions[name][-1].tolist()
        return found

    def _due(self, rows: Asked, cuts: Cuts) -> Int64Array:
        """Return the poll that makes each request due for each view; 0 where none has yet."""
        if self._run.mode != "exact":
            return np.repeat(rows.poll[:, None], rows.due.shape[1], axis=1)
        watermarks = {name: self._watermarks(name, cuts) for name in self._marks}
        due = rows.due.copy()
        for column, view in enumerate(self._project.views):
            least = self._frontier(view, watermarks)
            before = np.concatenate([[self._frontiers[view.name]], least[:-1]])
            before = np.maximum.accumulate(before)
            moves = np.flatnonzero(least > before)
            place = np.maximum(
                np.searchsorted(cuts.number[moves], rows.poll),
                np.searchsorted(least[moves], rows.until_us, "right"),
            )
            open_ = (due[:, column] == 0) & (place < len(moves))
            due[open_, column] = cuts.number[moves[place[open_]]]
            self._frontiers[view.name] = max(int(before[-1]), int(least[-1]))
        self._marks = {name: found[-1] for name, found in watermarks.items()}
        return due

    def _watermarks(self, name: str, cuts: Cuts) -> Int64Array:
        """Return the watermark of each partition of a source after each poll."""
        count, topic = len(self._marks[name]), self._topics.get(name)
        found = np.full((len(cuts.number), count), TIME_MAX)  # files have ended
        if topic is not None:
            found[:, topic.first :] = cuts.watermarks[name][:, : count - topic.first]
        found = np.maximum.accumulate(np.concatenate([self._marks[name][None], found]), axis=0)
        return found[1:]

    def _frontier(self, view: FeatureView, watermarks: Mapping[str, Int64Array]) -> Int64Array:
        both = [watermarks[name] for name in (view.stream.name, self._request.name)]
        least: Int64Array = np.concatenate(both, axis=1).min(axis=1)
        return least

    def drop(self, rows: BoolArray) -> None:
        """Keep no more of some requests: they are answered, or known to be lost."""
        if rows.any():
            self.asked = self.asked.only(~rows)

    def is_due_by(self, poll: int) -> BoolArray:
        """Tell which requests polls up to a number of the live log have made due."""
        found: BoolArray = self.asked.is_due & (self.asked.due.max(axis=1, initial=0) <= poll)
        return found

    def waits_for(self, row: int) -> str:
        """Say what a request that is not due waits for.

        Args:
            row: Its row in `asked`.
        """
        until_us = int(self.asked.until_us[row])
        for column, view in enumerate(self._project.views):
            if self.asked.due[row, column]:
                continue
            if self._frontiers[view.name] > until_us:
                return f"view {view.name} waits for its frontier to move: the request came late"
            source, partition, at_us = self._slowest(view)
            at = "nothing" if at_us <= TIME_MIN else f"what is before {instant_text(at_us)}"
            wanted = f"its answer needs what is before {instant_text(until_us)}"
            if not self._run.apart:
                wanted = f"requests until {instant_text(until_us)} are answered together"
            return (
                f"view {view.name} waits for {source}/{partition}, of which {at} is complete, and "
                f"{wanted}"
            )
        return ""

    def _slowest(self, view: FeatureView) -> tuple[str, int, int]:
        """Return the source, the partition of its topic and the watermark that is the least."""
        found: list[tuple[int, str, int]] = []
        for name in (view.stream.name, self._request.name):
            topic = self._topics.get(name)
            first = 0 if topic is None else topic.first
            marks: Sequence[Any] = self._marks[name].tolist()
            found += [(at_us, name, place - first) for place, at_us in enumerate(marks)]
        at_us, name, partition = min(found)
        return name, partition, at_us


def _latest(times: Int64Array, polls: Int64Array) -> Int64Array:
    """Return for each request the latest time of its poll; rows are in the order of polls."""
    starts = np.flatnonzero(np.diff(polls, prepend=-1))
    sizes = np.diff([*starts.tolist(), len(polls)])
    return np.repeat(np.maximum.reduceat(times, starts), sizes)
