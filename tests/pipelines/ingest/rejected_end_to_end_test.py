"""1,000 bad rows of 17 kinds among 5,000 good ones, through the real ingest, and 100 mended.

What is expected is written down here in plain Python, without the readers: the bad rows as they
stand in their files, and the good ones as values.
"""

from __future__ import annotations

import datetime
import json
import random
import sys
import zoneinfo
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.builds import ingest_build
from tests.support.folders import build_of
from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Project,
    Request,
    col,
    count,
    last,
    mean,
    quantile,
    std,
)
from tidemill import sum as sum_of
from tidemill.features.definitions import ARROW_TYPES, BOOL, FLOAT64, INT64, STRING, TIMESTAMP
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.history.point_in_time import values_at
from tidemill.pipelines.ingest.replay_rejected import replay
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress

Row = dict[str, Any]
START: Final = datetime.datetime(2026, 3, 6, tzinfo=datetime.UTC)
NEW_YORK: Final = zoneinfo.ZoneInfo("America/New_York")
ACCOUNTS: Final = [f"account-{n}" for n in range(20)]

payments = EventStream(
    "payments",
    schema={
        "id": STRING,
        "at": TIMESTAMP,
        "account": STRING,
        "amount": FLOAT64,
        "items": INT64,
        "ok": BOOL,
    },
    event_time="at",
    event_id="id",
)
visits = EventStream(
    "visits",
    schema={"id": STRING, "at": TIMESTAMP, "account": STRING, "seconds": FLOAT64},
    event_time="at",
    event_id="id",
)
readings = EventStream(
    "readings",
    schema={"id": STRING, "at": TIMESTAMP, "got": TIMESTAMP, "account": STRING, "level": FLOAT64},
    event_time="at",
    event_id="id",
    transport=["got"],
    out_of_orderness="10m",
    allowed_lateness="50m",
    max_ahead="5m",
)
checks = Request(
    "checks",
    schema={"id": STRING, "at": TIMESTAMP, "account": STRING},
    request_time="at",
    request_id="id",
)
account = Entity("account")
project = Project(
    name="bank",
    request=checks,
    views=[
        FeatureView(
            "paid",
            account,
            payments,
            hop="10m",
            features={
                "n": count(over="6h"),
                "total": sum_of(col("amount"), over="1d"),
                "spread": std(col("amount"), over="2d"),
                "items": sum_of(col("items"), over="6h", where=col("ok")),
            },
        ),
        FeatureView(
            "visited",
            account,
            visits,
            hop="1h",
            features={
                "p90": quantile(col("seconds"), 0.9, over="1d"),
                "last": last(col("seconds"), over="2d"),
            },
        ),
        FeatureView(
            "read",
            account,
            readings,
            hop="5m",
            features={"n": count(over="2h"), "level": mean(col("level"), over="12h")},
        ),
    ],
)

YAML = """\
project: tests.pipelines.ingest.rejected_end_to_end_test:project
root: ./run
sources:
  payments:
    files: [payments.csv, payments-old.csv]
    transform: tests.pipelines.ingest.rejected_end_to_end_test:refuse_negative
    partitions: 2
  visits: {files: [visits.parquet], zone: America/New_York}
  readings: {files: [readings-*.jsonl], received: got}
  checks: {files: [checks.parquet]}
splits:
  train_until: 2026-03-07T00:00:00Z
  evaluate_until: 2026-03-08T00:00:00Z
  stream_until: 2026-03-20T00:00:00Z
"""


def refuse_negative(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The payments' own transform: a payment is not negative."""
    negative = pc.starts_with(batch["amount"], "-").fill_null(False)
    why = pc.if_else(negative, pa.scalar("a payment is not negative"), pa.scalar(None, pa.string()))
    return batch.append_column("__reject__", why)


@dataclass
class Bad:
    """A row that must come out rejected.

    Attributes:
        stream: Its stream.
        reason: Why it must be refused.
        payload: Its bytes, as they must come out.
        stage: Where it must be refused.
        mended: The mended payload; None if no line can mend it.
        row: What becomes of it then.
        origin: Where it stands.
    """

    stream: str
    reason: str
    payload: bytes
    stage: str = "validate"
    mended: str | None = None
    row: Row | None = None
    origin: str = ""


@dataclass
class Planted:
    """The rows of a project's files."""

    good: dict[str, list[Row]] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)


def at(minutes: float) -> datetime.datetime:
    return START + datetime.timedelta(minutes=minutes)


def shuffled(chance: random.Random, good: Sequence[Any], bad: Sequence[Any]) -> list[Any]:
    rows = [*good, *bad]
    chance.shuffle(rows)
    return rows


# payments: csv


def payment(chance: random.Random, name: str) -> Row:
    return {
        "id": name,
        "at": at(chance.randrange(0, 5 * 1440)),
        "account": chance.choice(ACCOUNTS),
        "amount": None if chance.random() < 0.05 else round(chance.lognormvariate(3, 2), 2),
        "items": chance.randrange(1, 9),
        "ok": chance.random() < 0.8,
    }


def csv_line(row: Row, **cells: str) -> bytes:
    texts = {
        "id": row["id"],
        "at": row["at"].isoformat().replace("+00:00", "Z"),
        "account": f'"{row["account"]}"',
        "amount": "" if row["amount"] is None else repr(row["amount"]),
        "items": str(row["items"]),
        "ok": str(row["ok"]).lower(),
    }
    return ",".join((texts | cells).values()).encode()


def bad_payments(chance: random.Random) -> list[Bad]:
    def one(number: int, kind: str, row: Row) -> Bad:
        def bad(stage: str = "validate", **cells: str) -> Bad:
            return Bad("payments", kind, csv_line(row, **cells), stage)

        naive = row["at"].isoformat().removesuffix("+00:00")
        found = {
            "wrong_type": bad(items=f"x{number}"),
            "null_time": bad(at=""),
            "null_id": bad(id=""),
            "nan": bad(amount="NaN"),
            "infinity": bad(amount=f"{number + 1}e999"),
            "time_out_of_range": bad(at=f"{10_000 + number}-01-01T00:00:00Z"),
            "naive_time": bad(at=naive),
            "invalid_utf8": Bad(
                "payments", kind, csv_line(row, account="caf").replace(b"caf", b"caf\xe9"), "read"
            ),
            "broken_csv_line": Bad(
                "payments", kind, csv_line(row, account='"open' if number % 2 else "a,b"), "read"
            ),
            "transform": bad("transform", amount=f"-{number + 1}"),
        }[kind]
        found.mended, found.row = csv_line(row).decode(), row
        return found

    kinds = ["wrong_type", "null_time", "null_id", "nan", "infinity"]
    kinds += ["time_out_of_range", "naive_time", "invalid_utf8", "broken_csv_line", "transform"]
    count = dict.fromkeys(kinds, 50) | {"wrong_type": 100}
    return [
        one(n, kind, payment(chance, f"{kind}-{n}")) for kind in kinds for n in range(count[kind])
    ]


def plant_payments(folder: Path, chance: random.Random, planted: Planted) -> None:
    good = planted.good["payments"] = [payment(chance, f"p{n}") for n in range(2000)]
    rows = shuffled(chance, [csv_line(row) for row in good], bad_payments(chance))
    header = ",".join(payments.schema).encode()
    lines = [header]
    for number, row in enumerate(rows, start=2):
        if isinstance(row, Bad):
            row.origin = f"payments.csv:{number}"
            planted.bad.append(row)
        lines.append(row.payload if isinstance(row, Bad) else row)
    (folder / "payments.csv").write_bytes(b"\n".join(lines) + b"\n")
    old = [csv_line(payment(chance, f"old-{n}")).rpartition(b",")[0] for n in range(50)]
    planted.bad += [
        Bad("payments", "missing_column", line, origin=f"payments-old.csv:{number}")
        for number, line in enumerate(old, start=2)
    ]
    text = b"\n".join([header.rpartition(b",")[0], *old]) + b"\n"
    (folder / "payments-old.csv").write_bytes(text)


# visits: Parquet, in local time


def visit(chance: random.Random, name: str) -> Row:
    return {
        "id": name,
        "at": at(chance.randrange(0, 5 * 1440)),
        "account": chance.choice(ACCOUNTS),
        "seconds": chance.expovariate(0.01),
    }


def local(row: Row) -> Row:
    return row | {"at": row["at"].astimezone(NEW_YORK).replace(tzinfo=None)}


def as_json(row: Row) -> str:
    shown = row | {"at": row["at"].isoformat(timespec="microseconds")}
    return json.dumps(shown, separators=(",", ":"))


def plant_visits(folder: Path, chance: random.Random, planted: Planted) -> None:
    good = planted.good["visits"] = [visit(chance, f"v{n}") for n in range(1500)]
    skipped = datetime.datetime(2026, 3, 8, 2, 30)  # noqa: DTZ001 - a local time that is none
    kinds: dict[str, Row] = {
        "nonexistent_local_time": {"at": skipped},
        "nan": {"seconds": float("nan")},
        "infinity": {"seconds": float("-inf")},
        "null_id": {"id": None},
    }
    bad: list[tuple[Row, Bad]] = []
    for kind, wrong in kinds.items():
        for n in range(50):
            row = visit(chance, f"{kind}-{n}")
            raw = local(row) | wrong
            mended = as_json(local(row))
            bad.append((raw, Bad("visits", kind, as_json(raw).encode(), "validate", mended, row)))
    rows = shuffled(chance, [(local(row), None) for row in good], bad)
    for number, (_, one) in enumerate(rows, start=1):
        if one is not None:
            one.origin = f"visits.parquet:{number}"
            planted.bad.append(one)
    types = [ARROW_TYPES[dtype] for dtype in visits.schema.values()]
    schema = pa.schema(list(zip(visits.schema, types, strict=True)))
    schema = schema.set(1, pa.field("at", pa.timestamp("us")))
    raws = pa.Table.from_pylist([raw for raw, _ in rows], schema=schema)
    pq.write_table(raws, folder / "visits.parquet")


# readings: JSON Lines, a log with a time of receipt

LOG_ROWS: Final = 725
"""One a minute in each of two partitions."""


def reading(chance: random.Random, name: str, minute: float, late: float = 0.0) -> Row:
    return {
        "id": name,
        "at": at(minute - late),
        "got": at(minute + 0.5),
        "account": chance.choice(ACCOUNTS),
        "level": chance.gauss(0, 1e6),
    }


def json_line(row: Row, **changes: Any) -> str:
    return json.dumps({**row, **changes}, default=datetime.datetime.isoformat)


def bad_reading(chance: random.Random, kind: str, name: str, minute: int) -> Bad:
    row = reading(chance, name, minute)
    # Read in at the log's end, its time must be within an hour of the highest time there.
    mended = reading(chance, name, LOG_ROWS, late=chance.randrange(20, 50))
    tomorrow = at(minute + 1440)
    line, stage = {
        "too_late": (json_line(row, at=at(minute - 75)), "accept"),
        "ahead": (json_line(row, at=tomorrow), "accept"),
        # If one of these moved the watermark, the rows after them would be too late.
        "nan": (json_line(row, at=tomorrow, level=float("nan")), "validate"),
        "broken_json": (json_line(row, at=tomorrow)[:-1], "read"),
    }[kind]
    return Bad("readings", kind, line.encode(), stage, json_line(mended), mended)


def plant_readings(folder: Path, chance: random.Random, planted: Planted) -> None:
    good = planted.good["readings"] = []
    for partition in range(2):
        name = f"readings-{partition}.jsonl"
        kinds = ["too_late", "ahead", "nan", "broken_json"] * 25
        chance.shuffle(kinds)
        places = sorted(chance.randrange(20, LOG_ROWS) for _ in kinds)
        lines: list[bytes] = []
        for minute in range(LOG_ROWS):
            while places and places[0] == minute:
                places.pop(0)
                kind = kinds.pop()
                one = bad_reading(chance, kind, f"{kind}-{partition}-{len(kinds)}", minute)
                lines.append(one.payload)
                one.origin = f"{name}:{len(lines)}"
                planted.bad.append(one)
            row = reading(chance, f"r{partition}-{minute}", minute, chance.randrange(0, 10))
            good.append(row)
            lines.append(json_line(row).encode())
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")


def plant_checks(folder: Path, chance: random.Random, planted: Planted) -> None:
    good = planted.good["checks"] = [
        {"id": f"c{n}", "at": at(chance.randrange(0, 7000)), "account": chance.choice(ACCOUNTS)}
        for n in range(50)
    ]
    pq.write_table(expected(checks, good), folder / "checks.parquet")


# What is compared


def expected(definition: EventStream | Request, rows: Sequence[Row]) -> pa.Table:
    types = [(name, ARROW_TYPES[dtype]) for name, dtype in definition.schema.items()]
    return pa.Table.from_pylist(list(rows), schema=pa.schema(types))


def by_id(table: pa.Table) -> list[Row]:
    rows: list[Row] = table.to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def assert_features_are_those_of(config: Configuration, rows: dict[str, list[Row]]) -> None:
    """Compare the log with expected rows, and the features of both bit for bit."""
    log = Log(build_of(config.root))
    minutes = range(0, 5 * 1440, 97)
    times = np.array([int(at(m).timestamp()) * 1_000_000 + 1 for m in minutes])
    keys = pa.array([name for name in ACCOUNTS for _ in minutes])
    for view in config.project.views:
        stream = view.stream
        logged = log.read(stream.name).select(list(stream.schema))
        wanted = expected(stream, rows[stream.name])
        assert by_id(logged) == by_id(wanted)
        values, nulls = values_at(view, logged, keys, np.tile(times, len(ACCOUNTS)))
        other_values, other_nulls = values_at(view, wanted, keys, np.tile(times, len(ACCOUNTS)))
        np.testing.assert_array_equal(values, other_values)
        np.testing.assert_array_equal(nulls, other_nulls)
        assert (nulls == 0).any(axis=0).all()  # no feature is null throughout
        assert all(len(np.unique(column)) > 8 for column in values.T)


def rejections(config: Configuration) -> list[Row]:
    paths = (config.root / "rejected").glob("*.parquet")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def whole(rows: Sequence[Row]) -> Counter[tuple[Any, ...]]:
    keys = ("stream", "stage", "reason", "origin", "payload")
    return Counter(tuple(row[key] for key in keys) for row in rows)


def test_1000_bad_rows_are_rejected_and_features_are_those_of_the_good_then_of_the_mended_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    chance, planted = random.Random(20260306), Planted()
    plant_payments(tmp_path, chance, planted)
    plant_visits(tmp_path, chance, planted)
    plant_readings(tmp_path, chance, planted)
    plant_checks(tmp_path, chance, planted)
    assert sum(map(len, planted.good.values())) == 5000
    assert len(planted.bad) == 1000
    assert len({one.reason for one in planted.bad}) >= 15
    (tmp_path / "tidemill.yaml").write_text(YAML)
    config = load(tmp_path / "tidemill.yaml")

    counts = ingest_build(config)

    assert sum(figures["read"] for figures in counts.values()) == 6000
    assert sum(figures["kept"] for figures in counts.values()) == 5000
    assert sum(figures["rejected"] for figures in counts.values()) == 1000
    found = rejections(config)
    assert len(found) == 1000
    assert whole(found) == whole([vars(one) for one in planted.bad])
    assert all(row["detail"] for row in found)
    assert_features_are_those_of(config, planted.good)

    # Mend 100 of them, some of each kind that a line can be mended of.
    kinds: dict[tuple[str, str], list[Bad]] = {}
    for one in planted.bad:
        if one.mended is not None:
            kinds.setdefault((one.stream, one.reason), []).append(one)
    assert len(kinds) == 18
    chosen = [group[n] for n in range(6) for group in kinds.values()][:100]
    by_place = {(one.stream, one.origin): one for one in chosen}
    exported = replay(config, QuietProgress(), None)
    given: list[str] = []
    for name in exported:
        for text in Path(exported[name]["file"]).read_text().splitlines():
            line = json.loads(text)
            if one := by_place.get((line["stream"], line["origin"])):
                given.append(json.dumps(line | {"payload": one.mended}))
    assert sum(figures["exported"] for figures in exported.values()) == 1000
    mended = tmp_path / "mended.jsonl"
    mended.write_text("\n".join(given))

    replayed = replay(config, QuietProgress(), mended)

    assert sum(figures["accepted"] for figures in replayed.values()) == 100
    assert len(rejections(config)) == 900
    counts = ingest_build(config)
    assert sum(figures["mended"] for figures in counts.values()) == 100
    assert whole(rejections(config)) == whole(
        [vars(one) for one in planted.bad if (one.stream, one.origin) not in by_place]
    )
    whole_rows = {name: list(rows) for name, rows in planted.good.items()}
    for one in chosen:
        assert one.row is not None
        whole_rows[one.stream].append(one.row)
    assert_features_are_those_of(config, whole_rows)
