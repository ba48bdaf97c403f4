"""The input of a stream that replays the log: it ends, or stops at a savepoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam

from tidemill.features.definitions import Project
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.cuts import Cut, FileCutLog
from tidemill.pipelines.io.exchange.program_end import ProgramEnd
from tidemill.pipelines.io.exchange.source import ReceivePolls
from tidemill.pipelines.io.replay import Replay, ReplayLog, ReplayOptions, ReplayPolls
from tidemill.pipelines.recovery.resume import Reached, Start, by_source
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.telemetry.polls_taken import PollsTaken
from tidemill.pipelines.telemetry.running import figures_place


def recorded_cuts(stream: Path) -> tuple[Cut, ...]:
    """Return where the savepoints of a stream have cut its polls."""
    return tuple(FileCutLog(stream / paths.CUTS).recorded())


@dataclass
class ReplayInput:
    """The rows of a log that were received in a span of time.

    Attributes:
        project: The project.
        options: What is replayed.
        stream: The folder of the stream.
        segment: The number of the segment.
    """

    project: Project
    options: ReplayOptions
    stream: Path
    segment: int

    def __post_init__(self) -> None:
        self.begins = ReplayLog(self.project, self.options)

    @staticmethod
    def of(
        config: Configuration, start: Start, speed: float | None, until_us: int | None
    ) -> ReplayInput:
        """Return the rows of a run.

        Args:
            config: The configuration.
            start: The start of the run.
            speed: How many times faster than real time; None for the configured speed.
            until_us: Where to stop at a savepoint; None to run to the stream's end.
        """
        stream = start.current.stream_folder
        options = ReplayOptions(
            root=start.current.build_folder,
            start_us=start.handoff.as_of_us,
            stop_us=config.splits.stream_until_us if until_us is None else until_us,
            poll_rows=start.run.poll_rows,
            speed=speed if speed is not None else config.stream.speed,
            ends=until_us is None,
            polls=start.handoff.polls,
            requests_first=Mode(start.run.mode) is Mode.EAGER,
            cuts=recorded_cuts(stream) if start.resumes else (),
            order=tuple(start.run.positions),
        )
        return ReplayInput(config.project, options, stream, start.segment)

    @property
    def ends(self) -> bool:
        """Whether the stream ends after these rows; else it stops at a savepoint."""
        return self.options.ends

    @property
    def stop(self) -> None:
        """Nobody can stop a replay in order before its end."""
        return None

    @property
    def last_segment(self) -> int:
        """The number of the run's last segment: it has one."""
        return self.segment

    @property
    def stop_us(self) -> int:
        """Rows that were received at this instant or later do not come."""
        return self.options.stop_us

    @property
    def speed(self) -> float | None:
        """How many times faster than real time."""
        return self.options.speed

    @property
    def requests(self) -> int | None:
        """How many requests come."""
        return self.begins.rows_of(self.project.request.name)

    @property
    def scored_from(self) -> tuple[int, ...]:
        """The position of each partition of the request from which on no row was sent yet."""
        begins = by_source(self.begins, self.begins.start.positions)
        return tuple(begins[self.project.request.name])

    @property
    def has_stopped(self) -> bool:
        """Whether it is known which segment is the last one."""
        return True

    @property
    def last_poll(self) -> int:
        """The number of the last poll."""
        return self.begins.last_poll_number + self.ends

    def read(
        self,
        pipeline: beam.Pipeline,
        attempt: Attempt | None = None,
        exchange: ProgramEnd | None = None,
        *,
        by_impulses: bool = False,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Wire the source; return the polls, and collections of rejected records.

        Args:
            pipeline: The pipeline.
            attempt: The job's attempt, if the source is to stay when it has sent all.
            exchange: Sends the polls to the source, if it does not share the program's disk.
            by_impulses: Whether the source is called by impulses.
        """
        if exchange is not None:
            exchange.send(ReplayPolls(self.begins, PollsTaken(figures_place())), self.begins.start)
            out = pipeline | "Replay" >> ReceivePolls(
                exchange.place, self.begins.start, by_impulses
            )
            return out["polls"], ()
        replay = Replay(self.project, replace(self.options, attempt=attempt), by_impulses)
        return pipeline | "Replay" >> replay, ()

    @contextmanager
    def reading(self, marks: object) -> Iterator[None]:
        """Hold what the source needs while the pipeline runs; nothing marks its polls."""
        if not self.ends:
            self._record_savepoint()
        yield

    def _record_savepoint(self) -> None:
        """Record where the savepoint cuts the polls, so that a later run cuts there too."""
        cuts = FileCutLog(self.stream / paths.CUTS)
        cut = Cut(self.begins.last_poll_number, self.begins.stop)
        if cut not in cuts.recorded():
            cuts.keep_before(cut.number)
            cuts.append(cut)

    def reached(self, polls: int) -> Reached:
        """Return what the states at the savepoint contain, which is after all polls."""
        return Reached(self.stop_us, polls, by_source(self.begins, self.begins.stop))

    def taken(self) -> ReplayLog:
        """Return all polls of the run."""
        return self.begins

    def figures(self) -> dict[str, Any]:
        """Return what the source adds to the summary."""
        return {}
