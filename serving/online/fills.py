"""Fills: the rows of a key space that one history was written into, and who writes them.

A key space (`serving.online.rows.KeySpace`) is one version of one view. Whatever restarts behind
what readers see (a corrected history, a stream that starts over, another shard count or mode) is
written into another **fill** of the key space, and readers are switched to it in one step once it
has caught up. One record of the store says which fill of a key space is read now.

* A fill is cut into **parts**: each shard into as many slices as the fill declares, by a hash of
  the key. A part has a frontier and a mark of its own.
* A **mark** names the release that a part is complete as of: `MARK_BYTES` bytes. A frontier is no
  mark, because two releases may have the same frontier.
* A **writer** has a token for the fills that it writes. The store refuses a writer whose token is
  not the one that stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from tidemill.features.contract import SECOND, write_instant
from tidemill.features.errors import InputError
from tidemill.serving.online.rows import KeySpace

LAYOUT: Final = 2
"""Version of the store's records. Version 1, before fills, had one set of rows per key space."""
MARK_BYTES: Final = 16
"""Length of a mark."""
PARCEL_ROWS: Final = 10_000
"""Rows that one atomic step should write at most: Redis serves nobody else for about 10 ms."""

_NONCE_BYTES: Final = 12
_LARGEST_NUMBER: Final = 2**32 - 1


class FillState(Enum):
    """What a fill is used for."""

    FILLING = "filling"
    CURRENT = "current"
    PAST = "past"


@dataclass(frozen=True)
class Holder:
    """The process that took a writer's token.

    Attributes:
        root: The id of its root; a process of the same root may take the token at once.
        host: Name of its host.
        pid: Number of the process.
        command: What it was started as.
        since_us: When it took the token, microseconds UTC.
    """

    root: str
    host: str
    pid: int
    command: str
    since_us: int

    def to_json(self) -> str:
        """Return the holder as a line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> Holder:
        """Return the holder that `to_json` wrote."""
        return Holder(**json.loads(text))

    def __str__(self) -> str:
        return (
            f"{self.command!r} (process {self.pid} on {self.host}, root {self.root}, since "
            f"{write_instant(self.since_us // SECOND * SECOND)})"
        )


@dataclass(frozen=True)
class Writer:
    """The right to write fills: a token, and who took it.

    Attributes:
        token: The number: the next one is higher.
        holder: Who took it.
        nonce: Random bytes that tell apart two takings of one number, which a store that lost its
            last writes may allow.
    """

    token: int
    holder: Holder
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))

    def __post_init__(self) -> None:
        if not 0 < self.token <= _LARGEST_NUMBER or len(self.nonce) != _NONCE_BYTES:
            raise InputError(
                f"found token {self.token} with {len(self.nonce)} random bytes, expected 1 to "
                f"{_LARGEST_NUMBER} with {_NONCE_BYTES}"
            )

    @property
    def key(self) -> bytes:
        """The token as the store keeps it: the number, big-endian, and the random bytes."""
        return self.token.to_bytes(4, "big") + self.nonce

    @staticmethod
    def from_key(key: bytes, holder: str | bytes) -> Writer | None:
        """Return the writer of a token and a holder in the store; None if nobody took it."""
        if not key:
            return None
        return Writer(int.from_bytes(key[:4], "big"), Holder.from_json(holder), key[4:])


@dataclass(frozen=True)
class NewFill:
    """A fill that is to be begun.

    Attributes:
        space: Its key space, with columns.
        shards: Number of shards of the view; 0 only for the empty fill of a new key space.
        slices: Number of slices of each shard (`slices_for`).
        generation: The id of the history that it is written from; empty if that has none.
        cuts: The cuts of the sources with their digests, a JSON text that the store only keeps.
        mode: The mode of the stream, ``exact`` or ``eager``; empty for none.
        expected_rows: About how many rows it will hold, to check the room for them first.
    """

    space: KeySpace
    shards: int
    slices: int = 1
    generation: str = ""
    cuts: str = "{}"
    mode: str = ""
    expected_rows: int = 0

    def __post_init__(self) -> None:
        if self.shards < 0 or self.slices < 1:
            raise InputError(
                f"view {self.space.view!r}: found {self.shards} shards of {self.slices} slices, "
                "expected at least one slice"
            )

    def begun(self, id: str, state: FillState = FillState.FILLING) -> Fill:
        """Return the fill as it begins; nobody writes it yet."""
        return Fill(
            id=id,
            space=self.space,
            shards=self.shards,
            slices=self.slices,
            generation=self.generation,
            cuts=self.cuts,
            mode=self.mode,
            state=state,
            writer=None,
        )


@dataclass(frozen=True)
class Fill:
    """A fill, as its record in the store says.

    Attributes:
        id: Its id, 16 hexadecimal digits.
        space: Its key space.
        shards: Number of shards.
        slices: Number of slices of each shard.
        generation: See `NewFill`.
        cuts: See `NewFill`.
        mode: See `NewFill`.
        state: Whether it is being filled, read, or was read before.
        writer: Who may write it; None if nobody has taken it yet.
    """

    id: str
    space: KeySpace
    shards: int
    slices: int
    generation: str
    cuts: str
    mode: str
    state: FillState
    writer: Writer | None

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"{self.space.name}, fill {self.id}"

    @property
    def parts(self) -> int:
        """Number of parts."""
        return self.shards * self.slices

    @property
    def is_current(self) -> bool:
        """Whether it is the one that readers see."""
        return self.state is FillState.CURRENT


@dataclass(frozen=True)
class PartState:
    """How far a part of a fill is.

    Attributes:
        mark: The release that it is complete as of; None if none is known.
        frontier_us: The instant that readers see it as of; None if it has none.
    """

    mark: bytes | None
    frontier_us: int | None


def new_fill_id() -> str:
    """Return a random id."""
    return secrets.token_hex(8)


def slice_of(key: bytes, slices: int) -> int:
    """Return the slice of an entity key, the same in every process and version: its CRC-32."""
    return 0 if slices == 1 else zlib.crc32(key) % slices


def slices_of(keys: Sequence[bytes], slices: int) -> list[int]:
    """Return the slice of each key."""
    crc32 = zlib.crc32
    return [crc32(key) % slices for key in keys]


def slices_for(entities: int) -> int:
    """Return the slices for shards of this many entities, so that each may double.

    >>> slices_for(3_000), slices_for(5_000), slices_for(62_500)
    (1, 1, 13)
    """
    return max(-(-2 * entities // PARCEL_ROWS), 1)


def chunk_mark(mark: bytes, chunk: int) -> bytes:
    """Return the mark of a part whose release was written up to and including a chunk."""
    return hashlib.sha256(mark + chunk.to_bytes(8, "big")).digest()[:MARK_BYTES]


def first_behind(
    new: Fill, filled: Sequence[PartState], old: Fill, shown: Sequence[PartState]
) -> tuple[int, int | None, int] | None:
    """Find a shard of a fill that is behind what readers see of another one.

    Equal cuts have the same entities in each part, so parts are compared with each other. With
    other slices, shards have the same entities. Else any entity may be in any shard, so the least
    new frontier must have reached the highest old one.

    Returns:
        The shard, its frontier and the one that readers see; None if nothing is behind.
    """
    if (new.shards, new.slices) == (old.shards, old.slices):
        groups = [([part], [part]) for part in range(new.parts)]
    elif new.shards == old.shards:
        groups = [(_parts_of(new, [shard]), _parts_of(old, [shard])) for shard in range(new.shards)]
    else:
        groups = [(list(range(new.parts)), list(range(old.parts)))]
    for mine, theirs in groups:
        seen = [us for part in theirs if (us := shown[part].frontier_us) is not None]
        if not seen:
            continue
        if not mine:
            return 0, None, max(seen)
        least, part = min((_order(filled[part].frontier_us), part) for part in mine)
        if least < _order(max(seen)):
            return part // new.slices, filled[part].frontier_us, max(seen)
    return None


def _parts_of(fill: Fill, shards: Sequence[int]) -> list[int]:
    return [shard * fill.slices + number for shard in shards for number in range(fill.slices)]


def _order(frontier_us: int | None) -> tuple[bool, int]:
    return frontier_us is not None, frontier_us or 0
