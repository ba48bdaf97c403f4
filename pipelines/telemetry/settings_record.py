"""What a stream that runs was asked to read again of its configuration, and what it has done.

`tidemill reload` writes ``telemetry/reload.json`` in the folder of the generation; the program that
runs the stream answers in ``telemetry/settings.json``. Both are replaced as a whole. A signal would
end a stream that does not know it, and reaches no program on another machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.telemetry.stream_record import TELEMETRY
from tidemill.serving.files.records import RecordFormat, read_record, write_record

_ASKED: Final = "reload.json"
_DONE: Final = "settings.json"
_REMEDY: Final = "remove it, and run `tidemill reload` again"


@dataclass(frozen=True)
class SettingsRecord:
    """What a stream has taken over of a file that it has read again.

    Attributes:
        number: The number of the request that it answers, from 1.
        run: The id of the run.
        at_us: When the file was read.
        taken: What it has taken over, each as ``KEY: BEFORE -> NOW``.
        waiting: What differs and waits for a restart, likewise.
        error: The class and the text of the error for which the file was refused; then the stream
            goes on with what it had. Empty for none.
    """

    number: int
    run: str
    at_us: int
    taken: Sequence[str] = ()
    waiting: Sequence[str] = ()
    error: str = ""

    @staticmethod
    def read(generation: Path) -> SettingsRecord | None:
        """Read the newest record of a generation; None if no stream was asked.

        Raises:
            StateError: It cannot be read.
        """
        path = generation / TELEMETRY / _DONE
        return SettingsRecord(**read_record(path, _RECORD)) if path.exists() else None

    def write(self, generation: Path) -> None:
        """Write the record."""
        write_record(generation / TELEMETRY / _DONE, _RECORD, dataclasses.asdict(self))


_RECORD: Final = RecordFormat(
    name="tidemill-settings",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(SettingsRecord)),
    remedy=_REMEDY,
)
_REQUEST: Final = RecordFormat(
    name="tidemill-reload", version=1, fields=frozenset({"number"}), remedy=_REMEDY
)


def asked(generation: Path) -> int:
    """Return the number of the newest request to read the file again; 0 for none.

    Raises:
        StateError: The request cannot be read.
    """
    path = generation / TELEMETRY / _ASKED
    return int(read_record(path, _REQUEST)["number"]) if path.exists() else 0


def ask(generation: Path) -> int:
    """Ask the stream of a generation to read its file again; return the number of the request.

    Raises:
        StateError: A record cannot be read.
        FileError: The request cannot be written.
    """
    answered = SettingsRecord.read(generation)
    number = max(asked(generation), 0 if answered is None else answered.number) + 1
    (generation / TELEMETRY).mkdir(exist_ok=True)
    write_record(generation / TELEMETRY / _ASKED, _REQUEST, {"number": number})
    return number
