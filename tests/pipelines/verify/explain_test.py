"""Explain: each value of a prediction, the events behind it, and whether it is right."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.folders import build_of, stream_of
from tests.support.proof_run import (
    FEATURES,
    Server,
    configuration,
    rewrite_predictions,
    write_sources,
)
from tidemill.features.errors import InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.explain import explain
from tidemill.pipelines.verify.served import read_predictions
from tidemill.pipelines.verify.verify import verify


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A run without faults."""
    folder: Path = tmp_path_factory.mktemp("explain")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    Server(config).serve()
    return config


def test_every_value_stands_with_its_events(served: Configuration) -> None:
    late = {row["request"] for row in verify(served, QuietProgress(), sample=0)["first_late"]}
    predictions = read_predictions(stream_of(served.root), served.project).to_pylist()
    row = next(r for r in predictions if r["by_driver__rides_6h"] and r["request_id"] not in late)
    explained = explain(served, row["request_id"])
    assert len(explained.values) == FEATURES
    assert {value.verdict for value in explained.values} == {"equal"}
    rides = next(v for v in explained.values if v.column == "by_driver__rides_6h")
    assert rides.served == rides.recomputed == len(rides.events) == row["by_driver__rides_6h"]
    asked = row["as_of__by_driver"]
    assert all(asked - 6 * 3_600_000_000 - 300_000_000 <= at < asked for at, _ in rides.events)
    logged = Log(build_of(served.root)).read("rides")
    mine = logged.filter(pc.is_in(logged["ride"], pa.array([id for _, id in rides.events])))
    assert len(set(mine["driver"].to_pylist())) == 1


def test_a_late_value_is_told_from_a_wrong_one(served: Configuration) -> None:
    late = verify(served, QuietProgress(), sample=0)["first_late"][0]
    explained = explain(served, late["request"])
    verdicts = [value.verdict for value in explained.values if value.view == late["view"]]
    assert verdicts.count("late") == late["values"]
    assert "differs" not in verdicts


def test_tables_hold_stamps_values_and_events(served: Configuration) -> None:
    id = read_predictions(stream_of(served.root), served.project)["request_id"][0].as_py()
    stamps, values, events = explain(served, id).tables()
    said: dict[str, str] = {row[0]: row[1] for row in stamps.rows}
    assert said["request"] == id
    assert said["bundle version"] == "b1"
    assert "release" in said["by_zone"]
    assert len(values.rows) == FEATURES
    assert {len(row) for row in events.rows} <= {3}


def test_unknown_prediction_is_an_error_that_names_a_near_one(served: Configuration) -> None:
    with pytest.raises(InputError, match=r"0 predictions .* 'quote7'"):
        explain(served, "quote7")


def test_doubled_prediction_sends_the_reader_to_verify(
    served: Configuration, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(served.root, tmp_path / "run")
    config = configuration(served.path.parent, tmp_path / "run")
    rewrite_predictions(config.root, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    id = read_predictions(stream_of(config.root), config.project)["request_id"][0].as_py()
    with pytest.raises(InputError, match=r"2 predictions .* run `tidemill verify`"):
        explain(config, id)
