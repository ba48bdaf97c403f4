"""What is written to topics: the messages of predictions and of rejected records.

| of | key | value |
|---|---|---|
| a prediction | the request's id | its row as a JSON object (`pipelines.io.json_objects`) |
| a rejected record | ``STREAM/PARTITION/POSITION`` | its bytes as they came |

Every message has the headers ``tidemill-stream``, the id of the stream that made it, and
``tidemill-kind``, ``prediction`` or ``rejected``. All headers are texts in UTF-8. A prediction has
``partition`` and ``position`` of its request, ``bundle_version`` (if it was scored) and
``features_hash``. A rejected record has ``stage``, ``reason``, ``detail``, ``stream``, ``origin``,
``partition``, ``position`` and ``occurrence``, which tells records of one message apart;
and ``record``, the id by which `tidemill replay-rejected` knows a record of a topic.

A message that is larger than the topic accepts is written without its largest part, with the number
of the value's bytes in the header ``left_out``: a rejected record without its bytes, a prediction
without the values that it was made from. Whoever can send a large text cannot stop a stream.

The timestamp of a prediction is when it was made, and that of a rejected record is when it was
written, not the time of the request: by it a topic's retention removes messages, and a replay of
the past would be removed at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from tidemill.features.definitions.reserved import PREDICTION_COLUMNS
from tidemill.features.rows.rejected import PAST_THE_LOG
from tidemill.pipelines.config.sink_section import PREDICTIONS, REJECTED
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.io.json_objects import json_objects
from tidemill.pipelines.io.live.mended import record_id
from tidemill.pipelines.io.messages import Headers

STREAM: Final = "tidemill-stream"
KIND: Final = "tidemill-kind"
BUNDLE: Final = "bundle_version"
LEFT_OUT: Final = "left_out"
KINDS: Final = {PREDICTIONS: "prediction", REJECTED: "rejected"}
"""Section of the configuration to the kind of its messages."""

_DETAIL: Final = 2_000
"""The most characters of a rejected record's ``detail`` and ``origin``: a payload may be in it."""
_OF_VIEWS: Final = ("as_of__", "release__", "shard__")
"""How columns of predictions begin that say of which answer of a view they are."""
_REJECTED: Final = ("stage", "reason", "detail", "stream", "origin", "partition", "position")


@dataclass(frozen=True, eq=False)
class Outgoing:
    """A message to be written.

    Attributes:
        place: The place of its record.
        key: Its key.
        value: Its value.
        headers: Its headers.
        timestamp_us: Its timestamp; None is when it is written.
    """

    place: Place
    key: bytes
    value: bytes
    headers: Headers
    timestamp_us: int | None = None

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.key) + len(self.value) + headers


def of_predictions(rows: pa.RecordBatch, stream: str) -> Iterator[Outgoing]:
    """Yield the message of each prediction.

    Args:
        rows: Predictions (`pipelines.stream.infer.predictions`), ``(rows,)``.
        stream: The id of the stream.
    """
    names = ("request_id", "partition", "position", BUNDLE, "spec_hash", "created_us")
    columns = [rows.column(name).to_pylist() for name in names]
    for key, partition, position, bundle, features, created_us, value in zip(
        *columns, json_objects(rows).cast(pa.binary()).to_pylist(), strict=True
    ):
        headers = [
            (STREAM, stream.encode()),
            (KIND, b"prediction"),
            ("partition", b"%d" % partition),
            ("position", b"%d" % position),
        ]
        if bundle is not None:
            headers.append((BUNDLE, bundle.encode()))
        headers.append(("features_hash", features.encode()))
        place = Place(("prediction", partition), position)
        yield Outgoing(place, key.encode(), value, headers, created_us)


def of_rejected(rows: pa.RecordBatch, stream: str) -> Iterator[Outgoing]:
    """Yield the message of each rejected record.

    Args:
        rows: All rejected records of one element (`features.rows.rejected.SCHEMA`), ``(rows,)``.
        stream: The id of the stream.
    """
    seen: Counter[Place] = Counter()
    for row in rows.to_pylist():
        source, partition, position = row["stream"], row["partition"], row["position"]
        record = Place(("rejected", row["stage"], source, partition), position)
        occurrence = seen[record]
        seen[record] += 1
        texts = {name: str(row[name])[:_DETAIL] for name in _REJECTED}
        texts["occurrence"] = str(occurrence)
        if row["stage"] not in PAST_THE_LOG:
            texts["record"] = record_id(source, row["origin"], row["payload"])
        headers = [(STREAM, stream.encode()), (KIND, b"rejected")]
        headers += [(name, text.encode("utf-8", "replace")) for name, text in texts.items()]
        yield Outgoing(
            Place((*record.group, occurrence), position),
            f"{source}/{partition}/{position}".encode(),
            row["payload"],
            headers,
        )


MESSAGES: Final[Mapping[str, Callable[[pa.RecordBatch, str], Iterator[Outgoing]]]] = {
    PREDICTIONS: of_predictions,
    REJECTED: of_rejected,
}
"""Section of the configuration to what makes its messages."""


def _without_payload(_: bytes) -> bytes:
    return b""


def _without_features(value: bytes) -> bytes:
    found = json.loads(value)
    kept = {
        name: value
        for name, value in found.items()
        if name in PREDICTION_COLUMNS or name.startswith(_OF_VIEWS)
    }
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


_SHORT: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    PREDICTIONS: _without_features,
    REJECTED: _without_payload,
}


def shortened(name: str, message: Outgoing) -> Outgoing:
    """Return a message without its largest part, whose bytes the header ``left_out`` counts.

    Args:
        name: The section of the configuration.
        message: A message of one of its records.
    """
    headers = [*message.headers, (LEFT_OUT, b"%d" % len(message.value))]
    return replace(message, value=_SHORT[name](message.value), headers=headers)


def place_of(headers: Headers, stream: str) -> Place | None:
    """Return the place that a message was written for; None if another stream wrote it."""
    found = {name: value for name, value in headers if value is not None}
    if found.get(STREAM) != stream.encode():
        return None
    try:
        texts = {name: value.decode() for name, value in found.items()}
        partition, position = int(texts["partition"]), int(texts["position"])
        if texts[KIND] == "prediction":
            return Place(("prediction", partition), position)
        group = ("rejected", texts["stage"], texts["stream"], partition, int(texts["occurrence"]))
        return Place(group, position)
    except (KeyError, ValueError):
        return None  # no message of ours has other headers
