"""Rejected records: a row has the reason, the place and the payload."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidemill.features.errors import InputError
from tidemill.features.rows import rejected
from tidemill.features.rows.rejected import SCHEMA, Reason, Stage


def some(**changes: Any) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "stream": "arrivals",
        "partition": 2,
        "positions": np.array([7, 9]),
        "reasons": [Reason.NAN, Reason.WRONG_TYPE],
        "details": ["found nan", "found 'x'"],
        "origins": ["a.csv:9", "a.csv:11"],
        "payloads": [b"1,nan", b"1,\xff"],
    }
    return rejected.batch(Stage.VALIDATE, **(columns | changes))


def test_a_record_says_stage_reason_place_and_payload() -> None:
    batch = some()
    assert batch.schema.equals(SCHEMA)
    assert batch.to_pylist()[1] == {
        "stage": "validate",
        "reason": "wrong_type",
        "detail": "found 'x'",
        "stream": "arrivals",
        "partition": 2,
        "position": 9,
        "origin": "a.csv:11",
        "payload": b"1,\xff",
    }


@pytest.mark.parametrize("column", ["reasons", "details", "origins", "payloads"])
def test_columns_of_different_lengths_are_refused_by_name(column: str) -> None:
    with pytest.raises(InputError, match=f"1 {column} for 2 positions"):
        some(**{column: [b"x" if column == "payloads" else "nan"]})


def test_every_reason_is_a_code_with_a_line_about_it() -> None:
    assert Reason("wrong_type") is Reason.WRONG_TYPE
    assert Reason.WRONG_TYPE == "wrong_type"
    for reason in Reason:
        assert reason == reason.name.lower()
        assert reason.meaning
        assert "\n" not in reason.meaning


def test_batches_join_in_order_and_none_is_empty() -> None:
    assert rejected.none().schema.equals(SCHEMA)
    assert rejected.none().num_rows == 0
    assert rejected.concat([]).equals(rejected.none())
    both = rejected.concat([some(), rejected.none(), some(partition=3)])
    assert both["partition"].to_pylist() == [2, 2, 3, 3]


def test_another_schema_cannot_pass_for_rejected_records() -> None:
    with pytest.raises(InputError, match=r"features\.rows\.rejected\.batch"):
        rejected.concat([some().drop_columns(["payload"])])
