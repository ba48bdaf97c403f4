"""Requests that a model refuses: rejected alone, with the reason, and the proof knows them."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.called_models import save
from tests.support.folders import stream_of
from tests.support.proof_run import (
    PROJECT,
    FakeScorer,
    configuration,
    score_without_models,
    write_sources,
)
from tests.support.stream_outputs import change_a_file
from tidemill.features.definitions import TIMESTAMP
from tidemill.features.errors import InputError
from tidemill.features.models.preprocessing import model_inputs
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream.output_folders import predictions_of, rejected_of
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.bundles.blocks import BlockFeed, Blocks, Layout
from tidemill.serving.models.saved_model import Limits, Outcome, SavedModel
from tidemill.serving.models.tensorflow_start import load_tensorflow

LAYOUT = Layout.of([one for one in model_inputs(PROJECT) if one.dtype != TIMESTAMP])
WHOLE = [one.name for one in LAYOUT.integers]


def _bad_rows(rides: Any) -> tuple[Any, Any]:
    """Which counts of rides the model throws on, and for which it gives NaN."""
    return rides % 5 == 3, rides % 7 == 6


@functools.cache
def _model(folder: Path) -> SavedModel:
    tf = load_tensorflow()

    def score(float64: Any, int64: Any, null: Any, text: Any) -> dict[str, Any]:
        rides = int64[:, WHOLE.index("by_driver__rides_6h")]
        throws, is_nan = _bad_rows(rides)
        with tf.control_dependencies(
            [tf.debugging.Assert(~tf.reduce_any(throws), ["a bad count"])]
        ):
            found = tf.cast(rides, tf.float32) / 7.0 + tf.reduce_sum(tf.cast(null, tf.float32), 1)
        return {"score": tf.where(is_nan, tf.constant(float("nan")), found)}

    save(
        folder,
        score,
        tf.TensorSpec((None, len(LAYOUT.floats)), tf.float64, "float64"),
        tf.TensorSpec((None, len(LAYOUT.integers)), tf.int64, "int64"),
        tf.TensorSpec((None, len(LAYOUT.integers)), tf.bool, "null"),
        tf.TensorSpec((None, len(LAYOUT.texts)), tf.string, "text"),
    )
    return SavedModel(folder, feed=BlockFeed(), limits=Limits(no_nan=("score",)))


class Refusing(FakeScorer):
    """A scorer over a real SavedModel that fails on some rows."""

    layout = LAYOUT

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def call(self, columns: pa.RecordBatch | Blocks, parts: Sequence[int] | None = None) -> Outcome:
        blocks = columns if isinstance(columns, Blocks) else LAYOUT.pack(columns)
        return _model(self._folder).call(blocks, parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refusing")


@pytest.fixture(autouse=True)
def scorer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch, Refusing(folder / "model"))


@pytest.fixture(scope="module")
def streamed(folder: Path) -> Configuration:
    write_sources(folder)
    config = configuration(folder, folder / "run")
    config = replace(config, stream=replace(config.stream, poll_rows=50))
    backfill(config, QuietProgress(), publish=True)
    with pytest.MonkeyPatch.context() as patch:
        score_without_models(patch, Refusing(folder / "model"))
        stream(config, QuietProgress(), engine="fnapi")
    return config


def _records(config: Configuration) -> pa.Table:
    found = rejected_of(stream_of(config.root)).read()
    assert found is not None
    return found.filter(pc.equal(found["stage"], str(rejected.Stage.SCORE)))


def _copy(config: Configuration, root: Path) -> Configuration:
    shutil.copytree(config.root, root)
    copy = configuration(config.path.parent, root)
    return replace(copy, stream=config.stream)


def test_only_those_are_rejected_and_the_rest_is_proven(
    streamed: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    records = _records(streamed)
    served = predictions_of(stream_of(streamed.root)).read()
    assert served is not None
    reasons = Counter(records["reason"].to_pylist())
    assert reasons.keys() == {"model_failed", "score_nan"}
    assert min(reasons.values()) > 2
    rides = served["by_driver__rides_6h"].to_numpy()
    throws, is_nan = _bad_rows(rides)
    assert not (throws | is_nan).any()
    assert served["score"].null_count == 0
    for record in records.to_pylist():
        says = {"model_failed": "a bad count", "score_nan": "the output 'score' is NaN"}
        assert record["detail"].startswith("bundle b1: ")
        assert says[record["reason"]] in record["detail"]
        payload = json.loads(record["payload"])
        assert payload["quote"]
        assert record["origin"] == f"quotes/{record['partition']}:{record['position']}"
    figures = verify(streamed, QuietProgress(), sample=20)
    assert figures["first_mismatches"] == []
    assert figures["rejected_requests"] == len(records)
    assert figures["predictions"] == len(served)
    assert figures["requests"] == len(served) + len(records)


def test_it_is_explained_why_a_request_has_no_prediction(streamed: Configuration) -> None:
    record = _records(streamed).slice(0, 1).to_pylist()[0]
    id = json.loads(record["payload"])["quote"]
    with pytest.raises(InputError, match=f"'{id}' has no prediction, it was rejected: .*bundle b1"):
        explain(streamed, id)


def test_prism_rejects_the_same(streamed: Configuration, tmp_path: Path) -> None:
    copy = _copy(streamed, tmp_path / "run")
    stream(copy, QuietProgress(), engine="prism")
    names = ["partition", "position", "reason", "payload"]

    def told(config: Configuration) -> list[Any]:
        return sorted(map(repr, _records(config).select(names).to_pylist()))

    assert told(copy) == told(streamed)
    assert verify(copy, QuietProgress(), sample=5)["first_mismatches"] == []


def test_a_stream_in_two_segments_rejects_each_once(
    streamed: Configuration, tmp_path: Path
) -> None:
    copy = _copy(streamed, tmp_path / "run")
    splits = streamed.splits
    middle_us = (splits.evaluate_until_us + splits.stream_until_us) // 2
    stream(copy, QuietProgress(), engine="fnapi", until_us=middle_us)
    some = len(_records(copy))
    stream(copy, QuietProgress(), engine="fnapi", resume=True)
    assert 0 < some < len(_records(copy))
    places = ["partition", "position"]
    assert (
        _records(copy).group_by(places).aggregate([]).num_rows
        == len(_records(copy))
        == len(_records(streamed))
    )
    assert verify(copy, QuietProgress(), sample=5)["first_mismatches"] == []


def _without_a_record(table: pa.Table) -> pa.Table | None:
    is_of_model = pc.equal(table["stage"], str(rejected.Stage.SCORE)).to_pylist()
    if True not in is_of_model:
        return None
    row = is_of_model.index(True)
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def _with_another(column: str, value: Any) -> Any:
    def change(table: pa.Table) -> pa.Table | None:
        is_of_model = pc.equal(table["stage"], str(rejected.Stage.SCORE)).to_pylist()
        if True not in is_of_model:
            return None
        values = table[column].to_pylist()
        values[is_of_model.index(True)] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), pa.array(values))

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_without_a_record, "it is gone"),
        (_with_another("reason", "no_answer"), "the stream's polls reject the row otherwise"),
        (_with_another("payload", b"{}"), "the stream's polls reject the row otherwise"),
        (_with_another("detail", "bundle b2: a bad count"), "the stream's polls reject the row"),
    ],
)
def test_a_record_that_was_changed_is_found(
    change: Any, cause: str, streamed: Configuration, tmp_path: Path
) -> None:
    copy = _copy(streamed, tmp_path / "run")
    change_a_file(stream_of(copy.root) / "rejected_by_stream", change)
    causes = [one["cause"] for one in verify(copy, QuietProgress(), sample=5)["first_mismatches"]]
    assert any(one.startswith(cause) for one in causes), causes


def test_a_record_in_place_of_a_prediction_is_found(
    streamed: Configuration, tmp_path: Path
) -> None:
    copy = _copy(streamed, tmp_path / "run")
    taken: list[dict[str, Any]] = []

    def without_one(table: pa.Table) -> pa.Table:
        taken.append(table.slice(0, 1).to_pylist()[0])
        return table.slice(1)

    change_a_file(stream_of(copy.root) / "predictions", without_one)
    (gone,) = taken

    def with_one(table: pa.Table) -> pa.Table | None:
        found = table.filter(pc.equal(table["stage"], str(rejected.Stage.SCORE)))
        if not len(found):
            return None
        forged = found.slice(0, 1).to_pylist()[0]
        forged |= {name: gone[name] for name in ("partition", "position")}
        forged["origin"] = f"quotes/{gone['partition']}:{gone['position']}"
        return pa.concat_tables([table, pa.Table.from_pylist([forged], schema=table.schema)])

    change_a_file(stream_of(copy.root) / "rejected_by_stream", with_one)
    causes = [one["cause"] for one in verify(copy, QuietProgress(), sample=5)["first_mismatches"]]
    assert "the model takes this request: it was not rejected" in causes
