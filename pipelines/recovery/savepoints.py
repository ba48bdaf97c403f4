"""The last savepoint of a stream: the record that there is one, and whether its states are there.

A resumed stream begins with the newest states that are found, and repeats what came after them.
Without a record, states that were lost would look like those of a savepoint that never was: the
stream would begin too early, beside outputs that count already. So when a savepoint has become
valid, ``savepoint.json`` in the stream's folder names it. A run that is killed between the two has
states that are one savepoint further than the record.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.contract import write_instant
from tidemill.features.errors import StateError, StateMismatch
from tidemill.pipelines.recovery.handoff import (
    START_OVER,
    Handoff,
    StreamRun,
    changed_files,
    last_states,
)
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.state_files import savepoint_folder
from tidemill.serving.files.records import RecordFormat, read_record, write_record
from tidemill.serving.files.segment_names import segment_of
from tidemill.serving.generations.current import Current


@dataclass(frozen=True)
class Savepoint:
    """The last savepoint of a stream.

    Attributes:
        segment: The number of the segment that ends there.
        as_of_us: Its states contain all rows received before this instant.
        polls: The number of the last poll that they contain.
        states: The `Handoff.id` of their record.
    """

    segment: int
    as_of_us: int
    polls: int
    states: str

    @staticmethod
    def of(handoff: Handoff) -> Savepoint:
        """Return the savepoint whose states a record describes."""
        return Savepoint(handoff.segment, handoff.as_of_us, handoff.polls, handoff.id)

    def write(self, stream: Path) -> None:
        """Write ``savepoint.json``."""
        write_record(stream / paths.SAVEPOINT, _SAVEPOINT, dataclasses.asdict(self))

    @staticmethod
    def read(stream: Path) -> Savepoint | None:
        """Read ``savepoint.json``; None if the stream has not stopped at a savepoint.

        A stream of a version that did not write it has none either.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = stream / paths.SAVEPOINT
        return Savepoint(**read_record(path, _SAVEPOINT)) if path.exists() else None


_SAVEPOINT: Final = RecordFormat(
    name="tidemill-savepoint",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(Savepoint)),
    remedy="restore it, or run `tidemill stream` without --resume to start over",
)


def what_is_lost(stream: Path, run: StreamRun, folder: Path, handoff: Handoff) -> str | None:
    """Say what of a stream's last savepoint is lost.

    Args:
        stream: The folder of the stream.
        run: Its record.
        folder: The newest states that are there (`last_states`).
        handoff: Their record.

    Returns:
        What was found and what was expected; None if nothing is lost.
    """
    if handoff.kind == "stop" and handoff.began != run.began:
        return (
            f"the states in {folder} are of another stream: it began with {handoff.began}, this "
            f"one with {run.began}"
        )
    written = Savepoint.read(stream)
    if written is None:
        later = last_segment(stream)
        is_lost = later > handoff.segment + 1 and not _is_kept(stream, run, later - 1)
        return _lost(stream, later - 1, handoff) if is_lost else None
    if handoff.segment < written.segment:
        when = f", which holds all rows received before {write_instant(written.as_of_us)}"
        return _lost(stream, written.segment, handoff) + when
    if handoff.segment > written.segment + 1:
        return (
            f"the states in {folder} are of savepoint {handoff.segment}, and the last one of the "
            f"stream in {stream} is savepoint {written.segment}: they are of another stream"
        )
    if handoff.segment == written.segment and handoff.id != written.states:
        return (
            f"the states in {folder} are of another stream: their record is {handoff.id}, this "
            f"stream wrote {written.states} at savepoint {written.segment}"
        )
    return None


def check_savepoint_is_there(stream: Path, run: StreamRun, folder: Path, handoff: Handoff) -> None:
    """Check that the newest states are those of the stream's last savepoint.

    Arguments as for `what_is_lost`.

    Raises:
        StateMismatch: They are not; the message says what is lost.
    """
    if lost := what_is_lost(stream, run, folder, handoff):
        raise StateMismatch(f"{lost}; {START_OVER}")


def faults_of_savepoint(current: Current, run: StreamRun) -> list[str]:
    """Return what is wrong with the last savepoint of a stream that can be resumed.

    A stream may run meanwhile: a savepoint that is replaced while it is read is read again.
    """
    stream = current.stream_folder
    while True:
        written = None
        try:
            written = Savepoint.read(stream)
            if written is None and not any((stream / paths.SAVEPOINTS).glob("*")):
                # The build that it began with may be gone; only its outputs can say more.
                later = last_segment(stream)
                is_lost = later > 1 and not _is_kept(stream, run, later - 1)
                return [_lost(stream, later - 1, None)] if is_lost else []
            folder, handoff = last_states(current)
            lost = what_is_lost(stream, run, folder, handoff)
            faults = [lost] if lost else []
            if handoff.kind == "stop" and not lost:
                faults = [f"{path} {what}" for path, what in changed_files(folder, handoff)]
        except (StateError, OSError) as error:
            faults = [str(error)]
        if not faults or _reread(stream) == written:
            return faults


def _reread(stream: Path) -> Savepoint | None:
    try:
        return Savepoint.read(stream)
    except StateError:
        return None


def last_segment(stream: Path) -> int:
    """Return the highest number of a segment that has written outputs."""
    files = (path for name in paths.STREAM_OUTPUTS for path in (stream / name).glob("**/*"))
    return max((segment_of(path.name) or 0 for path in files if path.is_file()), default=0)


def _is_kept(stream: Path, run: StreamRun, segment: int) -> bool:
    """Tell whether a live stream was keeping a savepoint that does not count yet.

    It goes on meanwhile, and writes outputs that come behind the savepoint.
    """
    return run.clock == "wall" and savepoint_folder(stream, segment).is_dir()


def _lost(stream: Path, segment: int, found: Handoff | None) -> str:
    folder = savepoint_folder(stream, segment)
    if not folder.parent.is_dir():
        gone = f"the folder {folder.parent} is missing"
    elif not folder.is_dir():
        gone = f"the folder {folder} is missing"
    elif not any(folder.iterdir()):
        gone = f"the folder {folder} is empty"
    else:
        gone = f"the record {folder / paths.HANDOFF} is missing"
    left = found is not None and found.kind == "stop"
    newest = f"savepoint {found.segment} is left" if found and left else "none is left"
    return f"the states of the stream's last savepoint, {segment}, are lost ({gone}; {newest})"
