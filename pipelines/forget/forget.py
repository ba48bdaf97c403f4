"""Deleting an entity everywhere, with a record that it was done.

What is done, in this order:

1. Nothing else may write: the locks of builds, streams, mended records and of the archive are held.
   What a killed stream has left in an exchange is removed.
2. All work is done in a copy of the root that consists of links
   (`pipelines.forget.linked_copy`): rows of logs are blanked, states, tables and records are made
   again from them, files of predictions, publications and rejected records lose their rows.
3. The record and the plan of all files, with the digests of old and new bytes, are written.
4. The new files are moved over the old ones; the rows in the online store are removed; the record
   says what was removed.

A process that is killed before the plan is written has changed nothing. One that is killed later
has begun what `finish` ends, by whomever it is called; every command of Tidemill refuses to work
on the root until then, and names the command.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from tidemill.pipelines.archive.archiving import LOCK as ARCHIVE_LOCK
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.engines.left_jobs import end_abandoned, end_left_jobs
from tidemill.pipelines.forget.linked_copy import Changes
from tidemill.pipelines.forget.record import FORGOTTEN, WORK, ForgetRecord, remove_work, working
from tidemill.pipelines.forget.rewrite_archive import copy_of_archive
from tidemill.pipelines.forget.store import check_store, remove_from_store
from tidemill.pipelines.forget.subject import Subject
from tidemill.pipelines.forget.work import SUBJECT, Work, generations_of, now
from tidemill.pipelines.history.builds import BUILD_LOCK
from tidemill.pipelines.ingest.mended_live import alone
from tidemill.pipelines.io.exchange.left import remove_left
from tidemill.pipelines.run import paths
from tidemill.pipelines.run.holder import root_id
from tidemill.pipelines.run.progress import Progress
from tidemill.pipelines.run.proof_record import LOCK as PROOF_LOCK
from tidemill.serving.files.locks import lock
from tidemill.serving.generations.current import ENGINE_JOBS, GENERATIONS

_COMMAND: Final = "tidemill forget"
_STORE: Final = "rows of the online store"


def forget(config: Configuration, entity: str, key: str, progress: Progress) -> dict[str, Any]:
    """Delete an entity everywhere.

    A deletion that was killed is finished first.

    Args:
        config: The configuration.
        entity: The name of the entity.
        key: Its key, as a text.
        progress: Where progress is shown.

    Returns:
        The figures: the number of the record, what was removed by place, and what remains.

    Raises:
        InputError: There is no such entity, or the key is not of its type.
        Locked: A stream runs, or another process writes.
        StateMismatch: A log, a state or the archive is not what its record says.
        ExchangeError: What a job has left in the exchange cannot be removed.
        StoreError: The online store cannot be reached, and nothing has changed; or it cannot be
            written, and `finish` goes on there.
    """
    subject = Subject.parse(config.project, entity, key)
    root = config.root
    with _alone(config):
        finish_begun(config, progress)
        remove_work(root / FORGOTTEN / WORK)
        _clear_archive(config)
        check_store(config)
        Work(config, subject, progress).prepare()
        return finish_begun(config, progress) or {}


def finish(config: Configuration, progress: Progress) -> dict[str, Any]:
    """Finish a deletion that was killed, or that could not write to the online store.

    Returns:
        The figures; empty if there is none.
    """
    with _alone(config):
        return finish_begun(config, progress) or {}


@contextmanager
def _alone(config: Configuration) -> Iterator[None]:
    """Exclude everybody else who writes to the root, or to the archive."""
    root = config.root
    with contextlib.ExitStack() as held:
        doing = "write to this root while an entity is forgotten"
        generations = root / GENERATIONS
        locks = [generations / BUILD_LOCK]
        locks += [folder / "stream.lock" for folder in generations_of(root)]
        if config.archive is not None and config.archive.folder.exists():
            locks.append(config.archive.folder / ARCHIVE_LOCK)
        if (root / paths.PROOF).exists():
            locks.append(root / paths.PROOF / PROOF_LOCK)
        for path in locks:
            held.enter_context(lock(path, doing, command=_COMMAND))
        # Workers of a stream, or of a backfill, that was killed may write.
        for folder in generations_of(root):
            end_left_jobs(folder / ENGINE_JOBS)
        end_abandoned(root / paths.JOBS)
        if config.stream.exchange is not None:
            remove_left(config.stream.exchange, root_id(root))
        if (root / paths.MENDED_LIVE).exists():
            held.enter_context(alone(root, command=_COMMAND))
        held.enter_context(working(root, _COMMAND))
        yield


def _clear_archive(config: Configuration) -> None:
    """Remove the copy of an archive that a killed process has left."""
    if (copy := copy_of_archive(config)) is not None:
        shutil.rmtree(copy.folder, ignore_errors=True)


def finish_begun(config: Configuration, progress: Progress) -> dict[str, Any] | None:
    """Make the changes that are planned, remove the rows of the store, and end the record."""
    root, folder = config.root, config.root / FORGOTTEN / WORK
    changes = Changes.find(root, folder)
    if changes is None:
        return None
    with progress.stage("move what was made", len(changes.changes), "files") as stage:
        changes.apply()
        stage.advance(len(changes.changes))
    told = json.loads((folder / SUBJECT).read_bytes())
    subject = Subject.parse(config.project, told["entity"], told["key"])
    record = ForgetRecord.read_begun(folder)
    removed = dict(record.removed)
    count = remove_from_store(config, subject, told["renewed"])
    if count is not None:
        removed[_STORE] = count
    # A kill behind this has counted already what was in the store.
    ended = ForgetRecord.find(root, record.number)
    if ended is None:
        ended = replace(record, ended=now(), removed=removed)
        ended.write(root)
    remove_work(folder)
    _clear_archive(config)
    return {"record": ended.number, "removed": removed, "remains": list(ended.remains)}
