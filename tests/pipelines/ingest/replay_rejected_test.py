"""Replaying rejected records: export a file to edit, and read it in again, once."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.builds import ingest_build
from tests.support.folders import build_of
from tidemill import Entity, EventStream, FeatureView, Project, Request, col, count
from tidemill.features.definitions import FLOAT64, INT64, STRING, TIMESTAMP
from tidemill.features.errors import InputError
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import Stage
from tidemill.pipelines.config.configuration import Configuration, Splits
from tidemill.pipelines.config.source_section import Source
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, Log
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.serving.stores.online_places import SqlitePlace

DAY_1 = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

orders = EventStream(
    "orders",
    schema={"id": STRING, "at": TIMESTAMP, "customer": STRING, "price": FLOAT64, "n": INT64},
    event_time="at",
    event_id="id",
)
clicks = EventStream(
    "clicks",
    schema={"id": STRING, "at": TIMESTAMP, "got": TIMESTAMP, "customer": STRING},
    event_time="at",
    event_id="id",
    transport=["got"],
    out_of_orderness="1m",
    allowed_lateness="9m",
    max_ahead="5m",
)
checkouts = Request(
    "checkouts",
    schema={"id": STRING, "at": TIMESTAMP, "customer": STRING},
    request_time="at",
    request_id="id",
    inputs={"customer": col("customer")},
)
customer = Entity("customer")
project = Project(
    name="shop",
    request=checkouts,
    views=[
        FeatureView("bought", customer, orders, hop="1h", features={"n": count(over="1d")}),
        FeatureView("clicked", customer, clicks, hop="1h", features={"n": count(over="1d")}),
    ],
)

GOOD_ORDERS = [f"o{n},2026-01-01T00:0{n}:00Z,c,{n}.5,{n}".encode() for n in range(4)]
BAD_ORDERS = [
    b"o7,2026-01-01T00:07:00Z,c,NaN,7",
    b"o8,2026-01-01T00:08:00Z,c,8.5",
    b"o9,2026-01-01T00:00:30Z,c,9.5,nine",
    b"o10,2026-01-01T00:10:00Z,caf\xe9,1,1",
]
HEADER = b"id,at,customer,price,n"


def minute(number: float) -> str:
    return (DAY_1 + datetime.timedelta(minutes=number)).isoformat()


def click(name: str, minutes: float, got: float, **columns: Any) -> dict[str, Any]:
    row = {"id": name, "at": minute(minutes), "got": minute(got), "customer": "c"}
    return row | columns


CLICKS = [click("k0", 100, 100), click("k1", 50, 101, at="soon"), click("k2", 120, 120)]


def drops_zero(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Drop the rows whose `n` is zero."""
    assert batch.schema.types[:2] == [pa.string(), pa.timestamp("ns", "UTC")]
    return batch.append_column("__drop__", pc.equal(batch["n"], 0))


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    """Sources of all formats, with 4 bad orders, 1 bad click and 1 bad checkout."""
    (tmp_path / "orders.csv").write_bytes(b"\n".join([HEADER, *GOOD_ORDERS, *BAD_ORDERS]) + b"\n")
    (tmp_path / "clicks.jsonl").write_text("\n".join(json.dumps(row) for row in CLICKS))
    table = pa.table(
        {
            "id": ["r0", "r1", "r2"],
            "at": pa.array([0, 10**9 + 1, 2 * 10**9], pa.timestamp("ns", "UTC")),
            "customer": ["c", "c", "c"],
        }
    )
    pq.write_table(table, tmp_path / "checkouts.parquet")
    sources = {
        "orders": Source("orders", (str(tmp_path / "orders.csv"),)),
        "clicks": Source("clicks", (str(tmp_path / "clicks.jsonl"),), received="got"),
        "checkouts": Source("checkouts", (str(tmp_path / "checkouts.parquet"),)),
    }
    found = Configuration(
        path=tmp_path / "tidemill.yaml",
        project_name="here:project",
        project=project,
        root=tmp_path / "run",
        shards=1,
        sources=sources,
        splits=Splits(1, 2, 3),
        online_store=SqlitePlace(tmp_path / "online.db"),
    )
    ingest_build(found)
    return found


def with_source(config: Configuration, name: str, **changes: Any) -> Configuration:
    source = dataclasses.replace(config.sources[name], **changes)
    return dataclasses.replace(config, sources={**config.sources, name: source})


def fed(config: Configuration, path: Path) -> dict[str, Any]:
    return replay(config, QuietProgress(), path)


def exported(config: Configuration, source: str = "orders") -> list[dict[str, Any]]:
    figures = replay(config, QuietProgress(), None)
    return [json.loads(line) for line in Path(figures[source]["file"]).read_text().splitlines()]


def mended(
    config: Configuration, edits: dict[str, Callable[[str], str]], source: str = "orders"
) -> Path:
    """Export, and edit the payloads that contain a text."""
    lines = exported(config, source)
    for part, edit in edits.items():
        (line,) = (line for line in lines if part in line["payload"])
        line["payload"] = edit(line["payload"])
    path = config.root.parent / "mended.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def to(text: str) -> Callable[[str], str]:
    return lambda _: text


def rejections(config: Configuration, source: str = "orders") -> list[dict[str, Any]]:
    paths = (config.root / "rejected").glob("*.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    return sorted(
        (row for row in rows if row["stream"] == source), key=lambda row: int(row["position"])
    )


def logged(config: Configuration, source: str = "orders") -> list[tuple[Any, ...]]:
    table = Log(build_of(config.root)).read(source)
    return [(row["id"], row[PARTITION], row[POSITION]) for row in table.to_pylist()]


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


FILES_ROWS = [(f"o{n}", 0, n) for n in range(4)]


# Out


def test_an_export_shows_each_record_with_its_reason_and_a_payload_to_edit(
    config: Configuration,
) -> None:
    lines = exported(config)
    assert [line["payload"] for line in lines] == [
        *(line.decode() for line in BAD_ORDERS[:3]),
        r"o10,2026-01-01T00:10:00Z,caf\xe9,1,1",
    ]
    assert lines[0] == {
        "record": lines[0]["record"],
        "stream": "orders",
        "origin": "orders.csv:6",
        "stage": "validate",
        "reason": "nan",
        "detail": rejections(config)[0]["detail"],
        "header": "id,at,customer,price,n",
        "payload": BAD_ORDERS[0].decode(),
    }
    assert [line["reason"] for line in exported(config, "clicks")] == ["wrong_type"]
    (checkout,) = exported(config, "checkouts")
    assert json.loads(checkout["payload"])["at"] == "1970-01-01T00:00:01.000000001Z"
    assert "header" not in checkout


def test_requests_without_an_answer_are_not_exported(config: Configuration) -> None:
    unanswered = rejected.batch(
        Stage.ANSWER,
        stream="checkouts",
        partition=0,
        positions=np.array([1]),
        reasons=["no_answer"],
        details=["-"],
        origins=["-"],
        payloads=[b"{}"],
    )
    write_rows(config.root / "rejected", pa.Table.from_batches([unanswered]), "answers")
    assert [line["reason"] for line in exported(config, "checkouts")] == ["wrong_type"]
    fed(config, mended(config, {"r1": to('{"id":"r1","at":"2026-01-01T00:00:00Z"}')}, "checkouts"))
    assert [row["stage"] for row in rejections(config, "checkouts")] == ["answer"]


def test_an_export_that_somebody_has_edited_is_never_lost(config: Configuration) -> None:
    exported(config)
    path = config.root / "rejected" / "export" / "orders.jsonl"
    fresh = path.read_bytes()
    exported(config)
    path.write_text("my work")
    ingest_build(config)
    exported(config)
    assert path.read_bytes() == fresh
    assert path.with_name("orders.1.jsonl").read_text() == "my work"
    assert len(list(path.parent.glob("orders*"))) == 2


# In


def test_mended_records_leave_the_rejected_ones_and_stand_in_the_log_of_the_next_ingest(
    config: Configuration,
) -> None:
    before = everything(build_of(config.root) / "log")
    path = mended(
        config,
        {
            "o7": lambda payload: payload.replace("NaN", "7.5"),
            "o9": lambda payload: payload.replace("nine", "9"),
            "o8": lambda payload: payload + ",eight",
        },
    )
    assert fed(config, path)["orders"] == {
        "given": 4,
        "accepted": 2,
        "dropped": 0,
        "already_there": 0,
        "mended_before": 0,
        "still_rejected": 2,
        "reasons": {"wrong_type": 1, "invalid_utf8": 1},
        "left": 2,
    }
    still = rejections(config)
    # The record keeps its first payload; the detail is about the mended one.
    assert [row["payload"] for row in still] == [BAD_ORDERS[1], BAD_ORDERS[3]]
    assert still[0]["stage"] == "validate"
    assert still[0]["detail"].startswith("as mended in mended.jsonl:2: column 'n': found 'eight'")
    assert everything(build_of(config.root) / "log") == before

    counts = ingest_build(config)["orders"]
    assert (counts["read"], counts["kept"], counts["mended"], counts["rejected"]) == (8, 4, 2, 2)
    # Mended rows of a table follow the rows of the files, sorted by their own time.
    assert logged(config) == [*FILES_ROWS, ("o9", 1, 0), ("o7", 1, 1)]
    rows = Log(build_of(config.root)).read("orders", 1).to_pylist()
    assert [(row["price"], row["n"]) for row in rows] == [(9.5, 9), (7.5, 7)]
    assert [row[RECEIVED] for row in rows] == [
        int(row["at"].timestamp()) * 1_000_000 for row in rows
    ]
    assert [row["payload"] for row in rejections(config)] == [BAD_ORDERS[1], BAD_ORDERS[3]]


def test_the_same_mended_file_twice_changes_nothing(config: Configuration) -> None:
    path = mended(config, {"o7": lambda payload: payload.replace("NaN", "7")})
    fed(config, path)
    before = everything(config.root)
    again = fed(config, path)["orders"]
    assert everything(config.root) == before
    assert (again["accepted"], again["mended_before"], again["still_rejected"]) == (0, 1, 3)

    ingest_build(config)
    log = everything(build_of(config.root) / "log")
    fed(config, path)
    ingest_build(config)
    assert everything(build_of(config.root) / "log") == log


def test_later_mends_leave_every_position_where_it_was(config: Configuration) -> None:
    fed(config, mended(config, {"o7": lambda payload: payload.replace("NaN", "7")}))
    ingest_build(config)
    first = logged(config)
    fed(config, mended(config, {"o9": lambda payload: payload.replace("nine", "9")}))
    ingest_build(config)
    assert logged(config) == [*first, ("o9", 2, 0)]


def test_a_row_that_is_in_the_log_is_not_added_again(config: Configuration) -> None:
    path = mended(config, {"o7": to(GOOD_ORDERS[1].decode()), "o9": to(GOOD_ORDERS[1].decode())})
    figures = fed(config, path)["orders"]
    assert (figures["accepted"], figures["already_there"], figures["left"]) == (0, 2, 2)
    counts = ingest_build(config)["orders"]
    assert (counts["mended"], counts["rejected"]) == (2, 2)
    assert logged(config) == FILES_ROWS


def test_two_records_that_are_mended_to_the_same_row_are_one_row(config: Configuration) -> None:
    same = "o20,2026-01-01T00:20:00Z,c,1,1"
    figures = fed(config, mended(config, {"o7": to(same), "o9": to(same)}))["orders"]
    assert (figures["accepted"], figures["already_there"]) == (1, 1)
    ingest_build(config)
    assert logged(config) == [*FILES_ROWS, ("o20", 1, 0)]


def test_an_unedited_payload_keeps_its_bytes_and_its_reason(config: Configuration) -> None:
    before = [(row["reason"], row["payload"]) for row in rejections(config)]
    assert fed(config, mended(config, {}))["orders"]["still_rejected"] == 4
    assert [(row["reason"], row["payload"]) for row in rejections(config)] == before


def test_unedited_payloads_are_accepted_after_the_cause_is_corrected(
    config: Configuration,
) -> None:
    config = with_source(config, "orders", nulls=("", "NaN"))
    assert fed(config, mended(config, {}))["orders"]["accepted"] == 1
    ingest_build(config)
    # The file is read with the new nulls, too, so the row is in the log already: keep it once.
    assert [name for name, *_ in logged(config)] == ["o0", "o1", "o2", "o3", "o7"]


def test_a_byte_order_mark_of_a_line_is_no_start_of_a_file_when_it_is_fed_again(
    config: Configuration, tmp_path: Path
) -> None:
    lines = [json.dumps(row) for row in CLICKS[:1]]
    lines.append("\ufeff" + json.dumps(click("k9", 101, 101)))
    (tmp_path / "clicks.jsonl").write_text("\n".join(lines), "utf-8")
    ingest_build(config)
    assert fed(config, mended(config, {}, "clicks"))["clicks"]["reasons"] == {"broken_json": 1}
    path = mended(config, {"k9": lambda text: text.removeprefix("\ufeff")}, "clicks")
    assert fed(config, path)["clicks"]["accepted"] == 1


def test_a_mended_json_line_may_have_keys_that_are_not_declared(
    config: Configuration, tmp_path: Path
) -> None:
    row = click("k9", 101, 101, at=None)
    more = {f"other{n}": n for n in range(12_000)}
    (tmp_path / "clicks.jsonl").write_text(json.dumps(row | more) + "\n")
    ingest_build(config)
    path = mended(config, {"k9": lambda text: text.replace("null", f'"{minute(101)}"')}, "clicks")
    assert fed(config, path)["clicks"]["accepted"] == 1


def test_broken_encoding_can_be_mended_by_typing_the_text(config: Configuration) -> None:
    fed(config, mended(config, {"o10": lambda payload: payload.replace(r"\xe9", "é")}))
    ingest_build(config)
    assert Log(build_of(config.root)).read("orders", 1)["customer"].to_pylist() == ["café"]


@pytest.mark.parametrize("payload", ["", "\n", GOOD_ORDERS[0].decode() + "\n" + "o,o,o,o,o", '"o'])
def test_a_payload_that_is_not_one_row_stays_rejected_and_harms_no_other(
    config: Configuration, payload: str
) -> None:
    path = mended(config, {"o7": to(payload), "o9": lambda text: text.replace("nine", "9")})
    figures = fed(config, path)["orders"]
    assert (figures["accepted"], figures["reasons"]["broken_csv_line"]) == (1, 2)


def test_a_parquet_row_is_mended_as_json_in_the_types_of_its_file(config: Configuration) -> None:
    path = mended(
        config, {"r1": lambda text: text.replace("000000001Z", "000001000Z")}, "checkouts"
    )
    assert fed(config, path)["checkouts"]["accepted"] == 1
    ingest_build(config)
    (row,) = Log(build_of(config.root)).read("checkouts", 1).to_pylist()
    assert (row["id"], row[RECEIVED]) == ("r1", 1_000_001)


def test_a_mended_parquet_row_goes_through_the_transform_and_may_be_dropped(
    config: Configuration, tmp_path: Path
) -> None:
    table = pq.read_table(tmp_path / "checkouts.parquet")
    odd = pa.array([1, 1_000_000_001, 1_000_000_002], pa.timestamp("ns", "UTC"))
    table = table.set_column(1, "at", odd).append_column("n", pa.array([1, 2, 3]))
    pq.write_table(table, tmp_path / "checkouts.parquet")
    config = with_source(config, "checkouts", transform=drops_zero)
    ingest_build(config)
    path = mended(
        config,
        {
            "r0": lambda text: text.replace("000000001Z", "000000000Z"),
            "r1": to('{"id":"r1","at":"1970-01-01T00:00:09Z","customer":"c","n":0}'),
            "r2": to('{"id":"r2","at":"1970-01-01T00:00:09Z","customer":"c","n":"few"}'),
        },
        "checkouts",
    )
    figures = fed(config, path)["checkouts"]
    assert (figures["accepted"], figures["dropped"], figures["left"]) == (1, 1, 1)
    (still,) = rejections(config, "checkouts")
    assert (still["stage"], still["reason"]) == ("read", "wrong_type")
    assert "column 'n': found 'few', expected int64 as in its file" in still["detail"]
    counts = ingest_build(config)["checkouts"]
    assert (counts["mended"], counts["rejected"]) == (2, 1)
    assert logged(config, "checkouts") == [("r0", 1, 0)]


def no_price_or_dropped(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Take NaN for a missing price, and drop the row with the wrong number."""
    prices = pc.if_else(pc.equal(batch["price"], "NaN"), None, batch["price"])
    wrong = pc.equal(batch["n"], "nine")
    batch = batch.set_column(batch.schema.get_field_index("price"), "price", prices)
    return batch.append_column("__drop__", wrong)


@pytest.mark.parametrize("is_placed", [True, False])
def test_a_mended_record_stands_in_for_its_row_also_when_that_is_not_rejected_any_more(
    config: Configuration, is_placed: bool
) -> None:
    edits = {"o7": lambda text: text.replace("NaN", "7"), "o9": lambda t: t.replace("nine", "9")}
    fed(config, mended(config, edits))
    if not is_placed:  # as a version wrote it that did not say where its records were
        (path,) = (config.root / "mended" / "orders").glob("*.parquet")
        pq.write_table(pq.read_table(path).drop_columns(["partition", "position"]), path)
    before = ingest_build(config)["orders"]
    rows = Log(build_of(config.root)).read("orders")
    changed = with_source(config, "orders", transform=no_price_or_dropped)
    counts = ingest_build(changed)["orders"]
    assert Log(build_of(config.root)).read("orders").equals(rows)
    same = ("read", "kept", "dropped", "mended", "rejected")
    assert {name: counts[name] for name in same} == {name: before[name] for name in same}
    assert (counts["mended"], counts["dropped"], counts["rejected"]) == (2, 0, 2)


def test_a_row_whose_mended_record_is_refused_now_stays_out_and_the_reason_is_named(
    config: Configuration,
) -> None:
    fed(config, mended(config, {"o7": lambda text: text.replace("NaN", "7.25")}))
    changed = with_source(config, "orders", nulls=("", "NaN", "7.25"), transform=refuses_nulls)
    ingest_build(changed)
    (still,) = [row for row in rejections(config) if b"o7" in row["payload"]]
    assert (still["reason"], still["payload"]) == ("transform", BAD_ORDERS[0])
    assert still["detail"].startswith("as mended in mended.jsonl:")


def refuses_nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Reject rows without a price."""
    why = pc.if_else(pc.is_null(batch["price"]), "no price", None)
    return batch.append_column("__reject__", why)


# A log with a time of receipt


def test_a_mended_record_of_a_log_comes_at_its_end_and_may_be_too_late_there(
    config: Configuration,
) -> None:
    # The log's highest time is minute 120, and it accepts 10 minutes less.
    assert [row["reason"] for row in rejections(config, "clicks")] == ["wrong_type"]
    path = mended(config, {"k1": to(json.dumps(click("k1", 50, 101)))}, "clicks")
    assert fed(config, path)["clicks"]["reasons"] == {"too_late": 1}
    (still,) = rejections(config, "clicks")
    assert (still["stage"], still["payload"]) == ("accept", json.dumps(CLICKS[1]).encode())

    path = mended(config, {"k1": to(json.dumps(click("k1", 111, 101)))}, "clicks")
    assert fed(config, path)["clicks"]["reasons"] == {"ahead": 1}
    path = mended(config, {"k1": to(json.dumps(click("k1", 110, 107)))}, "clicks")
    assert fed(config, path)["clicks"]["accepted"] == 1
    ingest_build(config)
    assert logged(config, "clicks") == [("k0", 0, 0), ("k2", 0, 1), ("k1", 1, 0)]
    received = Log(build_of(config.root)).read("clicks")[RECEIVED].to_pylist()
    assert received[2] == received[1]  # it arrived with the last row of its partition


def test_a_record_that_was_accepted_stays_accepted_when_its_log_grows(
    config: Configuration, tmp_path: Path
) -> None:
    fed(config, mended(config, {"k1": to(json.dumps(click("k1", 110, 110)))}, "clicks"))
    with (tmp_path / "clicks.jsonl").open("a") as file:
        file.write("\n" + json.dumps(click("k3", 500, 500)))
    assert ingest_build(config)["clicks"]["mended"] == 1
    assert [name for name, *_ in logged(config, "clicks")] == ["k0", "k2", "k3", "k1"]


def test_a_file_without_a_good_row_is_a_partition_whose_records_can_be_mended(
    config: Configuration, tmp_path: Path
) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(click("m0", 1, 1, at="soon")))
    files = (*config.sources["clicks"].files, str(tmp_path / "more.jsonl"))
    config = with_source(config, "clicks", files=files)
    ingest_build(config)
    path = mended(config, {"k1": to(json.dumps(click("k1", 115, 115)))}, "clicks")
    fed(config, path)
    ingest_build(config)
    path = mended(config, {"m0": to(json.dumps(click("m0", 1, 1)))}, "clicks")
    assert fed(config, path)["clicks"]["accepted"] == 1
    ingest_build(config)
    assert [name for name, *_ in logged(config, "clicks")] == ["k0", "k2", "k1", "m0"]


# Sources and definitions that change


def test_a_mended_record_is_out_of_use_once_its_file_is_mended(
    config: Configuration, tmp_path: Path
) -> None:
    edits = {"o7": lambda text: text.replace("NaN", "7"), "o9": lambda t: t.replace("nine", "9")}
    fed(config, mended(config, edits))
    path = tmp_path / "orders.csv"
    path.write_bytes(path.read_bytes().replace(b"NaN", b"8"))
    counts = ingest_build(config)["orders"]
    assert (counts["kept"], counts["mended"], counts["rejected"]) == (5, 1, 2)
    assert [name for name, *_ in logged(config)] == ["o0", "o1", "o2", "o3", "o7", "o9"]
    assert Log(build_of(config.root)).read("orders", 0)["price"].to_pylist()[-1] == 8


def test_a_mended_record_that_a_new_definition_refuses_is_rejected_again_and_can_be_mended_again(
    config: Configuration,
) -> None:
    fed(config, mended(config, {"o9": lambda payload: payload.replace("nine", "9")}))
    changed = dataclasses.replace(orders, schema={**orders.schema, "price": INT64})
    views = [dataclasses.replace(project.views[0], stream=changed), project.views[1]]
    config = dataclasses.replace(config, project=dataclasses.replace(project, views=views))
    counts = ingest_build(config)["orders"]
    assert (counts["kept"], counts["mended"], counts["rejected"]) == (0, 0, 8)
    (again,) = (row for row in rejections(config) if row["payload"] == BAD_ORDERS[2])
    assert again["detail"].startswith("as mended in mended.jsonl:3: column 'price'")
    figures = fed(config, mended(config, {"o9": to("o9,2026-01-01T00:00:30Z,c,9,9")}))["orders"]
    assert figures["accepted"] == 1
    counts = ingest_build(config)["orders"]
    assert (counts["mended"], counts["rejected"]) == (1, 7)
    assert [name for name, *_ in logged(config)] == ["o9"]


# Files that cannot be used


def refused(config: Configuration, lines: Sequence[str], says: str) -> None:
    before = everything(config.root)
    path = config.root.parent / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=says):
        fed(config, path)
    assert everything(config.root) == before


def test_a_mended_file_that_cannot_be_used_is_an_error_that_names_the_line(
    config: Configuration,
) -> None:
    good, other, *_ = exported(config)
    text = json.dumps(good | {"payload": "o7,2026-01-01T00:07:00Z,c,7,7"})
    refused(config, [text, '{"payload": "a "quote""}'], r"bad\.jsonl:2: is not JSON .*written as")
    refused(config, [text, "[]"], r"bad\.jsonl:2: expected an object with the texts record")
    refused(config, [text, json.dumps(good)], rf"bad\.jsonl:2: record {good['record']} .*jsonl:1")
    refused(config, [text, json.dumps(other | {"stream": "order"})], "did you mean 'orders'")
    refused(config, [text, json.dumps(other | {"record": "0"})], "2: record 0 of 'orders' is not")
    refused(config, [text, json.dumps(other | {"payload": "\ud800"})], "2: the payload cannot be")


def test_a_record_that_was_mended_otherwise_before_is_an_error(config: Configuration) -> None:
    path = mended(config, {"o7": to("o7,2026-01-01T00:07:00Z,c,7,7")})
    fed(config, path)
    refused(
        config,
        [path.read_text().replace("c,7,7", "c,8,8")],
        r"bad\.jsonl:1: record \w+ of 'orders' was mended before, in mended\.jsonl:1, as 'o7,.*c,7",
    )
