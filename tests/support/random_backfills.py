"""Small random histories for tests of the backfill: a folder of source files and a configuration.

A case is drawn by its seed: from one to three views, sources that are tables or logs with a time of
receipt, in one or several files, unsorted, with duplicates, conflicts, null keys, late rows, rows
that are rejected, empty sources, a single request, a file that two definitions name.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tidemill import (
    Entity,
    EventStream,
    FeatureView,
    Label,
    Project,
    Request,
    col,
    count,
    distinct_count,
    last,
    last_k,
    mean,
    quantile,
    sum,
    variance,
)
from tidemill.features.contract import HOUR, MINUTE, SECOND

START = 1_767_225_600 * SECOND  # 2026-01-01
SPAN = 6 * HOUR

PAYMENTS = EventStream(
    "payments",
    schema={"payment": "string", "at": "timestamp", "received": "timestamp", "card": "string",
            "shop": "int64", "amount": "float64", "good": "bool"},
    event_time="at",
    event_id="payment",
    out_of_orderness="2m",
    allowed_lateness="40m",
    transport=["received"],
)  # fmt: skip
REFUNDS = EventStream(
    "refunds",
    schema={"refund": "int64", "at": "timestamp", "received": "timestamp", "card": "string",
            "amount": "float64"},
    event_time="at",
    event_id="refund",
    out_of_orderness="1m",
    allowed_lateness="20m",
    transport=["received"],
)  # fmt: skip
ASKS = Request(
    "asks",
    schema={"ask": "string", "at": "timestamp", "received": "timestamp", "card": "string",
            "shop": "int64", "amount": "float64"},
    request_time="at",
    request_id="ask",
    inputs={"amount": col("amount"), "large": col("amount") > 50.0},
    out_of_orderness="3m",
    allowed_lateness="10m",
)  # fmt: skip
BY_CARD = FeatureView(
    "by_card",
    entity=Entity("card"),
    stream=PAYMENTS,
    hop="5m",
    features={
        "paid_1h": count(over="1h"),
        "sum_2h": sum(col("amount"), over="2h"),
        "variance_1h": variance(col("amount"), over="1h"),
        "last_2h": last(col("amount"), over="2h"),
        "shops_1h": distinct_count(col("shop"), over="1h"),
    },
)
BY_SHOP = FeatureView(
    "by_shop",
    entity=Entity("shop", dtype="int64"),
    stream=PAYMENTS,
    hop="10m",
    features={
        "mean_1h": mean(col("amount"), over="1h", where=col("good")),
        "p90_1h": quantile(col("amount"), 0.9, over="1h"),
        "recent": last_k(col("amount"), k=3, over="2h"),
    },
)
REFUNDED = FeatureView(
    "refunded",
    entity=Entity("card"),
    stream=REFUNDS,
    hop="5m",
    features={"refunds_3h": count(over="3h"), "refunded_3h": sum(col("amount"), over="3h")},
)
LABEL = Label("good", PAYMENTS, col("good"), on={"ask": "payment"}, horizon="1h")
ALL = Project("everything", request=ASKS, views=[BY_CARD, BY_SHOP, REFUNDED], label=LABEL)
PLAIN = Project("plain", request=ASKS, views=[BY_SHOP])
ONE_VIEW = Project("one_view", request=ASKS, views=[BY_CARD], label=LABEL)
OTHER_LABEL = Project("other_label", request=ASKS, views=[REFUNDED], label=LABEL)
PROJECTS = {"ALL": ALL, "PLAIN": PLAIN, "ONE_VIEW": ONE_VIEW, "OTHER_LABEL": OTHER_LABEL}

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        project: The name of the project in this module.
        shards: The number of shards.
        has_receipts: Whether the sources are logs with a time of receipt.
        files: Source to the rows of each of its files.
        shared: Whether payments and asks are read from one file.
        partitions: The number of partitions of a source that is a table.
        evaluate_until_us: The instant of the states.
    """

    project: str
    shards: int
    has_receipts: bool
    files: Mapping[str, Sequence[Sequence[Row]]]
    shared: bool
    partitions: int
    evaluate_until_us: int


def draw(seed: int) -> Case:
    """Draw the case of a seed."""
    chance = random.Random(seed)
    project = ("ALL", "ONE_VIEW", "PLAIN", "OTHER_LABEL")[seed % 4]
    has_receipts, shared = seed % 3 == 1, seed % 5 == 3
    payments = _payments(chance, chance.choice((0, 1, 150, 400)))
    asked = chance.choice((1, 2, 60, 200))
    rows = {
        "payments": payments,
        "refunds": _refunds(chance, chance.choice((0, 90))),
        "asks": _asks(chance, asked, payments),
    }
    if shared:
        rows["asks"] = [
            {**row, "ask": row["payment"], "at": row["at"] - MINUTE} for row in _once(payments)
        ]
        rows["payments"] = [
            {**row, "ask": row["payment"], "asked_at": row["at"] - MINUTE} for row in payments
        ]
    files = {}
    for name, mine in rows.items():
        dealt: list[list[Row]] = [[] for _ in range(chance.choice((1, 1, 2, 3)))]
        for row in mine:
            chance.choice(dealt).append(row)
        for part in dealt:
            if has_receipts:
                part.sort(key=lambda row: row["received"])
            elif chance.random() < 0.7:
                chance.shuffle(part)
        files[name] = dealt
    return Case(
        project=project,
        shards=chance.choice((1, 2, 3)),
        has_receipts=has_receipts,
        files=files,
        shared=shared and not has_receipts,
        partitions=chance.choice((1, 2, 4)),
        evaluate_until_us=START + chance.choice((HOUR, SPAN // 2, SPAN + HOUR)) // MINUTE * MINUTE,
    )


def _times(chance: random.Random) -> tuple[int, int]:
    at = START + 30 * MINUTE + chance.randrange(SPAN // SECOND) * SECOND
    late = chance.randrange(10 * MINUTE, HOUR) if chance.random() < 0.1 else 0
    return at, at + chance.randrange(90 * SECOND) + late


def _payments(chance: random.Random, count: int) -> list[Row]:
    rows: list[Row] = []
    for number in range(count):
        at, received = _times(chance)
        rows.append(
            {
                "payment": f"p{number}" if chance.random() < 0.9 else f"p{chance.randrange(9)}",
                "at": at,
                "received": received,
                "card": chance.choice(("a", "b", "c", "ç", "", "d", None)),
                "shop": chance.choice((1, 2, 3, -4)),
                "amount": None if chance.random() < 0.1 else round(chance.uniform(0, 99), 2),
                "good": chance.choice((True, False, None)),
            }
        )
    return rows + [dict(chance.choice(rows)) for _ in range(count // 8)]


def _once(rows: Sequence[Row]) -> list[Row]:
    return list({row["payment"]: row for row in rows}.values())


def _refunds(chance: random.Random, count: int) -> list[Row]:
    rows = []
    for number in range(count):
        at, received = _times(chance)
        card, amount = chance.choice("abc"), round(chance.uniform(0, 9), 1)
        rows.append(
            {"refund": number, "at": at, "received": received, "card": card, "amount": amount}
        )
    return rows


def _asks(chance: random.Random, count: int, payments: Sequence[Row]) -> list[Row]:
    """Requests, none of them after a payment that labels it."""
    first = {}
    for row in payments:
        first[row["payment"]] = min(row["at"], first.get(row["payment"], row["at"]))
    rows = []
    for number in range(count):
        at, received = _times(chance)
        name = f"p{number}" if number % 2 else f"x{number}"
        if name in first:
            at = first[name] - 1 - chance.randrange(HOUR)
            received = at + chance.randrange(90 * SECOND)
        rows.append(
            {
                "ask": name,
                "at": at,
                "received": received,
                "card": chance.choice(("a", "b", "ç", "new", None)),
                "shop": chance.choice((1, 2, 99, None)),
                "amount": chance.choice((None, 1.0, 70.0)),
            }
        )
    return rows


def write_case(case: Case, folder: Path) -> Path:
    """Write the source files and the configuration of a case; return the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    project = PROJECTS[case.project]
    sections = []
    for name in [*(stream.name for stream in project.streams), project.request.name]:
        schema = dict(project.definition(name).schema)
        if case.shared and name == "payments":
            schema |= {"ask": "string", "asked_at": "timestamp"}
        suffix = "parquet" if len(case.files[name]) % 2 else "csv"
        given = "payments" if case.shared and name == "asks" else name
        if given == name:
            for number, rows in enumerate(case.files[name]):
                _write(folder / f"{name}-{number}.{suffix}", rows, schema)
        else:
            suffix = "parquet" if len(case.files[given]) % 2 else "csv"
        more = ", received: received" if case.has_receipts else f", partitions: {case.partitions}"
        if given != name:
            more += ", transform: tests.support.random_backfills:as_asks"
        sections.append(f"  {name}: {{files: ['{given}-*.{suffix}'], max_rejected: 1.0{more}}}")
    instants = (case.evaluate_until_us - MINUTE, case.evaluate_until_us, START + 2 * SPAN)
    ends = [
        pa.scalar(instant // SECOND, pa.timestamp("s")).as_py().isoformat() + "Z"
        for instant in instants
    ]
    path = folder / "tidemill.yaml"
    path.write_text(
        "\n".join(
            [
                f"project: tests.support.random_backfills:{case.project}",
                "root: run",
                f"shards: {case.shards}",
                "sources:",
                *sections,
                "splits:",
                f"  train_until: {ends[0]}",
                f"  evaluate_until: {ends[1]}",
                f"  stream_until: {ends[2]}",
                "",
            ]
        )
    )
    return path


def as_asks(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Read payments as the requests that came a minute before them."""
    names = [name for name in ASKS.schema if name != "at"]
    return pa.RecordBatch.from_arrays(
        [*(batch.column(name) for name in names), batch.column("asked_at")], names=[*names, "at"]
    )


_TYPES = {
    "string": pa.string(), "timestamp": pa.timestamp("us", tz="UTC"), "int64": pa.int64(),
    "float64": pa.float64(), "bool": pa.bool_(),
}  # fmt: skip


def _write(path: Path, rows: Sequence[Row], schema: Mapping[str, str]) -> None:
    table = pa.table(
        [pa.array([row[name] for row in rows], _TYPES[dtype]) for name, dtype in schema.items()],
        names=list(schema),
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        pa.csv.write_csv(table, path, pa.csv.WriteOptions(quoting_style="needed"))
