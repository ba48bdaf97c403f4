"""Finding requests of a live stream that should have been answered, and were not.

Every request that the log has made due (`pipelines.verify.due_requests`) has an answer, or a
rejected record that says why it has none. One that has neither is

* *lost*, if no run of the stream will answer it: its poll is before a savepoint, so a resumed
  stream begins behind it; or the stream runs, has taken further polls for a while, and holds the
  answer back;
* *unfinished*, if the stream was killed, and resumes from a savepoint before it;
* *waiting*, if it is not due, or the stream is at it just now.

Answers are read after the polls, so what is answered meanwhile is not lost.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import SECOND, BoolArray, Int64Array
from tidemill.features.errors import StateError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.steady_clock import wall_clock_us
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.recovery.savepoints import faults_of_savepoint
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.proof_record import HELD_BACK_REMEDY
from tidemill.pipelines.stream.output_folders import predictions_of, rejected_of
from tidemill.pipelines.stream.rejected_by_stream import are_of_log
from tidemill.pipelines.telemetry.stream_record import StreamRecord
from tidemill.pipelines.verify.diagnosis import Kind
from tidemill.pipelines.verify.due_requests import DueRequests
from tidemill.pipelines.verify.findings import LISTED, LOST, Findings, Mismatch
from tidemill.pipelines.verify.instants import instant_text
from tidemill.pipelines.verify.outputs.extent import complete_polls, complete_segment
from tidemill.pipelines.verify.outputs.places import places_of
from tidemill.serving.files.locks import is_locked

IN_FLIGHT_US: Final = 60 * SECOND
"""A stream that runs may take so long from a poll to the answers that it makes due."""
_TAKEN: Final = 8
"""So many polls later, a stream that runs has surely taken a poll: it is little ahead of its
operators (`pipelines.stream_run.live_input`), also while these wait for a store."""
REMEDIES: Final = {
    True: HELD_BACK_REMEDY,
    False: (
        "a resumed stream begins behind it: ask again, or run `tidemill stream` without --resume, "
        "which answers all requests since the build anew"
    ),
}
"""What to do about lost requests, by whether a stream that runs still holds the answer."""


class Standing(enum.StrEnum):
    """What is with a request that has no answer."""

    LOST = "lost"
    UNFINISHED = "unfinished"
    WAITING = "waiting"


@dataclass(frozen=True)
class Unanswered:
    """A request without an answer.

    Attributes:
        standing: What is with it.
        id: Its id.
        source: The name of the request's source.
        partition: The partition of its log.
        position: The position in it.
        poll: The number, in the stream, of the poll that brought it.
        due_poll: The number of the poll that made it due; None if it is not due.
        why: More about it: since when it is due, or what it waits for.
        remedy: What to do; empty if there is nothing to do.
    """

    standing: Standing
    id: str
    source: str
    partition: int
    position: int
    poll: int
    due_poll: int | None
    why: str
    remedy: str = ""

    @property
    def place(self) -> str:
        """Source, partition and position."""
        return f"{self.source}/{self.partition}:{self.position}"

    def as_figures(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "request": self.id, "source": self.source, "partition": self.partition,
            "position": self.position, "poll": self.poll, "due_poll": self.due_poll,
            "why": self.why, "remedy": self.remedy,
        }  # fmt: skip

    def as_mismatch(self) -> Mismatch:
        """Return it as a mismatch."""
        cause = f"{self.place}: {self.why}; {self.remedy}"
        named = f"{self.id} ({self.place})"
        return Mismatch(
            LOST, self.id, seen="no answer", expected="an answer", cause=cause, kind=Kind.LOST,
            events=(named,),
        )  # fmt: skip


@dataclass
class Found:
    """The requests without an answer.

    Attributes:
        came_due: How many requests have become due, answered or not.
        counts: How many there are of each standing.
        lost: Those that are lost.
        first: The first of each other standing.
    """

    came_due: int = 0
    counts: Counter[Standing] = field(default_factory=Counter)
    lost: list[Unanswered] = field(default_factory=list)
    first: list[Unanswered] = field(default_factory=list)


@dataclass(frozen=True)
class _Instant:
    """How far a stream was at an instant.

    Attributes:
        now_us: The instant.
        complete: The number in the live log of the last poll that a savepoint holds.
        runs: Whether the stream runs.
    """

    now_us: int
    complete: int
    runs: bool


class LostRequests:
    """Finds the requests of a live stream without an answer, each time that it is asked.

    Args:
        config: The configuration, with the folders of the stream.
        run: The record of the stream.
        beyond: Whether only requests are wanted that the last savepoint does not hold: others are
            found by whoever proves its segments.
        clock_us: The machine's clock, in microseconds since 1970.

    Raises:
        StateError: A record of the live log is damaged.
        DamagedFile: A file of the live log is damaged.
    """

    def __init__(
        self,
        config: Configuration,
        run: StreamRun,
        *,
        beyond: bool = False,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._config, self._stream = config, config.current.stream_folder
        self._run, self._beyond, self._clock_us = run, beyond, clock_us
        self._due = DueRequests(config, run)
        self._segment = 0

    def find(self) -> Found:
        """Return the requests without an answer.

        Raises:
            StateError: A record or a poll is damaged.
            DamagedFile: A file is damaged.
        """
        run = StreamRun.read(self._stream) or self._run
        runs = is_locked(self._config.current.stream_lock)
        segment = complete_segment(self._stream, run)
        complete = self._due.before + complete_polls(self._config.current, run)
        self._due.read_on(self._began_us() if runs else 0, complete if self._beyond else 0)
        at = _Instant(self._clock_us(), complete, runs)
        self._due.drop(np.isin(self._due.asked.places, self._answered()))
        self._segment = segment + 1
        return self._judge(at)

    def _began_us(self) -> int:
        try:
            record = StreamRecord.read(self._config.current.folder)
        except StateError:
            return 0  # the next stream writes it again
        return 0 if record is None else record.began_us

    def _answered(self) -> Int64Array:
        """Return the places of answers and of rejected requests, of segments not read yet."""
        names = ("partition", "position")
        found = [np.zeros(0, np.int64)]
        for _, table in predictions_of(self._stream).tables(list(names), since=self._segment):
            found.append(places_of(table, *names))
        wanted = [*names, "stream", "origin"]
        for _, records in rejected_of(self._stream).tables(wanted, since=self._segment):
            of_it = pc.equal(records.column("stream"), self._config.project.request.name)
            mine = of_it.to_numpy(zero_copy_only=False) & are_of_log(records)
            found.append(places_of(records.filter(pa.array(mine)), *names))
        return np.concatenate(found)

    def _is_held_back(self, at: _Instant) -> BoolArray:
        """Tell which due requests a stream that runs has had the time to answer."""
        asked, due = self._due.asked, self._due
        if not at.runs or due.of_run_us is None:
            return np.zeros(len(asked.poll), np.bool_)  # it repeats polls of a run before
        since_us = np.maximum(asked.due_us, due.of_run_us)
        return due.is_due_by(due.last - _TAKEN) & (since_us <= at.now_us - IN_FLIGHT_US)

    def _judge(self, at: _Instant) -> Found:
        asked, found = self._due.asked, Found()
        sealed, held = self._due.is_due_by(at.complete), self._is_held_back(at)
        is_due, found.came_due = asked.is_due, self._due.came_due
        damaged = "" if at.runs or not (is_due & ~sealed).any() else self._why_not_resumed()
        for row in range(len(asked.poll)):
            standing = Standing.WAITING
            if sealed[row] or held[row] or (is_due[row] and damaged):
                standing = Standing.LOST
            elif is_due[row] and not at.runs:
                standing = Standing.UNFINISHED
            found.counts[standing] += 1
            if standing is Standing.LOST or found.counts[standing] <= LISTED:
                why = "" if sealed[row] else damaged
                one = self._named(row, standing, is_held=bool(held[row]), damaged=why)
                (found.lost if standing is Standing.LOST else found.first).append(one)
        return found

    def _why_not_resumed(self) -> str:
        """Return why a stream that does not run cannot be resumed; empty if it can."""
        return "; ".join(faults_of_savepoint(self._config.current, self._run))

    def _named(self, row: int, standing: Standing, *, is_held: bool, damaged: str) -> Unanswered:
        asked, before, remedy = self._due.asked, self._due.before, ""
        due_poll = int(asked.due[row].max()) - before if asked.is_due[row] else None
        why = self._due.waits_for(row)
        if due_poll is not None:
            why = f"due since poll {due_poll}, received at {instant_text(int(asked.due_us[row]))}"
        if standing is Standing.LOST:
            remedy = REMEDIES[is_held]
            if is_held:
                why += "; the stream runs, and holds the answer back"
            elif damaged:
                why += f"; the stream cannot be resumed: {damaged}"
        elif standing is Standing.UNFINISHED:
            remedy = "run `tidemill stream --resume`, which answers it"
        elif due_poll is not None:
            why += "; the stream is at it"
        return Unanswered(
            standing,
            asked.ids[row].as_py(),
            self._config.project.request.name,
            int(asked.partition[row]),
            int(asked.position[row]),
            int(asked.poll[row]) - before,
            due_poll,
            why,
            remedy,
        )


def compare_requests(
    config: Configuration, progress: Progress, findings: Findings
) -> dict[str, Any]:
    """Find the requests of the current live stream that should have been answered, and were not.

    Args:
        config: The configuration, with the folders of the stream.
        progress: Where the first of them are named.
        findings: Takes the lost ones.

    Returns:
        ``due_requests``, how many have become due; ``lost_requests`` and ``unfinished_requests``,
        how many of them have no answer; ``first_lost``,
        ``first_unfinished`` and ``first_waiting``, the first of them. Empty lists of a stream that
        replays files, whose requests `pipelines.verify.served` finds.
    """
    found, current = Found(), config.current
    run = StreamRun.read(current.stream_folder) if current.stream else None
    live = LiveLog(current.folder / LIVE, config.project)
    if run is not None and config.is_live and live.exists:
        found = LostRequests(config, run).find()
    columns = len(config.project.columns)
    for one in found.lost:
        findings.add(one.as_mismatch(), columns)
    first = [*found.lost[:LISTED], *found.first]
    for one in first:
        if one.standing is not Standing.WAITING:
            progress.say(f"{one.standing}: request {one.id} ({one.place}): {one.why}; {one.remedy}")
    return {
        "due_requests": found.came_due,
        "lost_requests": found.counts[Standing.LOST],
        "unfinished_requests": found.counts[Standing.UNFINISHED],
        **{
            f"first_{standing}": [one.as_figures() for one in first if one.standing is standing]
            for standing in Standing
        },
    }
