"""The states of operators at savepoints, in files: a head, a base, and what came since the base.

A savepoint every few seconds must not cost as much as the state is large. So an operator writes its
whole state, the *base*, only now and then; at the other savepoints it writes what it has applied
since the one before, and its head. The base and the pieces since it are linked into the folder of
each savepoint, so every folder is whole by itself, and can be removed without the others.

    VIEW-00000-of-00002.state                     the head, and the names of the others
    VIEW-00000-of-00002.base-000000000012.state   a snapshot as of release 12
    VIEW-00000-of-00002.since-000000000031.state  entries of later releases, up to release 31

The promise: what is read is what `write_handoff` would have written, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidemill.pipelines.io.framing import Bytes, Kind, encode_document
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.release import Release
from tidemill.pipelines.stream.snapshot_policy import base_due
from tidemill.pipelines.stream.state_files import Begun, decode_entries, read_entries, state_path
from tidemill.pipelines.stream.state_places import ON_DISK, InExchange, StatePlace

MOST_EVENTS: Final = 4_000_000
"""With more events since the base than this, the next savepoint begins with a base in any case."""
MOST_PIECES: Final = 16
"""So many pieces since the base are joined into one."""


@dataclass
class SavepointFiles:
    """What the savepoints of an operator in this process have written.

    Attributes:
        place: Where they are written.
        folder: The folder of the last one, or of the states that the process began with; None if
            the next one begins with a base.
        base: The name of the base.
        pieces: The names of the pieces since.
        events: How many events they hold.
        entries: The entries of the log since the last savepoint (`Release.entry`).
        new_events: How many events these hold.
    """

    place: StatePlace = ON_DISK
    folder: Path | None = None
    base: str = ""
    pieces: list[str] = field(default_factory=list)
    events: int = 0
    entries: list[bytes] = field(default_factory=list)
    new_events: int = 0

    @property
    def base_at(self) -> int | None:
        """The number of the release as of which the base is; None if the next one is another."""
        return None if self.folder is None else int(Path(self.base).stem.rpartition("-")[2])

    @staticmethod
    def after(begun: Begun | None, place: StatePlace) -> SavepointFiles:
        """Return those of an operator that began with the files of a savepoint.

        Args:
            begun: What it began with; None if with something else.
            place: Where its files are written.
        """
        if begun is None or not isinstance(place, InExchange):
            return SavepointFiles(place)
        # Its base does not travel back: the program has it.
        folder, base, pieces, events = begun
        return SavepointFiles(place, folder, base, list(pieces), events)

    def add(self, releases: Sequence[Release]) -> None:
        """Note releases, which the next savepoint contains."""
        if self.folder is None:
            return  # it begins with a base
        self.entries += [one.entry for one in releases if one.entry is not None]
        self.new_events += sum(one.events for one in releases)
        if self.events + self.new_events > MOST_EVENTS:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Begin the next savepoint with a base."""
        self.folder, self.entries, self.new_events = None, [], 0

    def keep(self, folder: Path, operator: ShardOperator) -> None:
        """Write the state of an operator as of its last release, which was added.

        Args:
            folder: The folder of the savepoint.
            operator: The operator.
        """
        path = state_path(folder, operator.key)
        key, number = operator.key, operator.number
        total = self.events + self.new_events
        if self.folder is None or base_due(total, *operator.sizes, key.shard, key.shards):
            self.base, self.pieces, self.events = _name(path, "base", number), [], 0
            self.place.write(folder / self.base, operator.snapshot())
            since: int | None = number
        else:
            since = self.base_at
            for name in (self.base, *self.pieces):
                self.place.link(self.folder / name, folder / name)
            if self.entries:
                self._add_piece(path, operator)
            self.events = total
        fields = {"base": self.base, "since": self.pieces}
        head = operator.handed_over_head(since)
        self.place.write(path, encode_document(Kind.OPERATOR_SAVEPOINT, key.text, fields, [head]))
        self.folder, self.entries, self.new_events = folder, [], 0

    def _add_piece(self, path: Path, operator: ShardOperator) -> None:
        folder, before = path.parent, self.pieces
        name = _name(path, "since", operator.number)
        data = encode_document(Kind.OPERATOR_ENTRIES, operator.key.text, {}, self.entries)
        if len(before) < MOST_PIECES:
            self.place.write(folder / name, data)
            self.pieces = [*before, name]
            return
        join = self.place.join if isinstance(self.place, InExchange) else join_pieces
        join([folder / one for one in before], folder / name, data)
        self.pieces = [name]


def join_pieces(pieces: Sequence[Path], path: Path, data: Bytes) -> None:
    """Write a piece of the entries of other pieces, which are removed, and of more.

    Args:
        pieces: The other pieces.
        path: The piece.
        data: The further entries, encoded as a piece.

    Raises:
        StateError: One of them is damaged.
    """
    more = decode_entries(data, str(path))
    entries = [entry for one in pieces for entry in read_entries(one)]
    data = encode_document(Kind.OPERATOR_ENTRIES, more.key, {}, [*entries, *more.blobs])
    for one in pieces:
        one.unlink()
    ON_DISK.write(path, data)


def _name(path: Path, kind: str, number: int) -> str:
    return f"{path.stem}.{kind}-{number:012d}{path.suffix}"
