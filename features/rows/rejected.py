"""Rejected records: input that cannot be used, with its reason and its untouched payload.

What is promised here: past the reader, a bad record raises no exception and is never dropped
silently. It becomes one row of a batch of `SCHEMA`: the stage and the reason of the refusal, the
record's place in its log, and its bytes, so that it can be repaired and replayed.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from tidemill.features.contract import Int64Array
from tidemill.features.errors import InputError

SCHEMA: Final = pa.schema(
    [
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("stream", pa.string()),
        ("partition", pa.int64()),
        ("position", pa.int64()),
        ("origin", pa.string()),
        ("payload", pa.binary()),
    ]
)
"""The columns of rejected records; none of them is ever null.

* stage: where it was refused (`Stage`). reason: a code (`Reason`). detail: a sentence that says
  what was found, where, and what was expected.
* stream, partition, position: its place in its log. origin: the same place for a person, such as
  ``"orders.csv:1234"`` (a file and the line on which the record starts, counted from 1).
* payload: the bytes as they came; of a csv file the line without its newline.
"""


class Stage(enum.StrEnum):
    """Where a record was refused."""

    READ = "read"
    TRANSFORM = "transform"
    VALIDATE = "validate"
    ACCEPT = "accept"
    ANSWER = "answer"
    SCORE = "score"


PAST_THE_LOG: Final = frozenset({Stage.ANSWER, Stage.SCORE})
"""The stages that refuse requests of the log: the rows are valid, and there is nothing to mend."""


class Reason(enum.StrEnum):
    """Why a record was refused: a short code and, as `meaning`, one line about it."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Reason:
        """Make a member that equals its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    BROKEN_CSV_LINE = "broken_csv_line", "the csv line has a wrong number of cells or broken quotes"
    BROKEN_JSON = "broken_json", "the line is not one JSON object"
    DUPLICATE_KEY = "duplicate_key", "a declared key or column occurs twice in the row"
    TOO_MANY_KEYS = "too_many_keys", "the file has more keys than can be columns for a transform"
    INVALID_UTF8 = "invalid_utf8", "the bytes are not UTF-8"
    NO_VALUE = "no_value", "the message has no value (a tombstone)"
    METADATA_CONFLICT = "metadata_conflict", "the payload has a column that a message's metadata is"
    REPEATED_HEADER = "repeated_header", "the message has a header twice that is one column"
    BROKEN_ARROW = "broken_arrow", "the message is not a valid Arrow IPC stream"
    BROKEN_AVRO = "broken_avro", "the message is not a valid Avro record of its schema"
    BROKEN_PROTOBUF = "broken_protobuf", "the message is not a valid protobuf message of its type"
    NO_SCHEMA_ID = "no_schema_id", "the message does not begin with the id of a schema"
    UNKNOWN_SCHEMA = "unknown_schema", "the registry has no usable schema of the message's id"
    TOO_LARGE = "too_large", "decoded, the message is larger than is allowed"
    TRANSFORM = "transform", "the source's own transform refused the row"
    MISSING_COLUMN = "missing_column", "the input lacks a declared column"
    WRONG_TYPE = "wrong_type", "the value is not of the declared dtype"
    NULL_TIME = "null_time", "the time is null"
    NULL_ID = "null_id", "the id is null"
    TOO_LONG = "too_long", "the request's id has more than 4,096 bytes"
    MENDED = "mended", "a mended record stands in for it"
    NAN = "nan", "the number is NaN"
    INFINITY = "infinity", "the number is infinite or too large for a float64"
    TIME_OUT_OF_RANGE = "time_out_of_range", "the time is outside the years 1 to 9999"
    NAIVE_TIME = "naive_time", "the time has no offset from UTC and its source declares no zone"
    AMBIGUOUS_LOCAL_TIME = "ambiguous_local_time", "clocks showed this local time twice"
    NONEXISTENT_LOCAL_TIME = "nonexistent_local_time", "clocks skipped this local time"
    TOO_LATE = "too_late", "the event came later than its stream still accepts"
    AHEAD = "ahead", "the time is too far past the record's receipt"
    REPEATED_REQUEST_ID = "repeated_request_id", "an earlier request has the id"
    NO_ANSWER = "no_answer", "a view's part of the answer did not come in time"
    MODEL_FAILED = "model_failed", "the model fails on the request and its features"
    MODEL_TIMED_OUT = "model_timed_out", "a call of the model with the request did not end in time"
    SCORE_NAN = "score_nan", "the model's score is NaN"


def batch(
    stage: Stage | str,
    *,
    stream: str,
    partition: int,
    positions: Int64Array,
    reasons: Sequence[str],
    details: Sequence[str],
    origins: Sequence[str],
    payloads: Sequence[bytes],
) -> pa.RecordBatch:
    """Build the rejected records of one partition from columns.

    Args:
        stage: Where they were refused.
        stream: The stream's (or request's) name.
        partition: Their partition.
        positions: int64, ``(rows,)``: their places in the partition.
        reasons: ``(rows,)``: codes, as a rule members of `Reason`.
        details: ``(rows,)``: one sentence each.
        origins: ``(rows,)``: where each came from.
        payloads: ``(rows,)``: the bytes as they came.

    Returns:
        A batch of `SCHEMA`, ``(rows,)``.

    Raises:
        InputError: The columns differ in length.
    """
    rows = len(positions)
    columns = {"reasons": reasons, "details": details, "origins": origins, "payloads": payloads}
    for name, column in columns.items():
        if len(column) != rows:
            raise InputError(
                f"rejected records of {stream!r}: {len(column)} {name} for {rows} positions; "
                "give one of each for every record"
            )
    return pa.RecordBatch.from_arrays(
        [
            pa.repeat(pa.scalar(str(stage), pa.string()), rows),
            pa.array([str(reason) for reason in reasons], pa.string()),
            pa.array(details, pa.string()),
            pa.repeat(pa.scalar(stream, pa.string()), rows),
            pa.repeat(pa.scalar(partition, pa.int64()), rows),
            pa.array(np.asarray(positions, np.int64), pa.int64()),
            pa.array(origins, pa.string()),
            pa.array(payloads, pa.binary()),
        ],
        schema=SCHEMA,
    )


@functools.cache
def none() -> pa.RecordBatch:
    """Return a batch of `SCHEMA` without rows."""
    return pa.RecordBatch.from_pylist([], schema=SCHEMA)


def concat(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of several batches of `SCHEMA` as one.

    Raises:
        InputError: A batch has other columns.
    """
    found = [one for one in batches if one is not none()]
    for one in found:
        if not one.schema.equals(SCHEMA):
            raise InputError(
                f"rejected records have the columns {', '.join(SCHEMA.names)} in fixed types, "
                f"found {one.schema.to_string()}; build them with "
                "tidemill.features.rows.rejected.batch"
            )
    if len(found) == 1:
        return found[0]
    return pa.concat_batches(found) if found else none()
