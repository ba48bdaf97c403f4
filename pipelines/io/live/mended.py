"""Mended messages: rejected records of topics that come into a stream after all, once.

A rejected record of a topic is mended by correcting the definitions, the source's transform, or its
bytes (`tidemill replay-rejected`). The live reader judges it again and writes it down as part of a
poll of its own (`pipelines.io.live.live_reader`), like the rows of a message that comes now. So a
recovery repeats it, and a proof finds its rows where all live rows are.

The promises:

* A mended message is judged alone and counts whole: all of its rows are accepted, or none is, and
  the poll has the reason. It is judged as a message with the key, headers and timestamp of the
  first one, in that one's partition; whether it is too late now, the partition's highest time says.
* What became of it is in the log with its id, its origin and how often it was mended. By this the
  reader knows after any kill which messages are settled.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.errors import InputError
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.io.files.judged_rows import Judge
from tidemill.pipelines.io.messages import Headers, Messages
from tidemill.pipelines.io.payloads.decoding import Decoder

CARRIED: Final = pa.schema(
    [
        ("message_key", pa.binary()),
        ("message_timestamp_us", pa.int64()),
        (
            "message_headers",
            pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())])),
        ),
        ("row_types", pa.binary()),
    ]
)
"""What the message of a rejected record carried beside its value.

* row_types: the types of the columns of the row (`row_types`); null where there is nothing to say.
"""

OUTCOMES: Final = pa.schema(
    [
        ("record", pa.string()),
        ("stream", pa.string()),
        ("partition", pa.int64()),
        ("position", pa.int64()),
        ("rows", pa.int64()),
        ("origin", pa.string()),
        ("line", pa.string()),
        ("replay", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""What became of mended messages; none of the columns is ever null.

* record: the id of the rejected record (`record_id`). origin: its place in the topic.
* stream, partition, position, rows: where its rows are in the log; a message that its source's
  transform dropped has no rows.
* line: the line of the mended file. replay: the number of the replay that brought it.
* stage, reason, detail: why it is rejected still; empty if it was accepted.
"""


def record_id(stream: str, origin: str, payload: bytes) -> str:
    """Return the id of a rejected record of a topic: 16 hex digits.

    It depends on the record's place in the topic and on its bytes, and on nothing else.

    Args:
        stream: The name of its source.
        origin: ``topic/partition@offset``, with ``:row`` where the message has several rows.
        payload: Its bytes.
    """
    place = json.dumps(["topic", stream, origin, payload.hex()])
    return hashlib.sha256(place.encode("ascii")).hexdigest()[:16]


@dataclass(frozen=True)
class Origin:
    """The place of a record in a topic.

    Attributes:
        topic: The topic.
        partition: Its partition.
        offset: The offset of the message.
        row: Which of the message's rows; None if it is one row, or could not be read.
    """

    topic: str
    partition: int
    offset: int
    row: int | None

    @staticmethod
    def parse(text: str) -> Origin:
        """Parse ``topic/partition@offset`` or ``topic/partition@offset:row``.

        Raises:
            InputError: It is something else.
        """
        topic, _, place = text.rpartition("/")
        partition, _, rest = place.partition("@")
        offset, _, row = rest.partition(":")
        try:
            return Origin(topic, int(partition), int(offset), int(row) if row else None)
        except ValueError:
            raise InputError(
                f"found the origin {text!r}, expected topic/partition@offset of a message"
            ) from None


@dataclass(frozen=True)
class MendedMessage:
    """A rejected record of a topic, with mended bytes.

    Attributes:
        record: Its id.
        stream: The name of its source.
        origin: Its place in the topic, as a text.
        payload: The mended bytes.
        line: The line of the mended file.
        replay: The number of the replay.
        is_row: Whether the bytes are one row as a JSON object; else they are a message's value in
            the format of the topic.
        key: The key of the message that it came in.
        timestamp_us: The timestamp of that message; -1 if it is not known.
        headers: The headers of that message.
        types: The types of the columns that the row had (`row_types`); None for texts.
    """

    record: str
    stream: str
    origin: str
    payload: bytes
    line: str
    replay: int
    is_row: bool
    key: bytes | None = None
    timestamp_us: int = -1
    headers: Headers = field(default_factory=tuple)
    types: bytes | None = None

    @property
    def place(self) -> Origin:
        """Its place in the topic."""
        return Origin.parse(self.origin)

    def as_messages(self) -> Messages:
        """Return it as a message of its topic; without bytes it is a tombstone again."""
        place = self.place
        return Messages(
            place.topic,
            place.partition,
            np.array([place.offset], np.int64),
            np.array([self.timestamp_us], np.int64),
            [self.key],
            [self.payload or None],
            [self.headers],
        )


class MendedMessages(Protocol):
    """Where mended messages come from."""

    def take(self, most: int) -> Sequence[MendedMessage]:
        """Return the next ones that are not settled, at most so many, in the order of replays."""


class Refusal(NamedTuple):
    """Why a mended message is rejected still."""

    stage: str
    reason: str
    detail: str


ACCEPTED: Final = Refusal("", "", "")


def judge_alone(
    message: MendedMessage, decoder: Decoder, rows: Decoder, judge: Judge, partition: int
) -> list[pa.RecordBatch] | Refusal:
    """Judge a mended message by itself.

    Args:
        message: The message.
        decoder: Decodes the messages of its topic.
        rows: Decodes rows in JSON.
        judge: Judges rows; it has no state but the highest time of the partition.
        partition: The partition of the log.

    Returns:
        The accepted rows; or why the first row that is not is rejected.

    Raises:
        RegistryUnavailable: The registry cannot say now what the message's schema is.
    """
    made = rows if message.is_row else decoder
    accepted = []
    for decoded in made.decode(message.as_messages(), 0):
        raw = replace(decoded.raw, partition=partition)
        if message.is_row and message.types is not None:
            raw = replace(raw, batch=as_typed(raw.batch, message.types))
        try:
            judged = judge.judge(raw)
        except InputError as error:
            return Refusal(str(Stage.TRANSFORM), str(Reason.TRANSFORM), str(error))
        if judged.rejected.num_rows:
            first: Mapping[str, Any] = judged.rejected.slice(0, 1).to_pylist()[0]
            return Refusal(first["stage"], first["reason"], first["detail"])
        if judged.batch.num_rows:
            accepted.append(judged.batch)
    return accepted


def outcome(
    message: MendedMessage, partition: int, position: int, rows: int, refusal: Refusal
) -> dict[str, Any]:
    """Return what became of a mended message, as a row of `OUTCOMES`."""
    return {
        "record": message.record,
        "stream": message.stream,
        "partition": partition,
        "position": position,
        "rows": rows,
        "origin": message.origin,
        "line": message.line,
        "replay": message.replay,
        **refusal._asdict(),
    }


def carried(
    messages: Messages, offsets: Int64Array, types: Sequence[bytes | None]
) -> pa.RecordBatch:
    """Return what messages carried beside their values, ``(offsets,)``.

    Args:
        messages: Messages of a partition.
        offsets: int64: offsets of some of them; one may occur more than once.
        types: ``(offsets,)``: the types of a row's columns (`row_types`).
    """
    at = np.searchsorted(messages.offsets, offsets).tolist()
    headers = [
        [{"name": name, "value": value} for name, value in messages.headers[one]] for one in at
    ]
    return pa.RecordBatch.from_arrays(
        [
            pa.array([messages.keys[one] for one in at], pa.binary()),
            pa.array(messages.timestamps_us[at], pa.int64()),
            pa.array(headers, CARRIED.field("message_headers").type),
            pa.array(types, pa.binary()),
        ],
        schema=CARRIED,
    )


def row_types(schema: pa.Schema, stages: Sequence[str]) -> list[bytes | None]:
    """Return the types of the columns of rejected rows, compressed.

    A person writes a row in JSON, and so is the payload of a row of a message with several. The
    source's transform expects the types of the format.

    Args:
        schema: The columns of the rows.
        stages: ``(rows,)``: where each was refused; the columns of a row that could not be read are
            not known.

    Returns:
        ``(rows,)``: None where the columns are texts, or not known.
    """
    if all(pa.types.is_string(kind) or pa.types.is_null(kind) for kind in schema.types):
        return [None] * len(stages)
    types = zlib.compress(schema.serialize().to_pybytes())
    return [None if stage == Stage.READ else types for stage in stages]


def as_typed(rows: pa.RecordBatch, types: bytes) -> pa.RecordBatch:
    """Return rows in JSON with the types that they had in their message.

    A text that is no value of its type stays a text, with its column: validation says what is wrong
    with it.

    Args:
        rows: Columns of texts, ``(rows,)``.
        types: `row_types` of the row that was rejected.
    """
    known = pa.ipc.read_schema(pa.py_buffer(zlib.decompress(types)))
    columns = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        place = known.get_field_index(name)
        columns.append(column if place < 0 else _as_type(column, known.field(place).type))
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        if pa.types.is_nested(kind) and pa.types.is_string(column.type):
            values = column.to_pylist()
            return pa.array([None if one is None else json.loads(one) for one in values], kind)
        return column.cast(kind)
    except (pa.ArrowException, TypeError, ValueError):
        return column
