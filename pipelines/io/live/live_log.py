"""The live log: the rows of live sources since the build, and the polls that brought them.

A live reader writes each poll down before it is sent (`pipelines.io.live.poll_log`). `LiveLog.seal`
turns those polls into what a replay, a proof and a resumed stream read:

* the rows of each partition, in files with digests that go on with the log of the build
  (`pipelines.io.log.Log`, with this folder as its ``live``);
* the *cuts*: of each poll its number, when it was received, and per partition the position, the
  watermark and the broker's offset after it;
* the records that were rejected while it was read, with what their messages carried;
* what became of mended messages (`pipelines.io.live.mended`);
* what topics have lost and a person has accepted (`pipelines.io.live.lost`).

The promises: what is sealed equals what was written down, poll by poll; a seal that is killed is
repeated and gives the same; a poll is removed from the poll log only when its seal has survived a
crash of the machine.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MAX
from tidemill.features.definitions import EventStream, Project, Request
from tidemill.features.errors import DamagedFile, DamagedState, StateMismatch
from tidemill.features.rows import rejected
from tidemill.pipelines.io.live.live_cuts import REMEDY as REMEDY
from tidemill.pipelines.io.live.live_cuts import (
    Cuts,
    SentPoll,
    cuts_of,
    cuts_table,
    offset_cuts,
    some_cuts,
)
from tidemill.pipelines.io.live.live_cuts import LiveTopic as LiveTopic
from tidemill.pipelines.io.live.live_cuts import OffsetCuts as OffsetCuts
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.log import ROWS, Log, log_schema, one_batch
from tidemill.pipelines.io.log_digests import BLOCK_ROWS
from tidemill.pipelines.io.log_files import write_log_file
from tidemill.serving.files.atomic_write import atomic_write
from tidemill.serving.files.read_files import reading
from tidemill.serving.files.records import RecordFormat, read_record, write_record

LIVE: Final = "live"
"""The name of the folder below that of a generation."""
_TOPICS: Final = "topics.json"
_SEALED: Final = "sealed.json"
_ORIGIN: Final = "origin.json"
_POLLS: Final = "polls"
_CUTS: Final = "cuts"
REJECTED: Final = "rejected"
MENDED: Final = "mended"
LOST: Final = "lost"
"""Kinds of what polls have beside their rows."""
_GROWS_TO_BYTES: Final = 1 << 20
"""A file of cuts, or of what polls have beside their rows, is gone on with until it has so many
bytes."""
_SEALED_BYTES: Final = 64 << 20
"""About how many bytes of polls a seal holds in memory."""
POLL_NUMBER: Final = "_poll"


@dataclass(frozen=True)
class Sealed:
    """How far the live log is sealed.

    Attributes:
        number: The number of the last poll; 0 for none.
        positions: Source to the number of rows of each partition of its topic after it.
        offsets: Source to the position after it in each partition of its topic
            (`pipelines.io.live.lost`).
    """

    number: int
    positions: Mapping[str, Sequence[int]]
    offsets: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class LiveOrigin:
    """Where a live log began.

    Attributes:
        as_of_us: The instant of the states with which its first stream began; None of a log of a
            version that did not record it.
        generation: The generation whose live rows it has taken over; None if it has taken none.
        number: The number of the last poll that it has taken over; 0 for none.
    """

    as_of_us: int | None = None
    generation: str | None = None
    number: int = 0


def _form(name: str, kind: type) -> RecordFormat:
    fields = frozenset(field.name for field in dataclasses.fields(kind))
    return RecordFormat(name=name, version=1, fields=fields, remedy=REMEDY)


_TOPICS_FORM: Final = RecordFormat(
    name="tidemill-live-topics", version=1, fields=frozenset({"sources"}), remedy=REMEDY
)
_SEALED_FORM: Final = _form("tidemill-live-sealed", Sealed)
_ORIGIN_FORM: Final = _form("tidemill-live-origin", LiveOrigin)


class LiveLog:
    """The live log of a generation.

    Args:
        folder: Its folder; it need not exist.
        project: The project, which declares the columns of its sources.
    """

    def __init__(self, folder: Path, project: Project) -> None:
        self.folder = folder
        self.polls = PollLog(folder / _POLLS)
        self._project = project

    @property
    def exists(self) -> bool:
        """Whether a live stream has begun."""
        return (self.folder / _TOPICS).exists()

    def begin(self, topics: Mapping[str, LiveTopic], origin: LiveOrigin | None = None) -> None:
        """Record the topics before the first poll; later, check that they are the same.

        Args:
            topics: The topic of each live source.
            origin: Where the log begins; it is not compared.

        Raises:
            StateMismatch: The sources have other topics, or these other partitions.
        """
        if not self.exists:
            if origin is not None:
                found = dataclasses.asdict(origin)
                write_record(self.folder / _ORIGIN, _ORIGIN_FORM, found, durable=True)
            content = {name: dataclasses.asdict(topic) for name, topic in topics.items()}
            write_record(self.folder / _TOPICS, _TOPICS_FORM, {"sources": content}, durable=True)
            return
        begun = self.topics()
        for name in sorted({*begun, *topics}):
            was, now = begun.get(name), topics.get(name)
            if (said := _described(was)) != _described(now):
                remedy = "run `tidemill backfill`, and the stream without --resume"
                if was is None or now is None or was.topic != now.topic:
                    remedy = "set it back, or begin a new root"
                raise StateMismatch(
                    f"the live stream of {name!r} was begun with {said}, and now there is "
                    f"{_described(now)}; {remedy}"
                )

    def topics(self) -> dict[str, LiveTopic]:
        """Return the topic of each live source.

        Raises:
            StateError: The record cannot be read.
        """
        found = read_record(self.folder / _TOPICS, _TOPICS_FORM)["sources"]
        return {
            name: LiveTopic(one["topic"], one["first"], tuple(one["offsets"]), one.get("id", ""))
            for name, one in found.items()
        }

    def origin(self) -> LiveOrigin:
        """Return where the log began.

        Raises:
            StateError: The record cannot be read.
        """
        return _read_origin(self.folder)

    def sealed(self) -> Sealed:
        """Return how far the log is sealed.

        Raises:
            StateError: A record cannot be read.
        """
        path = self.folder / _SEALED
        if path.exists():
            return Sealed(**read_record(path, _SEALED_FORM))
        topics = self.topics()
        return Sealed(
            0,
            {name: [0] * len(topic.offsets) for name, topic in topics.items()},
            {name: list(topic.offsets) for name, topic in topics.items()},
        )

    def write_sealed(self, sealed: Sealed) -> None:
        """Record how far the log is sealed, and wait for the disk."""
        content = dataclasses.asdict(sealed)
        write_record(self.folder / _SEALED, _SEALED_FORM, content, durable=True)

    def seal(self, build: Path, before_us: int = TIME_MAX, *, until: int | None = None) -> Sealed:
        """Seal the polls of the poll log; return how far the log is sealed then.

        Args:
            build: The folder of the build, with whose log these rows go on.
            before_us: Only polls that were received before this instant are sealed: a stream that
                goes on from here repeats the others from the poll log.
            until: The number of the last poll to seal; None for no such limit.

        Raises:
            DamagedState: The poll log is damaged, or has lost polls that are sealed.
            DamagedFile: The live rows are damaged, or fewer than were sealed.
        """
        sealed = self.sealed()
        last = self.polls.last()
        if sealed.number > (0 if last is None else last.number):
            raise DamagedState(
                f"{self.folder / _POLLS}: the last poll is {0 if last is None else last.number}, "
                f"and {sealed.number} are sealed: polls were lost; {REMEDY}"
            )
        self.polls.remove_before(sealed.number)  # unless the seal before was killed there
        unsealed = itertools.takewhile(
            lambda poll: until is None or poll.number <= until,
            self.polls.read(after=sealed.number),
        )
        for polls in _in_pieces(unsealed, before_us):
            sealed = self._seal(polls, sealed, Log(build, self.folder))
            self.write_sealed(sealed)
            self.polls.remove_before(sealed.number)
        return sealed

    def _seal(self, polls: Sequence[SentPoll], before: Sealed, log: Log) -> Sealed:
        topics = self.topics()
        rows: dict[tuple[str, int], list[pa.RecordBatch]] = {}
        for poll in polls:
            for part in poll.sent.parts:
                if part.rows is not None:
                    rows.setdefault((part.source, part.partition), []).append(part.rows)
        for (name, partition), fresh in rows.items():
            at = before.positions[name][partition - topics[name].first]
            self._add_rows(self._project.definition(name), partition, at, fresh, log)
        last = polls[-1]
        self._add(_CUTS, "number", before.number, cuts_table(polls, topics))
        refused = _numbered((one.logged.number, one.logged.set_aside) for one in polls)
        self._add(REJECTED, POLL_NUMBER, before.number, refused)
        mended = _numbered((one.logged.number, one.logged.mended) for one in polls)
        self._add(MENDED, POLL_NUMBER, before.number, mended)
        lost = _numbered((one.logged.number, one.logged.lost) for one in polls)
        self._add(LOST, POLL_NUMBER, before.number, lost)
        ends: dict[str, list[int]] = {name: [] for name in topics}
        for part in last.sent.parts:
            if part.source in topics and part.partition >= topics[part.source].first:
                ends[part.source].append(part.stop)
        offsets = {name: list(last.logged.offsets[name]) for name in topics}
        return Sealed(last.logged.number, ends, offsets)

    def _add_rows(
        self,
        definition: EventStream | Request,
        partition: int,
        at: int,
        fresh: Sequence[pa.RecordBatch],
        log: Log,
    ) -> None:
        """Write the file that begins with the last whole block before ``at``."""
        first = at // BLOCK_ROWS * BLOCK_ROWS
        there = log.digests(definition.name, partition).rows
        if there < at:
            raise DamagedFile(
                f"{self.folder / ROWS / definition.name}: partition {partition} has {there} rows, "
                f"and {at} are sealed: rows were lost; {REMEDY}"
            )
        parts = [*([log.read_span(definition.name, partition, first, at)] if at > first else ())]
        names = log_schema(definition).names
        parts += [batch.select(names) for batch in fresh]
        rows = pa.concat_batches(parts)
        path = self.folder / ROWS / definition.name / f"{partition:05d}-{first:012d}.arrow"
        with write_log_file(path, definition, rows.num_rows, first=first, durable=True) as writer:
            declared = pa.RecordBatch.from_arrays(
                rows.columns[:-2], schema=pa.schema(list(rows.schema)[:-2])
            )
            writer.write(declared, rows.column(rows.num_columns - 1).to_numpy())

    def _add(self, kind: str, number: str, sealed: int, more: pa.Table | None) -> None:
        """Add to the files of a kind; the last one grows until it is large.

        Args:
            kind: The kind.
            number: The column of the polls' numbers.
            sealed: The number of the last poll that is sealed: what the files have of later ones is
                of a seal that was killed, and is replaced.
            more: The rows to add; None for none.
        """
        paths = sorted((self.folder / kind).glob("*.arrow"))
        while paths and int(paths[-1].stem) > sealed:
            paths.pop().unlink()
        last = paths[-1] if paths else None
        if last is not None:
            is_small = last.stat().st_size < _GROWS_TO_BYTES
            with reading(last, REMEDY), pa.memory_map(str(last)) as file:
                there = pa.ipc.open_file(file).read_all()
            kept = there.filter(pc.less_equal(there.column(number), sealed))
            if more is not None and is_small:
                kept = pa.concat_tables([kept, more], promote_options="default")
                more = None
            if len(kept) != len(there):
                self._write(kind, int(last.stem), kept)
        if more is not None:
            self._write(kind, more.column(number)[0].as_py(), more)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:012d}.arrow"

    def _write(self, kind: str, number: int, table: pa.Table) -> None:
        with (
            atomic_write(self._path(kind, number), durable=True) as unfinished,
            pa.OSFile(str(unfinished), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def _read(self, kind: str, after: int, until: int) -> Iterator[pa.Table]:
        """Yield the files of a kind that may have polls ``(after, until]``."""
        paths = sorted((self.folder / kind).glob("*.arrow"))
        firsts = [int(path.stem) for path in paths]
        begin = max(bisect.bisect_right(firsts, after + 1) - 1, 0)
        for path in paths[begin : bisect.bisect_right(firsts, until)]:
            yield self.read_table(path)

    def write_beside(self, kind: str, number: int, table: pa.Table) -> None:
        """Replace a file of what polls have beside their rows (`REJECTED`, `MENDED`, `LOST`).

        Args:
            kind: The kind.
            number: The number in the file's name.
            table: Its rows.
        """
        self._write(kind, number, table)

    @staticmethod
    def read_table(path: Path) -> pa.Table:
        """Read a file of cuts, or of what polls have beside their rows.

        Raises:
            DamagedFile: It is damaged.
        """
        with reading(path, REMEDY), pa.OSFile(str(path), "rb") as file:
            return pa.ipc.open_file(file).read_all()

    def beside(self, kind: str, until: int) -> Iterator[pa.Table]:
        """Yield what sealed polls have beside their rows, with the number of each row's poll.

        Args:
            kind: `REJECTED`, `MENDED` or `LOST`.
            until: The last poll that is wanted; there may be rows of later ones.
        """
        return self._read(kind, 0, until)

    def cuts(self) -> Cuts:
        """Return the sealed polls.

        Raises:
            DamagedFile: A file is damaged.
            StateMismatch: Polls are missing.
        """
        until = self.sealed().number
        return cuts_of(self._read(_CUTS, 0, until), self.topics(), until, self.folder / _CUTS)

    def offset_cuts(self, after: int, until: int) -> Iterator[OffsetCuts]:
        """Yield the positions in topics of the sealed polls ``(after, until]``, file by file.

        Raises:
            DamagedFile: A file is damaged.
        """
        for table in self._read(_CUTS, after, until):
            found = offset_cuts(table, after, until)
            if len(found.number):
                yield found

    def cuts_between(self, after: int, until: int) -> Cuts:
        """Return the sealed polls ``(after, until]``, from the files that hold them.

        Raises:
            DamagedFile: A file is damaged.
            StateMismatch: Polls are missing.
        """
        found = some_cuts(self._read(_CUTS, after, until), self.topics())
        found = found.span(*np.searchsorted(found.number, [after, until], "right").tolist())
        if not np.array_equal(found.number, np.arange(after + 1, until + 1)):
            where = self.folder / _CUTS
            raise StateMismatch(f"{where} has not the polls {after + 1} to {until}; {REMEDY}")
        return found

    def cuts_before(self, before_us: int) -> Cuts | None:
        """Return the last sealed polls that were received before an instant, those of one file.

        Args:
            before_us: The instant.

        Returns:
            At least one poll; None if there is none.

        Raises:
            DamagedFile: A file is damaged.
        """
        until, topics = self.sealed().number, self.topics()
        for path in sorted((self.folder / _CUTS).glob("*.arrow"), reverse=True):
            if int(path.stem) > until:
                continue
            found = some_cuts([self.read_table(path)], topics)
            stop = min(
                int(np.searchsorted(found.received_us, before_us, "left")),
                int(np.searchsorted(found.number, until, "right")),
            )
            if stop:
                return found.first(stop)
        return None

    def read_until_us(self) -> int | None:
        """Return the instant up to which all rows are sealed; None if that is not known.

        Rows that were received before it are sealed, or will never be.
        """
        last = self.cuts_before(TIME_MAX)
        return self.origin().as_of_us if last is None else int(last.received_us[-1]) + 1

    def received_us(self, number: int) -> int:
        """Return when a sealed poll was received.

        Raises:
            DamagedState: The poll is not there.
        """
        for table in self._read(_CUTS, number - 1, number):
            found = table.filter(pc.equal(table.column("number"), number))
            if len(found):
                received_us: int = found.column("received_us")[0].as_py()
                return received_us
        raise DamagedState(f"{self.folder / _CUTS} has no poll {number}; {REMEDY}")

    def take_cuts(self, other: LiveLog) -> None:
        """Take over the sealed cuts of another live log, as links."""
        (self.folder / _CUTS).mkdir(parents=True, exist_ok=True)
        for path in sorted((other.folder / _CUTS).glob("*.arrow")):
            os.link(path, self.folder / _CUTS / path.name)

    def take_rejected(self, other: LiveLog, change: Callable[[pa.Table], pa.Table]) -> None:
        """Take over rejected records, what became of mended ones, and what was lost.

        Args:
            other: Another live log.
            change: Changes rejected and mended records.
        """
        for kind in (REJECTED, MENDED):
            for path in sorted((other.folder / kind).glob("*.arrow")):
                self._write(kind, int(path.stem), change(self.read_table(path)))
        for path in sorted((other.folder / LOST).glob("*.arrow")):
            # Records name partitions of topics, which stay the same.
            self._write(LOST, int(path.stem), self.read_table(path))

    def rejected(self, after: int, until: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the rejected records of sealed polls: the poll's number, and its records.

        Args:
            after: The number of the last poll that is not wanted.
            until: The number of the last that is.
        """
        for table in self._read(REJECTED, after, until):
            numbers = table.column(POLL_NUMBER).to_numpy()
            records = table.select(rejected.SCHEMA.names)
            found, starts = np.unique(numbers, return_index=True)
            # A file may be empty: all of its records were forgotten.
            stops = [*starts.tolist(), len(numbers)][1:]
            for number, start, stop in zip(found.tolist(), starts.tolist(), stops, strict=True):
                if after < number <= until:
                    yield number, one_batch(records.slice(start, stop - start))


def inherited_from(folder: Path) -> str | None:
    """Return the generation whose rows a live log has taken over and not yet gone on with.

    Args:
        folder: The folder of the live log.

    Returns:
        None if there is no live log, it has taken over nothing, or a stream has read more since.

    Raises:
        StateError: A record cannot be read.
    """
    origin = _read_origin(folder)
    if origin.generation is None:
        return None
    last = PollLog(folder / _POLLS).last()
    return None if last is not None and last.number > origin.number else origin.generation


def _read_origin(folder: Path) -> LiveOrigin:
    path = folder / _ORIGIN
    return LiveOrigin(**read_record(path, _ORIGIN_FORM)) if path.exists() else LiveOrigin()


def _described(topic: LiveTopic | None) -> str:
    if topic is None:
        return "no topic"
    of_files = f", after {topic.first} of files" if topic.first else ""
    return f"topic {topic.topic!r} of {len(topic.offsets)} partitions{of_files}"


def _in_pieces(polls: Iterable[LoggedPoll], before_us: int) -> Iterator[list[SentPoll]]:
    """Yield the polls that were received before an instant, in pieces of bounded size."""
    piece: list[SentPoll] = []
    size = 0
    for poll in polls:
        sent = poll.sent()
        if sent.sent_us >= before_us:
            break
        piece.append(SentPoll(poll, sent))
        size += len(poll.poll)
        if size >= _SEALED_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _numbered(found: Iterable[tuple[int, pa.RecordBatch | None]]) -> pa.Table | None:
    """Return what polls have beside their rows, each row with the number of its poll."""
    tables = [
        pa.Table.from_batches(
            [batch.append_column(POLL_NUMBER, pa.array([number] * batch.num_rows, pa.int64()))]
        )
        for number, batch in found
        if batch is not None
    ]
    return pa.concat_tables(tables, promote_options="default") if tables else None
