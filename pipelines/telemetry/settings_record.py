"""What a stream that runs was asked to read again of its configuration, and what it has done.

`tidemill reload` writes ``telemetry/reload.json`` in the folder of the generation; the program that
runs the stream answers in ``telemetry/settings.json`` (`pipelines.run.mailbox`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.run.mailbox import Mailbox
from tidemill.pipelines.telemetry.stream_record import TELEMETRY
from tidemill.serving.files.records import RecordFormat

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
        found = mailbox(generation).answered()
        return None if found is None else SettingsRecord(**found)

    def write(self, generation: Path) -> None:
        """Write the record."""
        mailbox(generation).tell(dataclasses.asdict(self))


_RECORD: Final = RecordFormat(
    name="tidemill-settings",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(SettingsRecord)),
    remedy=_REMEDY,
)
_REQUEST: Final = RecordFormat(
    name="tidemill-reload", version=1, fields=frozenset({"number"}), remedy=_REMEDY
)


def mailbox(generation: Path) -> Mailbox:
    """Return where a generation has the request and the record."""
    folder = generation / TELEMETRY
    return Mailbox(folder / _ASKED, _REQUEST, folder / _DONE, _RECORD)
