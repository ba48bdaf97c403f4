"""The join itself: keys of another type than the log's are refused, not compared rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.parcels import BY_DEPOT, depot_rows
from tidemill.features.contract import DAY
from tidemill.features.errors import InputError
from tidemill.serving.offline.exact_casts import exact_cast
from tidemill.serving.offline.join import JoinEngine, LoggedFeature, LoggedView, join
from tidemill.serving.offline.log import OfflineLog

BIG = 2**53


def looked_up(log: OfflineLog, keys: pa.Array) -> list[int]:
    feature = LoggedFeature("scans_1d", pa.int64(), 0, anchored=False)
    view = LoggedView("by_depot", log, "depot", (feature,), DAY)
    (found,) = join(JoinEngine(), view, keys, np.full(len(keys), 10, np.int64))
    values: list[int] = found.to_pylist()
    return values


def test_keys_are_looked_up_exactly_or_refused(tmp_path: Path) -> None:
    log = OfflineLog(tmp_path)
    log.write(BY_DEPOT, depot_rows((BIG, 10, 1, 5), (BIG + 1, 10, 1, 6)), "one")
    assert looked_up(log, pa.array([BIG, BIG + 1, None])) == [5, 6, 0]
    for keys in (pa.array([float(BIG)]), pa.array(["7"]), pa.array([7], pa.int32())):
        with pytest.raises(InputError, match=f"look up are {keys.type}, and those in .* int64"):
            looked_up(log, keys)


def test_an_empty_log_has_no_type_of_keys(tmp_path: Path) -> None:
    assert looked_up(OfflineLog(tmp_path), pa.array([7.0])) == [0]


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (pa.array([1.0, None, -float(BIG)]), pa.int64(), "found -9007199254740992.0 in row 2"),
        (pa.array([float("nan")]), pa.int64(), "x: Float value nan was truncated"),
        (pa.array([BIG + 1]), pa.float64(), "x: Integer value 9007199254740993 not in range"),
        (pa.array([2**64 - 1], pa.uint64()), pa.int64(), "x: Integer value .* not in range"),
        (pa.array([[1]]), pa.int64(), "x: Unsupported cast"),
        (pa.array([0, 1]), pa.bool_(), "x: found int64, expected bool"),
        (pa.array(["true"]), pa.bool_(), "x: found string, expected bool"),
        (
            pa.array([1], pa.timestamp("us", "UTC")),
            pa.int64(),
            "x: found timestamp.*, expected int",
        ),
        (pa.array([1.5]), pa.timestamp("us", "UTC"), "x: Float value 1.5.* was truncated"),
        (pa.array([float(BIG)]), pa.timestamp("us", "UTC"), "found 9007199254740992.0 in row 0"),
        (pa.array([1], pa.timestamp("ns")), pa.timestamp("us", "UTC"), "would lose data"),
    ],
)
def test_a_cast_that_is_not_exact_is_refused_by_name(
    column: pa.Array, kind: pa.DataType, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        exact_cast(column, kind, "x")
    with pytest.raises(InputError, match=message):
        exact_cast(pa.chunked_array([column]), kind, "x")


def test_an_exact_cast_changes_no_value() -> None:
    column = pa.array([1.0, None, 1.0 - BIG])
    assert exact_cast(column, pa.int64(), "x").to_pylist() == [1, None, 1 - BIG]
    assert exact_cast(pa.nulls(2), pa.int64(), "x").to_pylist() == [None, None]
    assert exact_cast(pa.array([BIG]), pa.float64(), "x").to_pylist() == [float(BIG)]
    time = pa.timestamp("us", "UTC")
    nanoseconds = pa.array([7_000, None], pa.timestamp("ns"))
    for given in (pa.array([7, None]), pa.array([7.0, None]), nanoseconds):
        assert exact_cast(given, time, "x").cast(pa.int64()).to_pylist() == [7, None]
    assert exact_cast(pa.nulls(2), pa.bool_(), "x").to_pylist() == [None, None]
