"""Handed-over states in files: one for each operator, and one for each joiner.

The state of an operator at a savepoint may refer to other files of its folder
(`pipelines.stream.savepoint_files`). Files are written atomically, and writing again replaces them.
Reading executes nothing (`pipelines.io.framing`). The record beside the files says which belong
together (`pipelines.recovery.handoff`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pyarrow as pa

from tidemill.features.definitions import Project
from tidemill.features.errors import NoSuchFile, StateError
from tidemill.pipelines.io.framing import Bytes, Document, Kind, decode_document, encode_document
from tidemill.pipelines.run import paths
from tidemill.pipelines.stream.answer_join import AnswerJoiner
from tidemill.pipelines.stream.joiner_key import JoinerKey
from tidemill.pipelines.stream.operator import ShardOperator
from tidemill.pipelines.stream.operator_key import OperatorKey
from tidemill.pipelines.stream.state_places import ON_DISK, StatePlace
from tidemill.serving.files.file_digest import file_sha256

_REMEDY: Final = "run `tidemill backfill` again, and the stream from its beginning"


def savepoint_folder(stream: Path, segment: int) -> Path:
    """Return the folder of the states at the end of a segment of a stream."""
    return stream / paths.SAVEPOINTS / f"{segment:05d}"


def state_path(folder: Path, key: OperatorKey) -> Path:
    """Return the file of a handed-over state."""
    return folder / f"{key.view}-{key.shard:05d}-of-{key.shards:05d}.state"


def write_handoff(folder: Path, operator: ShardOperator) -> None:
    """Write the complete state of an operator, from which another run can start."""
    write_state(state_path(folder, operator.key), handed_over(operator))


def handed_over(operator: ShardOperator) -> bytes:
    """Encode the complete state of an operator."""
    return _operator_file(operator, operator.snapshot())


def write_handoff_of(folder: Path, operator: ShardOperator, snapshot: bytes) -> None:
    """Write the complete state of an operator whose snapshot is encoded already."""
    write_state(state_path(folder, operator.key), _operator_file(operator, snapshot))


def _operator_file(operator: ShardOperator, snapshot: bytes) -> bytes:
    blobs = [operator.handed_over_head(), snapshot]
    return encode_document(Kind.OPERATOR_FILE, operator.key.text, {}, blobs)


class Begun(NamedTuple):
    """The files of a savepoint that an operator was started from.

    Attributes:
        folder: Their folder.
        base: The name of the base.
        pieces: The names of the pieces since.
        events: How many events they hold.
    """

    folder: Path
    base: str
    pieces: Sequence[str]
    events: int


def read_handoff(
    folder: Path, operator: ShardOperator, place: StatePlace = ON_DISK
) -> Begun | None:
    """Start an operator from a handed-over state.

    Args:
        folder: The folder of the savepoint.
        operator: The operator.
        place: Where the folder is.

    Returns:
        The files of the savepoint; None if the state is in one file.

    Raises:
        FileNotFoundError: There is no state for the operator's key.
        StateMismatch: The state is of another definition, or other partitions.
        StateVersionError: Its version is not supported.
        DamagedState: The file is damaged.
    """
    path = state_path(folder, operator.key)
    data = place.read(path)
    if data is None:
        raise FileNotFoundError(
            f"{operator.key}: no handed-over state at {path}; run `tidemill backfill`, or start "
            "the stream without a handoff"
        )
    with _naming(path):
        return start_from(operator, data, folder, place)


def start_from(
    operator: ShardOperator,
    data: bytes | pa.Buffer,
    folder: Path | None = None,
    place: StatePlace = ON_DISK,
) -> Begun | None:
    """Start an operator from its `handed_over` state, or from what a savepoint has of it.

    Args:
        operator: The operator.
        data: The bytes.
        folder: The folder of the savepoint.
        place: Where the folder is.

    Returns:
        As `read_handoff`.

    Raises:
        StateError: As `read_handoff`.
    """
    begun = None
    what = f"the handed-over state of {operator.key}"
    kinds = (Kind.OPERATOR_FILE, Kind.OPERATOR_SAVEPOINT)
    found = decode_document(data, kinds, what, _REMEDY)
    if found.kind is Kind.OPERATOR_FILE:
        head, snapshot = found.blobs
        operator.restore(head, snapshot, [])
    else:
        assert folder is not None
        (head,), fields = found.blobs, found.fields
        since = [entry for name in fields["since"] for entry in read_entries(folder / name, place)]
        base = _present(folder / fields["base"], place)
        events = operator.restore(head, base, map(bytes, since))
        begun = Begun(folder, fields["base"], fields["since"], events)
    operator.resume()
    return begun


def _present(path: Path, place: StatePlace) -> bytes | pa.Buffer:
    data = place.read(path)
    if data is None:
        raise NoSuchFile(f"{path} is not there, and a state of its folder names it; {_REMEDY}")
    return data


def read_entries(path: Path, place: StatePlace = ON_DISK) -> list[pa.Buffer]:
    """Read a piece of the state of an operator at a savepoint: entries of its log.

    Args:
        path: The file.
        place: Where it is.

    Raises:
        NoSuchFile: It is not there.
        StateError: The file is damaged, or of another version.
    """
    return decode_entries(_present(path, place), str(path)).blobs


def decode_entries(data: Bytes, where: str) -> Document:
    """Decode a piece, whose key is that of the operator; its blobs are the entries."""
    what = f"{where}: entries of an operator's log"
    return decode_document(data, Kind.OPERATOR_ENTRIES, what, _REMEDY)


def write_joiner(folder: Path, joiner: AnswerJoiner, place: StatePlace = ON_DISK) -> None:
    """Write the state of a joiner."""
    place.write(folder / joiner.key.state_name, joiner.state())


def read_joiner(folder: Path, joiner: AnswerJoiner, place: StatePlace = ON_DISK) -> None:
    """Start a joiner from its state at a savepoint; a backfill leaves none.

    Raises:
        StateError: As `read_handoff`.
    """
    path = folder / joiner.key.state_name
    data = place.read(path)
    if data is not None:
        with _naming(path):
            joiner.restore(data)
        joiner.resume()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file and the remedy to errors of the block."""
    try:
        yield
    except StateError as error:
        raise type(error)(f"{path}: {error}; {_REMEDY}") from error


def write_state(path: Path, data: bytes) -> None:
    """Write a file of states; it replaces one of this name."""
    ON_DISK.write(path, data)


def missing_files(folder: Path, project: Project, shards: int, joiners: int) -> list[str]:
    """Return the names of the missing files of a savepoint."""
    wanted = [
        state_path(folder, OperatorKey(view.name, view.hash, shard, shards))
        for view in project.views
        for shard in range(shards)
    ]
    wanted += [folder / key.state_name for key in JoinerKey.all(joiners)]
    return [path.name for path in wanted if not path.exists()]


def file_hashes(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return the SHA-256 of every state file in a folder, by name.

    Args:
        folder: The folder.
        known: Those of files that have not changed.
    """
    names = sorted(path.name for path in folder.glob("*.state"))
    return {name: known.get(name) or file_sha256(folder / name) for name in names}
