"""Handed-over states: what a stream starts from, and the record of what they are.

Two things write them: a backfill (``root/states``: every operator's state of all that was received
before the stream begins) and a stream that stops at a savepoint (``root/stops/NUMBER``: the
operators' and the joining stage's). What is promised:

* The states are files of `pipelines.stream.state_files`. A folder of them counts once its
  `handoff.json` is there. That is written last, when every other file is there whole, so a run that
  was killed leaves none that is half.
* The record names what the states are of: definitions, shards, positions, mode, and the hash of
  every file. Anything else is refused by name.
* Every run of the stream between two of them is a *segment* with a number; what it writes has the
  number in its name (`serving.files.segment_names`), so what a killed run left can be told from
  what counts.
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
    """What a folder of states is of.

    Attributes:
        kind: What wrote it.
        as_of_us: Everything received before this instant is in the states.
        positions: Source to the next position of each partition.
        views: View to the hash of its definition.
        shards: How many shards each view has.
        segment: The number of the segment that ends here; 0 for a backfill.
        frontiers: View to the frontier of each of its shards.
        began: The `id` of the backfill's states that the stream began with; of a backfill, None.
        mode: The mode of the stream; of a backfill, None.
        files: File to the SHA-256 of its bytes.
    """

    kind: Literal["backfill", "stop"]
    as_of_us: int
    positions: Mapping[str, list[int]]
    views: Mapping[str, str]
    shards: int
    segment: int
    frontiers: Mapping[str, list[int]]
    began: str | None
    mode: str | None
    files: Mapping[str, str]

    @property
    def id(self) -> str:
        """A hash of all that the record says, and so of every file."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Make a folder of states count."""
        _write(folder / paths.HANDOFF, _HANDOFF, dataclasses.asdict(self))


@dataclass(frozen=True)
class _Format:
    """A kind of record: a JSON object with its format, its version and a checksum of the rest.

    Attributes:
        name: What stands in it as its format.
        version: The version that is written and read.
        fields: What else stands in it.
        remedy: What to do when one cannot be read.
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
        raise DamagedState(f"{path} is no JSON object; {form.remedy}")
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
            f"{path} is not what was written: its checksum does not fit; {form.remedy}"
        )
    return stored


_HANDOFF: Final = _Format(
    name="tidemill-handoff",
    version=2,
    fields=frozenset(field.name for field in dataclasses.fields(Handoff)),
    remedy="run `tidemill backfill` again, and the stream from its beginning",
)


def savepoint_folder(root: Path, segment: int) -> Path:
    """Return the folder of the states at the end of a segment."""
    return root / paths.SAVEPOINTS / f"{segment:05d}"


def read_record(folder: Path) -> Handoff:
    """Read what a folder of states is of.

    Raises:
        StateMismatch: There is none.
        StateVersionError: It was written by another version.
        DamagedState: It is not what was written.
    """
    path = folder / paths.HANDOFF
    if not path.exists():
        raise StateMismatch(f"there is no handed-over state at {path}; run `tidemill backfill`")
    return Handoff(**_read(path, _HANDOFF))


def last_states(root: Path) -> tuple[Path, Handoff]:
    """Find the newest states of a root: those of the last savepoint, else those of the backfill.

    Raises:
        StateMismatch: There are none.
    """
    stops = sorted(path.parent for path in (root / paths.SAVEPOINTS).glob(f"*/{paths.HANDOFF}"))
    folder = stops[-1] if stops else root / paths.STATES
    return folder, read_record(folder)


def check_handoff(folder: Path, handoff: Handoff, project: Project, shards: int) -> None:
    """Refuse states that are of other definitions or shards, or not the bytes that were written.

    Raises:
        StateMismatch: Which they are, and what was expected.
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
            what = "is missing" if name not in found else "is not what was written"
            raise StateMismatch(
                f"{folder / name} {what}; bring the folder back whole, or run `tidemill backfill` "
                "again and the stream from its beginning"
            )


def remove_savepoints(root: Path, keep: Path | None = None) -> None:
    """Remove the states of all savepoints but one."""
    for folder in (root / paths.SAVEPOINTS).glob("*"):
        if folder != keep:
            shutil.rmtree(folder)


@dataclass(frozen=True)
class StreamRun:
    """How the stream of a root is being run, from its first segment to its end.

    Attributes:
        began: The `Handoff.id` of the backfill's states that it began with.
        mode: ``exact`` or ``eager``.
        ended: Whether it has ended: there is nothing to go on with.
    """

    began: str
    mode: str
    ended: bool

    def write(self, root: Path) -> None:
        """Write it down."""
        _write(root / paths.STREAM_RUN, _STREAM, dataclasses.asdict(self))

    @staticmethod
    def read(root: Path) -> StreamRun | None:
        """Read it; None where no stream was begun.

        Raises:
            StateVersionError: It was written by another version.
            DamagedState: It is not what was written.
        """
        path = root / paths.STREAM_RUN
        return StreamRun(**_read(path, _STREAM)) if path.exists() else None


_STREAM: Final = _Format(
    name="tidemill-stream",
    version=2,
    fields=frozenset(field.name for field in dataclasses.fields(StreamRun)),
    remedy="run `tidemill stream` without --resume to start over",
)
