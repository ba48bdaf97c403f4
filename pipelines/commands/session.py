"""The state of one run of the command line: its root, and the log records of other libraries.

Beam, TensorFlow, gRPC and Feast log warnings and tracebacks that would hide the line that explains
an error. `Diagnostics` keeps the last `KEPT` of their records. It shows them before the traceback
of an error without an explanation; with ``--debug`` it shows every record at once. Records of the
project's own modules and of Tidemill are always shown.

With ``--log-format json``, or ``logging: {format: json}`` in the configuration, every record is a
line of JSON (`pipelines.telemetry.json_log`): from Tidemill from INFO on, from others from WARNING.
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
"""How many records of other libraries are kept."""

OTHER_PROGRAMS: Final = frozenset(
    (
        "absl", "apache_beam", "asyncio", "concurrent", "feast", "grpc", "h5py", "kafka",
        "keras", "matplotlib", "numba", "redis", "root", "sqlalchemy", "tensorflow",
        "tensorflow_transform", "tfx_bsl", "urllib3",
    )
)  # fmt: skip
"""The top names of the loggers whose records are kept and not shown. ``root`` is among them since
Beam logs the messages of Prism there."""


_TIDEMILL: Final = "tidemill"
_SILENT: Final = logging.NullHandler()


class Diagnostics(logging.Handler):
    """Shows the log records of the project and of Tidemill; keeps those of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self.debug = False
        self.is_json = False
        self._is_chosen = False
        self._kept: deque[str] = deque(maxlen=KEPT)

    def show_everything(self) -> None:
        """Show every record at once, with logger and level, from INFO up."""
        self.debug = True
        if not self.is_json:
            self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.getLogger().setLevel(logging.INFO)

    def choose(self, log_format: str) -> None:
        """Write the log as a person has asked for, whatever the configuration says.

        Args:
            log_format: ``text`` or ``json``.
        """
        self._is_chosen = True
        if log_format == "json":
            self._write_json()

    def configure(self, log_format: str, level: str | None = None) -> None:
        """Write the log as the configuration says, unless a person has asked for another format.

        Args:
            log_format: ``text`` or ``json``.
            level: The least level of Tidemill's records; None for that of the format.
        """
        if log_format == "json" and not self._is_chosen:
            self._write_json()
        if level is not None:
            from tidemill.pipelines.telemetry.log_level import set_level

            set_level(level, log_format)

    def _write_json(self) -> None:
        from tidemill.pipelines.telemetry.json_log import JsonFormatter

        self.is_json = True
        self.setFormatter(JsonFormatter())
        logging.getLogger(_TIDEMILL).setLevel(logging.INFO)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        """Show or keep a record."""
        text = self.format(record)
        if self.debug or self.is_json or record.name.partition(".")[0] not in OTHER_PROGRAMS:
            sys.stderr.write(f"{text}\n")
        else:
            self._kept.append(f"{record.levelname} {record.name}: {text}")

    def show_kept(self) -> None:
        """Show the kept records, before a traceback."""
        for text in self._kept:
            sys.stderr.write(f"{text}\n")
        self._kept.clear()


@dataclass
class Session:
    """The state of one run of the command line.

    Attributes:
        diagnostics: The log records.
        root: The root of the run, once its configuration is loaded.
    """

    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    root: Path | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle all log records while the block runs.

        Threads that an engine leaves behind may log after it. Without a handler, Python would write
        those records to the standard error, so the loggers of other libraries keep a silent one.
        """
        root = logging.getLogger()
        level = root.level
        for name in OTHER_PROGRAMS - {"root"}:
            logging.getLogger(name).addHandler(_SILENT)
        root.addHandler(self.diagnostics)
        try:
            yield
        finally:
            root.removeHandler(self.diagnostics)
            root.setLevel(level)
            logging.getLogger(_TIDEMILL).setLevel(logging.NOTSET)
            if self.diagnostics.is_json:
                logging.captureWarnings(False)
