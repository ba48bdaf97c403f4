"""A proof that follows a stream: what it finds, round by round, and what it goes on from."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.support.folders import build_of, stream_of
from tests.support.proof_run import (
    BY_DRIVER,
    FEATURES,
    PROJECT,
    RIDES,
    STREAM_UNTIL,
    DoesNotWaitForStragglers,
    DropsABatch,
    Server,
    configuration,
    rewrite_predictions,
    score_without_models,
    write_sources,
)
from tidemill.features.contract import HOUR
from tidemill.features.errors import DamagedFile, StateMismatch
from tidemill.features.rows import rejected
from tidemill.pipelines.config.configuration import Configuration
from tidemill.pipelines.history.backfill import backfill
from tidemill.pipelines.io.log import Log
from tidemill.pipelines.io.sinks import write_rows
from tidemill.pipelines.recovery.handoff import StreamRun
from tidemill.pipelines.run.progress import QuietProgress
from tidemill.pipelines.run.proof_record import Cause, ProofRecord
from tidemill.pipelines.stream_run.stream import stream
from tidemill.pipelines.verify.diagnosis import EARLY
from tidemill.pipelines.verify.follow.follower import Follower
from tidemill.pipelines.verify.verify import verify
from tidemill.serving.online.backends import open_database
from tidemill.serving.online.rows import KeySpace, online_keys
from tidemill.serving.online.sqlite.scripts import rows_table
from tidemill.serving.stores.online_places import SqlitePlace

FAULTS = {Cause.LOST, Cause.UNEXPLAINED}


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


@pytest.fixture(scope="module")
def served_once(
    backfilled: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> Configuration:
    root = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(backfilled.root, root)
    config = configuration(backfilled.path.parent, root)
    serve(Server(config))
    return config


@pytest.fixture
def served(served_once: Configuration, tmp_path: Path) -> Configuration:
    """A copy of a run without faults, for one test."""
    shutil.copytree(served_once.root, tmp_path / "run")
    return configuration(served_once.path.parent, tmp_path / "run")


@pytest.fixture
def ready(backfilled: Configuration, tmp_path: Path) -> Configuration:
    """A copy of a run that has not served yet."""
    shutil.copytree(backfilled.root, tmp_path / "run")
    return configuration(backfilled.path.parent, tmp_path / "run")


def serve(server: Server) -> None:
    """Serve, and name the outputs as those of a stream's first segment."""
    server.serve()
    folder = stream_of(server.config.root)
    for path in [*(folder / "predictions").iterdir(), *(folder / "releases").iterdir()]:
        path.rename(path.with_name(f"00001-{path.name}"))


def follower(
    config: Configuration, record: ProofRecord | None = None, share: float = 1.0
) -> Follower:
    config = replace(config, pinned=config.current)
    run = StreamRun.read(config.current.stream_folder)
    assert run is not None
    if record is None:
        record = ProofRecord(config.current.generation, config.current.stream, run.began)
    return Follower(config, run, record, share, open_database(config.online_store))


def proven(config: Configuration, share: float = 1.0) -> ProofRecord:
    """Prove all that is durable, and all rows of the online store."""
    following = follower(config, share=share)
    while following.round() is not None:
        pass
    following.idle()
    return following.record


def faults(record: ProofRecord) -> list[tuple[str, str]]:
    """Return what the faults are of, and why."""
    return [(one.what, one.why) for one in record.differences if one.cause in FAULTS]


@pytest.mark.parametrize("mode", ["exact", "eager"])
def test_it_proves_what_verify_proves(mode: str, backfilled: Configuration, tmp_path: Path) -> None:
    shutil.copytree(backfilled.root, tmp_path / "run")
    config = configuration(backfilled.path.parent, tmp_path / "run", mode=mode)
    Server(config).serve()
    whole = verify(config, QuietProgress(), sample=0)
    folder = stream_of(config.root)
    for path in [*(folder / "predictions").iterdir(), *(folder / "releases").iterdir()]:
        path.rename(path.with_name(f"00001-{path.name}"))
    record = proven(config)
    assert faults(record) == []
    assert record.mismatches == whole["mismatches"] == 0
    assert record.counts["late_values"] == whole["late_values"] > 0
    assert record.counts["predictions"] == whole["predictions"]
    assert record.counts["publications"] == whole["publications"]
    assert record.counts["scores"] == whole["scores"]
    assert record.counts["releases"] == whole["releases"]
    # Each row of the store is read twice: in the round, and while nothing is new.
    assert record.counts["store_values"] == 2 * whole["store_values"]
    columns = {view.name: len(view.columns) for view in PROJECT.views}
    of_publications = sum(
        columns[path.parent.name] * pq.read_metadata(path).num_rows
        for path in (folder / "publications").glob("*/*.parquet")
    )
    assert record.values == record.served == whole["values"] + of_publications
    late = next(one for one in record.differences if one.cause == Cause.LATE_EVENT)
    assert late.events
    assert late.served != late.recomputed
    assert record.up_to_us == STREAM_UNTIL


def test_a_request_that_came_late_is_a_cause_of_its_own(served: Configuration) -> None:
    record = proven(served)
    found = [one for one in record.differences if one.cause == Cause.LATE_REQUEST]
    assert found
    for one in found:
        assert one.verdict == "as complete"
        assert one.entity
        assert one.why.startswith("the request of 2026-01-0")


def test_rounds_prove_what_one_round_over_all_proves(
    backfilled: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(backfilled.root, tmp_path / "run")
    config = configuration(backfilled.path.parent, tmp_path / "run")
    config = replace(config, stream=replace(config.stream, poll_rows=50))
    going_on: Follower | None = None
    again: Follower | None = None
    for until_us in (STREAM_UNTIL - 16 * HOUR, STREAM_UNTIL - 8 * HOUR, None):
        stream(config, QuietProgress(), until_us=until_us, resume=going_on is not None)
        if going_on is None or again is None:
            going_on = again = follower(config)
        else:
            # One that goes on from the record of the last round, as after a kill.
            again = follower(config, again.record)
        for one in {going_on, again}:
            assert one.round() is not None
            assert one.round() is None
    whole = proven(config)
    assert going_on is not None
    assert again is not None
    for record in (going_on.record, again.record):
        assert record.mismatches == 0, faults(record)
        assert (record.values, record.served, record.polls) == (
            whole.values,
            whole.served,
            whole.polls,
        )
        assert record.counts["late_values"] == whole.counts["late_values"]
        assert record.causes[Cause.LATE_REQUEST] == whole.causes[Cause.LATE_REQUEST]
        assert len(record.rounds) == 3


def test_a_share_takes_all_values_of_the_entities_that_it_chooses(served: Configuration) -> None:
    some, most, whole = (proven(served, share) for share in (0.3, 0.7, 1.0))
    assert some.served == most.served == whole.served == whole.values
    assert 0 < some.values < most.values < whole.values
    assert some.mismatches == most.mismatches == 0
    assert some.counts["store_values"] < whole.counts["store_values"]


def test_a_smaller_share_goes_on_where_a_larger_one_was(served: Configuration) -> None:
    following = follower(served)
    following.narrow(0.3)
    assert following.round() is not None
    assert following.record.values == proven(served, 0.3).values
    assert following.record.mismatches == 0


@pytest.mark.parametrize(
    ("server", "cause", "begins"),
    [
        (DropsABatch, Cause.LOST, "lost: event"),
        (DoesNotWaitForStragglers, Cause.UNEXPLAINED, EARLY),
    ],
)
def test_a_fault_of_the_engine_is_found_with_its_events(
    server: type[Server], cause: Cause, begins: str, ready: Configuration
) -> None:
    serve(server(ready))
    record = proven(ready)
    found = [one for one in record.differences if one.what == "value" and one.cause == cause]
    assert record.causes[cause] > 0
    assert any(one.why.startswith(begins) for one in found)
    assert any(one.events for one in found)


def change(config: Configuration, column: str, row: int, value: Any) -> None:
    def changed(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        values = table.column(place).to_pylist()
        values[row] = value
        new = pa.array(values, table.schema.field(place).type)
        return table.set_column(place, table.schema.field(place), new)

    folder = stream_of(config.root)
    rewrite_predictions(config.root, changed)
    for path in (folder / "predictions").iterdir():
        if not path.name.startswith("00001-"):
            path.rename(path.with_name(f"00001-{path.name}"))


def drop_first(config: Configuration) -> dict[str, Any]:
    """Remove the first prediction; return it."""
    (path, *_) = sorted((stream_of(config.root) / "predictions").iterdir())
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    row: dict[str, Any] = table.slice(0, 1).to_pylist()[0]
    return row


def test_a_served_value_that_was_changed_is_named(served: Configuration) -> None:
    change(served, "by_driver__rides_6h", 3, 77)
    record = proven(served)
    assert record.mismatches == 1
    (found,) = [one for one in record.differences if one.cause in FAULTS]
    assert (found.what, found.view, found.feature) == ("value", "by_driver", "by_driver__rides_6h")
    assert found.served == "77"
    assert found.recomputed != "77"
    assert found.verdict == "as seen"
    assert found.entity


def test_a_score_that_was_changed_is_named(served: Configuration) -> None:
    change(served, "score", 3, 0.5)
    record = proven(served)
    assert record.mismatches == 1
    assert [what for what, _ in faults(record)] == ["score"]


def test_a_prediction_that_is_gone_was_lost_by_the_engine(served: Configuration) -> None:
    drop_first(served)
    record = proven(served)
    assert record.causes[Cause.LOST] == record.mismatches == FEATURES
    assert faults(record) == [("missing", "the releases have its answer")]


def test_a_record_that_says_that_nobody_answered_is_not_believed(served: Configuration) -> None:
    row = drop_first(served)
    record = rejected.batch(
        rejected.Stage.ANSWER,
        stream="quotes",
        partition=row["partition"],
        positions=np.array([row["position"]]),
        reasons=[rejected.Reason.NO_ANSWER],
        details=["views by_zone did not answer in time"],
        origins=["quotes/0:0"],
        payloads=[b"{}"],
    )
    folder = stream_of(served.root) / "rejected_by_stream"
    write_rows(folder, pa.Table.from_batches([record]), "00001-one")
    found = proven(served)
    assert found.causes.get(Cause.EXPIRED, 0) == 0
    assert {what for what, _ in faults(found)} == {"missing", "rejected"}


def of_releases(config: Configuration, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = stream_of(config.root) / "releases" / "00001-1-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_release_that_left_no_evidence_was_lost_by_the_engine(served: Configuration) -> None:
    of_releases(served, lambda lines: lines.pop(2))
    record = proven(served)
    assert ("release", "the engine lost it, or it was removed: every step leaves evidence") in (
        faults(record)
    )


def test_a_release_whose_frontier_was_changed_is_named(served: Configuration) -> None:
    of_releases(served, lambda lines: lines[2].update(frontier_us=lines[2]["frontier_us"] + 1))
    assert ("release", "the mark is not that of its positions and frontier") in faults(
        proven(served)
    )


def test_a_publication_that_was_changed_is_named(served: Configuration) -> None:
    folder = stream_of(served.root) / "publications" / "by_driver"
    path = sorted(folder.iterdir())[2]
    table = pq.read_table(path)
    place = table.schema.get_field_index("by_driver__rides_6h")
    more = pc.add(table.column(place), 1)
    pq.write_table(table.set_column(place, table.schema.field(place), more), path)
    record = proven(served)
    assert record.mismatches == len(table)
    assert {what for what, _ in faults(record)} == {"publication"}
    path.unlink()
    record = proven(served)
    assert faults(record) == [("publication", "it is gone")]
    assert record.causes[Cause.LOST] == 1


def rows_of_fill(config: Configuration) -> str:
    database = open_database(config.online_store)
    (fill,) = (
        one for one in database.fills([KeySpace.of(PROJECT.name, BY_DRIVER)]) if one.is_current
    )
    database.close()
    return rows_table(fill.id)


def test_a_value_of_the_online_store_that_is_changed_meanwhile_is_named(
    served: Configuration,
) -> None:
    following = follower(served)
    while following.round() is not None:
        pass
    following.idle()
    assert following.record.mismatches == 0
    (key,) = online_keys("driver", pa.array(["d3"]))
    (other,) = online_keys("driver", pa.array(["d4"]))
    rows = rows_of_fill(served)
    assert isinstance(served.online_store, SqlitePlace)
    with sqlite3.connect(served.online_store.path) as sqlite:
        cells = sqlite.execute(f'SELECT cells FROM "{rows}" WHERE entity_key = ?', (other,))
        sqlite.execute(
            f'UPDATE "{rows}" SET cells = ? WHERE entity_key = ?', (cells.fetchone()[0], key)
        )
    sqlite.close()
    assert following.idle() is not None
    found = [one for one in following.record.differences if one.cause in FAULTS]
    assert found
    assert {(one.what, one.view, one.entity) for one in found} == {("store", "by_driver", "d3")}
    # It is read again and again, and is one fault.
    mismatches = following.record.mismatches
    assert following.idle() is None
    assert following.record.mismatches == mismatches == len(found)


def test_a_row_that_is_gone_from_the_online_store_is_named(served: Configuration) -> None:
    (key,) = online_keys("driver", pa.array(["d3"]))
    assert isinstance(served.online_store, SqlitePlace)
    with sqlite3.connect(served.online_store.path) as sqlite:
        sqlite.execute(f'DELETE FROM "{rows_of_fill(served)}" WHERE entity_key = ?', (key,))
    sqlite.close()
    record = proven(served)
    assert {(one.what, one.entity, one.served) for one in record.differences
            if one.cause in FAULTS} == {("store", "d3", "NOT_FOUND")}  # fmt: skip


def test_a_damaged_block_of_the_log_is_an_error(served: Configuration) -> None:
    following = follower(served)
    (path,) = (build_of(served.root) / "log" / "rides").glob("*.arrow")
    content = bytearray(path.read_bytes())
    at = content.find(b"r100")
    content[at : at + 4] = b"r999"
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFile, match="rides"):
        following.round()


def test_a_log_that_was_replaced_since_it_was_proven_is_refused(served: Configuration) -> None:
    record = proven(served)
    log = Log(build_of(served.root))
    table = log.read("rides", 0)
    received = table.column("_received").to_numpy()
    place = table.schema.get_field_index("fare")
    fares = pc.add(table["fare"], 1e-9)
    log.write(RIDES, 0, table.set_column(place, "fare", fares), received)
    with pytest.raises(StateMismatch, match="has other rows than were proven"):
        follower(served, record)
