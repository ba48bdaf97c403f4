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
``record``, the id by which `tidemill replay-rejected` knows a record of a topic; and ``left_out``,
the number of its bytes, if the topic does not accept so many, and the value is empty.

The timestamp of a prediction is when it was made, and that of a rejected record is when it was
written, not the time of the request: by it a topic's retention removes messages, and a replay of
the past would be removed at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from tidemill.features.rows.rejected import Stage
from tidemill.pipelines.config.sink_section import PREDICTIONS, REJECTED
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.io.json_objects import json_objects
from tidemill.pipelines.io.live.mended import record_id
from tidemill.pipelines.io.messages import Headers

STREAM: Final = "tidemill-stream"
KIND: Final = "tidemill-kind"
BUNDLE: Final = "bundle_version"
KINDS: Final = {PREDICTIONS: "prediction", REJECTED: "rejected"}
"""Section of the configuration to the kind of its messages."""

_DETAIL: Final = 2_000
"""The most characters of a rejected record's ``detail`` and ``origin``: a payload may be in it."""
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
        if row["stage"] != Stage.ANSWER:
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


def without_payload(message: Outgoing) -> Outgoing:
    """Return a rejected record's message with the number of its bytes instead of the bytes."""
    left_out = ("left_out", b"%d" % len(message.value))
    return Outgoing(message.place, message.key, b"", [*message.headers, left_out])


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
