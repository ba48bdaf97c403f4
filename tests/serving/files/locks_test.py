"""Locks between real processes: who holds one is named, and its end frees it, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.lock_holder import lock_holder
from tidemill.features.errors import FileError, Locked
from tidemill.serving.files.locks import is_locked, lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "generations" / "one.lock"


def test_a_held_lock_is_refused_and_the_holder_is_named(path: Path) -> None:
    with lock_holder(path) as (_, pid):
        with pytest.raises(Locked) as refused, lock(path, "make a build"):
            raise AssertionError("two hold it")
        said = str(refused.value)
        assert said.startswith(f"{path.parent}: only one process at a time may make a build, and ")
        assert f"process {pid} on {socket.gethostname()} (-c {path} none) since 20" in said
        assert said.endswith("does; wait for it (`--wait`), or end it")


def test_who_is_refused_leaves_the_record_of_the_holder(path: Path) -> None:
    with lock_holder(path) as (_, pid):
        for _ in range(2):
            with pytest.raises(Locked, match=f"process {pid} "), lock(path, "make a build"):
                pass
        assert json.loads(path.read_text())["pid"] == pid


def test_a_lock_excludes_its_own_process_too(path: Path) -> None:
    with lock(path, "hold it"):
        assert is_locked(path)
        with pytest.raises(Locked, match=f"process {os.getpid()} "), lock(path, "hold it twice"):
            pass
    assert not is_locked(path)


@pytest.mark.parametrize("how", ["it ends", signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_holder_frees_the_lock(path: Path, how: str | signal.Signals) -> None:
    with lock_holder(path) as (process, _):
        assert is_locked(path)
        if isinstance(how, str):
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(how)
        process.wait(60)
        assert not is_locked(path)
        with lock(path, "make a build"):
            assert json.loads(path.read_text())["pid"] == os.getpid()


def test_an_error_in_the_block_frees_the_lock(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(path, "divide"):
        raise ZeroDivisionError
    assert not is_locked(path)


@pytest.mark.parametrize(("child", "kept"), [("executed", False), ("forked", True)])
def test_a_child_keeps_the_lock_of_a_killed_holder_only_if_it_was_forked(
    path: Path, child: str, kept: bool
) -> None:
    with lock_holder(path, child) as (process, pid):
        orphan = psutil.Process(pid)
        try:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            assert orphan.is_running()
            assert is_locked(path) == kept
        finally:
            orphan.kill()
            gone = threading.Event()
            while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
                gone.wait(0.01)
        assert not is_locked(path)


def test_who_waits_gets_the_lock_when_it_is_free_and_not_before(path: Path) -> None:
    order: list[str] = []
    with lock_holder(path) as (process, _):

        def wait() -> None:
            with lock(path, "make a build", wait=True):
                order.append("ours")

        waiter = threading.Thread(target=wait)
        waiter.start()
        waiter.join(1.0)
        assert waiter.is_alive(), "a held lock was given out"
        order.append("freed")
        process.send_signal(signal.SIGKILL)
        waiter.join(60)
    assert order == ["freed", "ours"]


def test_looking_neither_takes_a_lock_nor_makes_its_file(path: Path) -> None:
    assert not is_locked(path)
    assert not path.exists()
    with lock(path, "hold it"):
        written = path.read_bytes()
        assert is_locked(path)
        assert path.read_bytes() == written
    for _ in range(3):
        assert not is_locked(path)
    assert path.read_bytes() == written, "the file stays: another process may be about to lock it"


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff\xfe\x00"])
def test_a_holder_whose_record_is_damaged_is_another_process(path: Path, damage: bytes) -> None:
    with lock_holder(path):
        path.write_bytes(damage)
        refusal = pytest.raises(Locked, match="make a build, and another process does")
        with refusal, lock(path, "make a build"):
            pass


def test_a_lock_whose_file_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "one.lock"
    with pytest.raises(FileError, match=str(path.parent)), lock(path, "hold it"):
        pass
