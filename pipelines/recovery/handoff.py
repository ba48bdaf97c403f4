"""Handed-over states, from which a stream starts, and the record that describes them.

A backfill writes them to ``root/states``: each operator's state of all rows received before the
stream begins. A stream that stops at a savepoint writes them to ``root/stops/NUMBER``: the states
of the operators and of the joining stage. The promises:

* The states are files of `pipelines.stream.state_files`. Their folder is valid only with the record
  ``handoff.json``, which is written last. So a killed run leaves no incomplete folder that is used.
* The record names definitions, shards, positions, mode, and the hash of every file. States that do
  not match are refused by name.
* Each run of the stream between two such folders is a *segment* with a number. Its files have the
  number in their names (`serving.files.segment_names`), so the files of a killed run can be told
  from those that count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidemill.features.definitions import Project
from tidemill.features.errors import DamagedState, StateMismatch, StateVersionError
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.state_files import file_hashes
from tidemill.serving.files.atomic_write import write_text


@dataclass(frozen=True)
class Handoff:
    """Describes a folder of states.

    Attributes:
        kind: The writer: a backfill, or a stream that stops at a savepoint.
        as_of_us: The states contain all rows received before this instant.
        positions: Source to the next position of each partition.
        views: View to the hash of its definition.
        shards: The number of shards of each view.
        segment: The number of the segment that ends here; 0 for a backfill.
        frontiers: View to the frontier of each shard.
        polls: The number of the last poll that the states contain; 0 for a backfill.
        marks: View to the mark of each shard's last release (`pipelines.stream.marks`), 32
            hexadecimal digits.
        began: The `id` of the backfill's record that the stream began with; None for a backfill.
        mode: The mode of the stream; None for a backfill.
        files: File to the SHA-256 of its bytes.
    """

    kind: Literal["backfill", "stop"]
    as_of_us: int
    positions: Mapping[str, list[int]]
    views: Mapping[str, str]
    shards: int
    segment: int
    frontiers: Mapping[str, list[int]]
    polls: int
    marks: Mapping[str, list[str]]
    began: str | None
    mode: str | None
    files: Mapping[str, str]

    @property
    def id(self) -> str:
        """A hash of the record, which contains the hash of every file."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write the record, which makes the folder valid."""
        _write(folder / paths.HANDOFF, _HANDOFF, dataclasses.asdict(self))


@dataclass(frozen=True)
class _Format:
    """A format of record: a JSON object with format, version and a checksum of the other fields.

    Attributes:
        name: The name of the format in the file.
        version: The version that is written and read.
        fields: The names of the other fields.
        remedy: What the user should do if a record cannot be read.
    """

    name: str
    version: int
    fields: frozenset[str]
    remedy: str


def _write(path: Path, form: _Format, content: Mapping[str, Any]) -> None:
    header = {"format": form.name, "version": form.version, "checksum": _checksum(content)}
    write_text(path, json.dumps({**header, **content}, indent=2) + "\n")


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path, form: _Format) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedState(f"{path} is not JSON ({error}); {form.remedy}") from None
    if not isinstance(stored, dict):
        raise DamagedState(f"{path} is not a JSON object; {form.remedy}")
    found = stored.pop("format", None), stored.pop("version", None)
    if found == (None, None) and stored.keys() & form.fields:
        raise StateVersionError(
            f"{path} was written by an older version of Tidemill: it has no version; {form.remedy}"
        )
    if found[0] != form.name:
        raise DamagedState(f"{path} does not say that it is a {form.name}; {form.remedy}")
    if found[1] != form.version:
        raise StateVersionError(
            f"{path} has version {found[1]}, this code reads {form.version}; {form.remedy}"
        )
    checksum = stored.pop("checksum", None)
    if checksum != _checksum(stored) or stored.keys() != form.fields:
        raise DamagedState(
            f"{path} was changed after it was written: its checksum does not match; {form.remedy}"
        )
    return stored


_HANDOFF: Final = _Format(
    name="tidemill-handoff",
    version=3,
    fields=frozenset(field.name for field in dataclasses.fields(Handoff)),
    remedy="run `tidemill backfill` again, and the stream from its beginning",
)


def savepoint_folder(root: Path, segment: int) -> Path:
    """Return the folder of the states at the end of a segment."""
    return root / paths.SAVEPOINTS / f"{segment:05d}"


def read_record(folder: Path) -> Handoff:
    """Read the record of a folder of states.

    Raises:
        StateMismatch: There is no record.
        StateVersionError: Its version is not supported.
        DamagedState: It is damaged.
    """
    path = folder / paths.HANDOFF
    if not path.exists():
        raise StateMismatch(f"there is no handed-over state at {path}; run `tidemill backfill`")
    return Handoff(**_read(path, _HANDOFF))


def last_states(root: Path) -> tuple[Path, Handoff]:
    """Find the newest states of a root: of the last savepoint, else of the backfill.

    Raises:
        StateMismatch: There are no states.
    """
    stops = sorted(path.parent for path in (root / paths.SAVEPOINTS).glob(f"*/{paths.HANDOFF}"))
    folder = stops[-1] if stops else root / paths.STATES
    return folder, read_record(folder)


def check_handoff(folder: Path, handoff: Handoff, project: Project, shards: int) -> None:
    """Check that states are of these definitions and shards, and that the files are unchanged.

    Raises:
        StateMismatch: They are not; the message says what was found and expected.
    """
    for view in project.views:
        made_for = handoff.views.get(view.name)
        if made_for != view.hash:
            raise StateMismatch(
                f"view {view.name!r}: the handed-over state was made for definition {made_for}, "
                f"this is {view.hash}; run `tidemill backfill` again"
            )
    if handoff.shards != shards:
        raise StateMismatch(
            f"the handed-over state has {handoff.shards} shards, the configuration says "
            f"{shards}; run `tidemill backfill` again"
        )
    found = file_hashes(folder)
    for name, written in handoff.files.items():
        if found.get(name) != written:
            what = "is missing" if name not in found else "was changed after it was written"
            raise StateMismatch(
                f"{folder / name} {what}; restore the folder, or run `tidemill backfill` again and "
                "the stream from its beginning"
            )


def remove_savepoints(root: Path, keep: Path | None = None) -> None:
    """Remove the states of all savepoints, or of all except one."""
    for folder in (root / paths.SAVEPOINTS).glob("*"):
        if folder != keep:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class StreamRun:
    """The stream of a root, from its first segment to its end.

    Attributes:
        began: The `Handoff.id` of the backfill's states that the stream began with.
        mode: ``exact`` or ``eager``.
        poll_rows: Where polls end (`pipelines.io.replay.ReplayOptions`): releases depend on it.
        ended: Whether the stream has ended and cannot be resumed.
    """

    began: str
    mode: str
    poll_rows: int
    ended: bool

    def write(self, root: Path) -> None:
        """Write ``stream.json``."""
        _write(root / paths.STREAM_RUN, _STREAM, dataclasses.asdict(self))

    @staticmethod
    def read(root: Path) -> StreamRun | None:
        """Read ``stream.json``; None if no stream was begun.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = root / paths.STREAM_RUN
        return StreamRun(**_read(path, _STREAM)) if path.exists() else None


_STREAM: Final = _Format(
    name="tidemill-stream",
    version=3,
    fields=frozenset(field.name for field in dataclasses.fields(StreamRun)),
    remedy="run `tidemill stream` without --resume to start over",
)
