"""The rows that were removed from a live log by age: how many, and what they were.

A build has a copy of live rows, and goes on to be read in their place (`pipelines.io.log.Log`). The
record keeps the digest of what was removed, so the copy is still compared with what was read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.serving.files.records import RecordFormat, read_record, write_record

_NAME: Final = "removed.json"


@dataclass(frozen=True)
class RemovedRows:
    """What was removed from a live log.

    Attributes:
        first: Source to the first position that each partition of its topic still has in the live
            log, or will get next.
        digests: Source to the digest of the rows below it (`pipelines.io.log.Log.digest_below`).
        before_us: All of them were received before this instant.
    """

    first: Mapping[str, Sequence[int]] = field(default_factory=dict)
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    before_us: int = 0

    @property
    def rows(self) -> int:
        """How many rows were removed."""
        return sum(map(sum, self.first.values()))

    def write(self, live: Path) -> None:
        """Write the record into the folder of a live log, and wait for the disk."""
        write_record(live / _NAME, _FORM, dataclasses.asdict(self), durable=True)

    @staticmethod
    def read(live: Path) -> RemovedRows:
        """Read the record of a live log; nothing was removed if there is none.

        Raises:
            DamagedState: It is damaged.
            StateVersionError: Its version is not supported.
        """
        path = live / _NAME
        return RemovedRows(**read_record(path, _FORM)) if path.exists() else RemovedRows()


_FORM: Final = RecordFormat(
    name="tidemill-live-removed",
    version=1,
    fields=frozenset(one.name for one in dataclasses.fields(RemovedRows)),
    remedy="restore it from a copy, or run `tidemill backfill` for a new generation",
)
