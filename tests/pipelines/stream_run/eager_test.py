"""The stream in eager mode: what came before a request, and never more."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.folders import stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    PROJECT,
    RIDES,
    configuration,
    rewrite_predictions,
    score_without_models,
    write_sources,
)
from tests.support.stream_outputs import rows_in, table_in
from tidemill import Label, col
from tidemill.features.contract import HOUR, MINUTE, time_of
from tidemill.features.errors import StateVersionError
from tidemill.features.kernel import hashing
from tidemill.pipelines.commands.scaffold import write_project
from tidemill.pipelines.config.configuration import Configuration, load
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.point_in_time import columns_of, values_at
from tidemill.pipelines.io.log import RECEIVED, Log
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.verify import verify


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)


def served(folder: Path, mode: str, **changes: Any) -> tuple[Configuration, pa.Table, Any]:
    """Stream the rides in a mode; return the predictions by id, and the figures."""
    config = configuration(folder, folder / mode, mode)
    sources = {name: replace(one, **changes) for name, one in config.sources.items()}
    options = replace(config.stream, poll_rows=40)
    config = replace(config, sources=sources, stream=options)
    backfill(config, QuietProgress())
    figures = stream(config, QuietProgress())
    table = table_in(stream_of(config.root) / "predictions").sort_by("request_id")
    assert verify(config, QuietProgress(), 60)["mismatches"] == 0
    return config, table, figures


def test_rows_of_a_table_are_answered_as_in_exact_mode(tmp_path: Path) -> None:
    """They come in the order of their times."""
    write_sources(tmp_path)
    _, eager, figures = served(tmp_path, "eager", received=None)
    _, exact, _ = served(tmp_path, "exact", received=None)
    for name in ["request_id", *(column.name for column in PROJECT.columns)]:
        assert eager[name].equals(exact[name]), name
    for view in PROJECT.views:
        as_of = eager[f"as_of__{view.name}"]
        assert as_of.equals(eager["request_time"].cast(pa.int64()))
    assert figures["as_of_distance_ms"] == {"p50": 0, "p99": 0, "max": 0}


def test_with_receipts_an_answer_is_as_of_what_had_come_before_its_request(tmp_path: Path) -> None:
    """Not as of what came later in its poll: hours of rides are in one."""
    write_sources(tmp_path)
    _, eager, figures = served(tmp_path, "eager")
    for view in PROJECT.views:
        asked = eager["request_time"].cast(pa.int64())
        past = pc.subtract(eager[f"as_of__{view.name}"], asked)
        # A request that comes late is answered as of what had come by then.
        late = pc.subtract(eager["received_us"], asked)
        assert pc.all(pc.greater_equal(past, 0)).as_py()
        assert pc.all(pc.less_equal(past, pc.max_element_wise(late, MINUTE))).as_py()
    distance = figures["as_of_distance_ms"]
    assert distance["p50"] == 0
    assert 0 < distance["max"] < HOUR / 1_000


def test_a_value_that_counts_what_came_after_its_request_is_found(tmp_path: Path) -> None:
    """Although it is the value of the whole history at that instant."""
    write_sources(tmp_path)
    config, table, _ = served(tmp_path, "eager")
    asked = Log(config.current.build_folder).read("quotes")
    drivers = dict(zip(asked["quote"].to_pylist(), asked["driver"].to_pylist(), strict=True))
    keys = pa.array([drivers[name] for name in table["request_id"].to_pylist()])
    as_of = hashing.bits(table["as_of__by_driver"].combine_chunks())
    rides = Log(config.current.build_folder).read("rides")
    complete = columns_of(BY_DRIVER, *values_at(BY_DRIVER, rides, keys, as_of))
    differ = [
        row
        for row in range(len(table))
        if any(table[name][row].as_py() != complete[name][row].as_py() for name in complete)
    ]
    assert len(differ) > 3
    row = differ[2]

    def change(found: pa.Table) -> pa.Table:
        mine = found["request_id"].to_pylist().index(table["request_id"][row].as_py())
        for column, values in complete.items():
            place = found.schema.get_field_index(column)
            changed = found[column].to_pylist()
            changed[mine] = values[row].as_py()
            found = found.set_column(place, column, pa.array(changed, found.schema.types[place]))
        return found

    rewrite_predictions(config.root, change)
    found = verify(config, QuietProgress(), 0)
    assert found["mismatches"] == found["feature_mismatches"] > 0
    first = found["first_mismatches"][0]
    assert (first["what"], first["id"]) == ("value", table["request_id"][row].as_py())
    assert first["expected"] == str(table[first["feature"]][row].as_py())
    assert re.fullmatch(
        r"ahead: events? r\d+.* counted, which came after the request", first["cause"]
    )


def labelled_by(config: Configuration) -> dict[str, int]:
    """The time of the label of each quote, row by row: the driver's next ride with a fare."""
    log = Log(config.current.build_folder)
    rides = log.read("rides", columns=["driver", "ended_at", "fare"]).to_pylist()
    times: dict[str, int] = {}
    for quote in log.read("quotes").to_pylist():
        after = [
            ride["ended_at"]
            for ride in rides
            if quote["driver"] == ride["driver"] is not None and ride["fare"] is not None
            if quote["asked_at"] < ride["ended_at"] <= quote["asked_at"] + timedelta(hours=6)
        ]
        if after:
            times[quote["quote"]] = time_of(min(after))
    return times


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_requests_that_came_after_their_label_are_counted(mode: str, tmp_path: Path) -> None:
    """Quotes come up to half an hour late; by then a driver may have had the next ride."""
    label = Label(
        "next_is_dear", RIDES, col("fare") > 20.0, on={"driver": "driver"}, horizon="6h",
        recurring=True,
    )  # fmt: skip
    write_sources(tmp_path)
    config = configuration(tmp_path, tmp_path / "run", mode)
    config = replace(
        config,
        project=replace(PROJECT, label=label),
        stream=replace(config.stream, poll_rows=40),
    )
    backfill(config, QuietProgress())
    stream(config, QuietProgress())
    times = labelled_by(config)
    answered = [
        (max(row["as_of__by_driver"], row["as_of__by_zone"]), times[row["request_id"]], row)
        for row in rows_in(stream_of(config.root) / "predictions")
        if row["request_id"] in times
    ]
    after = [row for as_of, at, row in answered if as_of > at]
    # Only a request that was received after its label's event can be answered so.
    assert all(row["received_us"] >= times[row["request_id"]] for row in after)
    figures = verify(config, QuietProgress(), 10)
    assert figures["mismatches"] == 0
    assert figures["answered_after_label"] == len(after)
    # In exact mode only a request that came behind the frontier can be.
    assert len(after) > (2 if mode == "eager" else 0)
    assert len(answered) - len(after) > 50


def test_no_prediction_of_the_new_project_knows_its_label(tmp_path: Path) -> None:
    config = load(write_project("tiny_shop", tmp_path) / "tidemill.yaml")
    project = replace(config.project, model=None)
    assert project.label is not None
    config = replace(config, project=project, stream=replace(config.stream, mode="eager"))
    backfill(config, QuietProgress())
    assert stream(config, QuietProgress())["predictions"] == 120
    log = Log(config.current.build_folder)
    settled = log.read("settlements", columns=["checkout_id", "settled_at", RECEIVED])
    labels = {row["checkout_id"]: row for row in settled.to_pylist()}
    known = 0
    for row in rows_in(stream_of(config.root) / "predictions"):
        if (label := labels.get(row["request_id"])) is None:
            continue
        known += 1
        for view in project.views:
            assert row[f"as_of__{view.name}"] <= time_of(label["settled_at"])
            assert row[f"as_of__{view.name}"] <= label[RECEIVED]
        assert row["received_us"] < label[RECEIVED]
    assert known > 90
    figures = verify(config, QuietProgress(), 10)
    assert (figures["mismatches"], figures["answered_after_label"]) == (0, 0)


def test_a_stream_of_a_version_with_another_order_is_refused_by_name(tmp_path: Path) -> None:
    write_sources(tmp_path)
    config, _, _ = served(tmp_path, "eager")
    folder = stream_of(config.root)
    begun = StreamRun.read(folder)
    assert begun is not None
    replace(begun, eager_order=None, ended=False).write(folder)
    for call in (
        lambda: verify(config, QuietProgress(), 5),
        lambda: stream(config, QuietProgress(), resume=True),
    ):
        with pytest.raises(StateVersionError, match=r"orders rows by receipt.*--mode eager"):
            call()
