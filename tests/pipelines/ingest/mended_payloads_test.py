"""Lines of topics in binary formats, given back: untouched, as bytes of the format, and as JSON.

Nothing here is a stand-in but for the live log: messages are decoded, judged, exported, read and
judged again by the code that does so in a stream.
"""

from __future__ import annotations

import base64
import datetime
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.pipelines.io.payloads.avro_rows_test import encoded, record
from tests.support.arrow_streams import stream
from tests.support.descriptors import (
    TIMESTAMP,
    TIMESTAMP_FILE,
    class_of,
    file_of,
    message_of,
    set_of,
)
from tests.support.memory_topics import PROJECT, MemoryTopics, TopicProject
from tests.support.payloads import messages
from tests.support.schema_registry import SchemaRegistry, schema_registry
from tidemill.features.errors import InputError
from tidemill.pipelines.config import schema_registry as registry_section
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.ingest import feed_live as module
from tidemill.pipelines.ingest.export_rejected import live_line
from tidemill.pipelines.ingest.feed_live import feed_live
from tidemill.pipelines.ingest.live_records import LiveRecord, LiveRecords
from tidemill.pipelines.ingest.mended_lines import read_lines
from tidemill.pipelines.ingest.mended_live import read_mended
from tidemill.pipelines.ingest.topics import made_of
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.live.failing_transforms import judge_what_can_be
from tidemill.pipelines.io.live.mended import (
    Refusal,
    as_typed,
    judge_alone,
    record_id,
    row_types,
)
from tidemill.pipelines.io.payloads.json_rows import JsonDecoder
from tidemill.pipelines.io.payloads.pieces import row_as_json
from tidemill.pipelines.run.progress import QuietProgress

AT = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)
FIELDS: dict[str, Any] = {
    "payment": "string", "at": {"type": "long", "logicalType": "timestamp-micros"},
    "card": "string", "amount": "double", "shop": "long", "online": "boolean",
}  # fmt: skip
ROW = {"payment": "ä", "at": AT, "card": "c-1", "amount": -1.5, "shop": 7, "online": True}
OTHER = ROW | {"payment": "mended", "amount": 2.5}


def doubled(rows: pa.RecordBatch) -> pa.RecordBatch:
    """A transform that needs numbers: texts cannot be doubled."""
    place = rows.schema.get_field_index("amount")
    return rows.set_column(place, "amount", pc.multiply(rows["amount"], pa.scalar(2.0)))


def broken(rows: pa.RecordBatch) -> pa.RecordBatch:
    if pc.any(pc.less(rows["amount"], 0.0)).as_py():
        raise ValueError("amounts below zero")
    return doubled(rows)


def configured(
    folder: Path, transform: Callable[[pa.RecordBatch], pa.RecordBatch], **topic: Any
) -> Configuration:
    config = TopicProject(folder, MemoryTopics(), files=False).config()
    source = config.sources["payments"]
    assert source.kafka is not None
    kafka = replace(source.kafka, topic="orders", **topic)
    source = replace(source, kafka=kafka, transform=transform)
    return replace(config, sources={**config.sources, "payments": source})


class Topic:
    """Messages of `payments`, rejected and given back.

    Args:
        folder: Where the root is.
        monkeypatch: Gives the command the records that a live log would have.
        topic: The section of the topic.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **topic: Any) -> None:
        self._folder, self._topic, self._monkeypatch = folder, topic, monkeypatch
        self.records: dict[str, LiveRecord] = {}

    def reject(self, *values: bytes) -> list[dict[str, Any]]:
        """Judge messages by the transform that fails; return the exported lines."""
        config = configured(self._folder, broken, **self._topic)
        made = made_of(config, config.sources["payments"])
        for decoded in made.decoder.decode(messages(values), 0):
            for judged in judge_what_can_be(
                made.judge, PROJECT.definition("payments"), decoded.raw
            ):
                rows = judged.rejected.to_pylist()
                types = row_types(decoded.raw.batch.schema, [row["stage"] for row in rows])
                for row, kind in zip(rows, types, strict=True):
                    name = record_id(row["stream"], row["origin"], row["payload"])
                    self.records[name] = LiveRecord(row, None, 1_700_000_000_000_000, (), 0, kind)
        return [json.loads(live_line(*one)) for one in self.records.items()]

    def give(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Give lines back after the transform was corrected; return the counts."""
        path = self._folder / "mended.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._monkeypatch.setattr(
            module, "read_live_records", lambda _: LiveRecords(rejected=self.records)
        )
        config = configured(self._folder, doubled, **self._topic)
        counts: dict[str, Any] = feed_live(
            config, QuietProgress(), read_lines(path, config.sources)
        )["payments"]
        return counts

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that a stream makes of what was stored."""
        config = configured(self._folder, doubled, **self._topic)
        made, found = made_of(config, config.sources["payments"]), []
        for message in read_mended(config.root):
            judged = judge_alone(message, *made.alone(), 0)
            assert not isinstance(judged, Refusal), judged
            found += [row for batch in judged for row in batch.to_pylist()]
        return found


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with schema_registry() as server:
        yield server


def avro_value(row: dict[str, Any]) -> bytes:
    return encoded(record(**FIELDS), row)[0]


PAYMENT = message_of(
    "Payment", payment="string", at=TIMESTAMP, card="string", amount="double", shop="int64",
    online="bool",
)  # fmt: skip
FILE = file_of("shop.proto", PAYMENT, imports=(TIMESTAMP_FILE,))


def protobuf_value(row: dict[str, Any]) -> bytes:
    return bytes(class_of(FILE, name="shop.Payment")(**row).SerializeToString())


def arrow_value(*rows: dict[str, Any], **more: pa.Array) -> bytes:
    table = pa.RecordBatch.from_pylist(list(rows))
    for name, column in more.items():
        table = table.append_column(name, column)
    return stream(table)


def framed(value: bytes) -> bytes:
    return b"\0" + struct.pack(">i", 7) + value


@pytest.fixture
def made(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry: SchemaRegistry,
) -> tuple[Topic, Callable[[dict[str, Any]], bytes]]:
    """Return a topic of a format, and what makes a message of a row."""
    place = registry_section.SchemaRegistry(registry.url)
    (tmp_path / "payments.avsc").write_text(json.dumps(record(**FIELDS)))
    (tmp_path / "payments.desc").write_bytes(set_of(FILE))
    registry.register(7, json.dumps(record(**FIELDS)))
    proto = base64.b64encode(FILE.SerializeToString()).decode()
    match request.param:
        case "avro":
            options, value = {"format": "avro", "schema": tmp_path / "payments.avsc"}, avro_value
        case "avro, registry":
            options = {"format": "avro", "registry": place}
            value = lambda row: framed(avro_value(row))  # noqa: E731
        case "protobuf":
            schema = tmp_path / "payments.desc"
            options = {"format": "protobuf", "schema": schema, "message": "shop.Payment"}
            value = protobuf_value
        case "protobuf, registry":
            registry.register(7, proto, "PROTOBUF", query="?format=serialized")
            options = {"format": "protobuf", "registry": place}
            value = lambda row: framed(b"\0" + protobuf_value(row))  # noqa: E731
        case _:
            options, value = {"format": "arrow"}, arrow_value
    return Topic(tmp_path, monkeypatch, **options), value


FORMATS = pytest.mark.parametrize(
    "made",
    ["avro", "avro, registry", "protobuf", "protobuf, registry", "arrow"],
    indirect=True,
)


@FORMATS
def test_an_untouched_line_is_read_in_its_format_once_the_transform_is_right(made: Any) -> None:
    topic, value = made
    (line,) = topic.reject(value(ROW))
    assert line["reason"] == "transform"
    assert topic.give([line])["stored"] == 1
    (row,) = topic.rows()
    assert row["payment"] == "ä"
    assert (row["amount"], row["shop"], row["online"]) == (-3.0, 7, True)


@FORMATS
@pytest.mark.parametrize("left", ["nothing", "the text", "the new text"])
def test_an_edited_line_may_be_bytes_of_the_format(made: Any, left: str) -> None:
    """A person changes the bytes, and removes the text or forgets it."""
    topic, value = made
    (line,) = topic.reject(value(ROW))
    new = value(OTHER)
    line["payload_base64"] = base64_of(new)
    if left == "nothing":
        del line["payload"]
    elif left == "the new text":
        line["payload"] = new.decode("utf-8", "backslashreplace")
    assert topic.give([line])["stored"] == 1
    (row,) = topic.rows()
    assert (row["payment"], row["amount"]) == ("mended", 5.0)


@FORMATS
def test_an_edited_line_may_be_an_object_which_has_the_types_of_its_message(made: Any) -> None:
    topic, value = made
    (line,) = topic.reject(value(ROW))
    line["payload"] = as_object(OTHER)
    assert topic.give([line])["stored"] == 1
    (row,) = topic.rows()
    assert (row["payment"], row["amount"], row["shop"]) == ("mended", 5.0, 7)


def as_object(row: dict[str, Any]) -> str:
    return json.dumps(row | {"at": "2023-11-14T22:13:20Z"})


def test_text_and_bytes_that_were_both_edited_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic(tmp_path, monkeypatch, format="arrow")
    (line,) = topic.reject(arrow_value(ROW))
    line |= {"payload": as_object(OTHER), "payload_base64": base64_of(arrow_value(OTHER))}
    with pytest.raises(InputError, match=r"mended\.jsonl:1: both payload and payload_base64"):
        topic.give([line])


@pytest.fixture
def arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topic:
    return Topic(tmp_path, monkeypatch, format="arrow")


def test_untouched_rows_of_a_message_with_several_have_its_types(arrow: Topic) -> None:
    lines = arrow.reject(arrow_value(ROW, OTHER, ROW | {"amount": -2.0}))
    assert [line["origin"][-2:] for line in lines] == [":0", ":2"]
    assert all(json.loads(line["payload"])["payment"] == "ä" for line in lines)
    lines[1]["payload"] = lines[1]["payload"].replace("-2.0", "-3.25")
    assert arrow.give(lines)["stored"] == 2
    assert [row["amount"] for row in arrow.rows()] == [-3.0, -6.5]


def test_an_untouched_row_that_json_cannot_write_is_read_in_its_format(arrow: Topic) -> None:
    far = pa.array([np.datetime64("12024-02-29", "D").astype(int)] * 2, pa.int32())
    (line,) = arrow.reject(arrow_value(ROW, OTHER, day=far.cast(pa.date32())))
    assert line["origin"].endswith(":0")
    assert not line["payload"].startswith("{")
    assert arrow.give([line])["stored"] == 1
    (row,) = arrow.rows()
    assert (row["payment"], row["amount"]) == ("ä", -3.0)


def test_a_row_of_a_message_with_several_may_be_given_as_bytes_of_the_format(arrow: Topic) -> None:
    (line,) = arrow.reject(arrow_value(ROW, OTHER))
    del line["payload"]
    line["payload_base64"] = base64_of(arrow_value(OTHER, OTHER | {"payment": "more"}))
    assert arrow.give([line])["stored"] == 1
    assert [row["payment"] for row in arrow.rows()] == ["mended", "more"]


def test_a_message_that_could_not_be_read_is_read_once_the_schema_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = tmp_path / "payments.avsc"
    schema.write_text(json.dumps(record(**FIELDS, more="string")))
    topic = Topic(tmp_path, monkeypatch, format="avro", schema=schema)
    (line,) = topic.reject(avro_value(OTHER))
    assert line["reason"] == "broken_avro"
    schema.write_text(json.dumps(record(**FIELDS)))
    assert topic.give([line])["stored"] == 1
    (row,) = topic.rows()
    assert (row["payment"], row["amount"]) == ("mended", 5.0)


def test_a_row_in_json_gets_back_the_types_that_json_loses() -> None:
    rows = pa.RecordBatch.from_pydict(
        {
            "float32": pa.array([0.1], pa.float32()),
            "int8": pa.array([-5], pa.int8()),
            "uint64": pa.array([2**64 - 1], pa.uint64()),
            "nan": pa.array([float("nan")]),
            "bool": pa.array([True]),
            "time": pa.array([1], pa.timestamp("ns", "UTC")),
            "local": pa.array([1], pa.timestamp("us")),
            "day": pa.array([7], pa.date32()),
            "digits": pa.array([Decimal("12.50")], pa.decimal128(9, 2)),
            "bytes": pa.array([b"ab"], pa.binary()),
            "list": pa.array([[1, 2]], pa.list_(pa.int64())),
            "nested": pa.array([{"a": 1.5, "b": "x"}]),
            "null": pa.array([None], pa.int64()),
            "text": pa.array(["7"]),
        }
    )
    decoder = JsonDecoder(Reader("payments"))
    (decoded,) = decoder.decode(messages([row_as_json(rows, 0)]), 0)
    (types,) = row_types(rows.schema, ["transform"])
    assert types is not None
    typed = as_typed(decoded.raw.batch, types)
    assert typed.schema.equals(rows.schema)
    assert typed.select(["nan"])["nan"].to_pylist() != [0.0]
    assert typed.drop_columns(["nan"]).equals(rows.drop_columns(["nan"]))
    # What is no value of the type is left for validation to name.
    (decoded,) = decoder.decode(messages([b'{"int8": "a lot", "more": 1}']), 0)
    assert as_typed(decoded.raw.batch, types).to_pylist() == [{"int8": "a lot", "more": "1"}]
    assert row_types(rows.select(["text"]).schema, ["transform"]) == [None]
    assert row_types(rows.schema, ["read"]) == [None]


def base64_of(value: bytes) -> str:
    return base64.b64encode(value).decode()
