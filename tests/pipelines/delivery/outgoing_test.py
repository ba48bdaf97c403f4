"""The messages of records: their headers say which record of which stream they are of."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Reason, Stage
from tidemill.pipelines.config.sink_section import REJECTED
from tidemill.pipelines.delivery.outgoing import (
    of_predictions,
    of_rejected,
    place_of,
    shortened,
)
from tidemill.pipelines.delivery.places import Place
from tidemill.pipelines.io.live.mended import record_id

STREAM = "root/generation/1"


def predictions(bundle: str | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "request_id": ["ä", "b"],
            "partition": [1, 1],
            "position": [7, 9],
            "score": pa.array([0.1, None], pa.float32()),
            "bundle_version": pa.array([bundle, bundle], pa.string()),
            "spec_hash": ["s", "s"],
            "sent_us": [1, 1],
            "created_us": [5_000_000, 5_000_001],
        }
    )


def test_a_prediction() -> None:
    first, second = of_predictions(predictions("v1"), STREAM)
    assert first.key == "ä".encode()
    assert first.value.startswith(
        '{"request_id":"ä","partition":1,"position":7,"score":0.1'.encode()
    )
    assert first.timestamp_us == 5_000_000
    assert dict(first.headers) == {
        "tidemill-stream": b"root/generation/1", "tidemill-kind": b"prediction",
        "partition": b"1", "position": b"7", "bundle_version": b"v1", "features_hash": b"s",
    }  # fmt: skip
    assert second.place == place_of(second.headers, STREAM) == Place(("prediction", 1), 9)


def test_a_prediction_without_a_model_names_no_bundle() -> None:
    first, _ = of_predictions(predictions(None), STREAM)
    assert "bundle_version" not in dict(first.headers)


def test_rejected_records_of_one_message_have_places_of_their_own() -> None:
    batch = rejected.batch(
        Stage.READ, stream="orders", partition=2, positions=np.array([4, 4, 5]),
        reasons=[Reason.BROKEN_JSON] * 3, details=["d" * 5_000, "no object", "x"],
        origins=["t/1@4"] * 3, payloads=[b"{", b"{{", b""],
    )  # fmt: skip
    messages = list(of_rejected(batch, STREAM))
    record = record_id("orders", "t/1@4", b"{")
    assert dict(messages[0].headers)["record"] == record.encode()
    assert [message.value for message in messages] == [b"{", b"{{", b""]
    assert [message.place.position for message in messages] == [4, 4, 5]
    assert len({message.place for message in messages}) == 3
    assert [place_of(message.headers, STREAM) for message in messages] == [
        message.place for message in messages
    ]
    headers = dict(messages[1].headers)
    assert headers.items() >= {
        "stage": b"read", "reason": b"broken_json", "detail": b"no object", "stream": b"orders",
        "origin": b"t/1@4", "partition": b"2", "position": b"4", "occurrence": b"1",
    }.items()  # fmt: skip
    assert len(dict(messages[0].headers)["detail"] or b"") == 2_000
    short = shortened(REJECTED, messages[1])
    assert (short.value, dict(short.headers)["left_out"], short.place) == (
        b"", b"2", messages[1].place,
    )  # fmt: skip


def test_messages_of_others_have_no_place() -> None:
    first, _ = of_predictions(predictions("v1"), STREAM)
    assert place_of(first.headers, "root/generation/2") is None
    assert place_of([], STREAM) is None
    assert place_of([("tidemill-stream", STREAM.encode()), ("partition", b"x")], STREAM) is None
