"""The rows that streams have read of topics, as a build takes them into its log.

A build holds every live row that was sealed when it was made, also rows that were received after
its states: they answer for late events and for labels, as the later rows of files do. Its log is
whole without the live log, and whoever reads it need not know where a row came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tidemill.features.contract import Int64Array, write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import DamagedState, InputError, StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest.build_topics import BuildTopic
from tidemill.pipelines.io.grown_columns import inexact_value, refused_columns
from tidemill.pipelines.io.live.live_cuts import LiveTopic
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.live_records import Sealed
from tidemill.pipelines.io.live.lost import AcceptedLoss
from tidemill.pipelines.io.live.poll_log import LoggedPoll
from tidemill.pipelines.io.live.set_aside import losses_of
from tidemill.pipelines.io.log import RECEIVED, Log, declared_columns
from tidemill.serving.generations.current import Current

SPAN_ROWS: Final = 65_536
"""Rows that are read at once."""


@dataclass(frozen=True)
class LiveRows:
    """The sealed live rows of a generation.

    Attributes:
        log: The log of the generation, with the live rows.
        topics: The topic of each live source, as the live log was begun with.
        sealed: How far it is sealed.
        read_until_us: All rows that were received before this instant are in it; None if that is
            not known.
        last: The last sealed poll; None if nothing is sealed. A stream that runs may remove it from
            the poll log while a build is made.
        losses: What the topics have lost and a person has accepted, as far as it is sealed.
    """

    log: Log
    topics: Mapping[str, LiveTopic]
    sealed: Sealed
    read_until_us: int | None
    last: LoggedPoll | None
    losses: Sequence[AcceptedLoss] = ()

    def lengths(self, name: str) -> list[int]:
        """Return the number of rows of each partition of a source's topic."""
        return list(self.sealed.positions[name]) if name in self.topics else []

    def record(self, name: str) -> dict[str, Any] | None:
        """Describe the rows of a source for the lineage of a build; None without any."""
        if name not in self.topics:
            return None
        until_us = self.read_until_us
        lost = [one.describe() for one in self.losses if one.loss.source == name]
        return {
            "topic": self.topics[name].topic,
            "rows": sum(self.lengths(name)),
            "polls": self.sealed.number,
            "read_until": None if until_us is None else write_instant(until_us),
            **({"lost": lost} if lost else {}),
        }

    def batches(
        self, name: str, partition: int, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Int64Array]]:
        """Yield the rows of a partition of a topic, with the time of receipt of each.

        Args:
            name: The source.
            partition: The partition of the topic.
            first: The position of the first row.
            stop: The position after the last row; None for all that are sealed.

        Raises:
            DamagedFile: The rows are damaged, or fewer than were sealed.
        """
        of_log = self.topics[name].first + partition
        end = self.lengths(name)[partition] if stop is None else stop
        for start in range(first, end, SPAN_ROWS):
            rows = self.log.read_span(name, of_log, start, min(start + SPAN_ROWS, end))
            yield rows, hashing.bits(rows.column(RECEIVED))


def find_live_rows(current: Current | None, project: Project) -> LiveRows | None:
    """Find the live rows of a generation, as far as they are sealed.

    A stream that was stopped has sealed all that it has read; of one that runs or was killed, its
    last savepoint counts: what came since is sealed once it goes on.

    Args:
        current: The folders of the generation; None for none.
        project: The project.

    Returns:
        None if no stream has read a topic.

    Raises:
        StateError: The live log is damaged.
        DamagedFile: Likewise.
    """
    if current is None or not (live := LiveLog(current.folder / LIVE, project)).exists:
        return None
    log = Log(current.build_folder, live.folder, declared_columns(project))
    while True:
        # First the instant: a stream may seal more in between, and then there are more rows.
        read_until_us, sealed = live.read_until_us(), live.sealed()
        try:
            last = None
            if sealed.number:
                last = next(iter(live.polls.read(after=sealed.number - 1)))
        except DamagedState:
            if live.sealed() == sealed:
                raise
            continue  # a stream has sealed more and removed the poll
        losses = losses_of(live, only_sealed=True)
        losses = [one for one in losses if one.poll <= sealed.number]
        return LiveRows(log, live.topics(), sealed, read_until_us, last, losses)


def check_live_rows(
    config: Configuration, live: LiveRows, topics: Mapping[str, BuildTopic]
) -> None:
    """Check that a build can take live rows in, and that none is missing before its states.

    Args:
        config: The configuration.
        live: The rows.
        topics: The topics as they are now.

    Raises:
        StateMismatch: A topic or the columns of a source are others: rows would be left out.
        InputError: The states are to be as of an instant up to which topics are not read yet, or
            sources read these rows from the project's own archive, too.
    """
    _check_archive(config)
    check_topics(live.topics, live.sealed, live.log, topics, config.project)
    until_us, asked_us = live.read_until_us, config.splits.evaluate_until_us
    if until_us is not None and asked_us > until_us:
        raise InputError(
            f"splits.evaluate_until is {write_instant(asked_us)}, and the topics are read up to "
            f"{write_instant(until_us)} (by a stream that runs or was killed: up to its last "
            "savepoint); rows that nobody has read cannot be in the states: set "
            "evaluate_until to that instant or an earlier one, or let `tidemill stream --resume` "
            "read on and stop it, and run `tidemill backfill` again"
        )


def _check_archive(config: Configuration) -> None:
    if config.archive is None:
        return
    for name, source in config.sources.items():
        for path in source.find_files():
            if path.resolve().is_relative_to(config.archive.folder.resolve()):
                raise InputError(
                    f"{path} is a file of {name!r} and of this project's archive, whose rows a "
                    "build has from the live log: they would be there twice; name other files"
                )


def check_topics(
    found: Mapping[str, LiveTopic],
    sealed: Sealed,
    log: Log,
    topics: Mapping[str, BuildTopic],
    project: Project,
) -> None:
    """Check that live rows can be gone on with.

    Args:
        found: The topics that were read.
        sealed: How far they were.
        log: The log with the rows.
        topics: The topics as they are now.
        project: The project.

    Raises:
        StateMismatch: A topic is another or has fewer partitions, or a source has other columns.
    """
    for name in sorted({*found, *topics}):
        was, now = found.get(name), topics.get(name)
        if (
            was is None
            or now is None
            or was.topic != now.topic
            or len(sealed.offsets[name]) > len(now.offsets)
        ):
            read = _said(was, len(sealed.offsets.get(name, ())))
            there = _said(now, 0 if now is None else len(now.offsets))
            raise StateMismatch(
                f"the streams of this root have read {read} of {name!r}, and now there is {there}: "
                "what was read would be left out; set the topic back, or begin a new root"
            )
        definition, written = project.definition(name), Log(log.root, log.live)
        if why := refused_columns(written, definition) or inexact_value(written, definition):
            raise StateMismatch(
                f"{name!r} cannot go on with the rows that were read of topic {now.topic!r}: "
                f"{why}; the stream of a new root can read the topic from its start (kafka.start: "
                "earliest)"
            )


def _said(topic: LiveTopic | BuildTopic | None, partitions: int) -> str:
    return "no topic" if topic is None else f"topic {topic.topic!r} of {partitions} partitions"
