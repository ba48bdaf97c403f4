"""The online database in Redis; `serving.online.database` states the promises.

In addition:

* One script decides about rows and writes them (`serving.online.redis.scripts`); all parcels of a
  call are sent in one round trip. Up to `CHUNK_ROWS` rows of a parcel and its frontier become
  visible together or not at all. The rows of a longer parcel are written in chunks, and its
  frontier with the last one; if a row conflicts, the chunks without that row are stored, and the
  frontier is unchanged.
* A Redis that has lost its scripts gets them again. One that was emptied has no key spaces, and one
  that lost its last writes is behind the next parcel: both refuse the write.
* The server's setting ``appendonly`` decides how many writes a crash may lose; after a loss,
  publish again from state.
* A server that may evict keys (``maxmemory-policy allkeys-...``) is refused, because an evicted row
  would read as that of an entity that was never seen. So is a node of a Redis Cluster, which cannot
  write several keys in one step.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from tidemill.features.errors import StoreError
from tidemill.serving.online.database import (
    Parcel,
    Snapshot,
    conflict,
    lost,
    newest_per_key,
    no_key_space,
    other_shard_count,
)
from tidemill.serving.online.redis.connections import Command, close, exchange
from tidemill.serving.online.redis.errors import IN_CLUSTER, explained
from tidemill.serving.online.redis.rows import (
    SPACES,
    decode_instant,
    decode_row,
    encode_instant,
    encode_rows,
    frontiers_key,
    row_prefix,
    space_key,
)
from tidemill.serving.online.redis.scripts import (
    ROWS_A_LIST,
    read_command,
    with_source,
    write_command,
)
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch
from tidemill.serving.stores.redis_place import RedisPlace

CHUNK_ROWS: Final = ROWS_A_LIST
"""Rows per run of the script: it blocks other clients for about a millisecond."""

_CHUNKS_A_ROUND: Final = 64
_KEYS_A_SCAN: Final = 1_000


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows of one key space for one run of the script.

    Attributes:
        number: The number of their parcel.
        space: Their key space.
        parcel: Their parcel; None for a stock client's rows.
        keys: Entity keys.
        values: Their rows as Redis stores them.
        is_last: Whether the parcel's frontier is written with them.
    """

    number: int
    space: KeySpace
    parcel: Parcel | None
    keys: list[bytes]
    values: list[bytes]
    is_last: bool

    def command(self) -> Command:
        """Return the call of the script."""
        prefix = row_prefix(self.space)
        parcel = self.parcel
        header: tuple[str | bytes | int, ...] = ("", "", "", "")
        if parcel is not None:
            header = (
                parcel.shard,
                parcel.shard_count,
                b"" if parcel.since_us is None else encode_instant(parcel.since_us),
                encode_instant(parcel.frontier_us) if self.is_last else b"",
            )
        keys = [space_key(self.space), frontiers_key(self.space)]
        return write_command([*keys, *(prefix + key for key in self.keys)], [*header, *self.values])


@dataclass(frozen=True)
class RedisDatabase:
    """The online database in a Redis (`serving.online.database.OnlineDatabase`).

    Attributes:
        place: Where it is.
    """

    place: RedisPlace

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return self.place.name

    def create(self, spaces: Sequence[KeySpace]) -> None:
        """Make key spaces if they don't exist yet; finish a `drop` that was interrupted."""
        self._check_server()
        if not spaces:
            return
        records = self._run([("HGETALL", space_key(space)) for space in spaces], spaces)
        self.drop([s for s, record in zip(spaces, records, strict=True) if _is_half_gone(record)])
        commands: list[Command] = []
        for space in spaces:
            record: dict[str, str | bytes] = {
                "id": row_prefix(space),
                "project": space.project,
                "view": space.view,
                "definition": space.definition,
                "columns": json.dumps(space.columns),
            }
            pairs = [part for pair in record.items() for part in pair]
            commands.append(("SADD", SPACES, space.name))
            commands.append(("HSET", space_key(space), *pairs))
        self._run(commands, spaces)

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with their rows and frontiers; this scans every key of the Redis."""
        for space in spaces:
            # Without its id the key space takes no writes, so the scan finds all of its rows. These
            # commands work while Redis is full, which may be the reason for dropping.
            self._run([("HDEL", space_key(space), "id")], [space])
            pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", row_prefix(space))
            cursor = b"0"
            while True:
                ((cursor, keys),) = self._run(
                    [("SCAN", cursor, "MATCH", pattern + b"*", "COUNT", _KEYS_A_SCAN)], [space]
                )
                if keys:
                    self._run([("UNLINK", *keys)], [space])
                if cursor == b"0":
                    break
            keys = (frontiers_key(space), space_key(space))
            self._run([*(("DEL", key) for key in keys), ("SREM", SPACES, space.name)], [space])

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist, in order."""
        (names,) = self._run([("SMEMBERS", SPACES)], ())
        return sorted(name.decode() for name in names)

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications of unknown frontier; of a chunk, all or none."""
        written = [0]
        self._write(self._chunks(0, space, None, rows), written)
        return written[0]

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels and their frontiers; those of one shard in their order."""
        written = [0] * len(parcels)
        for wave in _waves(parcels):
            some = [(number, parcels[number]) for number in wave]
            chunks = [c for n, p in some for c in self._chunks(n, p.space, p, p.rows)]
            # No frontier may become visible before all of its rows.
            self._write([chunk for chunk in chunks if not chunk.is_last], written)
            self._write([chunk for chunk in chunks if chunk.is_last], written)
        return written

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of several key spaces by one script."""
        names: list[str | bytes] = []
        for space, keys in wanted:
            prefix = row_prefix(space)
            names += [space_key(space), frontiers_key(space), *[prefix + key for key in keys]]
        command = read_command(names, [len(keys) for _, keys in wanted])
        spaces = [space for space, _ in wanted]
        (reply,) = self._call([command], spaces)
        answers = iter(self._checked(reply, spaces))
        return [self._snapshot(space, keys, answers) for space, keys in wanted]

    def close(self) -> None:
        """Close this thread's connection."""
        close(self.place)

    def _snapshot(self, space: KeySpace, keys: Sequence[bytes], answers: Iterator[Any]) -> Snapshot:
        space_id, shard_count = next(answers)
        if space_id is None:
            raise no_key_space(self.name, space)
        pairs = iter(next(answers))
        rows: list[Row | None] = []
        for start in range(0, len(keys), ROWS_A_LIST):
            some = keys[start : start + ROWS_A_LIST]
            rows += [
                None if data is None else decode_row(key, data)
                for key, data in zip(some, next(answers), strict=True)
            ]
        frontiers = Frontiers(
            shard_count=0 if shard_count is None else int(shard_count),
            by_shard={
                int(shard): decode_instant(data) for shard, data in zip(pairs, pairs, strict=True)
            },
        )
        return Snapshot(frontiers, rows)

    def _chunks(
        self, number: int, space: KeySpace, parcel: Parcel | None, rows: RowBatch
    ) -> list[_Chunk]:
        rows = newest_per_key(self.name, space, rows)
        keys, values = rows.keys, encode_rows(rows)
        return [
            _Chunk(
                number=number,
                space=space,
                parcel=parcel,
                keys=keys[start : start + CHUNK_ROWS],
                values=values[start : start + CHUNK_ROWS],
                is_last=start + CHUNK_ROWS >= len(keys),
            )
            for start in range(0, max(len(keys), 1), CHUNK_ROWS)
        ]

    def _write(self, chunks: Sequence[_Chunk], written: list[int]) -> None:
        """Write chunks in their order; add the number of stored rows to that of their parcels."""
        for start in range(0, len(chunks), _CHUNKS_A_ROUND):
            some = chunks[start : start + _CHUNKS_A_ROUND]
            replies = self._call(
                [chunk.command() for chunk in some], [chunk.space for chunk in some]
            )
            for chunk, reply in zip(some, replies, strict=True):
                if isinstance(self._checked(reply, [chunk.space]), list):
                    raise self._refusal(chunk, *reply)
                written[chunk.number] += reply

    def _refusal(self, chunk: _Chunk, kind: bytes, *found: Any) -> StoreError:
        """Return the error for a refusal of the script."""
        space, parcel = chunk.space, chunk.parcel
        if kind == b"conflict":
            row = found[0] - 1
            key = chunk.keys[row]
            return conflict(
                self.name, space, decode_row(key, found[1]), decode_row(key, chunk.values[row])
            )
        if kind == b"shards" and parcel is not None:
            return other_shard_count(self.name, space, int(found[0]), parcel.shard_count)
        if kind == b"lost" and parcel is not None:
            reached = None if found[0] is None else decode_instant(found[0])
            return lost(self.name, parcel, reached)
        assert kind == b"space", kind
        return no_key_space(self.name, space)

    def _check_server(self) -> None:
        (reply,) = self._exchange([("INFO", "all")], ())
        if isinstance(reply, NoPermissionError):
            warnings.warn(
                f"{self.name}: the user may not ask for INFO, so whether Redis may evict rows is "
                "not known: let its maxmemory-policy be noeviction",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        lines = self._checked(reply, ()).decode().splitlines()
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        policy = info.get("maxmemory_policy", "")
        if policy.startswith("allkeys"):
            raise StoreError(
                f"{self.name}: its maxmemory-policy is {policy}, so Redis may evict rows, whose "
                "entities would read as never seen; set it to noeviction (CONFIG SET "
                "maxmemory-policy noeviction, and in redis.conf)"
            )
        if info.get("cluster_enabled") == "1":
            raise StoreError(f"{self.name}: {IN_CLUSTER}")

    def _run(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        """Send commands; raise the first error among their answers."""
        return [self._checked(reply, spaces) for reply in self._exchange(commands, spaces)]

    def _checked(self, reply: Any, spaces: Sequence[KeySpace]) -> Any:
        if isinstance(reply, ResponseError):
            raise explained(self.place, spaces, reply) from reply
        return reply

    def _call(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        """Call scripts in one round trip, and in a second one if the server has lost them."""
        replies = self._exchange(commands, spaces)
        if not any(isinstance(reply, NoScriptError) for reply in replies):
            return replies
        # Repeat all of them in their order: writing a row again does no harm.
        return self._exchange([with_source(command) for command in commands], spaces)

    def _exchange(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        try:
            return exchange(self.place, commands)
        except RedisError as error:
            raise explained(self.place, spaces, error) from error


def _is_half_gone(record: Sequence[bytes]) -> bool:
    """Tell whether a key space's record (names and values in turn) is left from a broken `drop`."""
    return bool(record) and b"id" not in record[::2]


def _waves(parcels: Sequence[Parcel]) -> list[list[int]]:
    """Put successive parcels of one shard into successive waves: each builds on the last."""
    seen: dict[tuple[str, int], int] = {}
    waves: list[list[int]] = []
    for number, parcel in enumerate(parcels):
        wave = seen.get((parcel.space.name, parcel.shard), -1) + 1
        seen[parcel.space.name, parcel.shard] = wave
        if wave == len(waves):
            waves.append([])
        waves[wave].append(number)
    return waves
