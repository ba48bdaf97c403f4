"""Card payments and their frauds, as in the Fraud Detection Handbook: data and project.

Each payment is an event, a request for a prediction, and, a week later, a known outcome; so three
definitions read one file. The twelve features are those of the handbook (Le Borgne and others,
"Reproducible Machine Learning for Credit Card Fraud Detection", chapter 3): number and mean of a
customer's payments, and number and share of frauds of a terminal's, over 1, 7 and 30 days; a
terminal's frauds are known 7 days late. Windows move on the grid of days.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
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
    mean,
    rate,
)
from tidemill.features.contract import DAY

START_US: Final = 1_704_067_200_000_000  # 2024-01-01
DAYS: Final = 183
DELAY_US: Final = 7 * DAY
ROWS_PER_CUSTOMER: Final = 350
ROWS_PER_TERMINAL: Final = 175
WINDOWS: Final = ("1d", "7d", "30d")

_SCHEMA: Final = {
    "payment": "int64",
    "paid_at": "timestamp",
    "customer": "int64",
    "terminal": "int64",
    "amount": "float64",
}

PAYMENTS: Final = EventStream("payments", schema=_SCHEMA, event_time="paid_at", event_id="payment")
OUTCOMES: Final = EventStream(
    "outcomes",
    schema={"payment": "int64", "known_at": "timestamp", "terminal": "int64", "fraud": "bool"},
    event_time="known_at",
    event_id="payment",
)
PROJECT: Final = Project(
    "fraud",
    request=Request(
        "authorisations",
        schema=_SCHEMA,
        request_time="paid_at",
        request_id="payment",
        inputs={"amount": col("amount")},
    ),
    views=[
        FeatureView(
            "by_customer",
            entity=Entity("customer", dtype="int64"),
            stream=PAYMENTS,
            hop="1d",
            features={
                name: feature
                for over in WINDOWS
                for name, feature in (
                    (f"payments_{over}", count(over=over)),
                    (f"amount_{over}", mean(col("amount"), over=over)),
                )
            },
        ),
        FeatureView(
            "by_terminal",
            entity=Entity("terminal", dtype="int64"),
            stream=OUTCOMES,
            hop="1d",
            features={
                name: feature
                for over in WINDOWS
                for name, feature in (
                    (f"known_{over}", count(over=over)),
                    (f"risk_{over}", rate(col("fraud"), over=over)),
                )
            },
        ),
    ],
    label=Label("fraud", OUTCOMES, col("fraud"), on={"payment": "payment"}, horizon="8d"),
)


def outcomes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the outcomes of payments, a week later."""
    paid = batch.column("paid_at")
    known = pa.array(paid.cast(pa.int64()).to_numpy() + DELAY_US).cast(paid.type)
    return pa.RecordBatch.from_arrays(
        [batch.column("payment"), known, batch.column("terminal"), batch.column("fraud")],
        names=["payment", "known_at", "terminal", "fraud"],
    )


def write_payments(path: Path, rows: int, seed: int = 1) -> None:
    """Write payments in order of time, as one Parquet file."""
    chance = np.random.default_rng(seed)
    times = np.sort(chance.integers(0, DAYS * 86_400, rows)) * 1_000_000 + START_US
    table = pa.table(
        {
            "payment": np.arange(rows),
            "paid_at": pa.array(times, pa.timestamp("us", tz="UTC")),
            "customer": chance.integers(0, max(rows // ROWS_PER_CUSTOMER, 1), rows),
            "terminal": chance.integers(0, max(rows // ROWS_PER_TERMINAL, 1), rows),
            "amount": np.round(chance.gamma(2.0, 25.0, rows), 2),
            "fraud": chance.random(rows) < 0.008,
        }
    )
    pq.write_table(table, path)


def write_configuration(folder: Path, payments: Path, root: Path) -> Path:
    """Write a configuration file; the states are as of the end of the fifth month."""
    path = folder / "tidemill.yaml"
    outcomes_of = "transform: benchmarks.fraud:outcomes"
    path.write_text(
        f"""\
project: benchmarks.fraud:PROJECT
root: {root}
sources:
  payments: {{files: [{payments}]}}
  outcomes: {{files: [{payments}], {outcomes_of}}}
  authorisations: {{files: [{payments}]}}
splits:
  train_until: 2024-05-01T00:00:00Z
  evaluate_until: 2024-06-01T00:00:00Z
  stream_until: 2024-07-02T00:00:00Z
"""
    )
    return path
