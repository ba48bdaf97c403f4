"""A schema registry that is away amid a live stream, and schemas that change meanwhile."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import fastavro
import psutil

from tests.support.kafka_broker import TestBroker
from tests.support.live_project import LiveProject
from tests.support.schema_registry import SchemaRegistry, schema_registry

_TIME: Final = {"type": "long", "logicalType": "timestamp-micros"}
_ROW: Final = (("payment", "string"), ("paid_at", _TIME), ("card", "string"), ("amount", "float"))
SCHEMAS: Final[Mapping[int, Sequence[tuple[str, Any]]]] = {
    1: _ROW,
    2: (*_ROW[:3], ("amount", "double"), ("shop", "string")),  # wider, and one more
    3: (*_ROW[:2], ("karte", "string"), ("amount", "double")),  # another name
    4: (("check", "string"), ("asked_at", _TIME), ("card", "string"), ("wanted", "double")),
}
_AWAY: Final = [503] * 1_000_000


def schema(id: int) -> dict[str, Any]:
    fields = [{"name": name, "type": kind} for name, kind in SCHEMAS[id]]
    return {"type": "record", "name": "Row", "fields": fields}


def message(id: int, name: str) -> bytes:
    now_us = time.time_ns() // 1_000
    row = {"payment": name, "check": name, "paid_at": now_us, "asked_at": now_us, "amount": 2.5}
    row |= {"card": "c-1", "karte": "c-1", "shop": "s-1", "wanted": 1.0}
    out = io.BytesIO()
    written = {name: row[name] for name, _ in SCHEMAS[id]}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema(id)), written)
    return b"\0" + id.to_bytes(4, "big") + out.getvalue()


def wait_until_asked(registry: SchemaRegistry, id: int, times: int) -> None:
    deadline = time.monotonic() + 120
    while registry.paths.count(f"/schemas/ids/{id}") < times:
        assert time.monotonic() < deadline, registry.paths
        time.sleep(0.01)


def test_a_registry_that_is_away_is_waited_for_and_does_not_keep_a_stream_from_ending(
    tmp_path: Path, broker: TestBroker
) -> None:
    with schema_registry() as registry:
        for id in SCHEMAS:
            registry.register(id, json.dumps(schema(id)), "AVRO")
        project = LiveProject(
            tmp_path / "project", broker, format=f'avro, registry: {{url: "{registry.url}"}}'
        )
        configuration = project.folder / "tidemill.yaml"
        configuration.write_text(
            configuration.read_text().replace("stream: {", "stream: {readers: 50, ")
        )
        project.run("backfill")
        with project.streaming() as stream:
            project.send_raw("payments", [message(1, "p-1"), message(3, "p-2")])
            project.send_raw("checks", [message(4, "asked-1")])
            project.wait_for(1, stream)
            # No more processes read than the topics have partitions.
            beside = psutil.Process(stream.pid).children(recursive=True)
            assert sum("kafka.child_process" in " ".join(one.cmdline()) for one in beside) == 2
            registry.failures = [503] * 6  # more than are tried at once
            project.send_raw("payments", [message(2, "p-3"), message(1, "p-4")])
            project.send_raw("checks", [message(4, "asked-2")])
            project.wait_for(2, stream)
            project.drain(stream)
        said = project.log()
        assert "answered 503 Service Unavailable; try again later; the stream waits, and" in said
        assert "the schema registry answers again, after " in said
        # A stream that knows no schema yet ends in order, too.
        registry.failures = list(_AWAY)
        with project.streaming("--resume") as stream:
            project.send_raw("payments", [message(2, "p-5")])
            wait_until_asked(registry, 2, times=registry.paths.count("/schemas/ids/2") + 1)
            project.drain(stream)
        registry.failures = []
        with project.streaming("--resume") as stream:
            project.send_raw("checks", [message(4, "asked-3")])
            project.wait_for(3, stream)
            project.drain(stream)
    found = {row["request_id"]: row["by_card__last_amount"] for row in project.predictions()}
    assert found.keys() == {"asked-1", "asked-2", "asked-3"}
    assert found["asked-3"] == 2.5
    assert "missing_column" in project.log()
    assert project.verify() == 4 * 3
