"""A Delta table on the disk, through delta-rs: what it has now, and one commit to it.

The only module that imports ``deltalake``, the extra ``delta``. A commit is made to the version
that was read, or not at all: where delta-rs would fit it behind somebody else's, it is refused.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from tidemill.features.errors import ConfigurationError, DamagedState, StateMismatch
from tidemill.serving.files.atomic_write import wait_for_disk
from tidemill.serving.files.file_errors import file_error, named_in_text

LOG: Final = "_delta_log"
DAY: Final = "day"
"""The column by which a table is partitioned: of no file, but of each file's entry in the log."""
APPLICATION: Final = "tidemill"
"""The name below which a commit has what this export says of it."""
_EXISTS: Final = "already exists at that location"
"""What delta-rs says where somebody else has created the table; that error has no class."""


def check_installed() -> None:
    """Check that delta-rs is installed.

    Raises:
        ConfigurationError: It is not.
    """
    if importlib.util.find_spec("deltalake") is None:
        raise ConfigurationError(
            "`tidemill export-archive` writes Delta tables with deltalake (delta-rs), which is not "
            "installed; install tidemill[delta]"
        )


@dataclass(frozen=True)
class AddedFile:
    """A file that a commit adds.

    Attributes:
        path: Its path below the folder of the table.
        day: Its day, ``YYYY-MM-DD``.
        size: Its bytes.
        modified_ms: When it was written, in milliseconds.
        rows: How many rows it has.
    """

    path: str
    day: str
    size: int
    modified_ms: int
    rows: int


@dataclass(frozen=True)
class TableVersion:
    """A version of a table.

    Attributes:
        folder: The folder.
        id: The id that it was created with.
        version: The number of the version.
        schema: Its columns, the partition column among them.
        partition_columns: By what it is partitioned.
        features: What a reader has to know to read it, beyond the oldest protocol.
        files: The size of each file by its path below the folder.
    """

    folder: Path
    id: str
    version: int
    schema: pa.Schema
    partition_columns: Sequence[str]
    features: Sequence[str]
    files: Mapping[str, int]

    @staticmethod
    def read(folder: Path) -> TableVersion | None:
        """Read the newest version of a table; None if the folder has none.

        Raises:
            DamagedState: Its log cannot be read.
            FileError: It is not this user's to read, ...
        """
        if not (folder / LOG).exists():
            return None
        import deltalake

        with _named(folder):
            if not deltalake.DeltaTable.is_deltatable(str(folder)):
                return None
            return _described(folder, deltalake.DeltaTable(str(folder)))


def _described(folder: Path, table: Any) -> TableVersion:
    actions = pa.table(table.get_add_actions(flatten=True))
    columns = (actions.column(name).to_pylist() for name in ("path", "size_bytes"))
    metadata = table.metadata()
    return TableVersion(
        folder,
        metadata.id,
        table.version(),
        pa.schema(table.schema().to_arrow()),
        list(metadata.partition_columns),
        sorted(table.protocol().reader_features or ()),
        dict(zip(*columns, strict=True)),
    )


def create(
    folder: Path, name: str, schema: pa.Schema, added: Sequence[AddedFile], said: Mapping[str, Any]
) -> TableVersion:
    """Create a table with its first files, in one commit that survives a crash of the machine.

    Args:
        folder: The folder, which has the files and no table.
        name: The name of the table.
        schema: Its columns, the partition column among them.
        added: The files.
        said: What the commit says of itself.

    Raises:
        StateMismatch: Somebody else has created it meanwhile.
        FileError: The disk is full, ...
    """
    import deltalake
    from deltalake import transaction

    with _named(folder):
        transaction.create_table_with_add_actions(
            str(folder),
            deltalake.Schema.from_arrow(schema),
            [_add(one) for one in added],
            mode="error",
            partition_by=[DAY],
            name=name,
            commit_properties=_properties(said),
        )
    return _committed(folder, 0)


def commit(
    table: TableVersion,
    schema: pa.Schema,
    added: Sequence[AddedFile],
    removed: Sequence[str],
    said: Mapping[str, Any],
) -> TableVersion:
    """Add files to a table and remove others, in one commit that survives a crash of the machine.

    Args:
        table: The version that was read.
        schema: The columns that it is to have. If they are others, all files are removed.
        added: The files that are added.
        removed: The paths of those that are removed.
        said: What the commit says of itself.

    Returns:
        The next version.

    Raises:
        StateMismatch: Somebody else has committed to the table since it was read.
        FileError: The disk is full, ...
    """
    import deltalake
    from deltalake import transaction

    now_ms = time.time_ns() // 1_000_000
    actions = [_add(one) for one in added]
    # Files of a table with other columns were written with other columns: delta-rs removes them
    # all, and takes the new schema, in the commit that adds the new ones.
    is_other = not schema.equals(table.schema)
    assert not is_other or len(removed) == len(table.files)
    if not is_other:
        actions += [
            transaction.RemoveAction(
                path, True, now_ms, table.files[path], {DAY: path.split("/")[0].split("=")[1]}
            )
            for path in removed
        ]
    with _named(table.folder):
        found = deltalake.DeltaTable(str(table.folder), version=table.version)
        found.create_write_transaction(
            actions,
            "overwrite" if is_other else "append",
            deltalake.Schema.from_arrow(schema),
            [DAY],
            commit_properties=_properties(said),
        )
    return _committed(table.folder, table.version + 1)


def _add(file: AddedFile) -> Any:
    from deltalake.transaction import AddAction

    stats = json.dumps({"numRecords": file.rows})
    return AddAction(file.path, file.size, {DAY: file.day}, file.modified_ms, True, stats)


def _properties(said: Mapping[str, Any]) -> Any:
    from deltalake.transaction import CommitProperties

    # Without this, delta-rs would put the commit behind those that somebody else has made.
    return CommitProperties(custom_metadata={APPLICATION: dict(said)}, max_commit_retries=0)


def _committed(folder: Path, version: int) -> TableVersion:
    """Wait for the disk, and read the version that was committed: delta-rs waits for no disk."""
    # A commit may have made a checkpoint, too.
    for path in (*(folder / LOG).glob(f"{version:020d}.*"), *(folder / LOG).glob("_last*")):
        wait_for_disk(path)
    for one in (folder / LOG, folder, folder.parent):
        wait_for_disk(one)
    found = TableVersion.read(folder)
    if found is None or found.version != version:
        raise StateMismatch(
            f"{folder}: somebody else wrote to this table while version {version} was committed; "
            "end that program, and run the command again"
        )
    return found


def _refused(folder: Path, error: Exception) -> StateMismatch:
    return StateMismatch(
        f"{folder}: nothing was committed ({str(error).splitlines()[0]}): somebody else wrote to "
        "this table at the same time, or has set a property that forbids to add or remove files; "
        "end that program or unset the property, and run the command again"
    )


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn the errors of delta-rs into ours."""
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        yield
    except OSError as error:
        # Its text is a tree of causes, the last of which is the system's.
        if (named := named_in_text(str(error), folder)) is not None:
            raise named from error
        raise file_error(error, folder) from error
    except CommitFailedError as error:
        raise _refused(folder, error) from error
    except DeltaError as error:
        if _EXISTS in str(error):
            raise _refused(folder, error) from error
        if (named := named_in_text(str(error), folder)) is not None:
            raise named from error
        raise DamagedState(
            f"{folder} cannot be read as a Delta table ({str(error).splitlines()[0]}); remove the "
            "folder: the next `tidemill export-archive` writes it again from the archive"
        ) from error
