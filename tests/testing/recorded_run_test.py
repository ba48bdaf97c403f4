"""`compare_with_run`: every difference from other definitions, by request; nothing is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.folders import build_of, stream_of
from tests.support.markdown import ROOT
from tests.support.proof_run import (
    BY_DRIVER,
    BY_ZONE,
    FEATURES,
    PROJECT,
    QUOTES,
    RIDES,
    Server,
    configuration,
    rewrite_predictions,
    write_sources,
)
from tidemill import Entity, FeatureView, Project, col, count, max, sum
from tidemill.features.errors import InputError
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify.verify import verify
from tidemill.testing import compare_with_run
from tidemill.testing.recorded_run import DIFFERENCES


@pytest.fixture(scope="module", params=["exact", "eager"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Configuration:
    """A run that was served correctly; some of its events were late."""
    folder = tmp_path_factory.mktemp(request.param)
    write_sources(folder)
    config = configuration(folder, folder / "run", request.param)
    backfill(config, QuietProgress())
    Server(config).serve()
    return config


@pytest.fixture
def root(served: Configuration, tmp_path: Path) -> Path:
    """A copy of the run's folder, which a test may change."""
    shutil.copytree(served.root, tmp_path / "run")
    return tmp_path / "run"


def by_driver(**features: Any) -> FeatureView:
    return dataclasses.replace(BY_DRIVER, features={**BY_DRIVER.features, **features})


def project(*views: FeatureView, **options: Any) -> Project:
    return dataclasses.replace(PROJECT, views=list(views), **options)


def test_the_same_definitions_give_what_was_served_late_events_or_not(
    served: Configuration,
) -> None:
    found = compare_with_run(served.root, PROJECT)
    assert found.differences.to_pylist() == []
    assert found.differences.schema.equals(DIFFERENCES)
    assert (found.only_served, found.only_now) == ((), ())
    figures = verify(served, QuietProgress(), sample=1)
    assert found.requests == figures["predictions"] > 80
    assert found.values == found.requests * (FEATURES + 1)  # an input of the request, too
    assert found.now.equals(found.served)
    assert found.rejected.num_rows == 0
    # So the values depend on which events each release had seen.
    assert served.stream.mode == "eager" or figures["late_values"] > 0


def test_nothing_is_written(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    compare_with_run(root, PROJECT)
    assert {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))} == before
    for path in root.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


def test_a_changed_feature_is_shown_by_request(root: Path) -> None:
    changed = by_driver(rides_6h=count(over="6h", where=col("fare") > 20.0))
    found = compare_with_run(root, project(changed, BY_ZONE))
    rows = found.differences.to_pylist()
    assert len(rows) > 20
    assert {(row["view"], row["feature"]) for row in rows} == {("by_driver", "by_driver__rides_6h")}
    served = {row["request_id"]: row for row in found.served.to_pylist()}
    now = {row["request_id"]: row for row in found.now.to_pylist()}
    for row in rows:
        id = row["request_id"]
        assert row["served"] == str(served[id]["by_driver__rides_6h"])
        assert row["now"] == str(now[id]["by_driver__rides_6h"])
        assert int(row["now"]) < int(row["served"])
        assert row["as_of"] >= served[id]["request_time"]
    equal = set(served) - {row["request_id"] for row in rows}
    assert all(served[id]["by_driver__rides_6h"] == now[id]["by_driver__rides_6h"] for id in equal)


def test_a_null_and_another_dtype_are_differences(root: Path) -> None:
    changed = by_driver(
        rides_6h=sum(col("fare") * 0.0 + 1.0, over="6h"), fares_6h=max(col("fare"), over="6h")
    )
    found = compare_with_run(root, project(changed, BY_ZONE)).differences.to_pylist()
    counts = [row for row in found if row["feature"] == "by_driver__rides_6h"]
    sums = [row for row in found if row["feature"] == "by_driver__fares_6h"]
    # The count is int64, so it differs from the float64 sum in type, even where both are 0.
    assert ("0", "0.0") in {(row["served"], row["now"]) for row in counts}
    assert ("0.0", "None") in {(row["served"], row["now"]) for row in sums}
    assert len(counts) == compare_with_run(root, PROJECT).requests


def test_what_only_one_side_has_is_listed(root: Path) -> None:
    features = dict(BY_DRIVER.features)
    features["rides_2h"] = features.pop("rides_6h")
    features["rides_2h"] = count(over="2h")
    renamed = dataclasses.replace(BY_DRIVER, features=features)
    new = FeatureView(
        "zones", entity=Entity("zone", dtype="int64"), stream=RIDES, hop="1h",
        features={"rides_1d": count(over="1d")},
    )  # fmt: skip
    request = dataclasses.replace(QUOTES, inputs={"far": col("km") > 1.0})
    found = compare_with_run(root, project(renamed, new, request=request))
    assert found.only_now == ("far", "by_driver__rides_2h", "zones__rides_1d")
    assert found.only_served == (
        "km",
        "by_driver__rides_6h",
        *(column.name for column in BY_ZONE.columns),
    )
    assert found.differences.num_rows == 0
    assert found.values == found.requests * (len(BY_DRIVER.columns) - 1)
    assert pc.max(found.now["zones__rides_1d"]).as_py() > 10
    assert found.now.num_rows == found.served.num_rows


def test_a_changed_input_of_the_request_has_no_view(root: Path) -> None:
    request = dataclasses.replace(QUOTES, inputs={"km": col("km") * 2.0})
    found = compare_with_run(root, project(BY_DRIVER, BY_ZONE, request=request))
    rows = found.differences.to_pylist()
    assert len(rows) == found.requests
    times = dict(
        zip(
            *(found.served[name].to_pylist() for name in ("request_id", "request_time")),
            strict=True,
        )
    )
    for row in rows:
        assert (row["view"], row["feature"], row["served"], row["now"]) == ("", "km", "1.5", "3.0")
        assert row["as_of"] == times[row["request_id"]]


def test_another_hop_and_another_key_are_compared_like_any_change(root: Path) -> None:
    hops = dataclasses.replace(BY_DRIVER, hop="3h")
    assert compare_with_run(root, project(hops, BY_ZONE)).differences.num_rows > 0


def test_rows_that_the_definitions_reject_now_are_listed_and_count_for_nothing(root: Path) -> None:
    by_fare = FeatureView(
        "by_minutes", entity=Entity("minutes", dtype="int64"), stream=RIDES, hop="1h",
        features={"n": count(over="1h")},
    )  # fmt: skip
    stricter = dataclasses.replace(RIDES, schema={**RIDES.schema, "fare": "int64"})
    request = dataclasses.replace(QUOTES, schema={**QUOTES.schema, "minutes": "int64"})
    with pytest.raises(InputError, match=r"log of 'quotes' .* has no column 'minutes'"):
        compare_with_run(root, project(by_fare, request=request))
    changed = dataclasses.replace(
        BY_DRIVER, stream=stricter, features={"rides_6h": count(over="6h")}
    )
    found = compare_with_run(root, project(changed))
    assert set(found.rejected["source"].to_pylist()) == {"rides"}
    assert set(found.rejected["reason"].to_pylist()) == {"wrong_type"}
    assert found.differences.num_rows > 20


def test_a_request_that_the_definitions_reject_is_left_out(root: Path) -> None:
    request = dataclasses.replace(QUOTES, schema={**QUOTES.schema, "km": "int64"}, inputs={})
    found = compare_with_run(root, project(BY_DRIVER, request=request))
    assert found.requests == found.values == 0
    assert set(found.rejected["source"].to_pylist()) == {"quotes"}


def test_a_view_that_was_fed_by_another_stream_is_computed_from_the_whole_log(root: Path) -> None:
    spec = json.loads(json.dumps(PROJECT.spec()))
    spec["views"][0]["stream"]["stream"] = "journeys"
    bundle = root / "bundles" / "b1"
    bundle.mkdir(parents=True)
    (bundle / "spec.json").write_text(json.dumps(spec))
    found = compare_with_run(root, PROJECT).differences
    assert set(found["view"].to_pylist()) == {"by_driver"}
    (bundle / "spec.json").write_text(json.dumps(PROJECT.spec()))
    assert compare_with_run(root, PROJECT).differences.num_rows == 0


def _remove(of: Callable[[Path], Path], folder: str) -> Any:
    return lambda root: shutil.rmtree(of(root) / folder)


def _forget_releases(root: Path) -> None:
    for path in (stream_of(root) / "releases").glob("*.jsonl"):
        lines = [line for line in path.read_text().splitlines() if '"number": 3,' not in line]
        path.write_text("\n".join(lines) + "\n")


def _other_positions(root: Path) -> None:
    for path in (stream_of(root) / "releases").glob("*.jsonl"):
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in entries:
            entry["positions"].append(0)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _other_ids(root: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        ids = pa.array([f"x{id}" for id in table["request_id"].to_pylist()])
        return table.set_column(0, "request_id", ids)

    rewrite_predictions(root, change)


def _other_places(root: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("position")
        return table.set_column(place, "position", pc.add(table["position"], 10_000))

    rewrite_predictions(root, change)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (_remove(stream_of, "predictions"), "there are no predictions in"),
        (_remove(stream_of, "releases"), "there are no releases in"),
        (_remove(build_of, "log/rides"), "there is no log of 'rides'"),
        (_remove(build_of, "log/quotes"), "there is no log of 'quotes'"),
        (_forget_releases, r"has no release 3 of view 'by_\w+', shard \d, which answered it"),
        (_other_positions, "knows 4 partitions of events and requests, the log has 1 of 'rides'"),
        (_other_ids, "does not hold the request of prediction 'xq"),
        (_other_places, "does not hold the request of prediction 'q"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(root: Path, harm: Any, why: str) -> None:
    harm(root)
    with pytest.raises(InputError, match=why):
        compare_with_run(root, PROJECT)


def test_no_engine_no_store_and_no_model_are_loaded(root: Path) -> None:
    (root.parent / "rides_project.py").write_text(
        "from tidemill import *\n"
        "RIDES = EventStream('rides', schema={'ride': 'string', 'ended_at': 'timestamp',"
        " 'received_at': 'timestamp', 'driver': 'string', 'minutes': 'int64'},"
        " event_time='ended_at', event_id='ride', transport=['received_at'])\n"
        "QUOTES = Request('quotes', schema={'quote': 'string', 'asked_at': 'timestamp',"
        " 'driver': 'string'}, request_time='asked_at', request_id='quote')\n"
        "VIEW = FeatureView('by_driver', entity=Entity('driver'), stream=RIDES, hop='5m',"
        " features={'rides_6h': count(over='6h')})\n"
        "PROJECT = Project('rides_project', request=QUOTES, views=[VIEW])\n"
    )
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from rides_project import PROJECT\n"
        "from tidemill.testing import compare_with_run\n"
        "found = compare_with_run(sys.argv[1] + '/run', PROJECT)\n"
        "assert found.values > 80 and found.differences.num_rows == 0, found.differences\n"
        "heavy = {'apache_beam', 'tensorflow', 'keras', 'feast', 'duckdb', 'redis'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root.parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
