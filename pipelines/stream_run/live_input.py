"""The input of a live stream: topics that this process reads and the pipeline follows.

The reader writes polls down (`pipelines.io.live.live_reader`), the pipeline follows them
(`pipelines.io.live.follow`); nothing but the poll log joins the two. So a stream that is killed
repeats from the poll log what came after its savepoint, and then reads on.

The reader also says where savepoints are: every ``stream.savepoint_every`` it marks a poll, once
the savepoint before counts (`pipelines.stream_run.keeper`).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import apache_beam as beam

from tidemill.features.contract import SECOND, TIME_MAX, TIME_MIN, write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import (
    BrokerUnreachable,
    FileError,
    InputError,
    NoSuchTopic,
    PositionOutOfRange,
    RecreatedTopic,
    RegistryUnavailable,
    StateMismatch,
)
from tidemill.pipelines.archive.archiver import archiving
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.inherited_rows import take_over
from tidemill.pipelines.ingest.build_topics import read_topics
from tidemill.pipelines.ingest.committed_offsets import CommittedOffsets, committing
from tidemill.pipelines.ingest.lost_messages import (
    OPTION,
    ReadTo,
    check_accepted,
    find_losses,
    who_accepts,
)
from tidemill.pipelines.ingest.mended_live import MendedFiles
from tidemill.pipelines.ingest.topics import ask_extents, open_topics
from tidemill.pipelines.io.attempts import Attempt
from tidemill.pipelines.io.exchange.program_end import ProgramEnd
from tidemill.pipelines.io.exchange.source import ReceivePolls
from tidemill.pipelines.io.live.follow import (
    Follow,
    FollowOptions,
    LoggedPolls,
    stop_after,
)
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.live_polls import LivePolls
from tidemill.pipelines.io.live.live_reader import LiveReader
from tidemill.pipelines.io.live.live_records import LiveOrigin
from tidemill.pipelines.io.live.live_source import LiveFigures, LiveSource, Pace
from tidemill.pipelines.io.live.lost import Loss, after_losses, offset_of
from tidemill.pipelines.io.live.patient_decoder import PatientDecoder
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.io.live.steady_clock import SteadyClock, wall_clock_us
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.poll import Poll, PollPart
from tidemill.pipelines.io.poll_source import REJECTED
from tidemill.pipelines.io.sinks import place_name
from tidemill.pipelines.recovery.handoff import Handoff
from tidemill.pipelines.recovery.log_parts import stream_log
from tidemill.pipelines.recovery.resume import Reached, Start, by_source
from tidemill.pipelines.stream.operator_key import Mode
from tidemill.pipelines.stream.rejected_by_stream import PLACE
from tidemill.pipelines.stream_run.promoting import Promotions
from tidemill.pipelines.stream_run.reloading import LiveSettings
from tidemill.pipelines.stream_run.restarts import Stop
from tidemill.pipelines.telemetry.polls_taken import PollsTaken
from tidemill.pipelines.telemetry.reader_figures import ReaderFigures
from tidemill.pipelines.telemetry.running import (
    figures_place,
    stream_drains,
    stream_is_ready,
)

STOP: Final = "stop.json"
"""The file of a stream's folder that names the poll after which it stops."""
_AGAIN_SECONDS: Final = 1.0
_AHEAD_US: Final = 60 * SECOND
"""Whenever a partition is left out or read again, what was read ahead is read twice."""
_TRAVELS: Final = 60
"""By so many times of travel may partitions be apart whose producers replay the past."""
_HOLD_S: Final = 0.1


class Ahead(NamedTuple):
    """How far the reader goes ahead of the operators.

    A stream that does not keep up then gets larger polls, which cost less a row, and not more of
    them to wait for.

    Attributes:
        polls: The most polls that are written down and that no operator has taken.
        apart_s: So long after a poll that no operator has taken the next one is written down.
    """

    polls: int
    apart_s: float


HERE: Final = Ahead(1, 0.0)
ELSEWHERE: Final = Ahead(2, 0.05)
"""Through an exchange: rows do not wait while a poll, and the word that it was taken, travel."""


class Marks(Protocol):
    """Says when a poll may have the mark of a savepoint."""

    def may_mark(self, segment: int) -> bool:
        """Tell whether the segment may end here: then the next poll has its mark."""


def first_epoch(live: LiveLog) -> int:
    """Return the epoch, in the poll log, of the first poll that comes from there."""
    unsealed = next(live.polls.read(after=live.sealed().number), None)
    if unsealed is not None:
        return Poll.decode(bytes(unsealed.poll)).epoch
    last = live.polls.last()
    return 0 if last is None else Poll.decode(bytes(last.poll)).next_epoch


def live_polls(project: Project, log: Log, live: LiveLog, handoff: Handoff) -> LivePolls:
    """Return the sealed polls since the states of a record.

    Args:
        project: The project.
        log: The log of the build, with the live rows.
        live: The live log.
        handoff: The record of the states.
    """
    return LivePolls(
        project, log, live, start_us=handoff.as_of_us, stop_us=TIME_MAX, polls=handoff.polls
    )


@dataclass
class LiveInput:
    """The topics of a stream, from its last savepoint on.

    Attributes:
        config: The configuration, with the folders of the stream.
        start: The start of the run.
        stop: Is set when somebody asks the stream to stop.
        say: Tells a person what happens.
        until_us: When to stop; None to go on until somebody asks.
        accept_lost: What a person accepts to go on without (`pipelines.ingest.lost_messages`).
        topic_ids: Source to the id of its topic, once `find_lost` has asked for them.
        settings: The configuration with the live settings of now; None if they do not change.
        promotions: Takes up other bundles while the stream runs; None if it has none.

    Raises:
        StateMismatch: The topics are not those that the live stream was begun with.
        InputError: Files hold rows that were received after the stream begins.
    """

    config: Configuration
    start: Start
    stop: Stop | threading.Event
    say: Callable[[str], None]
    until_us: int | None = None
    accept_lost: Sequence[str] = ()
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    settings: LiveSettings | None = None
    promotions: Promotions | None = None

    def __post_init__(self) -> None:
        current, project = self.start.current, self.config.project
        self._has_stopped = threading.Event()
        self._figures, self._taken = LiveFigures(), PollsTaken(figures_place())
        self._committed: CommittedOffsets | None = None
        self._ahead, self._refused = HERE, dict[int, frozenset[str]]()
        self._build = current.build_folder
        self._log = stream_log(current, project)
        self._stop = current.stream_folder / STOP
        self.live = LiveLog(current.folder / LIVE, project)
        topics = self._topics()
        build = Log(self._build)
        take_over(current, project, build, topics)
        if not self.live.exists:
            _check_untaken(build, topics, self.live.folder)
        self.live.begin(topics, LiveOrigin(self.start.run.as_of_us))
        self.live.seal(self._build, self.start.handoff.as_of_us)
        self.begins = self.taken()
        self._epoch, self._ended = first_epoch(self.live), 0
        self._check_files()

    def _topics(self) -> dict[str, LiveTopic]:
        built = read_topics(self._build)
        topics = {}
        for name, source in sorted(self.config.sources.items()):
            if source.kafka is None:
                continue
            if name not in built or built[name].topic != source.kafka.topic:
                raise StateMismatch(
                    f"the states of {self._build} were not made for topic {source.kafka.topic!r} "
                    f"of {name!r}; run `tidemill backfill` again"
                )
            offsets = built[name].offsets
            first = self._log.partitions(name) - len(offsets)
            topics[name] = LiveTopic(source.kafka.topic, first, offsets, built[name].id)
        return topics

    def _check_files(self) -> None:
        """Refuse rows of files that neither the states hold nor a topic will bring."""
        as_of_us, topics = self.start.run.as_of_us, self.live.topics()
        for name, positions in self.start.run.positions.items():
            lengths = self._log.lengths(name)
            topic = topics.get(name)
            of_files = len(lengths) if topic is None else topic.first
            rows = sum(lengths[:of_files]) - sum(positions[:of_files])
            if rows:
                raise InputError(
                    f"{rows:,} rows of the files of {name!r} were received at "
                    f"{write_instant(as_of_us)} (splits.evaluate_until) or later, and a live "
                    "stream begins with the topics: set splits.evaluate_until after the files, "
                    "and run `tidemill backfill` again"
                )

    def taken(self) -> LivePolls:
        """Return the sealed polls since the savepoint: at the run's end all that it has taken."""
        return live_polls(self.config.project, self._log, self.live, self.start.handoff)

    @property
    def ends(self) -> bool:
        """A live stream never ends; it stops at a savepoint."""
        return False

    @property
    def last_segment(self) -> int:
        """The number of the run's last segment; known once it has stopped."""
        return self.start.segment + self._ended

    @property
    def has_stopped(self) -> bool:
        """Whether it has stopped reading, so that the last segment is known."""
        return self._has_stopped.is_set()

    @property
    def stop_us(self) -> int:
        """A live stream has no end."""
        return TIME_MAX

    @property
    def speed(self) -> float | None:
        """Nothing is replayed."""
        return None

    @property
    def requests(self) -> int | None:
        """Nobody knows how many requests will come."""
        return None

    def reached(self, polls: int) -> Reached:
        """Seal the polls up to one; return what the states after it contain.

        Args:
            polls: The number of the poll.
        """
        handoff = self.start.handoff
        logged = polls - handoff.polls + self.begins.before
        if polls == handoff.polls:
            return Reached(handoff.as_of_us, polls, handoff.positions)
        # Another thread may be adding to the same log.
        live = LiveLog(self.live.folder, self.config.project)
        if polls not in self._refused:  # before they are sealed
            unsealed = live.polls.read(after=live.sealed().number)
            names = (
                place_name(one.rejected, PLACE)
                for one in itertools.takewhile(lambda one: one.number <= logged, unsealed)
                if one.rejected is not None
            )
            self._refused = {polls: frozenset(names)}
        sealed, topics = live.seal(self._build, until=logged), live.topics()
        if self._committed is not None:
            self._committed.note(
                {name: [offset_of(at) for at in found] for name, found in sealed.offsets.items()}
            )
        positions = {
            name: [*of_files[: topics[name].first], *sealed.positions[name]]
            if name in topics
            else list(of_files)
            for name, of_files in handoff.positions.items()
        }
        received_us = live.received_us(logged)
        return Reached(received_us + 1, polls, positions, self._refused[polls])

    def figures(self) -> dict[str, Any]:
        """Return what the reader adds to the summary, by source."""
        found = self._figures
        return {
            "read": {name: counts.read for name, counts in found.counts.items()},
            "rejected_by_reader": {name: counts.rejected for name, counts in found.counts.items()},
            "late_after_quiet": dict(found.late_after_quiet),
            "mended": {name: count for name, count in found.mended.items() if count},
            "rejected_again": {name: n for name, n in found.rejected_again.items() if n},
        }

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
        source: Follow | ReceivePolls = self._follow(attempt, by_impulses=by_impulses)
        if exchange is not None:
            self._ahead = ELSEWHERE
            exchange.send(LoggedPolls(source.options), source.options.start)
            source = ReceivePolls(exchange.place, source.options.start, by_impulses)
        out = pipeline | "Live" >> source
        return out["polls"], (out[REJECTED],)

    def _follow(self, attempt: Attempt | None, *, by_impulses: bool) -> Follow:
        return Follow(
            FollowOptions(
                project=self.config.project,
                build=self._build,
                live=self.live.folder,
                as_of_us=self.start.handoff.as_of_us,
                start=self.begins.start,
                logged=self.begins.before,
                epoch=self._epoch,
                partitions=tuple((one.name, number) for one, number in self.begins.sources),
                stop=self._stop,
                taken=self._taken,
                attempt=attempt,
            ),
            by_impulses,
        )

    def find_lost(self) -> list[Loss]:
        """Return what the topics have lost before it was read, all of which is accepted.

        Raises:
            RecreatedTopic: A topic is another one, and that is not accepted.
            PositionOutOfRange: A topic has lost messages, and that is not accepted.
            InputError: Something is accepted that is not lost.
            BrokerError: A topic cannot be asked.
        """
        return self._find_lost(self.say)[1]

    def _find_lost(self, say: Callable[[str], None]) -> tuple[ReadTo, list[Loss]]:
        """Return where the topics are read to, and what they have lost behind that."""
        extents = ask_extents(self.config)
        self.topic_ids = {name: extent.id for name, extent in extents.items()}
        read_to = self._read_to().with_new(extents)
        losses = find_losses(read_to, extents, self.accept_lost)
        command = "tidemill stream --resume" if self.start.resumes else "tidemill stream"
        before = losses_of(self.live) if self.accept_lost else []
        try:
            for said in check_accepted(losses, self.accept_lost, before, command):
                say(said)
        except (PositionOutOfRange, RecreatedTopic):
            self._say_all(losses)
            raise
        return read_to, losses

    def _say_all(self, losses: Sequence[Loss]) -> None:
        """Say of each loss what it is; the error that follows has room for one."""
        last = self.live.polls.last()
        for loss in losses:
            highest_us, known = TIME_MIN, () if last is None else last.highest_us[loss.source]
            if loss.partition < len(known):
                highest_us = known[loss.partition]
            after = (
                f", after events of {write_instant(highest_us)}" if highest_us > TIME_MIN else ""
            )
            self.say(f"{loss.describe()}{after} ({OPTION} {loss.option})")

    @staticmethod
    def _ignore(said: str) -> None:
        """Say nothing again."""

    def _read_to(self) -> ReadTo:
        last = self.live.polls.last()
        if last is not None:
            return ReadTo(last.offsets, last.topic_ids)
        ids = {name: topic.id for name, topic in self.live.topics().items() if topic.id}
        return ReadTo(self.live.sealed().offsets, ids)

    @contextmanager
    def reading(self, marks: Marks) -> Iterator[None]:
        """Read the topics while the block runs, until the stream is to stop.

        Args:
            marks: Says when a poll may have the mark of a savepoint.

        Raises:
            BrokerError: A topic cannot be read any more, or has lost messages which are not
                accepted; the stream has stopped in order.
            StateMismatch: A topic has fewer partitions; the stream has stopped in order.
        """
        self._stop.unlink(missing_ok=True)
        read_to, losses = self._find_lost(self._ignore)
        topics, log = self.live.topics(), self._log
        offsets = after_losses(read_to.positions, losses)
        topic_ids = {**read_to.topic_ids, **{loss.source: loss.topic_id for loss in losses}}
        failed: list[BaseException] = []
        with (
            archiving(self.config, self.start.current, self.say, self._now),
            committing(self.config) as self._committed,
            open_topics(self.config, log, self._unsealed(), topics, offsets, topic_ids) as sources,
        ):
            ended = threading.Event()
            reader = self._reader([self._patient(source, ended) for source in sources], read_to)
            reader.find_partitions()
            if losses:
                reader.accept_lost(losses, who_accepts())
                for loss in losses:
                    self.say(f"{loss.describe()}; it is accepted, and the stream goes on")

            def read() -> None:
                try:
                    self._read(reader, marks, ended)
                except BaseException as error:  # noqa: BLE001 - raised where the stream was started
                    failed.append(error)
                finally:
                    self._ended = max(reader.epoch - self._epoch, 0)
                    self._stop_after(reader, ended)
                    self._has_stopped.set()

            thread = threading.Thread(target=read, name="live-reader", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                self.live.polls.close()
                self._stop.unlink(missing_ok=True)
                self._figures = reader.figures
        if failed:
            if isinstance(failed[0], (PositionOutOfRange, RecreatedTopic)):
                self._say_lost()
            raise failed[0]

    def _say_lost(self) -> None:
        """Raise what topics have lost while they were read, and how to accept it."""
        try:
            extents = ask_extents(self.config)
            losses = find_losses(self._read_to().with_new(extents), extents)
        except (BrokerUnreachable, NoSuchTopic):
            return  # then only the reader's own error is known
        if losses:
            self._say_all(losses)
            check_accepted(losses, (), ())

    def _stop_after(self, reader: LiveReader, ended: threading.Event) -> None:
        """Let the source stop after a poll; without this file it would wait for ever."""
        while not ended.is_set():
            try:
                stop_after(self._stop, reader.number, max(reader.epoch, self._epoch))
                return
            except FileError as error:
                self.say(f"the stream cannot stop yet: {error}")
                ended.wait(_AGAIN_SECONDS)

    @property
    def scored_from(self) -> tuple[int, ...]:
        """The position of each partition of the request from which on nothing is written down."""
        name = self.config.project.request.name
        at = by_source(self.begins, self.begins.stop)[name]
        for part in self._unsealed():
            if part.source == name:
                at += [0] * (part.partition + 1 - len(at))
                at[part.partition] = max(part.stop, at[part.partition])
        return tuple(at)

    def _unsealed(self) -> Iterator[PollPart]:
        """Yield the rows that are written down and not in the log yet."""
        for logged in self.live.polls.read(after=self.live.sealed().number):
            yield from Poll.decode(bytes(logged.poll)).parts

    def _patient(self, source: LiveSource, ended: threading.Event) -> LiveSource:
        """Let a source whose schemas are in a registry wait for it while it is away."""
        topic = self.config.sources[source.definition.name].kafka
        if topic is None or topic.registry is None:
            return source

        def ends() -> bool:
            return self.stop.is_set() or ended.is_set()

        return replace(source, decoder=PatientDecoder(source.decoder, ends, self.say))

    def _reader(self, sources: list[LiveSource], read_to: ReadTo) -> LiveReader:
        topics = self.live.topics()
        order: list[tuple[str, int, int | None]] = []
        for definition, partition in self.begins.sources:
            topic = topics.get(definition.name)
            is_live = topic is not None and partition >= topic.first
            length = None if is_live else self._log.digests(definition.name, partition).rows
            order.append((definition.name, partition, length))
        topics_of = [one.kafka for one in self.config.sources.values() if one.kafka]
        is_exact = Mode(self.start.run.mode) is Mode.EXACT
        # What replays the past may pass a minute in a moment: how fast, its travel times tell.
        replayed_us = max((one.quiet_us for one in topics_of if one.clock == "messages"), default=0)
        return LiveReader(
            sources,
            order,
            self.live.polls,
            read_to.positions,
            Pace(
                poll_messages=self.config.stream.poll_rows,
                hold_s=_HOLD_S if is_exact else None,
                quiet_us=max(one.quiet_us for one in topics_of),
                ahead_us=max(_AHEAD_US, _TRAVELS * replayed_us) if is_exact else None,
                near_us=max(SECOND, replayed_us),
            ),
            # Rows received before the savepoint would not belong to this stream.
            after_us=self.start.handoff.as_of_us - 1,
            clock_us=SteadyClock(say=self.say),
            mended=MendedFiles(self.config.root, self.live, topics, self.say),
            say=self.say,
            max_rejected=lambda name: self._now().sources[name].max_rejected,
        )

    def _now(self) -> Configuration:
        """Return the configuration with the live settings of now."""
        return self.config if self.settings is None else self.settings.config

    def _read(self, reader: LiveReader, marks: Marks, ended: threading.Event) -> None:
        marked_s = read_s = time.monotonic()
        if reader.number > self.live.sealed().number and not reader.goes_on_from_mark:
            # A run before was killed, and this one may live no longer: what it repeats is kept.
            marked_s = -math.inf
        until_us = TIME_MAX if self.until_us is None else self.until_us
        begin = self.begins.start.number
        report, is_ready = self._report(reader), False
        while not (self.stop.is_set() or ended.is_set()) and wall_clock_us() < until_us:
            number = reader.number - self.begins.before + begin
            if not is_ready and self._taken() > begin:
                is_ready = True
                stream_is_ready()
            ahead, unread = self._ahead, number - max(self._taken(), begin)
            is_soon = time.monotonic() < read_s + ahead.apart_s
            if unread >= ahead.polls or (unread and is_soon):
                ended.wait(0.002)
                continue
            every_s = self._now().stream.savepoint_every_us / SECOND
            is_due = time.monotonic() >= marked_s + every_s and not reader.goes_on_from_mark
            segment = self.start.segment + reader.epoch - self._epoch
            is_marked = is_due and marks.may_mark(segment)
            if is_marked:
                marked_s = time.monotonic()
            if self.promotions is not None:
                self.promotions.decide(lambda: reader.positions(self.config.project.request.name))
            try:
                poll = reader.step(is_marked=is_marked)
            except RegistryUnavailable:
                if self.stop.is_set():
                    break  # these messages are read again when the stream is resumed
                raise
            if poll is not None:
                read_s = time.monotonic()
            report.stepped(poll, number - max(self._taken(), begin))
        report.report()
        if self.stop.is_set():
            stream_drains(reader.number)

    def _report(self, reader: LiveReader) -> ReaderFigures:
        topics = {name: topic.topic for name, topic in self.live.topics().items()}
        losses = losses_of(self.live)
        return ReaderFigures(figures_place().here().figures, reader, topics, losses=losses)


def _check_untaken(build: Log, topics: Mapping[str, LiveTopic], folder: Path) -> None:
    """Refuse to begin a live log where a build has taken rows from one: it is lost."""
    for name, topic in topics.items():
        if sum(build.lengths(name)[topic.first :]):
            raise StateMismatch(
                f"{folder} is gone, and {build.root} has rows of {name!r} that were read of topic "
                f"{topic.topic!r}: restore the folder from a copy, or run `tidemill backfill`, "
                "which begins a new generation without these rows"
            )
