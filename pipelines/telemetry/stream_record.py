"""The record of the stream that runs in a generation, or ran last.

``telemetry/stream.json`` in the folder of the generation is written when a stream starts, when a
segment begins, and when it ends. A process that was killed leaves the record of a stream that has
not ended, and no lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.telemetry.figures_files import FiguresFiles
from tidemill.serving.files.records import RecordFormat, read_record, write_record

TELEMETRY: Final = "telemetry"
"""The folder below that of a generation."""
_STREAM: Final = "stream.json"
_FIGURES: Final = "figures"


@dataclass(frozen=True)
class StreamRecord:
    """Which stream runs, or ran last.

    Attributes:
        run: The id of the run.
        project: The name of the project.
        pid: The number of its process.
        host: Its machine.
        engine: Its engine.
        mode: ``exact`` or ``eager``; empty while it starts.
        stream: The number of the stream in the generation; 0 while it starts.
        segment: The number of its segment; 0 while it starts.
        began_us: When it started.
        listen: Where it serves ``/metrics``; None if it does not.
        ended_us: When it ended; None if it has not, or was killed.
        error: The class and the text of the error that it ended with.
        ready_us: When its operators had taken the first poll that it has read; None before, and of
            a stream that replays files.
    """

    run: str
    project: str
    pid: int
    host: str
    engine: str
    mode: str
    stream: int
    segment: int
    began_us: int
    listen: str | None = None
    ended_us: int | None = None
    error: Mapping[str, str] | None = None
    ready_us: int | None = None

    @staticmethod
    def read(generation: Path) -> StreamRecord | None:
        """Read the record of a generation; None if no stream has run that wrote one.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = generation / TELEMETRY / _STREAM
        return StreamRecord(**read_record(path, _RECORD)) if path.exists() else None

    def write(self, generation: Path) -> None:
        """Write the record."""
        write_record(generation / TELEMETRY / _STREAM, _RECORD, dataclasses.asdict(self))


_RECORD: Final = RecordFormat(
    name="tidemill-stream-telemetry",
    version=2,
    fields=frozenset(field.name for field in dataclasses.fields(StreamRecord)),
    remedy="remove it; the next stream writes it again",
    older={1: {"ready_us": None}},
)


def figures_files(generation: Path) -> FiguresFiles:
    """Return the figures of a generation's stream."""
    return FiguresFiles(generation / TELEMETRY / _FIGURES)
