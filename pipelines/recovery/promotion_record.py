"""Which bundle a stream that runs was asked to score with, and what came of it.

`tidemill promote` writes ``promote.json`` in the stream's folder; the program that runs the stream
answers in ``promoted.json`` (`pipelines.run.mailbox`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.pipelines.run.mailbox import Mailbox
from tidemill.serving.files.records import RecordFormat

_ASKED: Final = "promote.json"
_DONE: Final = "promoted.json"
_REMEDY: Final = "remove it, and run `tidemill promote` again"


@dataclass(frozen=True)
class PromotionRecord:
    """What a stream has done about a request.

    Attributes:
        number: The number of the request.
        bundle: The version of the bundle.
        at_us: When.
        before: The bundle that scored until then.
        positions: The position of each partition of the request from which on the bundle scores.
        error: Why it does not; the stream goes on with the one before. Empty if it does.
    """

    number: int
    bundle: str
    at_us: int
    before: str = ""
    positions: Sequence[int] = ()
    error: str = ""

    @staticmethod
    def read(stream: Path) -> PromotionRecord | None:
        """Read the newest record of a stream; None if it was never asked.

        Raises:
            StateError: It cannot be read.
        """
        found = mailbox(stream).answered()
        return None if found is None else PromotionRecord(**found)

    def write(self, stream: Path) -> None:
        """Write the record."""
        mailbox(stream).tell(dataclasses.asdict(self))


_RECORD: Final = RecordFormat(
    name="tidemill-promotion",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(PromotionRecord)),
    remedy=_REMEDY,
)
_REQUEST: Final = RecordFormat(
    name="tidemill-promote", version=1, fields=frozenset({"number", "bundle"}), remedy=_REMEDY
)


def mailbox(stream: Path) -> Mailbox:
    """Return where a stream has the request, with ``number`` and ``bundle``, and the record."""
    return Mailbox(stream / _ASKED, _REQUEST, stream / _DONE, _RECORD)
