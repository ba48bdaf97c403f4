"""Scores of a trained bundle: the same bits, or close by where another device made them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support import trained_bundle as given
from tidemill.features.kernel.prepare import fixed_binary
from tidemill.pipelines.io.log import PARTITION, POSITION, RECEIVED, SENT
from tidemill.pipelines.stream.answer_join import answered_schema
from tidemill.pipelines.stream.infer import predictions
from tidemill.pipelines.verify.compare_predictions import patterns
from tidemill.pipelines.verify.findings import Findings, Mismatch
from tidemill.pipelines.verify.outputs.call_rows import calls_with_others, with_call_rows
from tidemill.pipelines.verify.outputs.compare_scores import PredictionCheck
from tidemill.serving.bundles.inference import Scorer, shared_scorer
from tidemill.serving.models.buckets import MAX_ROWS

PROJECT = given.PROJECT
ROWS = 20


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return shared_scorer(given.bundle())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the bundle."""
    bundle = given.bundle()
    shutil.copytree(bundle.directory, tmp_path / "bundles" / bundle.version)
    return tmp_path


def answered() -> pa.RecordBatch:
    """Answered requests of one call."""
    rows = given.rows(ROWS, 3)
    asked = {
        "at": rows["request_time"],
        "parcel": rows["request_id"],
        "depot": rows["size"],
        "grams": rows["grams"],
        "metres": rows["metres"],
        "fragile": rows["fragile"],
    }
    values, nulls = patterns([rows[column.name].combine_chunks() for column in PROJECT.columns])
    words = np.zeros((ROWS, 1), np.int64)
    numbers = np.arange(ROWS)
    technical = {
        POSITION: pa.array(numbers + 7),
        RECEIVED: pa.array(numbers),
        SENT: pa.array(np.zeros(ROWS, np.int64)),
        PARTITION: pa.array(np.zeros(ROWS, np.int64)),
        **{name: fixed_binary(words) for name in ("_as_of", "_release", "_shard")},
        "values": fixed_binary(values),
        "nulls": fixed_binary(nulls),
    }
    table = pa.table({**asked, **technical}).select(answered_schema(PROJECT))
    return table.combine_chunks().to_batches()[0]


def served(scorer: Scorer) -> pa.Table:
    return pa.Table.from_batches([predictions(PROJECT, scorer, answered(), 1)])


def check(root: Path, table: pa.Table) -> tuple[list[Mismatch], PredictionCheck]:
    findings = Findings()
    found = PredictionCheck(root, PROJECT, table, findings)
    found.take(answered())
    assert findings.count == len(findings.listed)
    return findings.listed, found


def changed(table: pa.Table, column: str, row: int | None, value: Any) -> pa.Table:
    values = table[column].to_pylist()
    for place in range(len(values)) if row is None else [row]:
        values[place] = value(values[place]) if callable(value) else value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, field.type))


def one_bit(score: float) -> np.float32:
    bits = np.array([score], np.float32)
    bits.view(np.int32)[0] ^= 1
    return bits[0]


def test_the_scores_of_a_bundle_are_the_same_bits(root: Path, scorer: Scorer) -> None:
    listed, found = check(root, served(scorer))
    assert listed == []
    assert (found.scores, found.elsewhere) == (ROWS, 0)
    # In any order, and with some of them missing: the call is that of the polls.
    table = served(scorer).take(pa.array([5, 3, 11]))
    listed, found = check(root, table)
    assert (listed, found.scores) == ([], 3)


def test_one_bit_of_a_score_is_found(root: Path, scorer: Scorer) -> None:
    listed, _ = check(root, changed(served(scorer), "score", 4, one_bit))
    (mismatch,) = listed
    assert (mismatch.what, mismatch.feature) == ("score", "score")
    assert mismatch.id == served(scorer)["request_id"][4].as_py()
    assert "the bundle gives another score" in mismatch.cause


def test_scores_of_another_device_may_differ_in_their_last_bits(root: Path, scorer: Scorer) -> None:
    elsewhere = changed(served(scorer), "device", None, "GPU of somebody")
    listed, found = check(root, changed(elsewhere, "score", 4, one_bit))
    assert listed == []
    assert (found.scores, found.elsewhere) == (ROWS, ROWS)
    for other in (0.5, float("nan"), None):
        listed, _ = check(root, changed(elsewhere, "score", 4, other))
        assert [one.what for one in listed] == ["score"]
    # One call is made on one device.
    listed, _ = check(root, changed(served(scorer), "device", 4, "GPU of somebody"))
    assert [one.what for one in listed] == ["device"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("padded_rows", 64), ("call_row", 5), ("call_row", None), ("transform_hash", "0" * 16),
     ("spec_hash", "0" * 16), ("xla", True), ("tensorflow", "1.0"), ("bundle_version", "0" * 16)],
)  # fmt: skip
def test_a_stamp_of_one_prediction_is_compared(
    column: str, value: Any, root: Path, scorer: Scorer
) -> None:
    listed, _ = check(root, changed(served(scorer), column, 4, value))
    assert [(one.what, one.feature) for one in listed] == [(column, column)]


@pytest.mark.parametrize("fault", ["gone", "damaged", "of other definitions", "elsewhere"])
def test_a_bundle_that_cannot_be_used_proves_nothing(
    fault: str, root: Path, scorer: Scorer
) -> None:
    version, table = given.bundle().version, served(scorer)
    folder = root / "bundles" / version
    wanted = {"gone": "no bundle", "damaged": "spec.json", "elsewhere": "no version of a bundle"}
    project = PROJECT
    if fault == "gone":
        shutil.rmtree(folder)
    elif fault == "damaged":
        (folder / "spec.json").write_text("{}")
    elif fault == "elsewhere":
        table = changed(table, "bundle_version", None, f"../bundles/{version}")
    else:
        project = given.with_window("2h")
    findings = Findings()
    found = PredictionCheck(root, project, table, findings)
    found.take(answered())
    assert findings.count == ROWS
    assert found.scores == 0
    assert wanted.get(fault, "minutes_1d") in findings.listed[0].cause


TOGETHER = (8, 8, 3, 16, 5, 32, 32, 20, 64)
"""The rows of the calls that many predictions are made in."""


def scored_in_calls(scorer: Scorer) -> pa.Table:
    """Predictions in calls of several shapes, in another order than the calls."""
    one = pa.Table.from_batches([answered()])
    many = pa.concat_tables([one] * (sum(TOGETHER) // ROWS + 1)).slice(0, sum(TOGETHER))
    order = np.random.default_rng(5).permutation(sum(TOGETHER))
    batch = many.take(pa.array(order)).combine_chunks().to_batches()[0]
    table = pa.Table.from_batches([predictions(PROJECT, scorer, batch, 1, TOGETHER)])
    return table.take(pa.array(np.random.default_rng(6).permutation(len(table))))


def check_served(root: Path, table: pa.Table) -> tuple[list[Mismatch], PredictionCheck]:
    findings = Findings()
    found = PredictionCheck(root, PROJECT, table, findings)
    found.take_served()
    return findings.listed, found


def test_what_was_served_is_scored_in_the_same_rows_of_calls(root: Path, scorer: Scorer) -> None:
    table = scored_in_calls(scorer)
    listed, found = check_served(root, table)
    assert (listed, found.scores, found.elsewhere) == ([], len(table), 0)
    # A share of them.
    listed, found = check_served(root, table.take(pa.array(range(0, len(table), 3))))
    assert (listed, found.elsewhere) == ([], 0)
    for row in (0, len(table) - 1):
        listed, _ = check_served(root, changed(table, "score", row, one_bit))
        assert [one.what for one in listed] == ["score"]
    for value in (None, -1, -2, 64, 2**40):
        listed, _ = check_served(root, with_call_rows(changed(table, "call_row", 2, value)))
        assert "call_row" in [one.what for one in listed]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's kernels are chosen on x86")
def test_kernels_whose_bits_depend_on_the_place_of_a_row_are_repeated(
    root: Path, scorer: Scorer
) -> None:
    """Those for AVX2, of which one for the last rows of some shapes adds in another order."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    code = f"from {__name__} import main; main({str(root)!r})"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    depends, mismatches, scores, device = json.loads(found.stdout)
    assert (mismatches, scores) == (0, sum(TOGETHER))
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in device
    assert depends, "no kernel of this machine has such rows: the test shows nothing"
    assert device != scorer.stamps.device


def main(root: str) -> None:
    """Print whether scores depend on the row, and the mismatches of scores that are repeated."""
    scorer = shared_scorer(given.bundle())
    listed, found = check_served(Path(root), scored_in_calls(scorer))
    row = pa.Table.from_batches([answered().slice(0, 1)])
    same = pa.concat_tables([row] * 8).combine_chunks().to_batches()[0]
    scores = predictions(PROJECT, scorer, same, 1).column("score")
    depends = len(scores.unique()) > 1
    print(json.dumps([depends, len(listed), found.scores, scorer.stamps.device]))


def test_predictions_of_earlier_versions_may_differ_in_their_last_bits(
    root: Path, scorer: Scorer
) -> None:
    table = with_call_rows(scored_in_calls(scorer).drop_columns(["call_row"]))
    assert table.schema.equals(scored_in_calls(scorer).schema)
    listed, found = check_served(root, changed(table, "score", 4, one_bit))
    assert (listed, found.elsewhere) == ([], len(table))
    listed, _ = check_served(root, changed(table, "score", 4, 0.5))
    assert [one.what for one in listed] == ["score"]
    listed, found = check(root, with_call_rows(served(scorer).drop_columns(["call_row"])))
    assert (listed, found.scores, found.elsewhere) == ([], ROWS, ROWS)


GONE = (0, 3, 4, 11, 19)
"""The requests of the call that were forgotten."""


@pytest.mark.parametrize("gone", [GONE, range(2, ROWS), range(12)])
def test_a_call_of_which_requests_were_forgotten_is_repeated_with_others_in_their_places(
    root: Path, scorer: Scorer, gone: Sequence[int]
) -> None:
    kept = pa.array([row for row in range(ROWS) if row not in gone])
    batch, table = answered().take(kept), served(scorer).take(kept)

    def compared(table: pa.Table, *, has_forgotten: bool = True) -> list[str]:
        findings = Findings()
        check = PredictionCheck(root, PROJECT, table, findings, has_forgotten=has_forgotten)
        check.take(batch)
        assert check.scores == len(table)
        return sorted({one.what for one in findings.listed})

    assert compared(table) == []
    assert set(compared(table, has_forgotten=False)) & {"call_row", "padded_rows"}
    assert compared(changed(table, "score", 0, one_bit)) == ["score"]
    for column, value in (("padded_rows", 4), ("call_row", 40), ("call_row", None)):
        assert column in compared(changed(table, column, 1, value))
    older = with_call_rows(table.drop_columns(["call_row"]))
    assert compared(older) == []


def test_a_long_batch_of_which_rows_are_gone_was_cut_where_rows_begin_anew() -> None:
    places = np.concatenate([np.arange(MAX_ROWS), np.arange(9)])
    shapes = np.repeat([MAX_ROWS, 16], [MAX_ROWS, 9])
    kept = np.sort(np.random.default_rng(1).choice(len(places), 3_000, replace=False))
    kept = np.union1d(kept, [MAX_ROWS + 3])
    own = np.arange(len(kept))
    calls = calls_with_others(pa.array(places[kept]), pa.array(shapes[kept]), pa.array(own))
    assert calls is not None
    assert [shape for shape, _ in calls] == [MAX_ROWS, 16]
    assert np.concatenate([rows for _, rows in calls]).tolist() == places[kept].tolist()
    # What cannot have been: a smaller call before another one, and two rows in one place.
    shapes[0] = 16
    wrong = pa.array(places[kept]), pa.array(np.full(len(kept), 16)), pa.array(own)
    assert calls_with_others(*wrong) is None
    same = pa.array([1, 1]), pa.array([8, 8]), pa.array([0, 1])
    assert calls_with_others(*same) is None
