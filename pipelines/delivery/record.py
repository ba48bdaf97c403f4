"""Where a stream's messages begin in their topics: the record beside its savepoints.

A stream that resumes reads back what it had written since its savepoint, from the offsets that the
topic ended at when the savepoint was kept. The record has them by the number of the segment that
ended there, so it does not matter on which side of a kill the savepoint comes to count: the offsets
of the one before are there too. It is on the disk before the first message is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidemill.pipelines.run import paths
from tidemill.serving.files.records import RecordFormat, read_record, write_record


@dataclass(frozen=True)
class Delivered:
    """What a stream has written to one topic.

    Attributes:
        topic: The topic.
        topic_id: Its id: a topic that is deleted and made again has another one.
        first_segment: The first segment that wrote to it.
        first: The offset of each partition before which the stream has written nothing.
        begun: The newest segment that is recorded as begun.
        savepoints: Segment to an offset of each partition before which nothing stands of later
            segments, for the newest two segments whose outputs are complete.
    """

    topic: str
    topic_id: str
    first_segment: int
    first: tuple[int, ...]
    begun: int
    savepoints: Mapping[int, tuple[int, ...]]

    def ended(self, segment: int, offsets: tuple[int, ...]) -> Delivered:
        """Return the record of a segment that has written all that it will."""
        kept = {segment - 1: self.savepoints[segment - 1], segment: offsets}
        return dataclasses.replace(self, begun=segment, savepoints=kept)

    def goes_on(self) -> Delivered:
        """Return the record of the run that goes on to the next segment."""
        return dataclasses.replace(self, begun=self.begun + 1)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended: no segment may be half written."""
        return self.begun in self.savepoints


@dataclass(frozen=True)
class DeliveryRecord:
    """What a stream has written to topics.

    Attributes:
        writer: A random text that the process which writes now has put there.
        stream: The id of the stream in the headers of messages.
        sinks: Section of the configuration to what was written to its topic.
    """

    writer: str
    stream: str
    sinks: Mapping[str, Delivered]

    def write(self, folder: Path) -> None:
        """Write the record to the stream's folder, and wait for the disk."""
        content = {
            "writer": self.writer,
            "stream": self.stream,
            "sinks": {name: _to_json(sink) for name, sink in self.sinks.items()},
        }
        write_record(folder / paths.DELIVERED, _RECORD, content, durable=True)

    @staticmethod
    def read(folder: Path) -> DeliveryRecord | None:
        """Read the record; None if the stream has written nothing.

        Raises:
            StateVersionError: Its version is not supported.
            DamagedState: It is damaged.
        """
        path = folder / paths.DELIVERED
        if not path.exists():
            return None
        found = read_record(path, _RECORD)
        sinks = {name: _of_json(sink) for name, sink in found["sinks"].items()}
        return DeliveryRecord(found["writer"], found["stream"], sinks)


def _to_json(sink: Delivered) -> dict[str, Any]:
    content = dataclasses.asdict(sink)
    savepoints = {str(segment): list(ends) for segment, ends in sink.savepoints.items()}
    return {**content, "first": list(sink.first), "savepoints": savepoints}


def _of_json(content: Mapping[str, Any]) -> Delivered:
    savepoints = {int(segment): tuple(ends) for segment, ends in content["savepoints"].items()}
    return Delivered(**{**content, "first": tuple(content["first"]), "savepoints": savepoints})


_RECORD: Final = RecordFormat(
    name="tidemill-delivered",
    version=1,
    fields=frozenset(field.name for field in dataclasses.fields(DeliveryRecord)),
    remedy="restore it, or run `tidemill stream` without --resume to start over",
)
