"""One run of the command line: what it was told, what it was doing, and what others logged.

Beam, TensorFlow, gRPC and Feast log warnings and whole tracebacks that would stand before the one
line that explains an error. `Diagnostics` keeps what they say (the last `KEPT` records) and shows
it where it helps: all of it as it comes with ``--debug``, and before the traceback of an error that
nobody explains. What the project's own modules and Tidemill log is always shown.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

KEPT: Final = 200
"""How many records of other programs are kept."""

OTHER_PROGRAMS: Final = frozenset(
    {
        "absl",
        "apache_beam",
        "asyncio",
        "concurrent",
        "feast",
        "grpc",
        "h5py",
        "keras",
        "matplotlib",
        "numba",
        "redis",
        "root",
        "sqlalchemy",
        "tensorflow",
        "tensorflow_transform",
        "tfx_bsl",
        "urllib3",
    }
)
"""The first names of the loggers whose records are kept and not shown. Beam puts the messages of
Prism into the root logger."""


class Diagnostics(logging.Handler):
    """Shows what the project and Tidemill log; keeps what other programs log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self.debug = False
        self._kept: deque[str] = deque(maxlen=KEPT)

    def show_everything(self) -> None:
        """Show all records as they come, with logger and level, from INFO on."""
        self.debug = True
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Show or keep a record."""
        text = self.format(record)
        if self.debug or record.name.partition(".")[0] not in OTHER_PROGRAMS:
            sys.stderr.write(f"{text}\n")
        else:
            self._kept.append(f"{record.levelname} {record.name}: {text}")

    def show_kept(self) -> None:
        """Show what was kept, before a traceback."""
        for text in self._kept:
            sys.stderr.write(f"{text}\n")
        self._kept.clear()


@dataclass
class Session:
    """What a run of the command line knows of itself.

    Attributes:
        diagnostics: What was logged.
        root: Where the command writes, once its configuration is loaded.
    """

    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    root: Path | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take all log records while the block runs."""
        root = logging.getLogger()
        level = root.level
        root.addHandler(self.diagnostics)
        try:
            yield
        finally:
            root.removeHandler(self.diagnostics)
            root.setLevel(level)
