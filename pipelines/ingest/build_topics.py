"""The record of the topics that a build hands over to.

A build records of each topic how many partitions it has, and at which offsets the stream begins to
read them: those of the messages that were sent at the instant of the handed-over states or later
(``start: handoff``), the earliest, the latest, or those of another instant. So a stream that begins
much later begins at the same messages, or is refused by name if the broker has deleted some.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidemill.serving.files.records import RecordFormat, read_record, write_record

TOPICS: Final = "topics.json"
"""The record in a build's folder."""
_FORM: Final = RecordFormat(
    name="tidemill-topics",
    version=1,
    fields=frozenset({"sources"}),
    remedy="run `tidemill backfill` again",
)


@dataclass(frozen=True)
class BuildTopic:
    """The topic of a live source, as a build hands over to it.

    Attributes:
        topic: Its name.
        offsets: The offset of each partition at which the stream begins to read it.
        id: The id of the topic; empty in a record of a version without ids.
    """

    topic: str
    offsets: tuple[int, ...]
    id: str = ""


def write_topics(build: Path, topics: Mapping[str, BuildTopic]) -> None:
    """Record the topics that a build hands over to."""
    content = {name: dataclasses.asdict(topic) for name, topic in topics.items()}
    write_record(build / TOPICS, _FORM, {"sources": content})


def read_topics(build: Path) -> dict[str, BuildTopic]:
    """Return the topics that a build hands over to, by source; none of one without live sources.

    Raises:
        StateError: The record cannot be read.
    """
    if not (build / TOPICS).exists():
        return {}
    found = read_record(build / TOPICS, _FORM)["sources"]
    return {
        name: BuildTopic(one["topic"], tuple(one["offsets"]), one.get("id", ""))
        for name, one in found.items()
    }
