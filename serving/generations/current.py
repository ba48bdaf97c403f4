"""The record ``CURRENT`` of a root: which folders the log, states, tables and outputs are in.

A *generation* is a named branch of the accepted log; its folder is ``root/generations/ID``:

* ``build-N``: what one `tidemill backfill` has made: the log, the training table, the states.
* ``offline-N``: the offline logs of all views.
* ``stream-N``: the outputs and savepoints of one stream, from its start to its end.

Folders are built beside the current ones, and ``CURRENT`` then names the new ones. It is one file,
replaced atomically, so a program that reads it once sees folders that belong together, and a build
that is interrupted never happened. Nothing in a folder that ``CURRENT`` has named is replaced:
streams add to ``stream-N`` and ``offline-N``, and files of the offline log may be merged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tidemill.features.errors import StateMismatch, StateVersionError
from tidemill.serving.files.locks import lock
from tidemill.serving.files.records import RecordFormat, read_record, write_record

CURRENT: Final = "CURRENT"
"""The name of the record below a root."""
GENERATIONS: Final = "generations"
"""The name of the folder of all generations below a root."""

_FORMER: Final = ("log", "states")
"""Folders below the root of a version without generations."""

ENGINE_JOBS: Final = "jobs"
"""The folder, in that of a generation, of jobs whose workers are other processes."""


@dataclass(frozen=True)
class Current:
    """The folders that a root means at one instant.

    Attributes:
        root: The root.
        generation: The id of the generation: 16 hexadecimal digits.
        build: The number of the build.
        offline: The number of the folder of offline logs.
        stream: The number of the folder of the stream; 0 if none has begun.
    """

    root: Path
    generation: str
    build: int
    offline: int
    stream: int

    @property
    def folder(self) -> Path:
        """The folder of the generation."""
        return self.root / GENERATIONS / self.generation

    @property
    def build_folder(self) -> Path:
        """The folder of log, training table and states."""
        return self.folder / f"build-{self.build:06d}"

    @property
    def offline_root(self) -> Path:
        """The folder of the offline logs."""
        return self.folder / f"offline-{self.offline:06d}"

    @property
    def engine_jobs(self) -> Path:
        """Folder of jobs whose workers are other processes, while they run."""
        return self.folder / ENGINE_JOBS

    @property
    def stream_lock(self) -> Path:
        """The file that the generation's running stream locks (`serving.files.locks`)."""
        return self.folder / "stream.lock"

    @property
    def stream_folder(self) -> Path:
        """The folder of the stream's outputs and savepoints; it may not exist."""
        return self.folder / f"stream-{self.stream:06d}"

    def next_number(self, kind: Literal["build", "offline", "stream"]) -> int:
        """Return the number after the highest one that a folder of the generation has."""
        taken = [int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"{kind}-??????")]
        return max(taken, default=0) + 1

    @property
    def newest_build(self) -> Path:
        """The folder of the newest build of the generation, whose log extends all before it."""
        return dataclasses.replace(self, build=self.next_number("build") - 1).build_folder

    def with_stream(self, number: int) -> Current:
        """Return the same folders with those of a stream."""
        return dataclasses.replace(self, stream=number)

    def with_next_stream(self) -> Current:
        """Return the same folders with those of a further stream of the generation."""
        return dataclasses.replace(self, stream=self.next_number("stream"))


_CURRENT: Final = RecordFormat(
    name="tidemill-current",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(Current)) - {"root"},
    remedy="restore it, or remove it with the folder `generations` and run `tidemill backfill`",
)


def write_current(current: Current) -> None:
    """Make the folders of a record the current ones, in one step, and wait for the disk.

    Processes that change one record at the same time hold `changing`.
    """
    content = dataclasses.asdict(current)
    del content["root"]
    write_record(current.root / CURRENT, _CURRENT, content, durable=True)


@contextmanager
def changing(root: Path) -> Iterator[None]:
    """Exclude other changes of the record while the block reads and replaces it."""
    with lock(root / GENERATIONS / "current.lock", "change CURRENT", wait=True):
        yield


def streams_of(root: Path) -> list[Current]:
    """Return the folders of every stream whose folder is there: the current one, then the newest.

    The build of each is the newest of its generation.
    """
    current = find_current(root)
    found = []
    for folder in (root / GENERATIONS).glob("*/stream-??????"):
        of_it = Current(root, folder.parent.name, 0, 0, int(folder.name.rpartition("-")[2]))
        of_it = dataclasses.replace(of_it, build=of_it.next_number("build") - 1)
        is_current = current is not None and folder == current.stream_folder
        found.append((is_current, folder.stat().st_mtime_ns, of_it))
    return [of_it for *_, of_it in sorted(found, key=lambda one: one[:2], reverse=True)]


def find_current(root: Path) -> Current | None:
    """Read the record of a root; None if there is none.

    Raises:
        StateVersionError: The root, or the record, was written by another version.
        DamagedState: The record is damaged.
    """
    path = root / CURRENT
    if not path.exists():
        if former := [name for name in _FORMER if (root / name).is_dir()]:
            raise StateVersionError(
                f"{root} was written by a version without generations ({', '.join(former)}): run "
                "`tidemill backfill` into another root, or remove these folders and run it here"
            )
        return None

    return Current(root, **read_record(path, _CURRENT))


def read_current(root: Path) -> Current:
    """Read the record of a root.

    Raises:
        StateMismatch: There is none.
        StateVersionError: The root, or the record, was written by another version.
        DamagedState: The record is damaged.
    """
    found = find_current(root)
    if found is None:
        raise StateMismatch(
            f"there is no log below {root} ({root / CURRENT} is missing); run `tidemill backfill`"
        )
    return found
