"""Exports that are killed, that run twice at once, and beside whoever writes the archive."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import pytest

from tests.support.archives import WrittenArchive
from tests.support.exports import CARD, check_same, exported, payments, table_rows, version_of
from tests.support.killed_fork import killed_at, steps_of
from tests.support.lock_holder import lock_holder
from tidemill.features.errors import Locked
from tidemill.pipelines.archive.archiving import LOCK as ARCHIVE_LOCK
from tidemill.pipelines.archive.manifest import ArchiveManifest, Exchange
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.export import export_archive as export_module
from tidemill.pipelines.export.archive_state import copy_file
from tidemill.pipelines.export.export_record import LOCK
from tidemill.pipelines.run.holder import root_id
from tidemill.serving.files.locks import lock


def _export(config: Configuration, to: Path) -> None:
    exported(config, to)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_run_that_is_killed_at_any_step_is_completed_by_the_next(
    written: WrittenArchive, config: Configuration, to: Path, tmp_path: Path, is_first: bool
) -> None:
    for number in range(2):
        written.add(payments(2, number * 2))
    other = written.add([*payments(1, 9), *payments(1, 10, CARD)], day=1)
    if not is_first:
        exported(config, to)
        written.compact()
        written.empty(other, "payment", "card")
        written.add(payments(2, 20), day=2, partition=1)
    before = tmp_path / "before"
    if to.exists():
        shutil.copytree(to, before)
    root_id(config.root)  # the root has its id before
    steps = steps_of(partial(_export, config, to))
    version = version_of(to / "payments")
    rows = table_rows(to / "payments")
    assert version == (0 if is_first else 1)
    assert len(steps) > 10
    for step in range(1, len(steps) + 1):
        shutil.rmtree(to)
        if before.exists():
            shutil.copytree(before, to)
        killed_at(step, partial(_export, config, to))
        if deltalake.DeltaTable.is_deltatable(str(to / "payments")):
            # What is visible is the state before or the one after, and every file of it is there.
            assert len(table_rows(to / "payments")) in (6, len(rows)), steps[step - 1]
        exported(config, to)
        assert version_of(to / "payments") == version, steps[step - 1]
        assert table_rows(to / "payments").equals(rows)
        check_same(written.folder, to, "payments")
        assert {path.name for path in to.iterdir()} == {"_tidemill.json", LOCK, "payments"}


def test_an_archive_that_moved_on_after_a_kill_is_exported(
    written: WrittenArchive, config: Configuration, to: Path, tmp_path: Path
) -> None:
    written.add(payments(4))
    exported(config, to)
    written.add(payments(4, 4), day=1)
    apart = tmp_path / "apart"
    shutil.copytree(to, apart)
    steps = steps_of(partial(_export, config, apart))
    for step in range(1, len(steps) + 1):
        shutil.rmtree(apart)
        shutil.copytree(to, apart)
        killed_at(step, partial(_export, config, apart))
        written.add(payments(1, 100 + step), day=1)
        exported(config, apart)
        check_same(written.folder, apart, "payments")


def test_what_a_kill_in_a_commit_of_delta_rs_leaves_is_in_nobodys_way(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    """delta-rs writes a commit beside its name first, with ``#`` and a number, and links it."""
    written.add(payments(3))
    exported(config, to)
    written.add(payments(3, 3))
    log = to / "payments" / "_delta_log"
    (log / f"{1:020d}.json#1").write_text((log / f"{0:020d}.json").read_text()[:100])
    assert exported(config, to)["payments"]["version"] == 1
    check_same(written.folder, to, "payments")


# Beside others


def test_only_one_process_exports_to_a_folder(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    written.add(payments(3))
    exported(config, to)
    written.add(payments(3, 3))
    with lock_holder(to / LOCK):
        with pytest.raises(Locked, match="only one process at a time may export to this folder"):
            exported(config, to)
        assert version_of(to / "payments") == 0
    ended: list[dict[str, Any]] = []
    with lock(to / LOCK, "export to this folder"):
        waiting = threading.Thread(target=lambda: ended.append(exported(config, to, wait=True)))
        waiting.start()
        waiting.join(0.5)
        assert not ended
    waiting.join(120)
    assert ended[0]["payments"]["version"] == 1
    check_same(written.folder, to, "payments")


def test_exports_at_once_make_each_commit_once(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            exported(config, to, wait=True)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    for number in range(3):
        written.add(payments(5, number * 5))
        workers = [threading.Thread(target=work) for _ in range(4)]
        for one in workers:
            one.start()
        for one in workers:
            one.join(120)
        assert failed == []
        assert version_of(to / "payments") == number
        check_same(written.folder, to, "payments")


MOVES: dict[str, Callable[[WrittenArchive], object]] = {
    "put together": lambda archive: archive.compact(),
    "emptied": lambda archive: archive.empty(archive.source.files[-1], "payment"),
    "removed": lambda archive: archive.remove(archive.source.files[0]),
}


@pytest.mark.parametrize("move", MOVES)
def test_an_archive_that_changes_while_it_is_copied_is_read_again(
    written: WrittenArchive,
    config: Configuration,
    to: Path,
    monkeypatch: pytest.MonkeyPatch,
    move: str,
) -> None:
    for number in range(4):
        written.add(payments(3, number * 3))
    held: list[bool] = []

    def moved(*given: Any) -> None:
        if not held:
            held.append(False)
            MOVES[move](written)
        else:
            held.append(is_held(written.folder))
        copy_file(*given)

    monkeypatch.setattr(export_module, "copy_file", moved)
    exported(config, to)
    check_same(written.folder, to, "payments")
    assert held[-1] is True  # nobody could change it a second time


def is_held(archive: Path) -> bool:
    try:
        with lock(archive / ARCHIVE_LOCK, "write this archive"):
            return False
    except Locked:
        return True


def test_an_export_beside_a_writer_has_the_rows_of_one_moment(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    ended, failed = threading.Event(), []

    def write() -> None:
        number = 0
        try:
            while not ended.is_set():
                number += 1
                # A stream that archives leaves out a turn while the archive is held.
                with lock(written.folder / ARCHIVE_LOCK, "write this archive", wait=True):
                    written.add(payments(2, number * 2), day=number % 2)
                    if number % 3 == 0:
                        written.compact(number % 2)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    written.add(payments(2))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        before = 0
        for _ in range(12):
            exported(config, to)
            positions = table_rows(to / "payments")["_position"].to_pylist()
            assert positions == list(range(len(positions)))
            assert len(positions) >= before
            before = len(positions)
    finally:
        ended.set()
        writer.join(120)
    assert failed == []
    exported(config, to)
    check_same(written.folder, to, "payments")


def test_a_day_whose_exchange_was_killed_is_exported(
    written: WrittenArchive, config: Configuration, to: Path
) -> None:
    for number in range(3):
        written.add(payments(3, number * 3))
    before = written.manifest
    written.compact()
    after = written.manifest
    # Killed after the exchange: the manifest has the old files, and announces the new ones.
    begun = [*after.sources["payments"].files]
    exchange = Exchange("payments", begun[0].day, begun)
    killed = ArchiveManifest(before.project, before.sources, exchange)
    killed.write(written.folder)
    assert exported(config, to)["payments"]["files"] == 1
    assert len(table_rows(to / "payments")) == 9
