"""Folders that a machine refuses to write to: on a full disk, or read-only.

With the right to mount, both are small file systems of their own. Without it, a full disk is a
limit on the size of files (with another ``errno``), and a read-only folder lacks the write
permission.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PAGE = 4_096


def may_mount(folder: Path) -> bool:
    """Tell whether this process may mount file systems."""
    if os.geteuid() != 0:
        return False
    probe = folder / "probe"
    probe.mkdir()
    try:
        return _run("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(probe)) and _run(
            "umount", "-l", str(probe)
        )
    finally:
        probe.rmdir()


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def mounted(content: Path | None, place: Path) -> Iterator[Path]:
    """Mount a file system of some megabytes at ``place``, with a copy of ``content`` in it."""
    place.mkdir()
    assert _run("mount", "-t", "tmpfs", "-o", "size=16m", "none", str(place))
    try:
        if content is not None:
            shutil.copytree(content, place, dirs_exist_ok=True)
        yield place
    finally:
        assert _run("umount", "-l", str(place))


@contextmanager
def full_disk(content: Path | None, place: Path) -> Iterator[Path]:
    """A copy of ``content`` on a disk without a free byte."""
    if not may_mount(place.parent):
        with limited_files(content, place) as folder:
            yield folder
        return
    with mounted(content, place) as folder:
        with (folder / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(_PAGE))
            except OSError:
                pass
        yield folder


@contextmanager
def limited_files(content: Path | None, place: Path) -> Iterator[Path]:
    """A copy of ``content``, in a process that may not make a file longer than a byte."""
    place.mkdir()
    if content is not None:
        shutil.copytree(content, place, dirs_exist_ok=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(content: Path | None, place: Path) -> Iterator[Path]:
    """A copy of ``content`` that this process may not write to."""
    if may_mount(place.parent):
        with mounted(content, place) as folder:
            assert _run("mount", "-o", "remount,ro", str(folder))
            yield folder
        return
    place.mkdir()
    if content is not None:
        shutil.copytree(content, place, dirs_exist_ok=True)
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield place
    finally:
        for folder in folders:
            folder.chmod(0o755)
