"""Decoders by their names; the same rows from files and from messages are judged alike."""

from __future__ import annotations

import datetime
import io
import json
import pickle
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.arrow_streams import stream
from tests.support.descriptors import (
    TIMESTAMP,
    TIMESTAMP_FILE,
    class_of,
    file_of,
    message_of,
    set_of,
)
from tests.support.judged import read_stream
from tests.support.payloads import judged, messages
from tidemill.features.definitions import BOOL, FLOAT64, INT64, STRING, EventStream
from tidemill.features.definitions import TIMESTAMP as TIME
from tidemill.features.errors import ConfigurationError
from tidemill.features.rows import rejected
from tidemill.pipelines.io.files.judged_rows import Judge
from tidemill.pipelines.io.files.readers import Reader
from tidemill.pipelines.io.payloads.decoders import FORMATS, decoder
from tidemill.pipelines.io.payloads.decoding import Decoder
from tidemill.pipelines.io.payloads.registry import RegistryPlace

STREAM = EventStream(
    "orders",
    schema={"at": TIME, "id": STRING, "n": INT64, "x": FLOAT64, "ok": BOOL},
    event_time="at",
    event_id="id",
)
READER = Reader("orders", list(STREAM.schema))


def at(second: int) -> datetime.datetime:
    return datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=second)


def typed() -> pa.RecordBatch:
    """Rows of which every third is wrong in some way."""
    count = 60
    times: list[datetime.datetime | None] = [at(n) for n in range(count)]
    ids: list[str | None] = [f"order {n} é" for n in range(count)]
    floats = [None if n % 11 == 5 else n / 7 for n in range(count)]
    times[3] = times[33] = None
    ids[6] = ids[36] = None
    floats[9], floats[39], floats[12] = float("nan"), float("-inf"), -0.0
    return pa.record_batch(
        {
            "at": pa.array(times, pa.timestamp("us", "UTC")),
            "id": ids,
            "n": [None if n % 13 == 7 else 2**62 - n for n in range(count)],
            "x": pa.array(floats, pa.float64()),
            "ok": [None if n % 17 == 8 else n % 2 == 0 for n in range(count)],
        }
    )


def as_text(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON, which has no NaN of its own."""
    row = row | {"at": None if row["at"] is None else row["at"].isoformat()}
    return json.dumps(row, ensure_ascii=False).encode()


TEXTS = [
    *[as_text(row) for row in typed().to_pylist()],
    b'{"at":"2024-01-01","id":"a"}',
    b'{"at":"2024-01-01T00:00:00","id":"a"}',
    b'{"at":"2024-01-01T00:00:00Z","id":"a","n":1.5}',
    b'{"at":"2024-01-01T00:00:00Z","id":"a","n":99999999999999999999}',
    b'{"at":"2024-01-01T00:00:00.1234567Z","id":"a"}',
    b'{"at":"2024-01-01T00:00:00Z","id":"a","x":1e400}',
    b'{"at":"2024-01-01T00:00:00Z","id":"a","ok":"yes"}',
    b'{"at":"10000-01-01T00:00:00Z","id":"a"}',
    b'{"at":"2024-01-01T00:00:00Z","id":["a",{"b":1.0}]}',
    b'{"at":"2024-01-01T00:00:00Z","id":"a","id":"b"}',
    b'{"at":"2024-01-01T00:00:00Z","id":"\\ud800"}',
    b'{"at":"2024-01-01T00:00:00Z","id":"\\u00e9"}',
    b'{"at":"2024-01-01T00:00:00Z","id":"\xff"}',
    b'{"at":"2024-01-01T00:00:00Z"',
    b"5",
]
"""Lines of JSON, good ones and bad ones; a list would be rows of its own as a message."""

Judged = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def of_file(path: Path) -> Judged:
    """The accepted rows of a file, each with its position, and its rejected records."""
    rows, refused = [], []
    for batch in read_stream(STREAM, [path]):
        for row, position in zip(batch.batch.to_pylist(), batch.positions.tolist(), strict=True):
            rows.append({**row, "position": position})
        refused.append(batch.rejected)
    return rows, rejected.concat(refused).to_pylist()


def of_messages(given: Decoder, values: list[bytes | None]) -> Judged:
    """The same of messages."""
    rows, refused, counts = judged(STREAM, given, messages(values))
    assert counts.read == counts.kept + counts.rejected
    assert (counts.kept, counts.rejected) == (len(rows), len(refused))
    return rows, refused


def compare(found: Judged, expected: Judged, *, without: set[str] | None = None) -> None:
    """Compare rows and rejections, of which the places differ and perhaps more."""
    assert repr(found[0]) == repr(expected[0])
    left = {"origin", "partition"} | (without or set())
    for one, two in zip(found[1], expected[1], strict=True):
        assert {k: v for k, v in one.items() if k not in left} == {
            k: v for k, v in two.items() if k not in left
        }


@pytest.fixture
def lines(tmp_path: Path) -> Judged:
    path = tmp_path / "orders.jsonl"
    path.write_bytes(b"\n".join(TEXTS))
    return of_file(path)


@pytest.fixture
def table(tmp_path: Path) -> Judged:
    path = tmp_path / "orders.parquet"
    pyarrow.parquet.write_table(pa.Table.from_batches([typed()]), path)
    return of_file(path)


def test_json_messages_are_judged_like_the_lines_of_a_file(lines: Judged) -> None:
    assert len(lines[0]) > 40
    assert len({row["reason"] for row in lines[1]}) >= 9
    compare(of_messages(decoder("json", READER), list(TEXTS)), lines)


def test_json_lines_in_messages_are_judged_like_those_of_a_file(lines: Judged) -> None:
    values = [b"\n".join(TEXTS[first : first + 20]) for first in range(0, len(TEXTS), 20)]
    compare(of_messages(decoder("json", READER), list(values)), lines)


def test_arrow_messages_are_judged_like_a_parquet_file(table: Judged) -> None:
    assert len({row["reason"] for row in table[1]}) >= 4
    batch = typed()
    values: list[bytes | None] = [stream(batch.slice(n, 10)) for n in range(0, len(batch), 10)]
    compare(of_messages(decoder("arrow", READER), values), table)
    whole: list[bytes | None] = [stream(batch, compression="zstd")]
    compare(of_messages(decoder("arrow", READER), whole), table)
    single: list[bytes | None] = [stream(batch.slice(n, 1)) for n in range(len(batch))]
    compare(of_messages(decoder("arrow", READER), single), table, without={"payload"})


def test_typed_rows_of_lines_and_tables_are_the_same(lines: Judged, table: Judged) -> None:
    count = len(typed())
    assert repr([row for row in lines[0] if row["position"] < count]) == repr(table[0])
    reasons = [(row["position"], row["reason"]) for row in lines[1] if row["position"] < count]
    assert reasons == [(row["position"], row["reason"]) for row in table[1]]


def test_avro_messages_are_judged_like_a_parquet_file(tmp_path: Path, table: Judged) -> None:
    micros = {"type": "long", "logicalType": "timestamp-micros"}
    kinds = {"at": micros, "id": "string", "n": "long", "x": "double", "ok": "boolean"}
    fields = [{"name": name, "type": ["null", kind]} for name, kind in kinds.items()]
    schema = {"type": "record", "name": "Order", "fields": fields}
    path = tmp_path / "orders.avsc"
    path.write_text(json.dumps(schema))
    values: list[bytes | None] = []
    for row in typed().to_pylist():
        file = io.BytesIO()
        fastavro.schemaless_writer(file, fastavro.parse_schema(schema), row)
        values.append(file.getvalue())
    compare(of_messages(decoder("avro", READER, schema=path), values), table, without={"payload"})


def test_protobuf_messages_are_judged_like_a_parquet_file(tmp_path: Path, table: Judged) -> None:
    names = ("id", "n", "x", "ok")
    message = message_of(
        "Order", at=TIMESTAMP, id="string", n="int64", x="double", ok="bool", optional=names
    )
    file = file_of("orders.proto", message, imports=(TIMESTAMP_FILE,))
    path = tmp_path / "orders.desc"
    path.write_bytes(set_of(file))
    given = decoder("protobuf", READER, schema=path, message="shop.Order")
    order = class_of(file)
    values: list[bytes | None] = []
    for row in typed().to_pylist():
        made = order(**{name: row[name] for name in names if row[name] is not None})
        if row["at"] is not None:
            made.at.FromDatetime(row["at"])
        values.append(made.SerializeToString())
    compare(of_messages(given, values), table, without={"payload"})


def test_a_transform_sees_the_rows_of_messages_like_those_of_files(tmp_path: Path) -> None:
    def transform(batch: pa.RecordBatch) -> pa.RecordBatch:
        marks = [None if name != "bad" else "it is bad" for name in batch["name"].to_pylist()]
        columns = {"at": batch["when"], "id": batch["name"], "n": batch["n"]}
        nothing = pa.nulls(batch.num_rows, pa.string())
        return pa.record_batch(columns | {"x": nothing, "ok": nothing, "__reject__": marks})

    texts = [
        json.dumps({"when": "2024-01-01T00:00:00Z", "name": name, "n": n}).encode()
        for n, name in enumerate(["good", "bad", "better"])
    ]
    path = tmp_path / "orders.jsonl"
    path.write_bytes(b"\n".join(texts))
    files = list(read_stream(STREAM, [path], transform=transform))
    given = decoder("json", Judge(STREAM, [], transform=transform).reader)
    rows, refused, _ = judged(STREAM, given, messages(list(texts)), transform=transform)
    assert [row["id"] for row in rows] == files[0].batch["id"].to_pylist() == ["good", "better"]
    assert [row["detail"] for row in refused] == files[0].rejected["detail"].to_pylist()
    assert refused[0]["payload"] == texts[1]
    assert refused[0]["origin"] == "orders/3@101"


@pytest.mark.parametrize(
    ("format", "options", "found"),
    [
        ("jsn", {}, "did you mean 'json'"),
        ("json", {"tombstones": "ignored"}, "did you mean 'ignore'"),
        ("json", {"schema": Path("x")}, "have no schema"),
        ("arrow", {"registry": RegistryPlace("http://registry")}, "have no registry"),
        ("avro", {"message": "x"}, "have no message"),
        ("protobuf", {"frame": "none"}, "have no frame"),
        ("avro", {}, "need a schema"),
        ("protobuf", {}, "need a schema"),
    ],
)
def test_options_that_do_not_fit(format: str, options: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigurationError, match=found):
        decoder(format, READER, **options)


def test_a_registry_has_a_frame_of_its_own() -> None:
    place = RegistryPlace("http://registry")
    for format in ("avro", "protobuf"):
        given = decoder(format, READER, registry=place)
        assert pickle.loads(pickle.dumps(given)) is not None
    assert FORMATS == ("json", "arrow", "avro", "protobuf")
