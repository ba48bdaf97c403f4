"""Verification: a run without faults passes; every kind of fault is found, with its cause."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.support.folders import build_of, stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    BY_ZONE,
    FEATURES,
    PROJECT,
    RIDES,
    STREAM_UNTIL,
    CountsTheRequestsOwnInstant,
    DoesNotWaitForStragglers,
    DropsABatch,
    ReusesAStaleOperator,
    Server,
    configuration,
    rewrite_predictions,
    score_without_models,
    write_sources,
)
from tidemill.features.errors import InputError
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.history.build_manifest import BuildManifest
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.verify import findings, prove_stream
from tidemill.pipelines.verify.diagnosis import EARLY
from tidemill.pipelines.verify.read_features import read_features
from tidemill.pipelines.verify.served import read_predictions
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.files.records import checksum_of
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.reader import FRONTIER, STATUS
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite.scripts import rows_table

SAMPLE = 60


@pytest.fixture(autouse=True)
def scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    score_without_models(monkeypatch)


@pytest.fixture(scope="module")
def backfilled(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """A run after its backfill."""
    folder = tmp_path_factory.mktemp("proof")
    write_sources(folder)
    config = configuration(folder, folder / "run")
    backfill(config, QuietProgress())
    return config


@pytest.fixture
def ready(backfilled: Configuration, tmp_path: Path) -> Configuration:
    """A copy for one test."""
    shutil.copytree(backfilled.root, tmp_path / "run")
    return configuration(backfilled.path.parent, tmp_path / "run")


@pytest.fixture(scope="module")
def served_once(
    backfilled: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> Configuration:
    """A run without faults."""
    root = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(backfilled.root, root)
    config = configuration(backfilled.path.parent, root)
    Server(config).serve()
    return config


@pytest.fixture
def served(served_once: Configuration, tmp_path: Path) -> Configuration:
    """A copy for one test."""
    shutil.copytree(served_once.root, tmp_path / "run")
    return configuration(served_once.path.parent, tmp_path / "run")


def _verify(config: Configuration, sample: int = SAMPLE) -> dict[str, Any]:
    return verify(config, QuietProgress(), sample=sample)


def _causes(figures: dict[str, Any], what: str = "value") -> list[str]:
    return [row["cause"] for row in figures["first_mismatches"] if row["what"] == what]


def test_a_right_run_has_no_mismatch_and_its_late_values_are_explained(
    served: Configuration,
) -> None:
    figures = _verify(served)
    assert figures["first_mismatches"] == []
    assert figures["mismatches"] == 0
    assert figures["predictions"] == figures["requests"] > 80
    assert figures["values"] == figures["predictions"] * FEATURES
    assert figures["oracle_values"] == SAMPLE * FEATURES
    # The events have 6 drivers and 4 zones; "new" and null have no events.
    assert figures["store_entities"] == 10
    assert figures["store_values"] == 6 * len(BY_DRIVER.columns) + 4 * 4
    assert figures["sources"]["rides"]["read"] == 820
    assert figures["sources"]["quotes"]["streamed"] == figures["requests"]
    # Late rides are named, with the values that lack them.
    assert figures["late_values"] > 0
    assert all(row["late_events"][0] in "rx" for row in figures["first_late"])


def test_every_request_may_be_sampled(served: Configuration) -> None:
    figures = _verify(served, sample=10_000)
    assert figures["mismatches"] == 0
    assert figures["oracle_values"] == figures["values"]


def test_an_eager_run_is_proven_as_seen(backfilled: Configuration, tmp_path: Path) -> None:
    shutil.copytree(backfilled.root, tmp_path / "run")
    config = configuration(backfilled.path.parent, tmp_path / "run", mode="eager")
    Server(config).serve()
    figures = _verify(config)
    assert figures["first_mismatches"] == []
    assert figures["mismatches"] == 0
    assert figures["late_values"] > 0


def test_a_dropped_batch_is_found_and_its_events_are_named(ready: Configuration) -> None:
    server = DropsABatch(ready)
    server.serve()
    assert server.dropped > 0
    figures = _verify(ready)
    assert figures["feature_mismatches"] > 0
    assert figures["store_mismatches"] > 0
    assert any(cause.startswith("lost: event") for cause in _causes(figures))


def test_an_event_at_the_requests_own_instant_is_found(
    ready: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "LISTED", 500)
    monkeypatch.setattr(prove_stream, "LISTED", 500)
    CountsTheRequestsOwnInstant(ready).serve()
    figures = _verify(ready)
    assert figures["feature_mismatches"] > 0
    causes = _causes(figures)
    assert all(cause.startswith("same instant:") for cause in causes)
    assert any("at the request's own instant was counted" in cause for cause in causes)


def test_a_stale_cache_is_found(ready: Configuration) -> None:
    ReusesAStaleOperator(ready).serve()
    figures = _verify(ready)
    assert figures["feature_mismatches"] > 0
    assert any(cause.startswith("stale: events") for cause in _causes(figures))


def test_an_answer_given_before_its_frontier_had_passed_is_not_excused(
    ready: Configuration,
) -> None:
    DoesNotWaitForStragglers(ready).serve()
    figures = _verify(ready)
    assert figures["feature_mismatches"] > 0
    assert set(_causes(figures)) == {EARLY}


def test_a_flipped_bit_in_one_prediction_is_found(served: Configuration) -> None:
    def flip(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("by_driver__fares_6h")
        values = table.column(place).combine_chunks()
        words = np.array(values.to_numpy(zero_copy_only=False), copy=True).view(np.int64)
        row = int(np.flatnonzero(words.view(np.float64) > 0)[3])
        words[row] ^= 1
        changed = pa.array(words.view(np.float64), mask=pc.is_null(values).to_numpy(False))
        return table.set_column(place, table.schema.field(place), changed)

    rewrite_predictions(served.root, flip)
    figures = _verify(served, sample=0)
    assert figures["mismatches"] == 1
    (row,) = figures["first_mismatches"]
    assert row["view"] == "by_driver"
    assert row["feature"] == "by_driver__fares_6h"
    assert row["seen"] != row["expected"]
    assert row["cause"].startswith("flipped bit")


def test_a_missing_prediction_counts_as_many_mismatches_as_it_has_features(
    served: Configuration,
) -> None:
    rewrite_predictions(served.root, lambda table: table.slice(1))
    figures = _verify(served)
    assert figures["mismatches"] == FEATURES
    assert [row["what"] for row in figures["first_mismatches"]] == ["lost"]
    assert figures["predictions"] == figures["requests"] - 1


def test_a_prediction_is_missing_although_a_record_says_that_nobody_answered(
    served: Configuration,
) -> None:
    lost: list[pa.Table] = []

    def drop(table: pa.Table) -> pa.Table:
        lost.append(table.slice(0, 1))
        return table.slice(1)

    rewrite_predictions(served.root, drop)
    record = rejected.batch(
        rejected.Stage.ANSWER,
        stream="quotes",
        partition=lost[0]["partition"][0].as_py(),
        positions=lost[0]["position"].to_numpy(),
        reasons=[rejected.Reason.NO_ANSWER],
        details=["views by_zone did not answer in time"],
        origins=["quotes/0:0"],
        payloads=[b"{}"],
    )
    write_rows(
        stream_of(served.root) / "rejected_by_stream", pa.Table.from_batches([record]), "one"
    )
    figures = _verify(served)
    assert [row["what"] for row in figures["first_mismatches"]] == ["lost", "rejected"]
    assert figures["first_mismatches"][1]["cause"].startswith("the releases answer this request")
    assert figures["mismatches"] == FEATURES + 1
    assert figures["rejected_requests"] == 0
    assert figures["predictions"] == figures["requests"] - 1


def test_a_doubled_prediction_counts_as_many_mismatches_as_it_has_features(
    served: Configuration,
) -> None:
    rewrite_predictions(served.root, lambda table: pa.concat_tables([table, table.slice(5, 1)]))
    figures = _verify(served)
    assert figures["mismatches"] == FEATURES
    assert [row["what"] for row in figures["first_mismatches"]] == ["doubled"]
    assert figures["values"] == (figures["requests"] + 1) * FEATURES


def test_a_prediction_nobody_asked_for_is_found(served: Configuration) -> None:
    def invent(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("request_id")
        extra = table.slice(0, 1).set_column(place, "request_id", pa.array(["q999"]))
        return pa.concat_tables([table, extra])

    rewrite_predictions(served.root, invent)
    figures = _verify(served)
    assert figures["mismatches"] == FEATURES
    assert [row["what"] for row in figures["first_mismatches"]] == ["extra"]


def test_an_answer_for_another_instant_than_it_was_asked_for_is_found(
    served: Configuration,
) -> None:
    def postpone(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("as_of__by_zone")
        as_of = table.column(place).to_numpy() + np.eye(1, len(table), 2, dtype=np.int64)[0]
        return table.set_column(place, "as_of__by_zone", pa.array(as_of))

    rewrite_predictions(served.root, postpone)
    figures = _verify(served)
    assert "as_of" in {row["what"] for row in figures["first_mismatches"]}


def test_an_answer_that_names_a_release_without_evidence_is_found(served: Configuration) -> None:
    path = stream_of(served.root) / "releases" / "1-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[len(lines) // 2 :]))
    figures = _verify(served)
    assert figures["mismatches"] > 0
    assert {row["what"] for row in figures["first_mismatches"]} == {"release"}


def test_a_release_that_left_no_evidence_is_found(served: Configuration) -> None:
    path = stream_of(served.root) / "releases" / "1-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    figures = _verify(served)
    lost = json.loads(lines[2])["number"]
    named = [
        row for row in figures["first_mismatches"] if row["id"] == f"release {lost} of shard 0"
    ]
    assert [row["seen"] for row in named] == ["no evidence"]


def test_the_log_that_was_replayed_is_not_believed(ready: Configuration) -> None:
    log = Log(build_of(ready.root))
    table = log.read("rides", 0)
    received = table.column("_received").to_numpy()
    fares = pc.add(table["fare"], 1e-9)
    place = table.schema.get_field_index("fare")
    log.write(RIDES, 0, table.set_column(place, "fare", fares), received)
    Server(ready).serve()
    figures = _verify(ready)
    assert figures["feature_mismatches"] > 0
    assert figures["oracle_mismatches"] > 0


def rows_of_fill(served: Configuration) -> str:
    """Return the table of the rows that readers see."""
    database = open_database(served.online_store)
    (fill,) = (
        one for one in database.fills([KeySpace.of(PROJECT.name, BY_DRIVER)]) if one.is_current
    )
    database.close()
    return rows_table(fill.id)


def test_a_store_row_overwritten_with_an_older_one_is_found(served: Configuration) -> None:
    rows = rows_of_fill(served)
    (key,) = online_keys("driver", pa.array(["d3"]))
    (other,) = online_keys("driver", pa.array(["d4"]))
    with sqlite3.connect(served.online_store.path) as sqlite:
        old = sqlite.execute(f'SELECT cells FROM "{rows}" WHERE entity_key = ?', (other,))
        sqlite.execute(
            f'UPDATE "{rows}" SET cells = ?, event_timestamp = event_timestamp - 60000000 '
            "WHERE entity_key = ?",
            (old.fetchone()[0], key),
        )
    sqlite.close()
    figures = _verify(served)
    assert figures["feature_mismatches"] == 0
    assert figures["mismatches"] == figures["store_mismatches"] > 0
    assert {(row["what"], row["id"]) for row in figures["first_mismatches"]} == {("store", "d3")}


def test_a_store_row_that_should_have_been_replaced_is_found(served: Configuration) -> None:
    rows = rows_of_fill(served)
    (key,) = online_keys("driver", pa.array(["d3"]))
    with sqlite3.connect(served.online_store.path) as sqlite:
        sqlite.execute(
            f'UPDATE "{rows}" SET valid_until = ? WHERE entity_key = ?', (STREAM_UNTIL, key)
        )
    sqlite.close()
    figures = _verify(served)
    status, column = figures["first_mismatches"]
    assert (status["seen"], status["expected"]) == ("OUTSIDE_MAX_AGE", "PRESENT")
    assert (column["id"], column["feature"]) == ("d3", "valid_until")
    assert figures["mismatches"] == len(BY_DRIVER.columns) + 1


def test_a_store_row_that_is_missing_is_found(served: Configuration) -> None:
    rows = rows_of_fill(served)
    (key,) = online_keys("driver", pa.array(["d1"]))
    with sqlite3.connect(served.online_store.path) as sqlite:
        sqlite.execute(f'DELETE FROM "{rows}" WHERE entity_key = ?', (key,))
    sqlite.close()
    figures = _verify(served)
    (row,) = figures["first_mismatches"]
    assert (row["id"], row["seen"], row["expected"]) == ("d1", "NOT_FOUND", "PRESENT")


def test_a_frontier_that_did_not_reach_the_store_is_found(served: Configuration) -> None:
    with sqlite3.connect(served.online_store.path) as sqlite:
        sqlite.execute("UPDATE tidemill_parts SET frontier = frontier - 1 WHERE part = 0")
    sqlite.close()
    figures = _verify(served)
    assert ("store", "shard 0") in {(row["what"], row["id"]) for row in figures["first_mismatches"]}


def test_a_build_without_a_stream_is_proven(ready: Configuration) -> None:
    figures = _verify(ready)
    assert figures["mismatches"] == figures["values"] == 0
    assert (figures["training_rows"], figures["states"]) == (400, 4)
    assert figures["training_values"] == 400 * FEATURES
    assert not ready.online_store.path.exists()
    assert figures["store_entities"] == 0


def test_features_command_reads_values_status_and_frontier(served: Configuration) -> None:
    table = read_features(served.project, served.online_store, "by_zone", ["2", "17"])
    assert table.column_names[0] == "zone"
    assert table["zone"].to_pylist() == [2, 17]
    assert table[STATUS].to_pylist() == ["PRESENT", "NOT_FOUND"]
    assert table[FRONTIER].to_pylist() == [STREAM_UNTIL, STREAM_UNTIL]
    assert table["by_zone__rides_1d"].to_pylist()[0] > 0
    with pytest.raises(InputError, match="int64 keys"):
        read_features(served.project, served.online_store, "by_zone", ["two"])


def test_late_requests_are_proven_as_of_the_frontier_they_met(served: Configuration) -> None:
    table = read_predictions(stream_of(served.root), served.project)
    asked = table["request_time"].cast(pa.int64()).to_numpy()
    late = table["as_of__by_driver"].to_numpy() > asked
    assert late.sum() > 3
    assert _verify(served)["mismatches"] == 0

    def claim(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("as_of__by_driver")
        times = table["request_time"].cast(pa.int64())
        return table.set_column(place, "as_of__by_driver", times)

    rewrite_predictions(served.root, claim)
    figures = _verify(served, sample=0)
    stamps = [row for row in figures["first_mismatches"] if row["what"] == "as_of"]
    assert len(stamps) == min(late.sum(), 20)


OTHER_ZONE = replace(BY_ZONE, features={"rides_1d": BY_ZONE.features["rides_1d"]})


@pytest.mark.parametrize("changes", [{"shards": 3}, {"project": replace(
    PROJECT, views=(BY_DRIVER, OTHER_ZONE))}], ids=["shards", "view"])  # fmt: skip
def test_what_other_definitions_have_made_is_proven_by_these(
    served: Configuration, changes: dict[str, Any]
) -> None:
    right = _verify(served)
    figures = _verify(replace(served, **changes))
    assert figures["mismatches"] == 0, figures["first_mismatches"]
    for name in ("values", "training_values", "states", "predictions", "releases"):
        assert figures[name] == right[name] > 0, name
    assert figures["earlier"] == []


def test_what_definitions_have_made_that_were_not_recorded_is_not_proven_and_said(
    served: Configuration,
) -> None:
    """Releases before did not record them."""
    run = StreamRun.read(stream_of(served.root))
    assert run is not None
    replace(run, definitions=None).write(stream_of(served.root))
    build = build_of(served.root)
    replace(BuildManifest.read(build), definitions=None).write(build)
    assert _verify(served)["mismatches"] == 0
    config = replace(served, project=replace(PROJECT, views=(BY_DRIVER, OTHER_ZONE)))
    progress, said = QuietProgress(), []
    progress.say = said.append  # type: ignore[method-assign]
    figures = verify(config, progress, sample=5)
    assert figures["mismatches"] == figures["values"] == figures["training_values"] == 0
    assert [row["why"] for row in figures["earlier"]] == ["of another definition of by_zone"]
    assert sum("is not proven: it is of another definition of by_zone" in one for one in said) == 2
    config = replace(served, shards=3)
    figures = verify(config, QuietProgress(), sample=5)
    assert [row["why"] for row in figures["earlier"]] == ["of 2 shards"]


def test_files_that_hold_the_same_rows_in_other_bytes_are_named(served: Configuration) -> None:
    manifest = build_of(served.root) / "build.json"
    stored = json.loads(manifest.read_text())
    header = {name: stored.pop(name) for name in ("format", "version", "checksum")}
    stored["sources"]["rides"]["files"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps({**header, "checksum": checksum_of(stored), **stored}))
    figures = _verify(served)
    assert figures["mismatches"] == 0
    (named,) = figures["files_written_again"]
    assert named.startswith("rides: ")
    assert named.endswith("rides.csv was changed")
