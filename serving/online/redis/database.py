"""The online database in Redis; `serving.online.database` states the promises.

In addition:

* One script decides about the rows of a parcel and writes them with its mark and frontier
  (`serving.online.redis.scripts`); the parcels of a call are sent in one round trip. A parcel of
  `PARCEL_ROWS` rows keeps other clients waiting for about 10 ms. A stock client's rows are written
  in steps of `CHUNK_ROWS`; of a step, all or none.
* A Redis that has lost its scripts gets them again. One that was emptied has no key spaces, and one
  that lost its last writes has another mark than the next parcel builds on: both refuse the write.
* The server's setting ``appendonly`` decides how many writes a crash may lose; after a loss,
  publish again from state.
* A server that may evict keys (``maxmemory-policy allkeys-...``) is refused, because an evicted row
  would read as that of an entity that was never seen. So is a node of a Redis Cluster, which cannot
  write several keys in one step.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from tidemill.features.errors import NoKeySpace, StoreError, StoreUnavailable
from tidemill.serving.online.damage import decoding
from tidemill.serving.online.database import Parcel, Snapshot
from tidemill.serving.online.fills import (
    LAYOUT,
    Fill,
    FillState,
    Holder,
    NewFill,
    PartState,
    Writer,
    new_fill_id,
)
from tidemill.serving.online.newest_per_key import newest_per_key
from tidemill.serving.online.redis.connections import Command, close, exchange
from tidemill.serving.online.redis.errors import explained
from tidemill.serving.online.redis.fills import decode_fill, fields, flat
from tidemill.serving.online.redis.known_fills import KnownFill, known_fill, remember
from tidemill.serving.online.redis.rows import (
    SPACES,
    TOKEN,
    current_key,
    decode_frontiers,
    decode_instant,
    decode_parts,
    decode_row,
    encode_instant,
    encode_rows,
    fill_key,
    fills_key,
    old_fill_id,
    old_frontiers_key,
    old_space_key,
    parts_key,
    row_prefix,
)
from tidemill.serving.online.redis.scripts import (
    ROWS_A_LIST,
    create_command,
    read_command,
    restore_command,
    switch_command,
    take_command,
    with_source,
    withdraw_command,
)
from tidemill.serving.online.redis.server_checks import bytes_needed, check_room, check_server
from tidemill.serving.online.redis.writes import Write, parcel_write, rounds, stock_write, waves
from tidemill.serving.online.refusals import (
    backwards,
    behind,
    conflict,
    held,
    later_attempt,
    lost,
    lost_fill,
    lost_switch,
    no_key_space,
    other_layout,
    other_parts,
    past_fill,
    read_fill,
    superseded,
)
from tidemill.serving.online.rows import Frontiers, KeySpace, Row, RowBatch
from tidemill.serving.stores.redis_place import RedisPlace

CHUNK_ROWS: Final = ROWS_A_LIST
"""Rows of one step of a stock client's write."""

_KEYS_A_SCAN: Final = 1_000
_MOVES: Final = 20
"""How often a read follows a switch before it gives up: switches take seconds at least."""
_NO_INSTANT: Final = bytes(8)
_NO_MARK: Final = bytes(16)


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
        """Make key spaces if they don't exist yet; finish a removal that was interrupted."""
        check_server(self.name, self._info())
        if not spaces:
            return
        fills = self._run([("SMEMBERS", fills_key(space)) for space in spaces], spaces)
        ids = [(space, id_.decode()) for space, found in zip(spaces, fills, strict=True)
               for id_ in sorted(found)]  # fmt: skip
        layouts = self._run([("HGET", fill_key(id_), "layout") for _, id_ in ids], spaces)
        for (space, id_), layout in zip(ids, layouts, strict=True):
            if layout is None:
                self._drop_fill(space, id_)
        commands = []
        for space in spaces:
            record = {**fields(NewFill(space, shards=0)), "token": "", "root": "", "holder": ""}
            keys = (
                SPACES,
                current_key(space),
                fills_key(space),
                old_space_key(space),
                old_frontiers_key(space),
            )
            arguments = (space.name, new_fill_id(), old_fill_id(space), *flat(record))
            commands.append(create_command(keys, arguments))
        for reply in self._call(commands, spaces):
            self._checked(reply, spaces)

    def drop(self, spaces: Sequence[KeySpace]) -> None:
        """Remove key spaces with all their fills; this scans every key of the Redis."""
        for space in spaces:
            # Without their records the fills take no writes, so the scan finds all rows. These
            # commands work while Redis is full, which may be the reason for dropping.
            (found, old) = self._run(
                [("SMEMBERS", fills_key(space)), ("EXISTS", old_space_key(space))], [space]
            )
            self._run([("DEL", current_key(space)), ("HDEL", old_space_key(space), "id")], [space])
            for id_ in sorted(found):
                self._drop_fill(space, id_.decode())
            if old:
                self._drop_rows(space, old_fill_id(space))
            keys = (fills_key(space), old_space_key(space), old_frontiers_key(space))
            self._run([*(("DEL", key) for key in keys), ("SREM", SPACES, space.name)], [space])

    def _drop_fill(self, space: KeySpace, id_: str) -> None:
        self._run([("HDEL", fill_key(id_), "layout")], [space])
        self._drop_rows(space, id_)
        self._run(
            [
                ("DEL", parts_key(id_)),
                ("DEL", fill_key(id_)),
                ("SREM", fills_key(space), id_),
            ],
            [space],
        )

    def _drop_rows(self, space: KeySpace, id_: str) -> None:
        for keys in self._row_keys(space, id_):
            self._run([("UNLINK", *keys)], [space])

    def _row_keys(self, space: KeySpace, id_: str) -> Iterator[list[bytes]]:
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", row_prefix(id_))
        cursor = b"0"
        while True:
            ((cursor, keys),) = self._run(
                [("SCAN", cursor, "MATCH", pattern + b"*", "COUNT", _KEYS_A_SCAN)], [space]
            )
            if keys:
                yield keys
            if cursor == b"0":
                return

    def spaces(self) -> list[str]:
        """Return the names of the key spaces that exist, in order."""
        (names,) = self._run([("SMEMBERS", SPACES)], ())
        return sorted(name.decode() for name in names)

    def fills(self, spaces: Sequence[KeySpace]) -> list[Fill]:
        """Return the fills of key spaces, the current one first."""
        replies = self._run(
            [
                command
                for space in spaces
                for command in (
                    ("SMEMBERS", fills_key(space)),
                    ("HEXISTS", old_space_key(space), "id"),
                )
            ],
            spaces,
        )
        ids: list[tuple[KeySpace, str]] = []
        for space, found, old in zip(spaces, replies[::2], replies[1::2], strict=True):
            if old:
                raise other_layout(self.name, f"key space {space.name}", 1)
            ids += [(space, id_.decode()) for id_ in sorted(found)]
        records = self._run([("HGETALL", fill_key(id_)) for _, id_ in ids], spaces)
        out = []
        for (space, id_), record in zip(ids, records, strict=True):
            fill = decode_fill(self.name, space, id_, record)
            if fill is not None:
                out.append(fill)
        order = {space: at for at, space in enumerate(spaces)}
        return sorted(out, key=lambda fill: (order[fill.space], not fill.is_current))

    def begin_fills(self, fills: Sequence[NewFill]) -> list[Fill]:
        """Make empty fills that nobody reads."""
        spaces = [new.space for new in fills]
        found = self._run([("EXISTS", current_key(space)) for space in spaces], spaces)
        for space, exists in zip(spaces, found, strict=True):
            if not exists:
                raise self._absent(space)
        if bytes_needed(fills):
            check_room(self.name, fills, self._info())
        out, commands = [], []
        for new in fills:
            id_ = new_fill_id()
            record = {
                **fields(new),
                "shards": new.shards,
                "state": FillState.FILLING.value,
                "token": "",
                "root": "",
                "holder": "",
            }
            commands += [
                ("SADD", fills_key(new.space), id_),
                ("HSET", fill_key(id_), *flat(record)),
            ]
            out.append(new.begun(id_))
        self._run(commands, spaces)
        return out

    def drop_fills(self, fills: Sequence[Fill]) -> None:
        """Remove fills with their rows; this scans every key of the Redis."""
        for fill in fills:
            (current,) = self._run([("GET", current_key(fill.space))], [fill.space])
            if current is not None and current.decode() == fill.id:
                raise StoreError(
                    f"{self.name}, key space {fill.name}: readers see this fill; switch them to "
                    "another one first"
                )
            self._drop_fill(fill.space, fill.id)

    def take_token(
        self, fills: Sequence[Fill], holder: Holder, *, take_over: bool = False
    ) -> Writer:
        """Take the writer's token of fills."""
        nonce = secrets.token_bytes(12)
        keys = [TOKEN, *(fill_key(fill.id) for fill in fills)]
        arguments: list[str | bytes | int] = [holder.root, holder.to_json(), nonce, int(take_over)]
        arguments += [text for fill in fills for text in (fill.generation, fill.mode)]
        reply = self._script(take_command(keys, arguments), [fill.space for fill in fills])
        if not isinstance(reply, list):
            return Writer(reply, holder, nonce)
        kind, number, *found = reply
        fill = fills[number - 1]
        if kind == b"fill":
            raise self._no_fill(fill, found[0])
        now = self._record(fill)
        if kind == b"past" or now.writer is None:
            raise past_fill(self.name, now)
        raise held(self.name, now, now.writer.holder)

    def restore(self, fills: Sequence[Fill], writer: Writer) -> None:
        """Make the records again that the store lost."""
        holder = (writer.key, writer.holder.root, writer.holder.to_json())
        commands = [
            restore_command(
                (SPACES, fill_key(fill.id), current_key(fill.space), fills_key(fill.space)),
                (fill.space.name, fill.id, *holder, "shards", fill.shards, *flat(fields(fill))),
            )
            for fill in fills
        ]
        spaces = [fill.space for fill in fills]
        for reply in self._call(commands, spaces):
            self._checked(reply, spaces)

    def part_states(self, fills: Sequence[Fill]) -> list[list[PartState]]:
        """Return mark and frontier of every part of fills."""
        spaces = [fill.space for fill in fills]
        if not fills:
            return []
        # One command, so that all are of one instant.
        (found,) = self._run([("MGET", *(parts_key(fill.id) for fill in fills))], spaces)
        for fill in fills:
            self._record(fill)
        return [
            decode_parts(data or b"", fill.parts) for fill, data in zip(fills, found, strict=True)
        ]

    def withdraw(self, parcel: Parcel, found: PartState) -> None:
        """Take mark and frontier from a parcel's part, if they are still those found."""
        fill = parcel.fill
        arguments = (
            parcel.writer.key,
            parcel.part,
            found.mark or _NO_MARK,
            _NO_INSTANT if found.frontier_us is None else encode_instant(found.frontier_us),
        )
        command = withdraw_command((fill_key(fill.id), parts_key(fill.id)), arguments)
        reply = self._script(command, [fill.space])
        if not isinstance(reply, list):
            return
        if reply[0] == b"token":
            self.restore([fill], parcel.writer)
            self.withdraw(parcel, found)
            return
        if reply[0] == b"fill":
            raise self._lost_fill(fill, parcel.writer)
        raise self._superseded(fill)

    def switch(
        self, fills: Sequence[Fill], writer: Writer, *, take_over: bool = False
    ) -> list[Fill]:
        """Let readers see these fills; remove those that were replaced before."""
        keys: list[str] = [TOKEN]
        for fill in fills:
            keys += [fill_key(fill.id), parts_key(fill.id), current_key(fill.space)]
        holder = writer.holder
        arguments: list[str | bytes | int] = [writer.key, holder.root, holder.to_json()]
        arguments += [int(take_over), secrets.token_bytes(12), *(fill.id for fill in fills)]
        spaces = [fill.space for fill in fills]
        kind, *found = self._script(switch_command(keys, arguments), spaces)
        if kind == b"token":
            self.restore(fills, writer)
            return self.switch(fills, writer, take_over=take_over)
        if kind != b"switched":
            fill = replace(fills[found[0] - 1], writer=writer)
            raise self._not_switched(fill, kind, found[1:])
        kept = {id_.decode() for id_ in found[0]}
        if kept:
            every = self.fills(spaces)
            past = [one for one in every if one.state is FillState.PAST and one.id not in kept]
            self.drop_fills(past)
        return [self._record(fill) for fill in fills]

    def _not_switched(self, fill: Fill, kind: bytes, found: Sequence[Any]) -> StoreError:
        if kind == b"fill":
            return self._no_fill(fill, found[0])
        if kind == b"space":
            return no_key_space(self.name, fill.space)
        if kind == b"held":
            other = Fill(**{**vars(fill), "id": found[0].decode()})
            now = self._record(other)
            assert now.writer is not None, "a root that holds a fill has a token"
            return held(self.name, now, now.writer.holder)
        if kind == b"behind":
            shard, least, shown = found
            least_us = None if least == _NO_INSTANT else decode_instant(least)
            return behind(self.name, fill, int(shard), least_us, decode_instant(shown))
        assert kind == b"superseded", kind
        return self._superseded(fill)

    def write(self, space: KeySpace, rows: RowBatch) -> int:
        """Write publications to the current fill; of a chunk, all or none."""
        rows = newest_per_key(self.name, space, rows)
        keys, values = rows.keys, encode_rows(rows)
        written = start = 0
        moves = 0
        while start < max(len(keys), 1):
            known = known_fill(self.place, space)
            some = slice(start, start + CHUNK_ROWS)
            one = stock_write(space, known, keys[some], values[some])
            (reply,) = self._call([one.command], [space])
            reply = self._checked(reply, [space])
            if not isinstance(reply, list):
                written += reply
                start += CHUNK_ROWS
            elif reply[0] == b"moved" and moves < _MOVES:
                self.read([(space, ())])  # which notes the current fill, or raises
                moves += 1
                # A switch drops what was written before: write it again.
                written = start = 0
            else:
                raise self._refusal(one, *reply)
        return written

    def publish(self, parcels: Sequence[Parcel]) -> list[int]:
        """Write parcels; those of one part in their order."""
        written = [0] * len(parcels)
        for wave in waves(parcels):
            for some in rounds(parcels, wave):
                self._publish([parcel_write(self.name, n, parcels[n]) for n in some], written)
        return written

    def read(self, wanted: Sequence[tuple[KeySpace, Sequence[bytes]]]) -> list[Snapshot]:
        """Read keys of the current fills of several key spaces by one script."""
        spaces = [space for space, _ in wanted]
        for _ in range(_MOVES):
            known = [known_fill(self.place, space) for space in spaces]
            names: list[str | bytes] = []
            arguments: list[str | int] = []
            for (space, keys), fill in zip(wanted, known, strict=True):
                prefix = fill.row_prefix
                names += [current_key(space), fill.parts_key, *[prefix + key for key in keys]]
                arguments += (fill.id, len(keys))
            (reply,) = self._call([read_command(names, arguments)], spaces)
            answers = self._checked(reply, spaces)
            if answers and answers[0] == b"moved":
                self._follow(spaces, answers[1:])
                continue
            found = iter(answers)
            return [
                self._snapshot(keys, fill, found)
                for (_, keys), fill in zip(wanted, known, strict=True)
            ]
        raise StoreUnavailable(
            f"{self.name}: key spaces {', '.join(space.name for space in spaces)} were switched "
            f"to other fills {_MOVES} times during one read; try again"
        )

    def scan(self, fill: Fill) -> Iterator[list[Row]]:
        """Read every row of a fill; this scans every key of the Redis."""
        prefix = row_prefix(fill.id)
        for keys in self._row_keys(fill.space, fill.id):
            # A scan may give a key twice, and one that was removed since.
            (values,) = self._run([("MGET", *keys)], [fill.space])
            with decoding(self.name, f"a row of key space {fill.name}"):
                rows = [
                    decode_row(key.removeprefix(prefix), data)
                    for key, data in zip(keys, values, strict=True)
                    if data is not None
                ]
            yield rows

    def record_cuts(self, fills: Sequence[Fill]) -> None:
        """Replace the cuts in the records of fills."""
        spaces = [fill.space for fill in fills]
        self._run([("HSET", fill_key(fill.id), "cuts", fill.cuts) for fill in fills], spaces)

    def forget(self, fills: Sequence[Fill], keys: Sequence[bytes]) -> int:
        """Remove the rows of some keys."""
        spaces = [fill.space for fill in fills]
        commands: list[Command] = [
            ("DEL", *(row_prefix(fill.id) + key for key in keys)) for fill in fills
        ]
        return sum(self._run(commands, spaces)) if keys else 0

    def close(self) -> None:
        """Close this thread's connection."""
        close(self.place)

    def _follow(self, spaces: Sequence[KeySpace], records: Sequence[Sequence[Any]]) -> None:
        """Note the present fills of key spaces."""
        for space, record in zip(spaces, records, strict=True):
            if not record or record[0] is None:
                raise no_key_space(self.name, space)
            with decoding(self.name, f"the record of a fill of key space {space.name}"):
                if int(record[0]) != LAYOUT:
                    raise other_layout(self.name, f"key space {space.name}", int(record[0]))
                _, shards, slices, id_ = record
                remember(self.place, space, id_.decode(), int(shards), int(slices))

    def _snapshot(self, keys: Sequence[bytes], fill: KnownFill, answers: Iterator[Any]) -> Snapshot:
        parts = next(answers)
        rows: list[Row | None] = []
        with decoding(self.name, f"a row, or the frontiers, of fill {fill.id}"):
            for start in range(0, len(keys), ROWS_A_LIST):
                some = keys[start : start + ROWS_A_LIST]
                rows += [
                    None if data is None else decode_row(key, data)
                    for key, data in zip(some, next(answers), strict=True)
                ]
            by_part = {} if parts is None else decode_frontiers(parts)
        return Snapshot(Frontiers(fill.shards, by_part, fill.slices), rows)

    def _publish(self, writes: Sequence[Write], written: list[int]) -> None:
        replies = self._call([one.command for one in writes], [one.space for one in writes])
        for one, reply in zip(writes, replies, strict=True):
            found = self._checked(reply, [one.space])
            if isinstance(found, list) and found[0] == b"token":
                # The store lost the taking of the token. The marks will tell what else it lost.
                assert one.parcel is not None
                self.restore([one.parcel.fill], one.parcel.writer)
                (again,) = self._call([one.command], [one.space])
                found = self._checked(again, [one.space])
            if isinstance(found, list):
                raise self._refusal(one, *found)
            written[one.number] = found

    def _refusal(self, one: Write, kind: bytes, *found: Any) -> StoreError:
        """Return the error for a refusal of the script."""
        if kind == b"conflict":
            row = found[0] - 1
            key = one.keys[row]
            stored, offered = decode_row(key, found[1]), decode_row(key, one.values[row])
            return conflict(self.name, one.space, stored, offered)
        parcel = one.parcel
        if parcel is None:
            return StoreUnavailable(
                f"{self.name}: key space {one.space.name} was switched to other fills {_MOVES} "
                "times during one write; try again"
            )
        if kind == b"fill":
            return self._no_fill(replace(parcel.fill, writer=parcel.writer), found[0])
        if kind == b"parts":
            return other_parts(self.name, parcel, (int(found[0]), int(found[1])))
        if kind == b"unread":
            return lost_switch(self.name, parcel.fill)
        if kind == b"read":
            return read_fill(self.name, parcel)
        if kind == b"attempt":
            return later_attempt(self.name, parcel, int(found[0]))
        if kind == b"lost":
            return lost(self.name, parcel, decode_parts(found[0], 1)[0])
        if kind == b"backwards":
            return backwards(self.name, parcel, decode_instant(found[0][:8]))
        return self._superseded(parcel.fill)

    def _no_fill(self, fill: Fill, layout: bytes | None) -> StoreError:
        if layout is None:
            return self._lost_fill(fill, fill.writer)
        return other_layout(self.name, f"key space {fill.name}", int(layout))

    def _superseded(self, fill: Fill) -> StoreError:
        now = self._record(fill)
        if now.state is FillState.PAST:
            return past_fill(self.name, now)
        return superseded(self.name, now, now.writer)

    def _record(self, fill: Fill) -> Fill:
        (record,) = self._run([("HGETALL", fill_key(fill.id))], [fill.space])
        found = decode_fill(self.name, fill.space, fill.id, record)
        if found is None:
            raise self._lost_fill(fill, fill.writer)
        return found

    def _lost_fill(self, fill: Fill, writer: Writer | None) -> StoreError:
        return lost_fill(self.name, fill, writer, self.fills([fill.space]))

    def _absent(self, space: KeySpace) -> NoKeySpace | StoreError:
        (old,) = self._run([("HEXISTS", old_space_key(space), "id")], [space])
        if old:
            return other_layout(self.name, f"key space {space.name}", 1)
        return no_key_space(self.name, space)

    def _info(self) -> dict[str, str] | None:
        """Return what the server says of itself; None if it may not be asked."""
        (reply,) = self._exchange([("INFO", "all")], ())
        if isinstance(reply, NoPermissionError):
            return None
        lines = self._checked(reply, ()).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _run(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        """Send commands; raise the first error among their answers."""
        if not commands:
            return []
        return [self._checked(reply, spaces) for reply in self._exchange(commands, spaces)]

    def _script(self, command: Command, spaces: Sequence[KeySpace]) -> Any:
        (reply,) = self._call([command], spaces)
        return self._checked(reply, spaces)

    def _checked(self, reply: Any, spaces: Sequence[KeySpace]) -> Any:
        if isinstance(reply, ResponseError):
            raise explained(self.place, spaces, reply) from reply
        return reply

    def _call(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        """Call scripts in one round trip, and in a second one if the server has lost them."""
        replies = self._exchange(commands, spaces)
        if not any(isinstance(reply, NoScriptError) for reply in replies):
            return replies
        # Repeat all of them in their order: a repeat changes nothing.
        return self._exchange([with_source(command) for command in commands], spaces)

    def _exchange(self, commands: Sequence[Command], spaces: Sequence[KeySpace]) -> list[Any]:
        try:
            return exchange(self.place, commands)
        except RedisError as error:
            raise explained(self.place, spaces, error) from error
