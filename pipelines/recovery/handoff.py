"""Handed-over states: what a stream starts from, in files.

Two things write them: a backfill (``root/states``: every operator's state of all that was received
before the stream begins) and a stream that stops at a cut (``root/stops/NUMBER``: the operators'
and the joining stage's). What is promised:

* A folder counts once its `RECORD` is there. That is written last, when every other file is there
  whole, so a run that was killed leaves none that is half.
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
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tidemill.features.definitions import Project
from tidemill.features.errors import StateMismatch
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.serving.files.atomic_write import atomic_write, write_text

RECORD: Final = "handoff.json"
"""The file that makes a folder of states count."""
STATES: Final = "states"
"""The folder below the root that a backfill hands over."""
STOPS: Final = "stops"
"""The folder below the root with a folder for each cut at which the stream stopped."""
_ANSWERS: Final = "answers.state"

Kind = Literal["backfill", "stop"]


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

    kind: Kind
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
        write_text(folder / RECORD, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def _write_whole(path: Path, data: bytes) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(data)


def state_path(folder: Path, key: OperatorKey) -> Path:
    """Return the file of a handed-over state."""
    return folder / f"{key.view}-{key.shard:05d}-of-{key.shards:05d}.state"


def write_handoff(folder: Path, operator: ShardOperator) -> None:
    """Write an operator's whole state for another run to start from; again does no harm."""
    data = pickle.dumps((operator.head(), operator.snapshot()), protocol=5)
    _write_whole(state_path(folder, operator.key), data)


def read_handoff(folder: Path, operator: ShardOperator) -> None:
    """Start an operator from a handed-over state.

    Raises:
        FileNotFoundError: There is no state for its key.
        StateMismatch: It is of another definition, or other partitions.
    """
    path = state_path(folder, operator.key)
    if not path.exists():
        raise FileNotFoundError(
            f"{operator.key}: no handed-over state at {path}; run `tidemill backfill`, or start "
            "the stream without a handoff"
        )
    head, snapshot = pickle.loads(path.read_bytes())
    operator.restore(head, snapshot, [])
    operator.go_on()


def write_joiner(folder: Path, joiner: AnswerJoiner) -> None:
    """Write what waits in the joining stage; again does no harm."""
    _write_whole(folder / _ANSWERS, joiner.state())


def read_joiner(folder: Path, joiner: AnswerJoiner) -> None:
    """Start a joining stage from what waited at a cut; a backfill's states have nothing waiting."""
    path = folder / _ANSWERS
    if path.exists():
        joiner.restore(path.read_bytes())
        joiner.go_on()


def stop_folder(root: Path, segment: int) -> Path:
    """Return the folder of the states at the end of a segment."""
    return root / STOPS / f"{segment:05d}"


def missing_files(folder: Path, project: Project, shards: int) -> list[str]:
    """Name the files of a stop that are not there."""
    wanted = [
        state_path(folder, OperatorKey(view.name, view.hash, shard, shards))
        for view in project.views
        for shard in range(shards)
    ]
    return [path.name for path in [*wanted, folder / _ANSWERS] if not path.exists()]


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of states in a folder, by name."""
    return {path.name: _hash(path) for path in sorted(folder.glob("*.state"))}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_record(folder: Path) -> Handoff:
    """Read what a folder of states is of.

    Raises:
        StateMismatch: There is none, or it was written by another version.
    """
    path = folder / RECORD
    if not path.exists():
        raise StateMismatch(f"there is no handed-over state at {path}; run `tidemill backfill`")
    stored = json.loads(path.read_text(encoding="utf-8"))
    names = [field.name for field in dataclasses.fields(Handoff)]
    if sorted(stored) != sorted(names):
        raise StateMismatch(
            f"{path} was written by another version of Tidemill (it has {', '.join(stored)}); run "
            "`tidemill backfill` again"
        )
    return Handoff(**stored)


def last_states(root: Path) -> tuple[Path, Handoff]:
    """Find the newest states of a root: those of the last cut, else those of the backfill.

    Raises:
        StateMismatch: There are none.
    """
    stops = sorted(path.parent for path in (root / STOPS).glob(f"*/{RECORD}"))
    folder = stops[-1] if stops else root / STATES
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


def remove_stops(root: Path, keep: Path | None = None) -> None:
    """Remove the states of all cuts but one."""
    for folder in (root / STOPS).glob("*"):
        if folder != keep:
            shutil.rmtree(folder)


RUN: Final = "stream.json"
"""The file below the root that says how its stream is being run."""


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
        write_text(root / RUN, json.dumps(dataclasses.asdict(self)) + "\n")

    @staticmethod
    def read(root: Path) -> StreamRun | None:
        """Read it; None where no stream was begun."""
        path = root / RUN
        if not path.exists():
            return None
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return StreamRun(**stored)
