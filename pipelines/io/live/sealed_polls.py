"""The sealed polls of a live log, as they are read: their cuts, and what they have beside rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.features.contract import TIME_MAX
from tidemill.features.errors import DamagedState, StateMismatch
from tidemill.features.rows import rejected
from tidemill.pipelines.io.live.live_cuts import (
    REMEDY,
    Cuts,
    OffsetCuts,
    cuts_of,
    offset_cuts,
    some_cuts,
)
from tidemill.pipelines.io.live.live_records import LiveRecords
from tidemill.pipelines.io.live.poll_files import (
    CUTS,
    POLL_NUMBER,
    REJECTED,
    PollFiles,
    read_table,
)
from tidemill.pipelines.io.log import one_batch


class SealedPolls(LiveRecords):
    """The sealed polls of a live log; arguments as for `LiveRecords`."""

    def files(self, kind: str) -> PollFiles:
        """Return the files of a kind (`pipelines.io.live.poll_files`)."""
        return PollFiles(self.folder, kind)

    def beside(self, kind: str, until: int) -> Iterator[pa.Table]:
        """Yield what sealed polls have beside their rows, with the number of each row's poll.

        Args:
            kind: `REJECTED`, `MENDED` or `LOST`.
            until: The last poll that is wanted; there may be rows of later ones.
        """
        return self.files(kind).read(0, until)

    def cuts(self) -> Cuts:
        """Return the sealed polls.

        Raises:
            DamagedFile: A file is damaged.
            StateMismatch: Polls are missing.
        """
        until = self.sealed().number
        return cuts_of(
            self.files(CUTS).read(0, until), self.topics(), until, self.files(CUTS).folder
        )

    def offset_cuts(self, after: int, until: int) -> Iterator[OffsetCuts]:
        """Yield the positions in topics of the sealed polls ``(after, until]``, file by file.

        Raises:
            DamagedFile: A file is damaged.
        """
        for table in self.files(CUTS).read(after, until):
            found = offset_cuts(table, after, until)
            if len(found.number):
                yield found

    def cuts_between(self, after: int, until: int) -> Cuts:
        """Return the sealed polls ``(after, until]``, from the files that hold them.

        Raises:
            DamagedFile: A file is damaged.
            StateMismatch: Polls are missing.
        """
        found = some_cuts(self.files(CUTS).read(after, until), self.topics())
        found = found.span(*np.searchsorted(found.number, [after, until], "right").tolist())
        if not np.array_equal(found.number, np.arange(after + 1, until + 1)):
            where = self.files(CUTS).folder
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
        for path in reversed(self.files(CUTS).paths()):
            if int(path.stem) > until:
                continue
            found = some_cuts([read_table(path)], topics)
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
        for table in self.files(CUTS).read(number - 1, number):
            found = table.filter(pc.equal(table.column("number"), number))
            if len(found):
                received_us: int = found.column("received_us")[0].as_py()
                return received_us
        raise DamagedState(f"{self.files(CUTS).folder} has no poll {number}; {REMEDY}")

    def rejected(self, after: int, until: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the rejected records of sealed polls: the poll's number, and its records.

        Args:
            after: The number of the last poll that is not wanted.
            until: The number of the last that is.
        """
        for table in self.files(REJECTED).read(after, until):
            numbers = table.column(POLL_NUMBER).to_numpy()
            records = table.select(rejected.SCHEMA.names)
            found, starts = np.unique(numbers, return_index=True)
            # A file may be empty: all of its records were forgotten.
            stops = [*starts.tolist(), len(numbers)][1:]
            for number, start, stop in zip(found.tolist(), starts.tolist(), stops, strict=True):
                if after < number <= until:
                    yield number, one_batch(records.slice(start, stop - start))
