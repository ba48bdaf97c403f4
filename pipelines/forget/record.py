"""The records of what was forgotten: ``forgotten/NNNNN.json`` below the root.

A record says that and when an entity was forgotten, and counts what was removed, by place. It has
no key: only a digest of it with a random salt. While the work is in progress, key and salt are in
the folder `WORK`, so that any command can finish it; then they are gone, and nobody can tell from
the record whom it was about. A person who has to tell keeps the number of the record with the
request for deletion.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.features.contract import write_instant
from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.forget.linked_copy import Changes
from tidemill.pipelines.io.live.live_log import LIVE, LiveLog
from tidemill.serving.files.locks import is_locked, lock
from tidemill.serving.files.records import RecordFormat, read_record, write_record
from tidemill.serving.generations.current import Current

FINISH: Final = "tidemill forget --finish"
"""The command that goes on with a deletion that was killed."""
FORGOTTEN: Final = "forgotten"
"""The name of the folder below a root."""
WORK: Final = "work"
"""Below `FORGOTTEN`: the work that is in progress; the folder is gone when it has ended."""
_LOCK: Final = "forget.lock"
_BEGUN: Final = "record.json"


@dataclass(frozen=True)
class ForgetRecord:
    """What was forgotten.

    Attributes:
        number: Its number, from 1.
        entity: The name of the entity.
        digest: The digest of its key with a salt that is not kept.
        asked: When the command began: ISO 8601, UTC.
        ended: When it had ended; empty in a record of work that is in progress.
        removed: How many rows, records or values were removed or blanked, by place.
        rows: The blanked rows of the log: ``GENERATION/SOURCE/PARTITION`` to their positions, as
            successive pairs of a first position and the one after the last.
        refused: The rejected records of topics that were removed, likewise, by their positions.
        others: Features of other entities that read what is blank now: column to the instant up to
            which its values can no longer be recomputed, in microseconds.
        closed: Streams in eager mode, ``GENERATION/STREAM``, that had rows of the entity: they
            cannot be repeated without it, so they are ended, and not proven.
        files: The files of logs, states, tables, manifests and archives that were replaced: path
            to the SHA-256 of the bytes before and after; empty where there is no file.
        remains: What is left elsewhere, or could not be searched; a sentence each.
    """

    number: int
    entity: str
    digest: str
    asked: str
    ended: str = ""
    removed: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    refused: Mapping[str, Sequence[int]] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    closed: Sequence[str] = ()
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    remains: Sequence[str] = ()

    def write(self, root: Path) -> None:
        """Write the record below a root, and wait for the disk."""
        path = root / FORGOTTEN / f"{self.number:05d}.json"
        write_record(path, _FORM, dataclasses.asdict(self), durable=True)

    def write_begun(self, work: Path) -> None:
        """Write the record of work in progress into the folder of the work."""
        write_record(work / _BEGUN, _FORM, dataclasses.asdict(self), durable=True)

    @staticmethod
    def find(root: Path, number: int) -> ForgetRecord | None:
        """Read a record of a root; None if there is none of the number."""
        path = root / FORGOTTEN / f"{number:05d}.json"
        return ForgetRecord(**read_record(path, _FORM)) if path.exists() else None

    @staticmethod
    def read_begun(work: Path) -> ForgetRecord:
        """Read what `write_begun` has written.

        Raises:
            DamagedState: It is damaged.
        """
        return ForgetRecord(**read_record(work / _BEGUN, _FORM))


_FORM: Final = RecordFormat(
    name="tidemill-forgotten",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(ForgetRecord)),
    remedy="restore it from a copy",
)


@contextmanager
def working(root: Path, command: str) -> Iterator[Path]:
    """Hold the lock of whoever works in the folder of the work; yield that folder.

    Args:
        root: The root.
        command: What the lock says of this process.

    Raises:
        Locked: Another process works there.
    """
    with lock(root / FORGOTTEN / _LOCK, "forget an entity", command=command):
        yield root / FORGOTTEN / WORK


def check_finished(root: Path) -> None:
    """Check that no deletion is half done; remove what one has left that changed nothing.

    Raises:
        StateMismatch: One is half done.
    """
    folder = root / FORGOTTEN / WORK
    if not folder.exists() and not _ended(folder).exists():
        return
    if is_locked(root / FORGOTTEN / _LOCK):
        raise StateMismatch(f"{root}: an entity is being forgotten; wait until that has ended")
    if Changes.find(root, folder) is not None:
        raise StateMismatch(
            f"{root}: an entity is being forgotten, and the command was killed or the online store "
            f"could not be written: run `{FINISH}`, which goes on where it ended"
        )
    remove_work(folder)


def remove_work(folder: Path) -> None:
    """Remove the folder of the work: its plan is gone first, so that nobody begins it again."""
    trash = _ended(folder)
    shutil.rmtree(trash, ignore_errors=True)
    if folder.exists():
        folder.rename(trash)
        shutil.rmtree(trash)


def _ended(folder: Path) -> Path:
    return folder.with_name(f"{WORK}.ended")


def read_records(root: Path) -> list[ForgetRecord]:
    """Read the records of a root, in order.

    Raises:
        DamagedState: One is damaged.
        StateVersionError: One has a version that is not supported.
    """
    found = sorted((root / FORGOTTEN).glob("[0-9]*.json"))
    return [ForgetRecord(**read_record(path, _FORM)) for path in found]


def next_number(root: Path) -> int:
    """Return the number of the next record."""
    taken = [int(path.stem) for path in (root / FORGOTTEN).glob("[0-9]*.json")]
    return max(taken, default=0) + 1


Positions = dict[str, dict[int, list[range]]]
"""Source to partition to ranges of positions."""


def blank_positions(root: Path, generation: str) -> Positions:
    """Return which rows of the logs of a generation were forgotten."""
    return _positions([record.rows for record in read_records(root)], generation)


def refused_positions(root: Path, generation: str) -> Positions:
    """Return which rejected records of topics were removed from the live log of a generation."""
    return _positions([record.refused for record in read_records(root)], generation)


def _positions(records: Sequence[Mapping[str, Sequence[int]]], generation: str) -> Positions:
    found: Positions = {}
    for record in records:
        for place, ends in record.items():
            of, _, rest = place.partition("/")
            source, _, partition = rest.rpartition("/")
            if of == generation:
                ranges = [range(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True)]
                found.setdefault(source, {}).setdefault(int(partition), []).extend(ranges)
    return found


def others_that_read(root: Path) -> dict[str, int]:
    """Return the features of other entities that have read what was forgotten.

    Returns:
        Feature column to the instant up to which its values can no longer be recomputed.
    """
    found: dict[str, int] = {}
    for record in read_records(root):
        for feature, until_us in record.others.items():
            found[feature] = max(until_us, found.get(feature, until_us))
    return found


def closed_by(root: Path, generation: str, stream: str) -> int | None:
    """Return the number of the record by which a stream in eager mode was ended; None for none."""
    place = f"{generation}/{stream}"
    return next((one.number for one in read_records(root) if place in one.closed), None)


def check_goes_on(current: Current, project: Project) -> None:
    """Check that a stream was not ended because rows of it were forgotten.

    Raises:
        StateMismatch: It was.
    """
    number = closed_by(current.root, current.generation, current.stream_folder.name)
    if number is not None:
        raise StateMismatch(
            f"{current.root}: an entity was forgotten (record {number:05d}), and a stream in eager "
            f"mode cannot be resumed without its rows: {how_to_go_on(current, project)}"
        )


def how_to_go_on(current: Current, project: Project) -> str:
    """Say how to go on with what a stream has read that was ended."""
    live = LiveLog(current.folder / LIVE, project)
    until_us = live.read_until_us() if live.exists else None
    if until_us is None:
        return "run `tidemill stream` without --resume"
    return (
        f"set splits.evaluate_until to {write_instant(until_us)}, run `tidemill backfill`, then "
        "`tidemill stream`, which goes on from there; or run it alone: it answers again all that "
        "came since the last backfill"
    )


def forgotten_rows(root: Path, generation: str) -> int:
    """Count the rows of the logs of a generation that were forgotten."""
    found = blank_positions(root, generation)
    return sum(len(one) for of in found.values() for ranges in of.values() for one in ranges)
