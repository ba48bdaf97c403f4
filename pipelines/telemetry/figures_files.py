"""The figures of a run's processes as files, so that other processes can read them.

Each process writes a file of its own, twice a second and when it ends, in a folder of the
generation. A file is replaced in one step, so a reader never sees half of one. It is not waited for
until it is on the disk: after a crash of the machine the figures of a run may be missing, and
nothing else.

A new run removes the files of the one before. So what a killed process has counted never counts for
the run that follows.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tidemill.features.errors import ExchangeError, FileError
from tidemill.pipelines.telemetry.figures import (
    BY_NAME,
    Fact,
    Figures,
    Gauge,
    Histogram,
    Snapshot,
)
from tidemill.serving.files.atomic_write import write_bytes

EVERY_S: Final = 0.5
"""How often a process writes its figures, in seconds."""
GONE_S: Final = 10.0
"""A process that has not written for so long is taken for ended: its gauges do not count."""

_log: Final = logging.getLogger(__name__)
_FORMAT: Final = "tidemill-figures"
_VERSION: Final = 1


def encode(snapshot: Snapshot) -> bytes:
    """Encode figures as JSON."""
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "run": snapshot.run,
        "pid": snapshot.pid,
        "host": snapshot.host,
        "at_s": snapshot.at_s,
        "counters": [[name, labels, n] for (name, labels), n in snapshot.counters.items()],
        "gauges": [
            [name, labels, part, gauge.value, gauge.at_s]
            for (name, labels, part), gauge in snapshot.gauges.items()
        ],
        "histograms": [
            [name, labels, found.counts, found.sum]
            for (name, labels), found in snapshot.histograms.items()
        ],
        "facts": {name: [fact.content, fact.at_s] for name, fact in snapshot.facts.items()},
    }
    return json.dumps(content).encode()


def decode(data: bytes) -> Snapshot | None:
    """Decode figures; None if they are not those of this version.

    A figure of a metric that is not known is left out.
    """
    try:
        found: dict[str, Any] = json.loads(data)
        if (found["format"], found["version"]) != (_FORMAT, _VERSION):
            return None
        return Snapshot(
            found["run"],
            found["pid"],
            found["host"],
            found["at_s"],
            {(n, tuple(labels)): count for n, labels, count in found["counters"] if n in BY_NAME},
            {
                (name, tuple(labels), part): Gauge(value, at_s)
                for name, labels, part, value, at_s in found["gauges"]
                if name in BY_NAME
            },
            {
                (name, tuple(labels)): Histogram(tuple(counts), total)
                for name, labels, counts, total in found["histograms"]
                if name in BY_NAME and len(counts) == len(BY_NAME[name].buckets) + 1
            },
            {name: Fact(content, at_s) for name, (content, at_s) in found["facts"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


class FiguresFiles:
    """The figures of a run's processes.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Make the folder; remove the files of an earlier run.

        Raises:
            FileError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # And what a killed process has not finished.
        for path in [*self.folder.glob("*.json*"), *self.folder.glob("*.taken")]:
            path.unlink(missing_ok=True)

    def read(self, run: str | None = None) -> list[Snapshot]:
        """Return the figures of each process; files that cannot be read are left out.

        Args:
            run: Only those of this run; None for all.
        """
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                snapshot = decode(path.read_bytes())
            except OSError:  # it was removed meanwhile
                continue
            if snapshot is not None and run in (None, snapshot.run):
                found.append(snapshot)
        return found

    @contextmanager
    def written(
        self, figures: Figures, write: Callable[[Path, bytes], None] = write_bytes
    ) -> Iterator[None]:
        """Write the figures of this process while the block runs, and once when it ends.

        Args:
            figures: The figures.
            write: Writes a file, or replaces it.
        """
        path = self.folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        ended = threading.Event()
        writer = threading.Thread(
            target=_write_again_and_again,
            args=(lambda: write(path, encode(figures.snapshot())), ended),
            daemon=True,
            name="tidemill-figures",
        )
        writer.start()
        try:
            yield
        finally:
            ended.set()
            writer.join()


def _write_again_and_again(write: Callable[[], None], ended: threading.Event) -> None:
    is_well = True
    while True:
        is_over = ended.wait(EVERY_S)
        try:
            write()
            is_well = True
        except (FileError, ExchangeError, OSError) as error:
            if is_well:
                _log.warning("the figures of this process cannot be written: %s", error)
            is_well = False
        if is_over:
            return
