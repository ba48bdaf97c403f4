"""What a topic has lost before it was read, and a person has accepted to go on without.

A live stream never skips messages by itself. What its topics do not hold any more is named to a
person (`pipelines.ingest.lost_messages`), who may accept exactly that. The acceptance is a poll of
the poll log, without rows, so it is written down before anything behind it is read, once whatever
is killed, and a recovery repeats it.

The promises:

* A *position* in a partition of a topic is a number of this log: the broker's offset, plus
  `INCARNATION` for each time that the offsets of the partition have begun anew. So positions only
  rise, and each is given to one message only, also where a topic was deleted and made again.
* Positions change their incarnation, and pass over messages that were lost, only in a poll that has
  a record of it (`RECORDS`). The records of a poll and partition form a chain: from the position
  before the poll to the one after it.
* Each record has a digest of its contents, and the poll's cut has one of its records (`mark_of`),
  so a record that was changed or removed is found.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from tidemill.features.contract import write_instant

INCARNATION: Final = 10**15
"""What positions rise by when the offsets of a partition begin anew; no partition has so many."""

RECORDS: Final = pa.schema(
    [
        ("source", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int64()),
        ("why", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("topic_id_before", pa.string()),
        ("topic_id", pa.string()),
        ("accepted_us", pa.int64()),
        ("accepted_by", pa.string()),
        ("digest", pa.string()),
    ]
)
"""What was lost and accepted; none of the columns is ever null.

* source, topic, partition: which partition of which topic. why: see `Why`.
* start, stop: the position of the first message that was lost, and that at which reading goes on.
* topic_id_before, topic_id: the ids of the topic that was read, and of the one that is read from
  then on; empty if not known.
* accepted_us: when the poll was written down. accepted_by: the user, machine and process.
* digest: of all of these.
"""


class Why(enum.StrEnum):
    """Why a partition does not hold a position."""

    DELETED = enum.auto()
    """It begins after it: retention, or somebody, has deleted the messages."""
    SHORTER = enum.auto()
    """It ends before it: messages that were read were lost with a broker."""
    RECREATED = enum.auto()
    """The topic was deleted, and another one has its name."""


def offset_of(position: int) -> int:
    """Return the broker's offset of a position."""
    return position % INCARNATION


def base_of(position: int) -> int:
    """Return what the positions of an incarnation have more than the broker's offsets."""
    return position - offset_of(position)


@dataclass(frozen=True)
class Loss:
    """What a partition of a topic has lost before it was read.

    Attributes:
        source: The name of the source.
        topic: The name of its topic.
        partition: The partition of the topic.
        why: Why the position is not there.
        start: The position of the first message that was lost.
        stop: The position at which reading can go on.
        topic_id_before: The id of the topic that was read; empty if not known.
        topic_id: The id that the topic has now.
    """

    source: str
    topic: str
    partition: int
    why: Why
    start: int
    stop: int
    topic_id_before: str = ""
    topic_id: str = ""

    @property
    def messages(self) -> int | None:
        """How many messages were lost, at most; None if nobody can know.

        Offsets of markers of transactions, and of messages that were compacted, count too.
        """
        return self.stop - self.start if self.why is Why.DELETED else None

    @property
    def option(self) -> str:
        """What a person gives to accept it: ``SOURCE/PARTITION@FIRST-LAST`` or ``SOURCE@ID``."""
        if self.why is Why.RECREATED:
            return f"{self.source}@{self.topic_id}"
        begin, end = self.start, self.stop
        if self.why is Why.SHORTER:
            begin, end = end, begin
        return f"{self.source}/{self.partition}@{offset_of(begin)}-{offset_of(end) - 1}"

    def describe(self) -> str:
        """Say what was lost, as the subject and verb of a sentence."""
        where = f"{self.source!r} partition {self.partition}"
        if self.why is Why.DELETED:
            assert self.messages is not None
            few = "1 message" if self.messages == 1 else f"up to {self.messages:,} messages"
            first, last = offset_of(self.start), offset_of(self.stop) - 1
            return f"{few} of {where} (offsets {first} to {last}) were lost by the topic"
        if self.why is Why.SHORTER:
            first, last = offset_of(self.stop), offset_of(self.start) - 1
            return (
                f"{where} has lost what was read of it at offsets {first} to {last}; of messages "
                f"that were written in their place before offset {first}, an unknown number is "
                "lost, too"
            )
        return (
            f"the topic {self.topic!r} of {self.source!r} was deleted and made again (id "
            f"{self.topic_id_before or 'unknown'}, now {self.topic_id}): an unknown number of "
            f"messages of partition {self.partition}, from offset {offset_of(self.start)} on, was "
            "lost"
        )


@dataclass(frozen=True)
class AcceptedLoss:
    """A loss that was accepted, as it is recorded.

    Attributes:
        poll: The number of the poll that has the record.
        loss: What was lost.
        accepted_us: When it was accepted, in microseconds.
        accepted_by: Who has accepted it.
        digest: The digest that the record has.
    """

    poll: int
    loss: Loss
    accepted_us: int
    accepted_by: str
    digest: str

    @property
    def is_whole(self) -> bool:
        """Whether the record is as it was written."""
        return self.digest == _digest(_fields(self.loss, self.accepted_us, self.accepted_by))

    def describe(self) -> str:
        """Say what was lost, and when it was accepted."""
        return f"{self.loss.describe()}, and accepted at {write_instant(self.accepted_us)}"

    def as_figures(self) -> dict[str, Any]:
        """Return it as JSON values."""
        loss = self.loss
        return {
            "source": loss.source,
            "topic": loss.topic,
            "partition": loss.partition,
            "why": str(loss.why),
            "first_offset": offset_of(loss.start),
            "next_offset": offset_of(loss.stop),
            "messages": loss.messages,
            "topic_id_before": loss.topic_id_before,
            "topic_id": loss.topic_id,
            "accepted_at": write_instant(self.accepted_us),
            "accepted_by": self.accepted_by,
            "poll": self.poll,
            "said": self.describe(),
        }


def after_losses(
    positions: Mapping[str, Sequence[int]], losses: Iterable[Loss]
) -> dict[str, list[int]]:
    """Return the positions of each source's topic after what was lost."""
    found = {source: [*of_source] for source, of_source in positions.items()}
    for loss in losses:
        found[loss.source][loss.partition] = loss.stop
    return found


def records_of(losses: Sequence[Loss], accepted_us: int, accepted_by: str) -> pa.RecordBatch:
    """Return the records of losses that are accepted (`RECORDS`).

    Args:
        losses: The losses; those of a partition in the order of their positions.
        accepted_us: When, in microseconds.
        accepted_by: Who accepts them.
    """
    rows = [_fields(loss, accepted_us, accepted_by) for loss in losses]
    return pa.RecordBatch.from_pylist(
        [{**row, "digest": _digest(row)} for row in rows], schema=RECORDS
    )


def accepted_losses(records: pa.Table | pa.RecordBatch, polls: Sequence[int]) -> list[AcceptedLoss]:
    """Return what records say.

    Args:
        records: The records (`RECORDS`).
        polls: ``(records,)``: the number of the poll of each.

    Raises:
        ValueError: A record has a reason that there is not.
    """
    return [
        AcceptedLoss(
            poll,
            Loss(
                row["source"],
                row["topic"],
                row["partition"],
                Why(row["why"]),
                row["start"],
                row["stop"],
                row["topic_id_before"],
                row["topic_id"],
            ),
            row["accepted_us"],
            row["accepted_by"],
            row["digest"],
        )
        for poll, row in zip(polls, records.to_pylist(), strict=True)
    ]


def marks_of(records: pa.RecordBatch | pa.Table) -> dict[tuple[str, int], int]:
    """Return what the cut of a poll says of its records, by source and partition of the topic."""
    digests: dict[tuple[str, int], list[str]] = {}
    columns = (records.column(name).to_pylist() for name in ("source", "partition", "digest"))
    for source, partition, digest in zip(*columns, strict=True):
        digests.setdefault((source, partition), []).append(digest)
    return {place: mark_of(found) for place, found in digests.items()}


def mark_of(digests: Iterable[str]) -> int:
    """Return a positive number that depends on the digests of a partition's records in a poll."""
    whole = hashlib.sha256(",".join(digests).encode("ascii", "replace")).digest()
    return int.from_bytes(whole[:8], "big") >> 1 | 1


def _fields(loss: Loss, accepted_us: int, accepted_by: str) -> dict[str, Any]:
    return {
        "source": loss.source,
        "topic": loss.topic,
        "partition": loss.partition,
        "why": str(loss.why),
        "start": loss.start,
        "stop": loss.stop,
        "topic_id_before": loss.topic_id_before,
        "topic_id": loss.topic_id,
        "accepted_us": accepted_us,
        "accepted_by": accepted_by,
    }


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
