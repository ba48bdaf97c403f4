"""A publication in an online store: its key space, its key, its cells, its age.

* A **key space** is one version of one view: project, view and the hash of the definition. A
  changed definition is another key space, so old values are never read for a new definition. Its
  rows are those of its current fill (`serving.online.fills`).
* The **key** is Feast's own entity key, serialization version 3, so Feast's SDK finds it.
* The **cells** of a row are all its values as one string of bytes (`serving.online.cells`).
* The **frontiers** say, by part, the instant as of which the rows are complete.
"""

from __future__ import annotations

import functools
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.features.contract import TIME_MIN, Int64Array, ReadStatus, read_status
from tidemill.features.definitions import FeatureView
from tidemill.features.errors import InputError
from tidemill.features.feast_objects import field_name
from tidemill.serving.online.cells import matrix_rows
from tidemill.serving.stores.online_places import Clock

# Feast's ValueType numbers, which are part of a key's bytes.
_STRING: Final = 2
_INT64: Final = 4


@dataclass(frozen=True)
class KeySpace:
    """One version of one view in an online store.

    Project, view and definition identify it: they suffice to read its frontiers or to remove it.

    Attributes:
        project: The project's name.
        view: The view's name.
        definition: The hash of the view's definition.
        columns: Feast field name and dtype of each value, in the order of the cells.
        max_staleness_us: How far the frontier may lag behind a reader's clock.
    """

    project: str
    view: str
    definition: str
    columns: tuple[tuple[str, str], ...] = ()
    max_staleness_us: int = 0

    @staticmethod
    def of(project: str, view: FeatureView) -> KeySpace:
        """Return the key space of a view's present definition.

        Raises:
            DefinitionError: A feature's name is reserved for publications.
        """
        return _key_space(project, view)

    @functools.cached_property
    def name(self) -> str:
        """Its name in the store; names hold no double underscore, so it is unique."""
        return f"{self.project}__{self.view}__{self.definition}"

    @functools.cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtype of each value, in order."""
        return tuple(dtype for _, dtype in self.columns)


@functools.lru_cache(maxsize=256)
def _key_space(project: str, view: FeatureView) -> KeySpace:
    # Definitions are frozen and compared by identity; hashing one anew takes most of a millisecond.
    return KeySpace(
        project=project,
        view=view.name,
        definition=view.hash,
        columns=tuple((field_name(column), column.dtype) for column in view.columns),
        max_staleness_us=view.max_staleness_us,
    )


class Row(NamedTuple):
    """One publication in an online store; times in microseconds, UTC."""

    key: bytes
    event_timestamp: int
    revision: int
    valid_until: int
    shard: int | None
    cells: bytes


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Publications of one view for a store, column by column; each ``(rows,)``.

    Attributes:
        keys: Feast's serialized entity keys (`online_keys`).
        event_timestamps: The instants from which they hold, microseconds UTC.
        revisions: The number of events applied to the entity.
        valid_until: The instants until which they hold if no further event arrives, microseconds
            UTC.
        shard: The shard of all of them; None if it is not known.
        cells: Their values (`serving.online.cells`): bytes for each row, or a matrix of uint8,
            ``(rows, width)``, if all have one width.
    """

    keys: list[bytes]
    event_timestamps: Int64Array
    revisions: Int64Array
    valid_until: Int64Array
    shard: int | None
    cells: list[bytes] | npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        columns = (self.event_timestamps, self.revisions, self.valid_until, self.cells)
        if any(len(column) != len(self.keys) for column in columns):
            raise InputError(
                f"the columns of publications must have a value for each of {len(self.keys)} keys, "
                f"found {', '.join(str(len(column)) for column in columns)}"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def of(rows: Sequence[Row], shard: int | None) -> RowBatch:
        """Return rows, in any order, as columns. Without a row, the batch is of the given shard.

        Raises:
            InputError: A row is of another shard.
        """
        if other := [row for row in rows if row.shard != shard]:
            raise InputError(
                f"{readable_key(other[0].key)} is of shard {other[0].shard} in publications of "
                f"shard {shard}"
            )
        return RowBatch(
            keys=[row.key for row in rows],
            event_timestamps=np.array([row.event_timestamp for row in rows], np.int64),
            revisions=np.array([row.revision for row in rows], np.int64),
            valid_until=np.array([row.valid_until for row in rows], np.int64),
            shard=shard,
            cells=[row.cells for row in rows],
        )

    def cells_of_rows(self) -> list[bytes]:
        """Return the cells of each row."""
        return self.cells if isinstance(self.cells, list) else matrix_rows(self.cells)

    def tuples(self) -> Iterator[tuple[bytes, int, int, int, int | None, bytes]]:
        """Return the publications one by one, as plain tuples with the fields of `Row`."""
        return zip(
            self.keys,
            self.event_timestamps.tolist(),
            self.revisions.tolist(),
            self.valid_until.tolist(),
            [self.shard] * len(self),
            self.cells_of_rows(),
            strict=True,
        )

    def take(self, places: Sequence[int]) -> RowBatch:
        """Return the publications at some places."""
        cells, keys = self.cells, self.keys
        at_places = np.array(places, np.int64)
        return RowBatch(
            keys=[keys[at] for at in places],
            event_timestamps=self.event_timestamps[at_places],
            revisions=self.revisions[at_places],
            valid_until=self.valid_until[at_places],
            shard=self.shard,
            cells=[cells[at] for at in places] if isinstance(cells, list) else cells[at_places],
        )

    def slice(self, start: int, stop: int) -> RowBatch:
        """Return the publications from one place to another."""
        return RowBatch(
            keys=self.keys[start:stop],
            event_timestamps=self.event_timestamps[start:stop],
            revisions=self.revisions[start:stop],
            valid_until=self.valid_until[start:stop],
            shard=self.shard,
            cells=self.cells[start:stop],
        )

    def rows(self) -> list[Row]:
        """Return the publications one by one."""
        return [Row(*row) for row in self.tuples()]


@dataclass(frozen=True)
class Frontiers:
    """The published frontiers of the fill that is read.

    Attributes:
        shard_count: Number of shards of the view; 0 if nothing was ever published.
        by_part: Part to frontier, in microseconds: slice ``i`` of shard ``s`` is part
            ``s * slices + i``.
        slices: Number of slices of each shard.
    """

    shard_count: int
    by_part: Mapping[int, int]
    slices: int = 1

    @property
    def by_shard(self) -> Mapping[int, int]:
        """Shard to the frontier that all its slices have reached; without those that lack one."""
        if self.slices == 1:
            return self.by_part
        found = [
            (shard, [self.by_part.get(shard * self.slices + i) for i in range(self.slices)])
            for shard in range(self.shard_count)
        ]
        return {
            shard: min(known)
            for shard, slices in found
            if len(known := [one for one in slices if one is not None]) == self.slices
        }

    @property
    def highest(self) -> int:
        """The highest frontier, which is the clock of a replay; `TIME_MIN` if there is none."""
        return max(self.by_part.values(), default=TIME_MIN)

    @property
    def least(self) -> int:
        """The frontier that every part has reached; `TIME_MIN` until all have published one."""
        if len(self.by_part) < self.shard_count * self.slices:
            return TIME_MIN
        return min(self.by_part.values(), default=TIME_MIN)

    def of(self, shard: int | None, key: bytes | None = None) -> int:
        """Return the frontier of the slice that a key of a shard is in.

        Without a key it is the one that all slices of the shard have reached, and without a shard
        the least one.
        """
        if shard is None:
            return self.least
        if self.slices != 1:
            if key is None:
                return self.by_shard.get(shard, TIME_MIN)
            shard = shard * self.slices + zlib.crc32(key) % self.slices
        return self.by_part.get(shard, TIME_MIN)

    def of_row(self, row: Row | None) -> int:
        """Return the frontier that a row is as of; without a row the least one."""
        return self.least if row is None else self.of(row.shard, row.key)

    def status(
        self, frontier_us: int, valid_until_us: int, clock_us: int, max_staleness_us: int
    ) -> ReadStatus:
        """Judge a row by `features.contract.read_status`; without a frontier its age is unknown."""
        if frontier_us <= TIME_MIN:
            return ReadStatus.OUTSIDE_MAX_AGE
        return read_status(clock_us, frontier_us, valid_until_us, max_staleness_us)


def clock_us(clock: Clock, frontiers: Frontiers) -> int:
    """Return the time of a declared clock, in microseconds; readers take the time from here only.

    It is the wall clock, or in a replay the highest frontier published for the view.
    """
    return time.time_ns() // 1_000 if clock == "wall" else frontiers.highest


def online_keys(join_key: str, keys: pa.Array) -> list[bytes]:
    """Serialize entity keys, ``(rows,)``, as Feast does (``serialize_entity_key``, version 3).

    Raises:
        InputError: A key is null, or of another type.
    """
    if keys.null_count:
        raise InputError(f"a key of {join_key!r} is null; a publication is always of an entity")
    if pa.types.is_string(keys.type):
        prefix = _key_prefix(join_key, _STRING)
        encoded = [key.encode() for key in keys.to_pylist()]
        return [prefix + len(key).to_bytes(4, "little") + key for key in encoded]
    if pa.types.is_int64(keys.type):
        prefix = _key_prefix(join_key, _INT64)
        return [prefix + key.to_bytes(8, "little", signed=True) for key in keys.to_pylist()]
    raise InputError(f"keys of {join_key!r} must be string or int64, found {keys.type}")


def online_key(join_key: str, key: str | int) -> bytes:
    """Serialize one entity key, as `online_keys` does many.

    Raises:
        OverflowError: A number does not fit an int64.
        UnicodeEncodeError: A text holds a lone surrogate.
    """
    if isinstance(key, str):
        text = key.encode()
        return _key_prefix(join_key, _STRING) + len(text).to_bytes(4, "little") + text
    return _key_prefix(join_key, _INT64) + key.to_bytes(8, "little", signed=True)


@functools.lru_cache(maxsize=1_024)
def _key_prefix(join_key: str, kind: int) -> bytes:
    name = join_key.encode()
    head = struct.pack("<III", 1, _STRING, len(name)) + name + struct.pack("<I", kind)
    return head if kind == _STRING else head + struct.pack("<I", 8)


def readable_key(key: bytes) -> str:
    """Write a key for an error message: join key and value, or hexadecimal digits.

    >>> readable_key(online_keys("tail", pa.array(["N14228"]))[0])
    "tail='N14228'"
    """
    found = decode_key(key)
    return key.hex() if found is None else f"{found[0]}={found[1]!r}"


def decode_key(key: bytes) -> tuple[str, str | int] | None:
    """Return the join key and the value of a key of one entity; None if it is no such key.

    >>> decode_key(online_key("zone", 7))
    ('zone', 7)
    """
    try:
        count, _, length = struct.unpack_from("<III", key)
        name, rest = key[12 : 12 + length].decode(), key[12 + length :]
        (kind,), value = struct.unpack_from("<I", rest), rest[8:]
        if count != 1 or kind not in (_INT64, _STRING):
            return None
        if kind == _INT64:
            return name, int.from_bytes(value, "little", signed=True)
        return name, value.decode()
    except (struct.error, UnicodeDecodeError):
        return None
