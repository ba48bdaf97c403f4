"""Mended messages in files: written by `tidemill replay-rejected`, taken by the live reader.

The promises:

* Each replay is a file of ``root/mended_live``, complete or not there; files are never changed, so
  what a person has mended is kept, also when it has become rows.
* `MendedFiles.take` gives each message of each replay once in the order of the files, and none
  again that the live log has an outcome of. Of a record that was accepted, none of a later replay
  comes: it counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from tidemill.pipelines.io.live.live_log import LiveLog
from tidemill.pipelines.io.live.mended import CARRIED, MendedMessage
from tidemill.pipelines.io.live.set_aside import mended_outcomes
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run import paths
from tidemill.serving.files.locks import lock
from tidemill.serving.files.read_files import reading

_SCHEMA: Final = pa.schema(
    [
        ("record", pa.string()),
        ("stream", pa.string()),
        ("origin", pa.string()),
        ("payload", pa.binary()),
        ("line", pa.string()),
        ("is_row", pa.bool_()),
        *CARRIED,
    ]
)
_LOCK: Final = "lock"
_REMEDY: Final = "restore the file from a copy; its records were mended by hand"


def write_mended(root: Path, mended: Sequence[MendedMessage]) -> None:
    """Add the mended messages of one replay; call it while `alone` holds."""
    rows = [
        {
            "record": one.record,
            "stream": one.stream,
            "origin": one.origin,
            "payload": one.payload,
            "line": one.line,
            "is_row": one.is_row,
            "message_key": one.key,
            "message_timestamp_us": one.timestamp_us,
            "message_headers": [{"name": name, "value": value} for name, value in one.headers],
            "row_types": one.types,
        }
        for one in mended
    ]
    number = next_replay(root)
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    write_rows(root / paths.MENDED_LIVE, table, f"{number:05d}")


def next_replay(root: Path) -> int:
    """Return the number of the replay that is written next."""
    return max(map(_number, _files(root)), default=0) + 1


@contextmanager
def alone(root: Path, *, command: str | None = None) -> Iterator[None]:
    """Write a replay while no other process does; ``command`` as for `serving.files.locks.lock`."""
    path = root / paths.MENDED_LIVE / _LOCK
    with lock(path, "replay rejected records", wait=True, command=command):
        yield


def read_mended(root: Path, after: int = 0) -> Iterator[MendedMessage]:
    """Yield the mended messages of all replays after one, in order.

    Raises:
        DamagedFile: A file is damaged.
    """
    for path in _files(root):
        if _number(path) <= after:
            continue
        with reading(path, _REMEDY):
            rows = pq.read_table(path, schema=_SCHEMA).to_pylist()
        for row in rows:
            yield MendedMessage(
                row["record"],
                row["stream"],
                row["origin"],
                row["payload"],
                row["line"],
                _number(path),
                row["is_row"],
                row["message_key"],
                row["message_timestamp_us"],
                tuple((one["name"], one["value"]) for one in row["message_headers"]),
                row["row_types"],
            )


def _files(root: Path) -> list[Path]:
    return sorted((root / paths.MENDED_LIVE).glob("*.parquet"))


def _number(path: Path) -> int:
    return int(path.stem)


class MendedFiles:
    """The mended messages of a root, for a live reader (`pipelines.io.live.mended`).

    Args:
        root: The root.
        live: The live log that the reader writes.
        sources: The names of the live sources; messages of others wait.
        say: Tells a person what becomes of them.
    """

    def __init__(
        self, root: Path, live: LiveLog, sources: Collection[str], say: Callable[[str], None]
    ) -> None:
        self._root, self._sources, self._say = root, frozenset(sources), say
        self._live = live
        self._read = 0
        self._waiting: list[MendedMessage] = []

    def take(self, most: int) -> Sequence[MendedMessage]:
        """Return the next messages that are not settled; see `MendedMessages`.

        What was given before is written down when this is called again.
        """
        if (last := next_replay(self._root) - 1) > self._read:
            found = list(read_mended(self._root, self._read))
            # A replay has no messages if all of them were forgotten.
            self._read = max([last, *(one.replay for one in found)])
            self._waiting += [one for one in found if one.stream in self._sources]
        if not self._waiting:
            return []
        self._leave_out_settled()
        taken: dict[str, MendedMessage] = {}
        for one in self._waiting[:most]:
            if one.record in taken:
                break  # only then it is known whether the first one was accepted
            taken[one.record] = one
        if taken:
            self._say(f"{len(taken):,} mended records of topics are judged")
        return list(taken.values())

    def _leave_out_settled(self) -> None:
        """Leave out messages that the log has an outcome of, and those of accepted records."""
        accepted: set[str] = set()
        judged: set[tuple[str, int]] = set()
        for table in mended_outcomes(self._live):
            for row in table.select(["record", "replay", "reason"]).to_pylist():
                judged.add((row["record"], row["replay"]))
                if not row["reason"]:
                    accepted.add(row["record"])
        self._waiting = [
            one
            for one in self._waiting
            if one.record not in accepted and (one.record, one.replay) not in judged
        ]
