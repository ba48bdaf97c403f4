"""Which bundle a stream that runs was asked to score with, and what came of it.

`tidemill promote` writes ``promote.json`` in the stream's folder; the program that runs the stream
answers in ``promoted.json``. Both are replaced as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tidemill.serving.files.records import RecordFormat, read_record, write_record

ASKED: Final = "promote.json"
DONE: Final = "promoted.json"
_REMEDY: Final = "remove it, and run `tidemill promote` again"


class Asked(NamedTuple):
    """A request.

    Attributes:
        number: Its number, from 1; 0 for none.
        bundle: The version of the bundle.
    """

    number: int
    bundle: str


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
        path = stream / DONE
        return PromotionRecord(**read_record(path, _RECORD)) if path.exists() else None

    def write(self, stream: Path) -> None:
        """Write the record."""
        write_record(stream / DONE, _RECORD, dataclasses.asdict(self), durable=True)


_RECORD: Final = RecordFormat(
    name="tidemill-promotion",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(PromotionRecord)),
    remedy=_REMEDY,
)
_REQUEST: Final = RecordFormat(
    name="tidemill-promote", version=1, fields=frozenset(Asked._fields), remedy=_REMEDY
)


def asked(stream: Path) -> Asked:
    """Return the newest request.

    Raises:
        StateError: It cannot be read.
    """
    path = stream / ASKED
    return Asked(**read_record(path, _REQUEST)) if path.exists() else Asked(0, "")


def ask(stream: Path, bundle: str) -> int:
    """Ask a stream to score with a bundle; return the number of the request.

    Raises:
        StateError: A record cannot be read.
        FileError: The request cannot be written.
    """
    answered = PromotionRecord.read(stream)
    number = max(asked(stream).number, 0 if answered is None else answered.number) + 1
    write_record(stream / ASKED, _REQUEST, Asked(number, bundle)._asdict(), durable=True)
    return number
