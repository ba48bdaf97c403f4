"""The record CURRENT: it names folders that belong together, and is one file that is replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.markdown import ROOT
from tidemill.features.errors import DamagedState, StateMismatch, StateVersionError
from tidemill.serving.generations.current import (
    CURRENT,
    Current,
    changing,
    find_current,
    read_current,
    streams_of,
    write_current,
)

GENERATION = "0123456789abcdef"


@pytest.fixture
def current(tmp_path: Path) -> Current:
    written = Current(tmp_path, GENERATION, build=2, offline=1, stream=3)
    write_current(written)
    return written


def test_what_is_written_is_read_and_names_folders_of_one_generation(current: Current) -> None:
    assert read_current(current.root) == find_current(current.root) == current
    folder = current.root / "generations" / GENERATION
    assert current.folder == folder
    assert current.build_folder == folder / "build-000002"
    assert current.offline_root == folder / "offline-000001"
    assert current.stream_folder == folder / "stream-000003"
    assert current.stream_lock == folder / "stream.lock"


def test_a_root_without_the_record_has_no_log_and_says_so(tmp_path: Path) -> None:
    assert find_current(tmp_path) is None
    with pytest.raises(StateMismatch, match=rf"{CURRENT} is missing\); run `tidemill backfill`"):
        read_current(tmp_path)


@pytest.mark.parametrize("former", [["log"], ["states"], ["log", "states"]])
def test_a_root_of_a_version_without_generations_is_refused_by_its_folders(
    tmp_path: Path, former: list[str]
) -> None:
    for name in former:
        (tmp_path / name).mkdir()
    names = ", ".join(former)
    for read in (find_current, read_current):
        with pytest.raises(StateVersionError, match=rf"without generations \({names}\): run"):
            read(tmp_path)


def test_such_folders_beside_the_record_are_the_users_own(current: Current) -> None:
    (current.root / "log").mkdir()
    assert read_current(current.root) == current


def changed(current: Current, **fields: Any) -> Path:
    path = current.root / CURRENT
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return path


@pytest.mark.parametrize(
    "field", sorted({one.name for one in dataclasses.fields(Current)} - {"root"})
)
def test_a_field_that_was_changed_is_refused(current: Current, field: str) -> None:
    other = "fedcba9876543210" if field == "generation" else 9
    path = changed(current, **{field: other})
    with pytest.raises(DamagedState, match=f"{path} was changed .*`tidemill backfill`"):
        read_current(current.root)


def test_another_version_is_refused_by_its_number(current: Current) -> None:
    path = changed(current, version=2)
    with pytest.raises(StateVersionError, match=f"{path} has version 2, this code reads 1"):
        find_current(current.root)


def test_readers_find_one_record_or_the_other_while_it_is_replaced(current: Current) -> None:
    """Never none, never a part, and never fields of both."""
    other = Current(current.root, "fedcba9876543210", build=7, offline=8, stream=9)
    done = threading.Event()

    def switch() -> None:
        while not done.is_set():
            write_current(other)
            write_current(current)

    writer = threading.Thread(target=switch)
    writer.start()
    try:
        seen = {read_current(current.root) for _ in range(3_000)}
    finally:
        done.set()
        writer.join()
    assert seen <= {current, other}


_COUNT = """
import dataclasses, sys
from pathlib import Path
from tidemill.serving.generations.current import changing, read_current, write_current
root = Path(sys.argv[1])
for _ in range(40):
    with changing(root):
        found = read_current(root)
        write_current(dataclasses.replace(found, build=found.build + 1))
"""


def test_changes_of_several_processes_are_one_after_the_other(current: Current) -> None:
    command = [sys.executable, "-c", _COUNT, str(current.root)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert read_current(current.root).build == current.build + 3 * 40


def test_a_reader_waits_for_no_change(current: Current) -> None:
    with changing(current.root):
        assert read_current(current.root) == current


@pytest.mark.parametrize("kind", ["build", "offline", "stream"])
def test_the_next_number_is_above_that_of_every_folder(current: Current, kind: Any) -> None:
    assert current.next_number(kind) == 1
    for name in (f"{kind}-000004", f"{kind}-000011", "build-x", "stream.lock", "offline-1"):
        (current.folder / name).mkdir(parents=True, exist_ok=True)
    assert current.next_number(kind) == 12
    assert current.with_next_stream() == current.with_stream(12 if kind == "stream" else 1)


def test_streams_are_listed_with_the_current_one_first_and_then_the_newest(
    current: Current,
) -> None:
    other = Current(current.root, "fedcba9876543210", build=1, offline=1, stream=1)
    ages = {current: 50, current.with_stream(1): 10, current.with_stream(4): 30, other: 70}
    for of_it, age in ages.items():
        of_it.stream_folder.mkdir(parents=True)
        of_it.build_folder.mkdir(exist_ok=True)
        os.utime(of_it.stream_folder, ns=(0, 10**18 - age * 10**9))
    (current.folder / "build-000005").mkdir()
    found = streams_of(current.root)
    assert [one.stream_folder for one in found] == [
        one.stream_folder
        for one in (current, current.with_stream(1), current.with_stream(4), other)
    ]
    # The log of the newest build extends that of all before it.
    assert [one.build for one in found] == [5, 5, 5, 1]
