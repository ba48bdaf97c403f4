"""What a live log says of itself: its topics, where it began, and how far it is sealed.

Each record is a small JSON file that is replaced in one step, and the disk is waited for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.features.errors import DamagedState, StateMismatch
from tidemill.pipelines.io.live.live_cuts import REMEDY, LiveTopic
from tidemill.pipelines.io.live.poll_files import CUTS
from tidemill.pipelines.io.log_files import ROWS
from tidemill.serving.files.records import RecordFormat, read_record, write_record

POLLS: Final = "polls"
"""The folder of the poll log."""
_TOPICS: Final = "topics.json"
_SEALED: Final = "sealed.json"
_ORIGIN: Final = "origin.json"


@dataclass(frozen=True)
class Sealed:
    """How far the live log is sealed.

    Attributes:
        number: The number of the last poll; 0 for none.
        positions: Source to the number of rows of each partition of its topic after it.
        offsets: Source to the position after it in each partition of its topic
            (`pipelines.io.live.lost`).
    """

    number: int
    positions: Mapping[str, Sequence[int]]
    offsets: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class LiveOrigin:
    """Where a live log began.

    Attributes:
        as_of_us: The instant of the states with which its first stream began; None of a log of a
            version that did not record it.
        generation: The generation whose live rows it has taken over; None if it has taken none.
        number: The number of the last poll that it has taken over; 0 for none.
    """

    as_of_us: int | None = None
    generation: str | None = None
    number: int = 0


def _form(name: str, kind: type) -> RecordFormat:
    fields = frozenset(field.name for field in dataclasses.fields(kind))
    return RecordFormat(name=name, version=1, fields=fields, remedy=REMEDY)


_TOPICS_FORM: Final = RecordFormat(
    name="tidemill-live-topics",
    version=2,
    fields=frozenset({"sources", "has_origin"}),
    remedy=REMEDY,
    older={1: {"has_origin": False}},  # it did not say whether there is one
)
_SEALED_FORM: Final = _form("tidemill-live-sealed", Sealed)
_ORIGIN_FORM: Final = _form("tidemill-live-origin", LiveOrigin)


class LiveRecords:
    """The records of a live log.

    Args:
        folder: The folder of the log; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def exists(self) -> bool:
        """Whether a live stream has begun.

        Raises:
            DamagedState: What it has read is there, and the record of its topics is not.
        """
        if (self.folder / _TOPICS).exists():
            return True
        if any((self.folder / name).exists() for name in (ROWS, CUTS, POLLS)):
            raise DamagedState(
                f"{self.folder / _TOPICS} is gone, and what was read from topics is there; {REMEDY}"
            )
        return False

    def begin(self, topics: Mapping[str, LiveTopic], origin: LiveOrigin | None = None) -> None:
        """Record the topics before the first poll; later, check that they are the same.

        Args:
            topics: The topic of each live source.
            origin: Where the log begins; it is not compared.

        Raises:
            StateMismatch: The sources have other topics, or these other partitions.
        """
        if not (self.folder / _TOPICS).exists():
            if origin is not None:
                found = dataclasses.asdict(origin)
                write_record(self.folder / _ORIGIN, _ORIGIN_FORM, found, durable=True)
            content = {name: dataclasses.asdict(topic) for name, topic in topics.items()}
            if not (self.folder / _SEALED).exists():
                self.write_sealed(_nothing_sealed(topics))
            record = {"sources": content, "has_origin": origin is not None}
            write_record(self.folder / _TOPICS, _TOPICS_FORM, record, durable=True)
            return
        begun = self.topics()
        for name in sorted({*begun, *topics}):
            was, now = begun.get(name), topics.get(name)
            if (said := _described(was)) != _described(now):
                remedy = "run `tidemill backfill`, and the stream without --resume"
                if was is None or now is None or was.topic != now.topic:
                    remedy = "set it back, or begin a new root"
                raise StateMismatch(
                    f"the live stream of {name!r} was begun with {said}, and now there is "
                    f"{_described(now)}; {remedy}"
                )

    def topics(self) -> dict[str, LiveTopic]:
        """Return the topic of each live source.

        Raises:
            StateError: The record cannot be read, or is gone; or that of where the log began is.
        """
        if not self.exists:
            raise DamagedState(f"{self.folder / _TOPICS} is gone; {REMEDY}")
        found = read_record(self.folder / _TOPICS, _TOPICS_FORM)
        origin = self.folder / _ORIGIN
        if found["has_origin"] and not origin.exists():
            raise DamagedState(f"{origin} is gone, which says where the log began; {REMEDY}")
        return {
            name: LiveTopic(one["topic"], one["first"], tuple(one["offsets"]), one.get("id", ""))
            for name, one in found["sources"].items()
        }

    def origin(self) -> LiveOrigin:
        """Return where the log began.

        Raises:
            StateError: The record cannot be read.
        """
        path = self.folder / _ORIGIN
        if path.exists():
            return LiveOrigin(**read_record(path, _ORIGIN_FORM))
        if self.exists:
            self.topics()  # says whether there was one
        return LiveOrigin()

    def sealed(self) -> Sealed:
        """Return how far the log is sealed.

        Raises:
            StateError: A record cannot be read, or is gone.
        """
        path = self.folder / _SEALED
        if path.exists():
            return Sealed(**read_record(path, _SEALED_FORM))
        if any((self.folder / CUTS).glob("*.arrow")):
            raise DamagedState(f"{path} is gone, and what it says is sealed is there; {REMEDY}")
        return _nothing_sealed(self.topics())

    def write_sealed(self, sealed: Sealed) -> None:
        """Record how far the log is sealed, and wait for the disk."""
        content = dataclasses.asdict(sealed)
        write_record(self.folder / _SEALED, _SEALED_FORM, content, durable=True)


def _nothing_sealed(topics: Mapping[str, LiveTopic]) -> Sealed:
    return Sealed(
        0,
        {name: [0] * len(topic.offsets) for name, topic in topics.items()},
        {name: list(topic.offsets) for name, topic in topics.items()},
    )


def _described(topic: LiveTopic | None) -> str:
    if topic is None:
        return "no topic"
    of_files = f", after {topic.first} of files" if topic.first else ""
    return f"topic {topic.topic!r} of {len(topic.offsets)} partitions{of_files}"
