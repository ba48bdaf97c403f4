"""Where operators and joiners write their states, and find those of the savepoint before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from tidemill.pipelines.io.exchange.worker_end import ExchangePlace
from tidemill.pipelines.io.framing import Bytes
from tidemill.serving.files.atomic_write import link_again, write_bytes


class StatePlace(Protocol):
    """Files of states."""

    def write(self, path: Path, data: Bytes) -> None:
        """Write a file; it replaces one of this name."""

    def link(self, path: Path, other: Path) -> None:
        """Give a file another name; what a killed run has left there is replaced."""

    def read(self, path: Path) -> bytes | pa.Buffer | None:
        """Read a file of the savepoint that a run begins with; None if there is none."""


@dataclass(frozen=True)
class OnDisk:
    """On the disk of the program, which this process shares."""

    def write(self, path: Path, data: Bytes) -> None:
        """Write a file; it replaces one of this name."""
        write_bytes(path, data)

    def link(self, path: Path, other: Path) -> None:
        """Give a file another name; what a killed run has left there is replaced."""
        link_again(path, other)

    def read(self, path: Path) -> bytes | None:
        """Read a file; None if there is none."""
        return path.read_bytes() if path.exists() else None


ON_DISK: Final = OnDisk()


@dataclass(frozen=True)
class InExchange:
    """Handed over to a program that has another disk (`pipelines.io.exchange`).

    Attributes:
        place: Where this process and the program meet.
    """

    place: ExchangePlace

    def write(self, path: Path, data: Bytes) -> None:
        """Let the program write a file."""
        self.place.here().write(path, data)

    def link(self, path: Path, other: Path) -> None:
        """Let the program give a file another name."""
        self.place.here().link(path, other)

    def join(self, pieces: Sequence[Path], path: Path, data: Bytes) -> None:
        """Let the program join files of entries (`savepoint_files.join_pieces`)."""
        self.place.here().join_pieces(pieces, path, data)

    def read(self, path: Path) -> pa.Buffer | None:
        """Read a file that the program has given; None if it has none."""
        return self.place.here().read(path)


def state_place(exchange: ExchangePlace | None) -> StatePlace:
    """Return the place of states of a process that shares the program's disk, or meets it."""
    return ON_DISK if exchange is None else InExchange(exchange)
