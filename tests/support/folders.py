"""The folders that a root means, for tests that look into them or make them by hand."""

from __future__ import annotations

from pathlib import Path

from tidemill.serving.generations.current import Current, find_current, read_current, write_current


def build_of(root: Path) -> Path:
    """Return the folder of log, training table and states."""
    return read_current(root).build_folder


def offline_of(root: Path) -> Path:
    """Return the folder of the offline logs."""
    return read_current(root).offline_root


def stream_of(root: Path) -> Path:
    """Return the folder of the stream's outputs."""
    return read_current(root).stream_folder


def made_root(root: Path) -> Current:
    """Give a root the record of a generation, without a build, unless it has one."""
    current = find_current(root)
    if current is None:
        current = Current(root, "0123456789abcdef", build=1, offline=1, stream=1)
        write_current(current)
    return current
