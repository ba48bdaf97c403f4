"""Blanking the rows of a generation: in the logs of its builds, and in its live log."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import BoolArray, Int64Array
from tidemill.features.definitions import (
    EventStream,
    FeatureView,
    Project,
    Request,
    has_grown,
)
from tidemill.features.errors import StateMismatch
from tidemill.features.kernel import hashing
from tidemill.pipelines.forget.blank_rows import Blanking
from tidemill.pipelines.forget.rejected import names_subject
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.pipelines.io.live.poll_files import MENDED, REJECTED, read_table
from tidemill.pipelines.io.live.poll_log import LoggedPoll, PollLog
from tidemill.pipelines.io.log import LOG, POSITION, RECEIVED, ROWS, Log
from tidemill.pipelines.io.log_files import LogFile, first_position, write_log_file
from tidemill.pipelines.io.log_rows import conformed
from tidemill.pipelines.io.poll import Poll, PollPart

_NEW = "polls.new"


@dataclass
class Blanked:
    """What was blanked in a generation.

    Attributes:
        positions: Source and partition to the positions of blanked rows.
        shards: View to the shards that had events of these rows.
        others: Features of other entities that read what is blank now, to the last instant of
            which that is so (`Blanking.others`).
        linked: What the label's key consists of, of forgotten requests.
        refused: The rejected records of topics that were removed: source, partition, position, and
            origin.
        unread: How many rejected records could not be searched whole: their bytes are no text.
    """

    positions: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    shards: dict[str, set[int]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    linked: set[tuple[object, ...]] = field(default_factory=set)
    refused: set[tuple[str, int, int, str]] = field(default_factory=set)
    unread: int = 0

    @property
    def rows(self) -> int:
        """How many rows of the log were blanked."""
        return sum(map(len, self.positions.values()))

    def of_requests(self, request: str) -> dict[int, Int64Array]:
        """Return the positions of blanked requests by partition."""
        return {
            partition: np.array(sorted(found), np.int64)
            for (source, partition), found in self.positions.items()
            if source == request
        }


class LogRewriter:
    """Blanks the rows of a subject in the folder of a generation, which is a copy.

    Args:
        project: The project.
        subject: Whom to forget.
        folder: The folder of the generation.
        shards: The number of shards of each view.
        salt: Random bytes (`Blanking`).
    """

    def __init__(
        self, project: Project, subject: Subject, folder: Path, shards: int, salt: bytes
    ) -> None:
        self._project, self._subject, self._folder = project, subject, folder
        self._shards, self._salt = shards, salt
        self._live = LiveLog(folder / LIVE, project)
        self._done = Blanked()
        self._rewritten: dict[tuple[int, int], Path] = {}

    def run(self) -> Blanked:
        """Blank everything.

        Raises:
            DamagedFile: A log is damaged; nothing of it is blanked.
            StateMismatch: The columns of a log are not those that the project declares.
        """
        request = self._project.request
        streams = [stream for stream in self._project.streams if stream.name != request.name]
        # First the requests: events of the label may belong to them.
        self._rewrite_source(request)
        if self._live.exists:
            self._find_links_in_polls()
        for stream in streams:
            self._rewrite_source(stream)
        if self._live.exists:
            self._rewrite_polls()
            self._rewrite_beside()
        return self._done

    def _blanking(self, definition: EventStream | Request) -> Blanking:
        done = self._done
        return Blanking(self._project, definition, self._subject, self._salt, done.linked)

    def _rewrite_source(self, definition: EventStream | Request) -> None:
        blanking = self._blanking(definition)
        folders = [build / LOG for build in sorted(self._folder.glob("build-??????"))]
        for folder in (*folders, self._live.folder / ROWS):
            for path in sorted((folder / definition.name).glob("*.arrow")):
                self._rewrite_file(path, definition, blanking)

    def _rewrite_file(
        self, path: Path, definition: EventStream | Request, blanking: Blanking
    ) -> None:
        # Builds may share a file (`pipelines.io.log_pieces`), and go on to do so.
        status = path.stat()
        which = status.st_dev, status.st_ino
        if (same := self._rewritten.get(which)) is not None:
            path.unlink()
            os.link(same, path)
            return
        first = first_position(path)
        file = LogFile.of(path, first, None)
        is_same = file.origin.base == definition.origin.base
        if not (is_same and has_grown(file.columns, definition.schema)):
            raise StateMismatch(
                f"{path} has other columns than {definition.name!r} declares, so nobody can say "
                "which of its rows are to be forgotten: set the schema back, or run `tidemill "
                "backfill` twice, which removes what is older than the last two generations"
            )
        reader, numbers = file.checked(), range(file.reader.num_record_batches)

        def block(number: int) -> pa.RecordBatch:
            rows = reader.get_batch(number).replace_schema_metadata(None)
            return conformed(rows, definition.schema)

        named = [blanking.named(block(number)) for number in numbers]
        if not any(of_batch.any() for of_batch in named):
            return
        partition = int(path.stem.partition("-")[0])
        # The file keeps the columns that it was written with.
        written = definition.with_columns(file.columns)
        with write_log_file(path, written, file.stored.rows, first=first) as writer:
            for number, of_batch in enumerate(named):
                rows = block(number)
                if of_batch.any():
                    self._note(definition, partition, rows, of_batch, blanking)
                    rows = blanking.blank(rows, of_batch)
                rows = conformed(rows, written.schema)
                writer.write(rows, hashing.bits(rows.column(RECEIVED)))
        self._rewritten[which] = path

    def _note(
        self,
        definition: EventStream | Request,
        partition: int,
        rows: pa.RecordBatch,
        named: BoolArray,
        blanking: Blanking,
    ) -> None:
        mine = rows.filter(pa.array(named))
        place = definition.name, partition
        found = hashing.bits(mine.column(POSITION)).tolist()
        self._done.positions.setdefault(place, set()).update(found)
        self._done.linked.update(blanking.links(rows, named))
        for feature, until_us in blanking.others(rows, named).items():
            self._done.others[feature] = max(self._done.others.get(feature, until_us), until_us)
        if isinstance(definition, Request):
            for view in self._project.views:
                self._note_shards(view, mine.column(definition.key_column(view.entity)))
                self._note_shards(view, pa.nulls(1, pa.string()))  # where it is without a key
            return
        for view in self._project.views_of(definition.name):
            # An event without a key is in no shard.
            self._note_shards(view, mine.column(view.key).drop_null())

    def _note_shards(self, view: FeatureView, keys: pa.Array) -> None:
        if len(keys):
            shards = hashing.shard_of(hashing.key_bytes(keys), self._shards).tolist()
            self._done.shards.setdefault(view.name, set()).update(shards)

    def _find_links_in_polls(self) -> None:
        request = self._project.request
        blanking = self._blanking(request)
        for logged in _logged(self._live.polls):
            for part in Poll.decode(bytes(logged.poll)).parts:
                if part.source == request.name and part.rows is not None:
                    named = blanking.named(part.rows)
                    self._done.linked.update(blanking.links(part.rows, named))

    def _rewrite_polls(self) -> None:
        """Blank the rows of polls that are not sealed, or still there."""
        definitions: list[EventStream | Request] = [*self._project.streams, self._project.request]
        blankings = {definition.name: self._blanking(definition) for definition in definitions}
        new = PollLog(self._live.folder / _NEW)
        changed = False
        for logged in _logged(self._live.polls):
            found = self._blank_poll(logged, blankings)
            changed |= found is not logged
            new.append(found)
        new.close()
        folder = self._live.folder / "polls"
        if changed:
            shutil.rmtree(folder)
            (self._live.folder / _NEW).rename(folder)
        else:
            shutil.rmtree(self._live.folder / _NEW, ignore_errors=True)

    def _blank_poll(self, logged: LoggedPoll, blankings: Mapping[str, Blanking]) -> LoggedPoll:
        poll = Poll.decode(bytes(logged.poll))
        parts = tuple(self._blank_part(part, blankings) for part in poll.parts)
        if any(new is not old for new, old in zip(parts, poll.parts, strict=True)):
            logged = replace(logged, poll=replace(poll, parts=parts).encode())
        if logged.rejected is not None:
            beside = logged.set_aside
            assert beside is not None
            stays = ~self._refused(pa.Table.from_batches([beside]))
            if not stays.all():
                mask = pa.array(stays)
                carried = None if logged.carried is None else logged.carried.filter(mask)
                left = logged.rejected.filter(mask) if stays.any() else None
                carried = carried if stays.any() else None
                logged = replace(logged, rejected=left, carried=carried)
        if logged.mended is not None:
            told = self._without_details(pa.Table.from_batches([logged.mended]))
            if told is not None:
                logged = replace(logged, mended=told.combine_chunks().to_batches()[0])
        return logged

    def _blank_part(self, part: PollPart, blankings: Mapping[str, Blanking]) -> PollPart:
        if part.rows is None:
            return part
        definition, blanking = self._project.definition(part.source), blankings[part.source]
        rows = conformed(part.rows, definition.schema)
        if not (named := blanking.named(rows)).any():
            return part
        self._note(definition, part.partition, rows, named, blanking)
        return replace(part, rows=blanking.blank(rows, named))

    def _rewrite_beside(self) -> None:
        """Remove rejected records of sealed polls, and what is said about mended ones."""
        for path in self._live.files(REJECTED).paths():
            table = read_table(path)
            stays = ~self._refused(table)
            if not stays.all():
                self._live.files(REJECTED).write(int(path.stem), table.filter(pa.array(stays)))
        for path in self._live.files(MENDED).paths():
            told = self._without_details(read_table(path))
            if told is not None:
                self._live.files(MENDED).write(int(path.stem), told)

    def _refused(self, records: pa.Table) -> BoolArray:
        named, unread = names_subject(self._subject, records)
        names = ["stream", "partition", "position", "origin"]
        mine = records.select(names).filter(pa.array(named))
        columns = [mine.column(name).to_pylist() for name in names]
        self._done.refused.update(zip(*columns, strict=True))
        self._done.unread += unread
        return named

    def _without_details(self, outcomes: pa.Table) -> pa.Table | None:
        """Leave out details that name the subject; None if there are none."""
        details = outcomes.column("detail").combine_chunks()
        tells = [self._subject.in_bytes((text or "").encode()) for text in details.to_pylist()]
        if not any(tells):
            return None
        place = outcomes.schema.get_field_index("detail")
        said = pc.if_else(pa.array(tells), pa.scalar(""), details)
        return outcomes.set_column(place, "detail", said)


def _logged(polls: PollLog) -> Iterator[LoggedPoll]:
    """Yield every poll that a poll log still has."""
    if (first := polls.first_number()) is not None:
        yield from polls.read(after=first - 1)


def check_digests(build: Path, digests: Mapping[str, tuple[list[int], str]]) -> None:
    """Check that the log of a build has the rows that its manifest names.

    A log that was changed must not get a record that says it is right.

    Args:
        build: The folder of the build.
        digests: By source: a cut, and the digest of the rows below it.

    Raises:
        StateMismatch: It has other rows.
    """
    log = Log(build)
    for name, (cut, digest) in digests.items():
        if log.prefix_digest(name, cut) != digest:
            raise StateMismatch(
                f"the log of {name!r} in {build / LOG} does not have the digest that its build "
                "was made with: it was changed, and nothing is forgotten until it is right; run "
                "`tidemill verify` to see what differs, and restore it or run `tidemill backfill`"
            )
