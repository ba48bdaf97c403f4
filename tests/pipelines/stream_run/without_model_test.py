"""A project without a model: its features are streamed, published, served and proven."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    BY_ZONE,
    EVALUATE_UNTIL,
    FEATURES,
    PROJECT,
    RIDES,
    configuration,
    rewrite_predictions,
    rides_yaml,
    score_without_models,
    write_sources,
)
from tests.support.said import Said
from tests.support.stream_outputs import outputs_of, put_outputs, table_in
from tidemill import Label, col
from tidemill.features.contract import HOUR
from tidemill.features.definitions import Project
from tidemill.features.errors import BundleError, DefinitionError, StateMismatch
from tidemill.pipelines.commands.cli import main
from tidemill.pipelines.commands.whole_loop import demo
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.report.page import write_report
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.summary import read_summary
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.training.train import train
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.lineage import lineage
from tidemill.pipelines.verify.verify import verify
from tidemill.testing import compare_with_run

NO_SCORE = (
    "score", "bundle_version", "transform_hash", "device", "tensorflow", "xla", "padded_rows",
    "call_row",
)  # fmt: skip
CUT = EVALUATE_UNTIL + 6 * HOUR
LABELLED = replace(
    PROJECT,
    label=Label(
        "next_is_dear",
        RIDES,
        col("fare") > 20.0,
        on={"driver": "driver"},
        horizon="6h",
        recurring=True,
    ),
)
# No model takes a time.
WITHOUT_TIMES = replace(
    PROJECT,
    views=[
        replace(
            BY_DRIVER,
            features={k: v for k, v in BY_DRIVER.features.items() if k != "long_ride_at"},
        ),
        BY_ZONE,
    ],
)


def never(*_: Any) -> Any:
    raise AssertionError("a model is built in training only")


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    folder = tmp_path_factory.mktemp("without_model")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress(), publish=True)
    return config


def copied(
    backfilled: Configuration, folder: Path, mode: str = "exact", project: Project = PROJECT
) -> Configuration:
    shutil.copytree(backfilled.root, folder / "run")
    config = configuration(backfilled.path.parent, folder / "run", mode)
    return replace(config, project=project, stream=replace(config.stream, poll_rows=40))


def predictions(config: Configuration) -> pa.Table:
    return table_in(stream_of(config.root) / "predictions").sort_by("request_id")


def proven(config: Configuration) -> dict[str, Any]:
    figures = verify(config, QuietProgress(), 20)
    assert figures["first_mismatches"] == []
    assert figures["mismatches"] == 0
    return figures


@pytest.mark.parametrize("engine", ["fnapi", "prism"])
@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_its_features_are_streamed_published_and_proven(
    mode: str, engine: str, backfilled: Configuration, tmp_path: Path
) -> None:
    config, progress = copied(backfilled, tmp_path, mode), Said()
    told = stream(config, progress, engine=engine)
    assert (told["requests"], told["predictions"], told["bundle"]) == (148, 148, None)
    assert any("'rides_project' has no model" in line for line in progress.lines)
    table = predictions(config)
    for name in NO_SCORE:
        assert table[name].null_count == len(table) == 148, name
    assert table["spec_hash"].unique().to_pylist() == [PROJECT.hash]
    figures = proven(config)
    assert figures["values"] == 148 * FEATURES
    assert (figures["scores"], figures["store_rows"]) == (0, 10)
    assert figures["store_values"] > 0
    assert figures["offline_rows"] > 1_000


def test_they_are_the_features_of_a_stream_with_a_model(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    without = copied(backfilled, tmp_path / "a")
    stream(without, QuietProgress())
    score_without_models(monkeypatch)
    scored = copied(backfilled, tmp_path / "b")
    stream(scored, QuietProgress())
    one, other = predictions(without), predictions(scored)
    assert one.schema == other.schema
    for name in set(one.column_names) - {*NO_SCORE, "sent_us", "created_us"}:
        assert one[name].equals(other[name]), name


def test_it_goes_on_after_a_savepoint_and_a_kill(backfilled: Configuration, tmp_path: Path) -> None:
    config = copied(backfilled, tmp_path)
    told = stream(config, QuietProgress(), until_us=CUT)
    assert proven(config)["predictions"] == told["predictions"] > 20
    shutil.copytree(stream_of(config.root) / "stops", tmp_path / "stops")
    shutil.copy(stream_of(config.root) / "savepoint.json", tmp_path)
    stream(config, QuietProgress(), resume=True, until_us=CUT + 6 * HOUR)
    # As a kill in the second segment leaves it.
    shutil.rmtree(stream_of(config.root) / "stops")
    shutil.copytree(tmp_path / "stops", stream_of(config.root) / "stops")
    shutil.copy(tmp_path / "savepoint.json", stream_of(config.root))
    folder = stream_of(config.root) / "predictions"
    outputs = outputs_of(folder, 2)
    put_outputs(folder, 2, {name: outputs[name] for name in sorted(outputs)[1::2]})
    proven(config)
    assert stream(config, QuietProgress(), resume=True)["predictions"] == 148
    assert proven(config)["waiting_requests"] == 0


def test_a_stream_is_not_resumed_with_a_model_that_it_began_without(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copied(backfilled, tmp_path)
    stream(config, QuietProgress(), until_us=CUT)
    with monkeypatch.context() as patch:
        score_without_models(patch)
        with pytest.raises(StateMismatch, match="begun without a model, and the project has one"):
            stream(config, QuietProgress(), resume=True)
        # Starting over is what the message advises.
        stream(config, QuietProgress(), until_us=CUT)
        assert predictions(config)["score"].null_count == 0
    with pytest.raises(StateMismatch, match="begun with a model, and the project has none now"):
        stream(config, QuietProgress(), resume=True)


def test_a_model_that_is_not_trained_yet_must_be(backfilled: Configuration, tmp_path: Path) -> None:
    config = copied(backfilled, tmp_path, project=replace(WITHOUT_TIMES, model=never))
    backfill(config, QuietProgress(), publish=True)
    before = config.current
    with pytest.raises(BundleError, match=r"there is no live bundle .* run `tidemill train`"):
        stream(config, QuietProgress())
    assert config.current == before


@pytest.mark.parametrize(
    ("project", "lacking"),
    [
        (PROJECT, "no label and no preprocessing_fn and no model; training needs them"),
        (LABELLED, "no preprocessing_fn and no model; training needs them"),
        (replace(LABELLED, preprocessing_fn=never), "no model; training needs one"),
        (
            replace(WITHOUT_TIMES, preprocessing_fn=never, model=never),
            "no label; training needs one",
        ),
    ],
)
def test_training_and_the_whole_loop_say_what_is_missing(
    project: Project, lacking: str, backfilled: Configuration, tmp_path: Path
) -> None:
    config = copied(backfilled, tmp_path, project=project)
    written = {path: path.stat().st_mtime_ns for path in config.root.rglob("*")}
    for command in (train, demo):
        with pytest.raises(DefinitionError, match=f"'rides_project' has {lacking}.*stream"):
            command(config, QuietProgress())
    assert {path: path.stat().st_mtime_ns for path in config.root.rglob("*")} == written


def test_a_score_where_there_is_no_model_is_found(
    backfilled: Configuration, tmp_path: Path
) -> None:
    config = copied(backfilled, tmp_path)
    stream(config, QuietProgress())

    def change(table: pa.Table) -> pa.Table:
        scores = np.full(len(table), np.nan, np.float32)
        scores[3] = 0.5
        place = table.schema.get_field_index("score")
        return table.set_column(place, "score", pa.array(scores, mask=np.isnan(scores)))

    rewrite_predictions(config.root, change)
    figures = verify(config, QuietProgress(), 5)
    assert (figures["mismatches"], figures["score_mismatches"]) == (1, 1)
    (row,) = figures["first_mismatches"]
    assert (row["feature"], row["seen"], row["expected"]) == ("score", "0.5", "null")
    assert row["cause"] == "the stream had no model: its predictions have no score"


def test_a_score_that_is_gone_is_found(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a prediction that looks like one without a model."""
    score_without_models(monkeypatch)
    config = copied(backfilled, tmp_path)
    stream(config, QuietProgress())

    def change(table: pa.Table) -> pa.Table:
        for name in NO_SCORE:
            place = table.schema.get_field_index(name)
            table = table.set_column(
                place, name, pa.nulls(len(table), table.schema.field(place).type)
            )
        return table

    rewrite_predictions(config.root, change)
    assert verify(config, QuietProgress(), 5)["score_mismatches"] >= 148


def test_a_prediction_is_explained_and_has_a_lineage(
    backfilled: Configuration, tmp_path: Path
) -> None:
    config = copied(backfilled, tmp_path)
    stream(config, QuietProgress())
    name = predictions(config)["request_id"][0].as_py()
    made = explain(config, name)
    assert made.stamps["score"] == "none: the stream had no model"
    assert made.stamps["bundle version"] == "none: the stream had no model"
    assert {value.verdict for value in made.values} <= {"equal", "late"}
    lines = lineage(config.root, name).lines()
    assert lines[0].startswith(f"prediction for request {name}: no score, since the stream had no")
    assert not any("bundle" in line for line in lines)
    compared = compare_with_run(config.root, PROJECT)
    assert (len(compared.differences), compared.requests) == (0, 148)


def test_with_a_label_the_training_table_has_it_and_the_stream_has_features(
    backfilled: Configuration, tmp_path: Path
) -> None:
    config = copied(backfilled, tmp_path, project=LABELLED)
    figures = backfill(config, QuietProgress())
    assert 100 < figures["training"]["labelled"] < 400
    assert stream(config, QuietProgress())["predictions"] == 148
    proven(config)
    page = write_report(config, read_summary(config.root)).read_text()
    assert "cannot be measured" in page or "no score" in page


def test_every_command_works(
    backfilled: Configuration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stream(config := copied(backfilled, other), QuietProgress())
    answered = predictions(config)["request_id"][0].as_py()
    for source in backfilled.path.parent.glob("*.csv"):
        shutil.copy(source, tmp_path)
    (tmp_path / "tidemill.yaml").write_text(rides_yaml(more="stream: {engine: fnapi}\n"))

    def run(command: str, *more: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([command, *more, "--config", str(tmp_path / "tidemill.yaml")])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    for command in (
        ("validate",),
        ("apply",),
        ("backfill", "--publish"),
        ("stream",),
        ("features", "by_driver", "d1"),
        ("verify", "--sample", "5"),
        ("explain", answered),
        ("lineage", answered),
    ):
        status, _, errors = run(*command)
        assert status == 0, errors
    status, _, errors = run("train")
    assert status == 1
    assert "error: project 'rides_project' has no label and no preprocessing_fn" in errors
    figures = read_summary(tmp_path / "run")
    assert figures["stream"]["bundle"] is None
    assert figures["verify"]["mismatches"] == 0
    config = replace(backfilled, root=tmp_path / "run")
    assert "no label" in write_report(config, figures).read_text()
    begun = StreamRun.read(stream_of(tmp_path / "run"))
    assert begun is not None
    assert not begun.scored
