"""Rejected records as their topic has them: by root, each once, and checked.

The promises:

* Only committed messages count that a stream of the root has written (`delivery.outgoing`). Those
  of other roots and of other writers are counted, whatever they are.
* Each record is there once, with the reason of its newest message: a stream that starts over
  rejects the same records, and writes them again.
* Bytes that the topic did not take are missing, not empty; a record with other bytes than its id
  says is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tidemill.features.contract import SECOND
from tidemill.features.rows.rejected import PAST_THE_LOG
from tidemill.pipelines.config.sink_section import REJECTED, KafkaSink
from tidemill.pipelines.delivery.outgoing import KIND, KINDS, STREAM, place_of
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.delivery.read_back import TopicEnds, read_back
from tidemill.pipelines.io.kafka.reach import reach
from tidemill.pipelines.io.live.mended import record_id
from tidemill.pipelines.io.messages import Headers, Messages
from tidemill.pipelines.run.progress import Progress

Forgotten = Callable[[str, Place], bool]
"""Tells whether the record of a place of a generation was forgotten."""

_TEXTS: Final = ("stage", "reason", "detail", "stream", "origin")
_NUMBERS: Final = ("partition", "position")


@dataclass(frozen=True)
class DeadLetter:
    """A rejected record of a topic, as the topic of rejected records has it.

    Attributes:
        record: The record (a row of `features.rows.rejected.SCHEMA`).
        order: By what records of a source are ordered: partition, position, occurrence.
        written_us: The timestamp of its message, in microseconds since 1970.
        left_out: The number of its bytes, if the topic did not take them; then the payload is
            empty.
    """

    record: dict[str, Any]
    order: tuple[int, int, int]
    written_us: int
    left_out: int | None = None


@dataclass
class DeadLetters:
    """The rejected records of a root in a topic.

    Attributes:
        root: The id of the root.
        forgotten: Tells which records were forgotten: their messages are not used.
        letters: Id to record.
        messages: How many messages were read.
        others: Id of another root to the number of its messages.
        unusable: Messages that are of no root, or do not say which record they are of.
        damaged: Messages of the root whose bytes are not those of their record.
    """

    root: str
    forgotten: Forgotten = lambda *_: False
    letters: dict[str, DeadLetter] = field(default_factory=dict)
    messages: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unusable: int = 0
    damaged: int = 0

    def take(self, messages: Messages) -> None:
        """Take messages of the topic."""
        self.messages += len(messages)
        for written_us, value, headers in zip(
            messages.timestamps_us.tolist(), messages.values, messages.headers, strict=True
        ):
            self._take(written_us, value or b"", headers)

    def _take(self, written_us: int, value: bytes, headers: Headers) -> None:
        found = {name: one or b"" for name, one in headers}
        stream = found.get(STREAM, b"").decode("utf-8", "replace")
        root, *rest = stream.split("/")
        if len(rest) != 2 or found.get(KIND) != KINDS[REJECTED].encode():
            self.unusable += 1
            return
        if root != self.root:
            self.others[root] += 1
            return
        place = place_of(headers, stream)
        try:
            record: dict[str, Any] = {name: found[name].decode() for name in _TEXTS}
            record |= {name: int(found[name]) for name in _NUMBERS}
            left_out = int(found["left_out"]) if "left_out" in found else None
            id = found.get("record", b"").decode()
        except (KeyError, ValueError):
            place = None
        if place is None or not (id or record["stage"] in PAST_THE_LOG):
            self.unusable += 1
            return
        # The row of a request that got no answer is valid: there is nothing to mend.
        if record["stage"] in PAST_THE_LOG or self.forgotten(rest[0], place):
            return
        if left_out is None and id != record_id(record["stream"], record["origin"], value):
            self.damaged += 1
            return
        order = record["partition"], record["position"], int(found["occurrence"])
        record["payload"] = value
        letter = DeadLetter(record, order, written_us, left_out)
        before = self.letters.get(id)
        if before is None or written_us >= before.written_us:
            self.letters[id] = letter


def read_dead_letters(sink: KafkaSink, letters: DeadLetters, progress: Progress) -> None:
    """Read the topic of rejected records from its beginning to where it ends now.

    Args:
        sink: The topic.
        letters: Takes the messages.
        progress: Where progress is shown.

    Raises:
        BrokerError: The topic cannot be read.
        OpenTransaction: Another writer's transaction stays open in it.
    """
    reach(sink.connection, reads=(sink.topic,))
    ends = TopicEnds(sink.connection, sink.topic)
    total = sum(high - first for first, high in zip(ends.firsts, ends.highs, strict=True))
    patience_s = sink.give_up_after_us / SECOND
    with progress.stage(f"read the topic {sink.topic}", total=total, unit="offsets") as stage:
        for messages in read_back(sink.connection, sink.topic, ends.firsts, ends, patience_s):
            letters.take(messages)
            stage.advance(len(messages))
    if any(ends.firsts):
        progress.say(
            f"The topic {sink.topic!r} begins at the offsets {', '.join(map(str, ends.firsts))} of "
            "its partitions: what was written before is not there any more."
        )
