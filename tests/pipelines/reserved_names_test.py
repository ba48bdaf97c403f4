"""The reserved names are the names that the pipelines write; none is missing and none is extra."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from tests.support.strategies import to_batch
from tidemill import Entity, EventStream, FeatureView, Label, Project, Request, col, count
from tidemill.features.definitions.reserved import (
    ANSWER_COLUMNS,
    LOG_COLUMNS,
    PREDICTION_COLUMNS,
    TRAINING_COLUMNS,
)
from tidemill.pipelines.history.labels import Labelled
from tidemill.pipelines.history.training_table import training_rows
from tidemill.pipelines.io import log
from tidemill.pipelines.io.files.judged_rows import DROP_COLUMN, REJECT_COLUMN
from tidemill.pipelines.stream.answer_join import answered_schema
from tidemill.pipelines.stream.infer import predictions
from tidemill.serving.bundles.blocks import Blocks, Layout
from tidemill.serving.bundles.inference import Scorer
from tidemill.serving.models.saved_model import Outcome

SCHEMA = {"at": "timestamp", "id": "string", "shop": "string", "late": "bool"}
ORDERS = EventStream("orders", SCHEMA, event_time="at", event_id="id")
PROJECT = Project(
    "shop",
    Request("asked", SCHEMA, "at", "id", inputs={"hour": col("at").hour_of_day("UTC")}),
    [FeatureView("shops", Entity("shop"), ORDERS, "5m", {"orders": count(over="1h")})],
    label=Label("late", ORDERS, col("late"), on={"id": "id"}, horizon="1d"),
)


class _Scorer:
    """Scores without a model: the names of the columns do not depend on it."""

    stamps = SimpleNamespace(
        bundle="", transform="", features="", device="", tensorflow="", xla=False
    )

    layout = Layout.of(())

    def call(self, rows: Blocks, parts: object) -> Outcome:
        places = np.arange(rows.num_rows)
        scores = pa.RecordBatch.from_pydict({"score": np.zeros(len(places))})
        return Outcome(scores, (), np.full_like(places, len(places)), places)


def _answered() -> pa.RecordBatch:
    """Return one answered request, with all the columns that an answered batch has."""
    request = to_batch(SCHEMA, [{"at": 0, "id": "1", "shop": "a", "late": True}])
    columns: dict[str, Any] = dict(zip(SCHEMA, request.columns, strict=True))
    for name in answered_schema(PROJECT):
        if name not in columns:
            width = {"nulls": 1}.get(name, 8)
            whole = name in log_columns()
            columns[name] = pa.array([0]) if whole else pa.array([bytes(width)], pa.binary(width))
    return pa.RecordBatch.from_pydict(columns)


def log_columns() -> list[str]:
    return [log.POSITION, log.RECEIVED, log.PARTITION, log.SENT]


def _own(names: list[str]) -> list[str]:
    """Leave out the columns of inputs, features and views, which the user names."""
    return [name for name in names if name not in PROJECT.request.inputs and "__" not in name]


def test_columns_of_the_log() -> None:
    assert [*log_columns(), REJECT_COLUMN, DROP_COLUMN] == list(LOG_COLUMNS)


def test_columns_of_an_answer() -> None:
    carried = set(answered_schema(PROJECT)) - set(SCHEMA) - set(log_columns())
    assert carried == set(ANSWER_COLUMNS)


def test_columns_of_a_training_row() -> None:
    labels = Labelled(pa.nulls(1, pa.float64()), pa.nulls(1, pa.timestamp("us", tz="UTC")))
    values, nulls = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.uint8)
    rows = training_rows(PROJECT, _answered(), 0, values, nulls, labels)
    assert set(_own(rows.schema.names)) - set(log_columns()) == set(TRAINING_COLUMNS)


def test_columns_of_a_prediction() -> None:
    made = predictions(PROJECT, cast(Scorer, _Scorer()), _answered(), created_us=0)
    assert _own(made.schema.names) == list(PREDICTION_COLUMNS)
